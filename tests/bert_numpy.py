"""BERT files in float32 NumPy: weights decoded by gguf-py, formulas from the paper. Shares no code with the package."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np

erf = np.vectorize(math.erf)
Weights = dict[str, np.ndarray]


def read(path: Path) -> tuple[Weights, dict[str, Any]]:
    """The tensors and the metadata of a GGUF file."""
    reader = gguf.GGUFReader(path)
    weights = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return weights, {key: field.contents() for key, field in reader.fields.items()}


def norm(x: np.ndarray, w: Weights, name: str, eps: float) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer(x: np.ndarray, w: Weights, at: str, count: int, eps: float) -> np.ndarray:
    q, k, v = (
        linear(x, w, f"{at}.attn_{n}").reshape(len(x), count, -1).swapaxes(0, 1) for n in "qkv"
    )
    scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
    p = np.exp(scores - scores.max(-1, keepdims=True))
    seen = (p / p.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(x.shape)
    x = norm(x + linear(seen, w, f"{at}.attn_output"), w, f"{at}.attn_output_norm", eps)
    inner = linear(x, w, f"{at}.ffn_up")
    inner = (inner * (1 + erf(inner / math.sqrt(2))) / 2).astype(np.float32)
    return norm(x + linear(inner, w, f"{at}.ffn_down"), w, f"{at}.layer_output_norm", eps)


def hidden(ids: list[int], w: Weights, metadata: dict[str, Any]) -> np.ndarray:
    """What the last layer makes of each token: (n,) -> (n, d)."""
    eps, count = (
        metadata[f"bert.attention.{name}"] for name in ("layer_norm_epsilon", "head_count")
    )
    x = w["token_embd.weight"][ids] + w["position_embd.weight"][: len(ids)]
    x = norm(x + w["token_types.weight"][0], w, "token_embd_norm", eps)
    for i in range(metadata["bert.block_count"]):
        x = layer(x, w, f"blk.{i}", count, eps)
    return x


def embedding(ids: list[int], w: Weights, metadata: dict[str, Any]) -> np.ndarray:
    """The mean of all tokens' vectors, of length 1: (n,) -> (d,)."""
    mean = hidden(ids, w, metadata).mean(0)
    return mean / np.linalg.norm(mean)
