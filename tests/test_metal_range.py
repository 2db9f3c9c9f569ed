"""Numbers beyond the range of float16, wherever the metal backend makes halves of them: the largest half, never NaN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import random_models
from backends import METAL, REFERENCE
from divergence import kl, log_softmax
from msl import metal_on_cpu
from test_append import turned
from test_metal_experts import spread
from test_metal_kernels import HALVES, STAGED, activated, activations, size, wide
from test_ops import float64, random_tensor

import mlx_ferrum
from mlx_ferrum import blocks
from mlx_ferrum.backends import reference
from mlx_ferrum.batch import Place
from mlx_ferrum.kernels.append import Pool, append
from mlx_ferrum.kernels.gather_matmul import gather_matmul
from mlx_ferrum.kernels.matmul import matmul
from mlx_ferrum.kernels.matvec import matvec
from mlx_ferrum.kernels.matvecs import matvecs
from mlx_ferrum.kernels.sort_pairs import sort_pairs
from mlx_ferrum.tensor import QTensor

LARGEST = 65504.0
MAX_KL = 1e-4  # nats, as in test_metal.py


@pytest.fixture(params=[False, True], ids=["plain", "checked"])
def host(request):
    with metal_on_cpu(checked=request.param, seed=1) as host:
        yield host
    assert [str(f) for f in host.findings] == []


def large(rows: int, k: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    """Mostly of size 1e5, with zeros, infinities, and numbers that round to the largest half or just beyond."""
    x = 1e5 * np.array(activations(rows, k))
    x[0, :8] = [65504, -65504, 65519, -65521, np.inf, -np.inf, 0, 1e38]
    x[1:, ::7] = 0
    return mx.array(x).astype(dtype)


def within(x: np.ndarray) -> np.ndarray:
    return np.clip(x, -LARGEST, LARGEST)


def assert_products(found: mx.array, x: mx.array, w: QTensor) -> None:
    """found is x wᵀ of what is left of both."""
    values, weights = within(wide(x)), within(float64(w))
    error = np.abs(wide(found) - values @ weights.T) / (HALVES * size(values, weights))
    assert np.isfinite(wide(found)).all()
    assert error.max() <= 1


def large_weights(block: type[blocks.Block]) -> QTensor:
    """(7, 256), many beyond the range, as few files have them."""
    w = random_tensor(block, 7, 256, seed=1)
    raw = w.data.reshape(-1, block.bytes).copy()
    if block is blocks.MXFP4:
        raw[:, 0] = 127 + 15  # 2^15 times up to 6
    elif block is blocks.F32:
        raw = np.array(large(7, 256)).view(np.uint8)
    elif block.weights == 1:
        raw = np.array(large(7, 256).astype(mx.bfloat16).view(mx.uint16)).view(np.uint8)
    else:
        start = {"Q8_0": 0, "Q4_K": 0, "Q6_K": 208}[block.name]
        raw[:, start : start + 2] = np.array([900], np.float16).view(np.uint8)
    return QTensor(block, (7, 256), raw.reshape(-1))


@pytest.mark.parametrize("columns", [32, 64])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_activations_of_tiles(host, dtype, columns):
    x, w = large(columns + 1, 256, dtype), random_tensor(blocks.Q4_K, 9, 256, seed=1)
    assert_products(matmul(x, w, columns=columns), x, w)


@pytest.mark.parametrize("block", [blocks.F32, blocks.F16], ids=lambda b: b.name)
def test_activations_of_tiles_that_end_amid_a_step(host, block):
    x, w = large(9, 53), random_tensor(block, 9, 53, seed=1)
    assert_products(matmul(x, w, columns=32), x, w)


def test_staged_activations_of_any_size(host):
    """They share a scale, so nothing is clamped; what is not finite stays so, in its row alone."""
    w, sizes = random_tensor(blocks.Q6_K, 9, 512, seed=1), [1e-26, 1e-6, 1, 1e6, 1e30, 0, 1]
    x = np.array(activations(7, 512)) * np.array(sizes, np.float32)[:, None]
    x[6, 5] = np.inf
    (normed,) = matvecs(mx.array(x), [w], [None], norm=(mx.ones(512), 1e-6))
    found = matvec(mx.array(x), w)
    error = np.abs(wide(found)[:5] - x[:5].astype(np.float64) @ float64(w).T)
    assert (error <= STAGED * size(x[:5].astype(np.float64), float64(w))).all()
    assert (wide(found)[5] == 0).all()
    assert not np.isfinite(wide(found)[6]).any()
    scale = wide(normed)[2:4] / wide(found)[2:4]  # of rows whose epsilon does not count
    rms = np.sqrt((x[2:4].astype(np.float64) ** 2).mean(-1, keepdims=True))
    np.testing.assert_allclose(scale * rms, 1, rtol=1e-5)


WIDE = [blocks.F32, blocks.BF16, blocks.MXFP4, blocks.Q8_0, blocks.Q4_K, blocks.Q6_K]


@pytest.mark.parametrize("block", WIDE, ids=lambda b: b.name)
def test_weights_of_tiles(host, block):
    w, x = large_weights(block), activations(9, 256)
    assert (np.abs(float64(w)) > LARGEST).mean() > 0.05
    assert_products(matmul(x, w, columns=32), x, w)


@pytest.mark.parametrize("columns", [16, 32, 64])
def test_tiles_of_experts(host, columns):
    w, ids = random_tensor(blocks.Q8_0, 2, 9, 64, seed=1), spread(40, 1, 2)
    x, order = large(40, 64), sort_pairs(ids.reshape(-1), 2, size=columns)
    found = gather_matmul(x, w, order)
    for expert in (0, 1):
        mine = mx.array(np.flatnonzero(np.array(ids) == expert))
        assert_products(found[mine], x[mine], w.matrix(expert))


def test_a_gate_may_be_large(host):
    """It is never rounded to a half."""
    x, gate = activations(9, 256), 1e5 * mx.abs(activations(9, 7))
    w = random_tensor(blocks.Q4_K, 7, 256, seed=1)
    factor = activated(wide(gate), "silu")
    found = wide(matmul(x, w, gate=(gate, "silu"), columns=32))
    allowed = HALVES * factor * size(wide(x), float64(w))
    assert (np.abs(found - factor * (wide(x) @ float64(w).T)) <= allowed).all()


def test_no_number_stays_none(host):
    """In its own row only."""
    x, w = np.array(large(9, 256)), random_tensor(blocks.Q4_K, 9, 256, seed=1)
    x[[2, 5], 3] = np.nan
    found = np.array(matmul(mx.array(x), w, columns=32))
    assert (np.isnan(found).all(axis=1) == np.isnan(x).any(axis=1)).all()
    assert np.isfinite(np.delete(found, [2, 5], axis=0)).all()


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("interleaved", [True, False])
def test_queries_keys_and_values(host, interleaved, normed):
    q, k, v = (1e5 * activations(n * 9, 64).reshape(9, n, 64) for n in (4, 2, 2))
    v[0, 0, :3] = mx.array([np.inf, -np.inf, np.nan])
    weight = 1e5 * activations(1, 64)[0]
    options: dict[str, Any] = {"interleaved": interleaved, "magnitude": 1.0}
    options["norms"] = (weight, weight, 1e-5) if normed else None
    frequencies = mx.array(10.0 ** -np.linspace(0, 4, 24), mx.float32)
    how = {"interleaved": interleaved, "magnitude": 1.0, "weight": wide(weight) if normed else None}
    turns, at = np.array(frequencies), 5 + np.arange(9)
    pool = Pool(*(mx.zeros((3, 2, 4, 64), mx.float16) for _ in range(2)), (), None)
    slots = mx.array(11 - np.arange(9))
    made, mark = append(
        q, k, v, pool, frequencies, positions=mx.array(at, mx.int32), slots=slots, **options
    )
    mx.eval(mark)
    queries, keys = (turned(wide(x), at, turns, **how) for x in (q, k))
    stored = [
        wide(x).swapaxes(1, 2).reshape(12, 2, 64)[np.array(slots)] for x in (pool.keys, pool.values)
    ]
    wanted = [queries, keys, wide(v)]
    for found, exact in zip((wide(made), *stored), wanted, strict=True):
        held = within(exact)
        assert (np.abs(held) == LARGEST).mean() > 0.2
        np.testing.assert_allclose(found, held, rtol=2.0**-10, atol=LARGEST * 1e-5)


def clipped(call: Any) -> Any:
    """The operation of what is left of x."""
    return lambda x, w, **options: call(mx.clip(x, -LARGEST, LARGEST), w, **options)


def clipped_append(q: Any, k: Any, v: Any, at: Place, *turns: Any, **options: Any) -> Any:
    turned = append_by_definition(q, k, mx.clip(v, -LARGEST, LARGEST), at, *turns, **options)
    at.storage.keys = mx.clip(at.storage.keys, -LARGEST, LARGEST)
    return mx.clip(turned, -LARGEST, LARGEST)


append_by_definition = reference.append


@pytest.mark.parametrize(
    "name, norm, factor",
    [
        ("llama", "post_attention_layernorm", 3e2),
        ("qwen3", "input_layernorm", 1e5),
    ],
)
def test_a_prompt_of_large_activations(name, norm, factor, tmp_path, monkeypatch):
    """A norm makes them: what the down projections get, or values and what o_proj gets."""
    model, _ = mlx_ferrum.load(random_models.write_case(Path(tmp_path) / "m.gguf", name, 1))
    first = model.body.layers[0]
    first[norm].weight = factor * first[norm].weight
    tokens = mx.array(np.random.default_rng(1).integers(0, 256, (1, 40)))
    with METAL.in_use():
        found = np.array(model(tokens)[0])
    monkeypatch.setattr(reference, "matmul", clipped(reference.matmul))
    monkeypatch.setattr(reference, "append", clipped_append)
    with REFERENCE.in_use():
        wanted = np.array(model(tokens)[0])
    assert np.isfinite(found).all()
    assert kl(log_softmax(wanted), log_softmax(found)).max() < MAX_KL
