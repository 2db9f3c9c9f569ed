"""The native operations against the reference backend, over block types and odd shapes, with each instruction set."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
import random_blocks
import random_models
from backends import CPU, CPU_PORTABLE, LOWER, REFERENCE, Backend

import mlx_ferrum
from mlx_ferrum import blocks, cache, ops
from mlx_ferrum.tensor import QTensor

BLOCKS = pytest.mark.parametrize(
    "block", [b for b in blocks.SUPPORTED if b is not blocks.Q8_K], ids=lambda b: b.name
)  # files do not hold Q8_K; test_ops.py has it
BATCHES = (1, 2, 3, 7, 8, 9, 17, 33, 65)
SIZES = (  # rows of the weight, of x
    *((1, 1), (3, 2), (5, 3), (33, 7), (65, 8), (200, 9), (1, 17), (3, 33), (5, 65)),
    *((65, 1), (200, 1), (33, 2), (200, 8), (33, 9), (65, 17), (200, 33), (33, 65)),
)


@pytest.fixture(params=[CPU, *LOWER], ids=str)
def native(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The cpu backend in use, with each instruction set that this processor has, and with none."""
    with request.param.in_use() as backend:
        yield backend


def widths(block: type[blocks.Block]) -> tuple[int, ...]:
    """Row lengths: part of 256 weights, just that, and more."""
    if block.weights == 256:
        return (256, 768)
    return (1, 7, 33, 256, 531) if block.weights == 1 else (32, 96, 256, 288, 576, 640)


def random_weight(block: type[blocks.Block], rows: int, k: int, seed: int) -> QTensor:
    drawn = random_blocks.matrix(np.random.default_rng(seed), block.name, rows, k)
    return QTensor(block, (rows, k), drawn.data.reshape(-1))


def normal(*shape: int, seed: int = 0) -> Any:
    """Float32 activations, as the cpu backend holds them."""
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def by_reference(op: Callable[..., Any], *args: Any, **options: Any) -> np.ndarray:
    """The op of the reference backend on the same arguments."""
    with REFERENCE.in_use():
        found = op(*(mx.array(a) if isinstance(a, np.ndarray) else a for a in args), **options)
        return np.array(found)


def float64(w: QTensor) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return by_reference(ops.dequantize, w).astype(np.float64)


# -- weights -----------------------------------------------------------------------------------


@BLOCKS
def test_products(native: Backend, block: type[blocks.Block]) -> None:
    for k in widths(block):
        for rows, n in SIZES:
            w = random_weight(block, rows, k, seed=rows * n)
            x = normal(n, k)
            weights = float64(w)
            found = np.asarray(ops.matmul(x, w))
            wanted = x.astype(np.float64) @ weights.T
            allowed = native.product_error(x.astype(np.float64), weights)
            worst = (np.abs(found - wanted) / allowed).max()
            assert found.shape == (n, rows) and worst <= 1, (k, rows, n, worst)


@BLOCKS
def test_a_row_does_not_depend_on_the_others(native: Backend, block: type[blocks.Block]) -> None:
    """Few rows and many take different ways, whose float32 sums differ in order and in nothing else."""
    k = widths(block)[-1]
    w, x = random_weight(block, 71, k, seed=1), normal(65, k)
    whole = np.asarray(ops.matmul(x, w))
    scale = np.abs(x).sum(-1, keepdims=True) * np.abs(float64(w)).max(-1)
    for n in BATCHES[:-1]:
        assert (np.abs(ops.matmul(x[:n], w) - whole[:n]) <= 5e-7 * scale[:n]).all(), n


@BLOCKS
@pytest.mark.parametrize("n", [1, 3, 9])
def test_weights_of_mixed_types_at_once(native: Backend, block: type[blocks.Block], n: int) -> None:
    x = normal(2, n, 256)
    others = (blocks.Q4_K, blocks.Q6_K, blocks.F16)
    ws = [random_weight(b, 40 + i, 256, seed=i) for i, b in enumerate((block, *others))]
    for together, w in zip(ops.matmuls(x, ws), ws, strict=True):
        assert np.array_equal(together, ops.matmul(x, w)), w


@BLOCKS
@pytest.mark.parametrize("act", ["silu", "gelu"])
def test_gate_up(native: Backend, block: type[blocks.Block], act: ops.Activation) -> None:
    k = widths(block)[-1]
    gate = random_weight(block, 101, k, seed=2)
    up = random_weight(blocks.Q8_0 if k % 32 == 0 else blocks.F32, 101, k, seed=3)
    for n in (1, 5, 33):
        x = 3 * normal(n, k)
        g, u = (by_reference(ops.matmul, np.asarray(x), w) for w in (gate, up))
        wide = x.astype(np.float64)
        wanted = by_reference(ops.gate_up, x, gate, up, act)
        # both activations are at most 1.13 times as steep as their argument, and at most as large
        allowed = 1.13 * native.product_error(wide, float64(gate)) * np.abs(u)
        allowed += native.product_error(wide, float64(up)) * (np.abs(g) + 1e-3)
        assert (np.abs(ops.gate_up(x, gate, up, act) - wanted) <= allowed + 1e-6).all()


@BLOCKS
def test_rows_decode_exactly(native: Backend, block: type[blocks.Block]) -> None:
    """Every number is that of gguf-py; only the sign of a zero may differ."""
    for k in widths(block):
        w = random_weight(block, 37, k, seed=k)
        wanted = gguf.quants.dequantize(w.data, gguf.GGMLQuantizationType[block.name])
        assert np.array_equal(ops.dequantize(w), wanted)
        ids = np.array([[36, 0, 5], [5, 5, 1]])
        assert np.array_equal(np.asarray(ops.rows(w, mx.array(ids))), wanted[ids])


@pytest.mark.parametrize("ids", [[0, 40], [-1], [1 << 40]])
def test_rows_outside_the_matrix_are_refused(native: Backend, ids: list[int]) -> None:
    with pytest.raises(ValueError, match="row ids lie between 0 and 39, found"):
        ops.rows(random_weight(blocks.Q8_0, 40, 64, seed=1), mx.array(ids))


@BLOCKS
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [1, 3, 9])
def test_nan_and_infinity_stay_visible(
    native: Backend, block: type[blocks.Block], poison: float, n: int
) -> None:
    """In the row that has them, and in no other."""
    k = widths(block)[-1]
    w, x = random_weight(block, 70, k, seed=4), normal(n, k)
    clean = np.asarray(ops.matmul(x, w))
    x[n // 2, k // 2] = poison
    found = np.asarray(ops.matmul(x, w))
    assert not np.isfinite(found[n // 2]).any()
    others = np.arange(n) != n // 2
    assert np.array_equal(found[others], clean[others])


@BLOCKS
def test_infinite_scales_stay_visible(native: Backend, block: type[blocks.Block]) -> None:
    """Blocks of random bits, whose scales are also infinite and NaN."""
    k = 2 * block.weights
    raw = np.random.default_rng(block.id).integers(0, 256, (4000, 2 * block.bytes), np.uint8)
    w = QTensor(block, (4000, k), raw.reshape(-1))
    finite = np.isfinite(float64(w)).all(axis=-1)
    for n in (1, 9):
        found = np.asarray(ops.matmul(normal(n, k), w))
        assert not np.isfinite(found[:, ~finite]).any()
    decoded = by_reference(ops.dequantize, w)
    assert not np.isfinite(ops.dequantize(w)[~np.isfinite(decoded)]).any()


# -- norms and rotation ------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 7, 64, 576, 1000])
@pytest.mark.parametrize("shape", [(1,), (2, 3), (130,)], ids=str)
def test_rms_norm(native: Backend, shape: tuple[int, ...], d: int) -> None:
    x, weight = 5 * normal(*shape, d), normal(d, seed=1)
    wanted = by_reference(ops.rms_norm, x, weight, 1e-6)
    assert np.allclose(ops.rms_norm(x, weight, 1e-6), wanted, rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_norm_keeps_nan_and_infinity_visible(native: Backend, poison: float) -> None:
    x = normal(3, 64)
    x[1, 5] = poison
    found = np.asarray(ops.rms_norm(x, normal(64), 1e-6))
    assert np.isnan(found[1, 5]) and np.isfinite(found[[0, 2]]).all()


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("d, pairs", [(64, 32), (80, 16), (6, 3), (7, 2)])
@pytest.mark.parametrize("offset", [0, 500, [3, 70]], ids=str)
def test_norm_rope(
    native: Backend, offset: Any, d: int, pairs: int, normed: bool, interleaved: bool
) -> None:
    weight, frequencies = normal(d, seed=1), (100.0 ** -np.linspace(0, 1, pairs)).astype("f4")
    options: dict[str, Any] = {"interleaved": interleaved, "magnitude": 1.2}
    for length in (1, 5, 130):
        x = normal(2, length, 3, d)
        at = mx.array(offset) if isinstance(offset, list) else offset
        norm = (mx.array(weight), 1e-5) if normed else None
        options |= {"offset": at, "norm": norm}
        wanted = by_reference(ops.norm_rope, x, frequencies, **options)
        found = ops.norm_rope(x, mx.array(frequencies), **options)
        # the sine and cosine of a float32 angle of up to 630, which is exact to 3e-5
        assert np.allclose(found, wanted, atol=2e-4), length


# -- attention ---------------------------------------------------------------------------------

ATTENTION = [  # query heads, key-value heads, new positions, held positions
    (1, 1, 1, 1),
    (6, 2, 1, 63),
    (9, 3, 1, 64),
    (4, 4, 1, 65),
    (4, 1, 1, 1100),
    (6, 2, 5, 5),
    (8, 2, 130, 130),
    (3, 1, 33, 700),
]


@pytest.mark.parametrize("window", [None, 1, 5, 100])
@pytest.mark.parametrize("shape", ATTENTION, ids=str)
@pytest.mark.parametrize("d, dv", [(64, 64), (33, 20), (8, 129)])
def test_attend(
    native: Backend, d: int, dv: int, shape: tuple[int, ...], window: int | None
) -> None:
    heads, groups, length, held = shape
    q, k, v = normal(2, heads, length, d), normal(2, groups, held, d), normal(2, groups, held, dv)
    options = {"scale": 2.5 * d**-0.5, "window": window}
    wanted = by_reference(ops.attend, q, k, v, **options)
    # scores of up to some ten units, exact to 1e-6
    assert np.allclose(ops.attend(q, k, v, **options), wanted, atol=2e-5)
    halves, rounded = (
        [x.astype("f2") for x in (k, v)],
        [x.astype("f2").astype("f4") for x in (k, v)],
    )
    wanted = by_reference(ops.attend, q, *rounded, **options)
    assert np.allclose(ops.attend(q, *halves, **options), wanted, atol=2e-5)


def test_attend_reads_a_cache_in_place(native: Backend) -> None:
    """Keys and values are views of storage that has room for more, in either direction."""
    q, k, v = normal(2, 4, 3, 16), normal(2, 2, 40, 16), normal(2, 2, 50, 24)
    inner_k, inner_v = k[:, :, 7:29], v[:, :, 20:42]
    wanted = by_reference(ops.attend, q, inner_k.copy(), inner_v.copy(), scale=0.3)
    assert np.allclose(ops.attend(q, inner_k, inner_v, scale=0.3), wanted, atol=1e-5)


def test_caches_hold_the_nearest_halves(native: Backend) -> None:
    """Ties go to even; what is too large becomes infinite; NaN stays."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        middles = (halves[:-1] + halves[1:]) / 2
        near = [np.nextafter(middles, np.float32(to)) for to in (-np.inf, np.inf)]
        numbers = np.concatenate([halves, middles, *near, normal(1 << 16)])
        x: Any = numbers[: numbers.size // 37 * 37].reshape(1, 1, -1, 37)
        wanted = x.astype(np.float16)
    stored: Any = np.zeros(x.shape, np.float16)
    found = np.asarray(ops.put(stored, 0, x))
    assert np.array_equal(found, wanted, equal_nan=True)
    known = ~np.isnan(wanted)
    assert np.array_equal(found[known].view(np.uint16), wanted[known].view(np.uint16))


def test_attention_of_far_apart_scores(native: Backend) -> None:
    """The weight of all keys but one vanishes; none overflows."""
    q, k, v = 40 * normal(1, 2, 9, 16), 40 * normal(1, 1, 300, 16), normal(1, 1, 300, 16)
    wanted = by_reference(ops.attend, q, k, v, scale=1.0)
    # scores of 10,000 are exact to 1e-3
    assert np.allclose(ops.attend(q, k, v, scale=1.0), wanted, atol=1e-2)


@pytest.mark.parametrize("which", ["q", "k", "v"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_attention_keeps_nan_and_infinity_visible(
    native: Backend, poison: float, which: str
) -> None:
    given = {"q": normal(1, 2, 8, 16), "k": normal(1, 1, 80, 16), "v": normal(1, 1, 80, 16)}
    given[which][0, 0, 3, 2] = poison
    found = np.asarray(ops.attend(*given.values(), scale=0.3))
    wanted = by_reference(ops.attend, *given.values(), scale=0.3)
    assert not np.isfinite(wanted).all()
    assert (~np.isfinite(found) >= ~np.isfinite(wanted)).all()
    assert np.isfinite(found[0, 1, 0]).all() or which != "q"


# -- what does not fit -------------------------------------------------------------------------


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


UNFIT: dict[str, tuple[Callable[[], Any], str]] = {
    "bias": (
        lambda: ops.matmul(zeros(2, 64), random_weight(blocks.Q8_0, 5, 64, 1), bias=zeros(4)),
        r"bias: expected shape \(5,\), found \(4,\)",
    ),
    "residual": (
        lambda: ops.matmul(zeros(2, 64), random_weight(blocks.Q8_0, 5, 64, 1), add=zeros(5)),
        r"add: expected shape \(2, 5\), found \(5,\)",
    ),
    "gate and up": (
        lambda: ops.gate_up(
            zeros(64),
            random_weight(blocks.Q8_0, 5, 64, 1),
            random_weight(blocks.Q8_0, 6, 64, 1),
            "silu",
        ),
        "differ in rows",
    ),
    "norm": (lambda: ops.rms_norm(zeros(2, 8), zeros(7), 1e-6), r"expected shape \(8,\)"),
    "pairs": (
        lambda: ops.norm_rope(zeros(1, 1, 1, 8), zeros(5), offset=0, interleaved=True),
        "5 pairs do not fit heads of 8",
    ),
    "keys and values": (
        lambda: ops.attend(zeros(1, 2, 1, 8), zeros(1, 1, 5, 8), zeros(1, 1, 6, 8), scale=1),
        "do not fit together",
    ),
    "heads": (
        lambda: ops.attend(zeros(1, 3, 1, 8), zeros(1, 2, 5, 8), zeros(1, 2, 5, 8), scale=1),
        "do not fit together",
    ),
    "half precision keys": (
        lambda: ops.attend(
            zeros(1, 2, 1, 8), zeros(1, 2, 5, 8).astype("f2"), zeros(1, 2, 5, 8), scale=1
        ),
        "k is float16, v is float32, expected the same",
    ),
    "double precision keys": (
        lambda: ops.attend(
            zeros(1, 2, 1, 8),
            zeros(1, 2, 5, 8).astype("f8"),
            zeros(1, 2, 5, 8).astype("f8"),
            scale=1,
        ),
        "k: expected float16 or float32, found float64",
    ),
    "keys that are not contiguous": (
        lambda: ops.attend(
            zeros(1, 2, 1, 8), zeros(1, 2, 8, 5).swapaxes(2, 3), zeros(1, 2, 5, 8), scale=1
        ),
        "k: expected a contiguous last axis",
    ),
    "past the end of a cache": (
        lambda: ops.put(zeros(1, 2, 9, 8), 8, zeros(1, 2, 2, 8)),
        r"\(1, 2, 2, 8\) at 8 does not fit \(1, 2, 9, 8\)",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_refused(native: Backend, name: str) -> None:
    """The library checks nothing: it would read and write elsewhere."""
    call, message = UNFIT[name]
    with pytest.raises(ValueError, match=message):
        call()


# -- whole models ------------------------------------------------------------------------------

PROMPT = "The old lighthouse keeper"


def load_case(folder: Path, name: str, seed: int = 5) -> Any:
    model, _ = mlx_ferrum.load(random_models.write_case(folder / f"{name}.gguf", name, seed))
    return model


def run(model: Any, tokens: np.ndarray, held: list[Any] | None = None) -> np.ndarray:
    return np.array(model(mx.array(tokens), cache=held))


def random_tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 300, shape)


def test_thread_counts_change_nothing(native: Backend, tmp_path: Path) -> None:
    model, tokens = load_case(tmp_path, "llama"), random_tokens(2, 30)
    found = []
    for threads in (1, 2, 3, 5):
        ops.use_backend("cpu", threads=threads)
        held = model.make_cache()
        found.append([run(model, tokens[:, :29], held), run(model, tokens[:, 29:], held)])
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("case", ["llama", "qwen3", "gemma3"])
def test_a_cache_moves_between_backends(case: str, tmp_path: Path) -> None:
    model, tokens = load_case(tmp_path, case), random_tokens(1, 40)
    with REFERENCE.in_use():
        whole = run(model, tokens)
    held, found = model.make_cache(), []
    turns = (REFERENCE, CPU, REFERENCE, CPU_PORTABLE)
    for backend, part in zip(turns, np.split(tokens, [15, 25, 26], axis=1), strict=True):
        with backend.in_use():
            found.append(run(model, part, held))
    assert np.abs(np.concatenate(found, axis=1) - whole).max() < CPU.logit


@pytest.mark.parametrize("case", ["llama", "gemma3"])
@pytest.mark.parametrize("reader", [REFERENCE, CPU], ids=str)
def test_a_saved_cache_continues(case: str, reader: Backend, tmp_path: Path) -> None:
    model, tokens = load_case(tmp_path, case), random_tokens(1, 40)
    with CPU.in_use():
        whole = run(model, tokens)
        held = model.make_cache()
        run(model, tokens[:, :30], held)
        cache.save(tmp_path / "saved", held, model, tokens[0, :30].tolist())
    with reader.in_use():
        loaded, ids = cache.load(tmp_path / "saved", model)
        found = run(model, tokens[:, 30:], loaded)
    assert ids == tokens[0, :30].tolist()
    assert np.abs(found - whole[:, 30:]).max() < CPU.logit


def test_two_threads_generate_at_once(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    prompts = [PROMPT, "def fibonacci(n):"]

    def text(prompt: str) -> str:
        return mlx_ferrum.generate(model, tokenizer, prompt, max_tokens=12)

    with CPU.in_use():
        alone = [text(prompt) for prompt in prompts]
        together = ["", ""]

        def work(i: int) -> None:
            together[i] = text(prompts[i])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert together == alone
