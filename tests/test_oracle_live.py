"""Logits against float32 transformers, on fresh random files and at every position of a text; some against llama.cpp.

Runs where torch and transformers are installed; test_logits.py holds the same ground without them.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import random_models
from backends import REFERENCE
from divergence import MAX_KL, kl, log_softmax
from random_hybrid import Delta
from routing import Routed

import mlx_ferrum

pytest.importorskip("torch")
pytest.importorskip("transformers")
oracle: Any = pytest.importorskip("oracle")

TEXT = "for i in range(3):\n    print(f'{i}²')  # naïve\n\nThe old lighthouse keeper smiled. 灯台は古い。"


def far(path: Path, model: Any, tokens: list[int]) -> np.ndarray:
    """KL(oracle || ours) at each position of a text, up to the first token that gets other experts."""
    exact, routed = oracle.load(path), Routed(model)
    expected = log_softmax(oracle.logits(exact, tokens))
    found = log_softmax(np.array(model(mx.array([tokens]))[0]))
    if model.args.experts is not None:
        other = routed.differs(oracle.router_logits(exact, tokens)).any(0)
        expected, found = (x[np.cumsum(other) == 0] for x in (expected, found))
    return kl(expected, found)


@pytest.mark.parametrize("name", random_models.CASES)
def test_random_model(name: str, tmp_path: Path) -> None:
    seed = secrets.randbelow(2**32)
    path = random_models.write_case(tmp_path / "model.gguf", name, seed)
    model, _ = mlx_ferrum.load(path)
    tokens = np.random.default_rng(seed).integers(0, random_models.Sizes.vocab, 40).tolist()
    worst = far(path, model, tokens).max(initial=0)
    assert worst < MAX_KL, f"KL {worst} on write_case(path, {name!r}, {seed})"


# One, two and three value heads for each key head, in both orders; three recurrent layers and one with attention.
HYBRIDS: dict[str, tuple[str, Delta, int]] = {
    "qwen3next-1": ("qwen3next", Delta(3, 3, 32, interval=4), 8),
    "qwen3next-2-old": ("qwen3next", Delta(2, 4, 32, interval=4, is_old=True), 8),
    "qwen3next-3": ("qwen3next", Delta(2, 6, 32, interval=4), 8),
    "qwen35-1": ("qwen35", Delta(3, 3, 32, interval=4), 0),
    "qwen35-2": ("qwen35", Delta(2, 4, 32, interval=4), 0),
    "qwen35-3": ("qwen35", Delta(2, 6, 32, interval=4), 0),
    "qwen35moe-3": ("qwen35moe", Delta(2, 6, 32, interval=4), 8),
}
CHUNK = 64  # of transformers and llama.cpp, whose prompts are read in the chunked form
LENGTHS = (1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 300)
LLAMA_CPP_KL = 1e-5  # it keeps keys and values in float16


def write_hybrid(path: Path, name: str, seed: int) -> Path:
    """A file whose vocabulary, of 300, is ASCII."""
    arch, delta, experts = HYBRIDS[name]
    shared = 64 if experts else 0
    sizes = random_models.Sizes(
        layers=4,
        context=512,
        experts=experts,
        used=2 * (experts > 0),
        shared_ffn=shared,
        delta=delta,
    )
    epsilon = {
        "attention.layer_norm_rms_epsilon": 1e-6
    }  # which transformers has for lengths of keys
    return random_models.write(
        path, arch, seed, sizes=sizes, types=("F32",), metadata=epsilon, is_ascii=True
    )


def in_pieces(model: Any, tokens: list[int], seed: int) -> np.ndarray:
    """Logits by way of a cache: pieces that end anywhere, then the last tokens one by one."""
    count, cache = len(tokens), model.make_cache()
    drawn = np.random.default_rng(seed).integers(1, max(2, count - 8), 4).tolist()
    cuts = sorted({cut for cut in [*drawn, *range(count - 8, count)] if 0 < cut < count})
    pieces = np.split(np.array(tokens), cuts)
    return np.concatenate([np.array(model(mx.array(piece[None]), cache))[0] for piece in pieces])


@pytest.mark.parametrize("name", HYBRIDS)
def test_hybrids_across_ends_of_chunks(name: str, tmp_path: Path) -> None:
    """Texts of 1 to 300 tokens, at once and in pieces, on states that last from 1 to 500 tokens."""
    seed = secrets.randbelow(2**32)
    path = write_hybrid(tmp_path / "m.gguf", name, seed)
    tokens = np.random.default_rng(seed).integers(0, 300, 300).tolist()
    expected = log_softmax(oracle.logits(oracle.load(path), tokens))
    with REFERENCE.in_use():
        model, _ = mlx_ferrum.load(path)
        whole, pieces = np.array(model(mx.array([tokens])))[0], in_pieces(model, tokens, seed)
    for logits in (whole, pieces):
        worst = kl(expected, log_softmax(logits)).max()
        assert worst < MAX_KL, f"KL {worst}, {name}, seed {seed}"


@pytest.mark.parametrize("name", ["qwen3next-2-old", "qwen35-3", "qwen35moe-3"])
def test_llama_cpp_agrees_on_hybrids(name: str, tmp_path: Path) -> None:
    xllamacpp: Any = pytest.importorskip("xllamacpp")
    seed = secrets.randbelow(2**32)
    path = write_hybrid(tmp_path / "m.gguf", name, seed)
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(path), 512, 1
    params.warmup, params.verbosity = False, -1
    server = xllamacpp.Server(params)
    tokens = np.random.default_rng(seed).integers(0, 299, 300).tolist()
    with REFERENCE.in_use():
        logits = np.array(mlx_ferrum.load(path)[0](mx.array([tokens])))[0]
    for length in LENGTHS:
        asked = {"prompt": tokens[:length], "n_predict": 1, "n_probs": 300, "temperature": 1.0}
        (choice,) = server.handle_completions({**asked, "cache_prompt": False})["choices"]
        top = {e["id"]: e["logprob"] for e in choice["logprobs"]["content"][0]["top_logprobs"]}
        assert len(top) == 300
        expected = np.array([top[token] for token in range(300)])
        worst = kl(expected, log_softmax(logits[length - 1]))
        assert worst < LLAMA_CPP_KL, f"KL {worst} of {length} tokens, {name}, seed {seed}"


@pytest.mark.parametrize("fixture", ["smollm2", "gemma3"])
def test_real_model(fixture: str, request: pytest.FixtureRequest) -> None:
    model, tokenizer = request.getfixturevalue(fixture)
    path = request.getfixturevalue(f"{fixture}_path")
    assert far(path, model, tokenizer.encode(TEXT)).max() < MAX_KL
