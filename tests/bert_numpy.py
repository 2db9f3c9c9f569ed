"""BERT in float32 NumPy, from the formulas of the paper: it shares no code with the package."""

import math

import numpy as np

erf = np.vectorize(math.erf)


def norm(x, w, name, eps):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer(x, w, at, config):
    count = config["num_attention_heads"]
    q, k, v = (
        linear(x, w, f"{at}.attention.self.{n}").reshape(len(x), count, -1).swapaxes(0, 1)
        for n in ("query", "key", "value")
    )
    scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
    p = np.exp(scores - scores.max(-1, keepdims=True))
    out = (p / p.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(x.shape)
    eps = config["layer_norm_eps"]
    x = norm(
        x + linear(out, w, f"{at}.attention.output.dense"),
        w,
        f"{at}.attention.output.LayerNorm",
        eps,
    )
    h = linear(x, w, f"{at}.intermediate.dense")
    h = (h * (1 + erf(h / math.sqrt(2))) / 2).astype(np.float32)
    return norm(x + linear(h, w, f"{at}.output.dense"), w, f"{at}.output.LayerNorm", eps)


def embedding(ids, w, config):
    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = x + w["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, w, "embeddings.LayerNorm", config["layer_norm_eps"])
    for i in range(config["num_hidden_layers"]):
        x = layer(x, w, f"encoder.layer.{i}", config)
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)
