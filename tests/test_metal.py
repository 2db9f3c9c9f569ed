"""The metal backend against the reference and the float32 goldens, on the GPU or on the host."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import random_models
from backends import METAL, REFERENCE
from divergence import coarsen, kl, log_softmax
from msl import metal_on_cpu
from pages import Layer
from routing import Routed
from test_ops import float64, random_tensor

import mlx_ferrum
from mlx_ferrum import blocks, launch, ops
from mlx_ferrum.backends import reference
from mlx_ferrum.state.kinds import KV

GOLDEN = Path(__file__).parent / "golden"
SEED = 2026  # of golden/make_logits.py
MAX_KL = 1e-4  # nats; products of several rows round activations to float16, the cache keeps keys and values in it


@pytest.fixture
def on_metal():
    """The metal backend, in use; afterwards again the one before."""
    before = ops.backend_name()
    with metal_on_cpu():
        ops.use_backend("metal")
        yield
    ops.use_backend(before)


@pytest.fixture
def normals():
    rng = np.random.default_rng(7)
    return lambda *shape: mx.array(rng.normal(size=shape), mx.float32)


def assert_near(found: mx.array, wanted: mx.array, relative: float) -> None:
    assert found.shape == wanted.shape
    expected = np.array(wanted.astype(mx.float32))
    difference = np.array(found.astype(mx.float32)) - expected
    assert np.abs(difference).max() <= relative * np.abs(expected).max()


@pytest.mark.parametrize("n", [1, 8, 9, 33])
def test_products_of_any_number_of_rows(on_metal, normals, n):
    """Kernels change with the number of rows, results only by rounding."""
    w, up = random_tensor(blocks.Q6_K, 70, 256, seed=1), random_tensor(blocks.Q4_K, 70, 256, seed=2)
    x, bias, add = normals(n, 1, 256), normals(70), normals(n, 1, 70)
    bound = 1e-5 if n == 1 else 2e-3  # halves of x
    for found, wanted in [
        (ops.matmul(x, w, bias=bias, add=add), reference.matmul(x, w, bias=bias, add=add)),
        (ops.matmuls(x, [w, up])[1], reference.matmul(x, up)),
        (ops.gate_up(x, w, up, "gelu"), reference.gate_up(x, w, up, "gelu")),
    ]:
        assert_near(found, wanted, bound)


@pytest.mark.parametrize("block", [blocks.Q4_1, blocks.F32, blocks.BF16], ids=lambda b: b.name)
def test_tiny_weights(on_metal, block):
    """Of fewer words than a Metal buffer of MLX's has at least."""
    w, up = (random_tensor(block, 1, block.weights, seed=seed) for seed in (1, 2))
    x = mx.ones((3, block.weights))
    assert_near(ops.matmul(x, w, bias=mx.ones(1)), reference.matmul(x, w, bias=mx.ones(1)), 1e-5)
    assert_near(ops.matmuls(x, [w, w])[1], reference.matmul(x, w), 1e-5)
    assert_near(ops.gate_up(x, w, up, "silu"), reference.gate_up(x, w, up, "silu"), 1e-5)
    assert np.array_equal(np.array(ops.rows(w, mx.array([0]), 2.0)), 2 * float64(w))


@pytest.mark.parametrize("shape", [(7,), (96,), (5, 64)])
def test_dequantize(on_metal, shape):
    w = random_tensor(blocks.F16 if shape == (7,) else blocks.Q8_0, *shape, seed=3)
    assert np.array_equal(np.array(ops.dequantize(w)), float64(w))


@pytest.mark.parametrize("dtype, bound", [(mx.float32, 2e-6), (mx.float16, 1e-3)])
@pytest.mark.parametrize("shape", [(1, 5), (3, 64), (2, 2, 1000), (1, 5000)])
def test_rms_norm_with_a_residual(on_metal, normals, shape, dtype, bound):
    x, add, weight = (
        normals(*shape).astype(dtype),
        normals(*shape).astype(dtype),
        normals(shape[-1]),
    )
    found = ops.rms_norm(x, weight, 1e-5, add=add)
    assert found.dtype == dtype
    assert_near(found, reference.rms_norm(x.astype(mx.float32), weight, 1e-5, add=add), bound)


@pytest.mark.parametrize("window", [None, 3, 50])
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_attention_takes_and_gives_halves(on_metal, window, softcap):
    layer = Layer(METAL, KV(2, 16, 16, window), 6)
    layer.begin(9, 60)
    rows = layer.append({0: 4, 1: 1})
    assert rows.turned.dtype == rows.at.storage.keys.dtype == mx.float16
    found = ops.attend(rows.turned, rows.at, scale=0.25, softcap=softcap)
    assert found.dtype == mx.float16
    wanted = mx.array(layer.wanted(rows, scale=0.25, softcap=softcap))
    assert_near(found, wanted, 2e-3)


@pytest.mark.parametrize("name", random_models.CASES)
def test_random_models(on_metal, name, tmp_path):
    """A whole text by tiles, then the same text by 8 tokens, one, and the rest, from the cache."""
    goldens = np.load(GOLDEN / "random_logits.npz")
    tokens, wanted = goldens[f"{name}.tokens"], goldens[f"{name}.logits"]
    model, _ = mlx_ferrum.load(random_models.write_case(tmp_path / "m.gguf", name, SEED))
    for cuts in ((), (8, 9)):
        cache, routed = model.make_cache(), Routed(model)
        found = [np.array(model(mx.array(part[None]), cache)[0]) for part in np.split(tokens, cuts)]
        same = np.cumsum(routed.other(goldens, name)) == 0
        far = kl(log_softmax(wanted), log_softmax(np.concatenate(found)))
        assert far[same].max() < MAX_KL


def test_the_first_tokens_of_smollm2(on_metal, smollm2):
    """Every kernel of a real model at its real shapes."""
    goldens = np.load(GOLDEN / "real_logits.npz")
    tokens, positions, ids, wanted = (
        goldens[f"smollm2-135m.{part}"] for part in ("tokens", "positions", "ids", "log_probs")
    )
    early = positions < 8
    hidden = smollm2[0].body(smollm2[0].make_cache().batch(mx.array(tokens[:8])[None]))
    logits = np.array(smollm2[0].head(hidden[mx.array(positions[early])]))
    assert kl(wanted[early], coarsen(log_softmax(logits), ids[early])).max() < MAX_KL


def _outlined(kernel: launch.Kernel, call: launch.Launch) -> list[mx.array]:
    """Outputs of the right shapes that depend on all inputs, lazily."""
    parts = (x.astype(mx.float32).sum() for x in call.arrays)
    total = sum(parts, start=mx.array(0.0))
    shaped = zip(call.output_shapes, call.output_dtypes, strict=True)
    return [mx.zeros(shape, dtype) + total.astype(dtype) for shape, dtype in shaped]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_step_can_be_traced(name, tmp_path):
    """Nothing in it evaluates, or needs a value: mx.compile takes it as it is."""
    model, _ = mlx_ferrum.load(random_models.write_case(tmp_path / "m.gguf", name, SEED))
    with REFERENCE.in_use(), launch.use_runner(_outlined):
        ops.use_backend("metal")
        cache = model.make_cache()
        mx.eval(model(mx.array([[1, 2, 3]]), cache))

        def step(token: mx.array) -> mx.array:
            return model.head(model.body(cache.batch(token[None])))[None]

        assert mx.compile(step)(mx.array([5])).shape == (1, 1, model.args.vocab_size)
