"""Norm, rotation and storing of new rows, on every backend, against NumPy in float64."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from backends import Backend
from pages import Layer, assert_stored, stored

from mlx_ferrum import ops
from mlx_ferrum.state.kinds import KV

EPS = 1e-5
SHAPES = [  # query heads, key-value heads, key and value dims, pairs
    (3, 1, 64, 64, 32),
    (6, 2, 128, 20, 5),
    (8, 1, 20, 36, 10),
    (4, 4, 80, 80, 16),
    (2, 2, 7, 1, 3),
    (2, 1, 256, 256, 128),
]


def turned(
    x: np.ndarray,
    at: np.ndarray,
    frequencies: np.ndarray,
    *,
    interleaved: bool,
    magnitude: float,
    weight: np.ndarray | None,
) -> np.ndarray:
    """x: (n, heads, d) of rows at positions (n,), normed if there is a weight (d,): in float64."""
    x, n = x.astype(np.float64), frequencies.size
    if weight is not None:
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * weight
    for m, f in enumerate(frequencies.astype(np.float64)):
        i, j = (2 * m, 2 * m + 1) if interleaved else (m, m + n)
        pair = (x[..., i] + 1j * x[..., j]) * np.exp(1j * at * f)[:, None] * magnitude
        x[..., i], x[..., j] = pair.real, pair.imag
    return x


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_of_any_positions(
    backend: Backend, shape: tuple[int, ...], normed: bool, interleaved: bool
) -> None:
    """Some sequences read a prompt, others go on; nothing but their own slots is written."""
    heads, groups, d, dv, pairs = shape
    frequencies = (100.0 ** -np.linspace(0, 1, pairs)).astype(np.float32)
    for size, bits in ((2, 16), (4, 8), (32, 16), (32, 8)):
        layer = Layer(backend, KV(groups, d, dv, bits=bits), heads, size=size, seed=d)
        layer.begin(0, 1, 31, 700, 3, 64)
        counts = {0: 33, 3: 1, 2: 2, 5: 1, 1: 4}
        rng, n = layer.rng, sum(counts.values())
        q, k, v = (
            rng.normal(size=(n, *s)).astype("f4") for s in ((heads, d), (groups, d), (groups, dv))
        )
        weights = rng.normal(size=(2, d)).astype(np.float32) if normed else (None, None)
        batch = layer.states.batch(
            [(layer.texts[i], c) for i, c in counts.items()], -np.arange(1, n + 1)
        )
        at, before = (
            batch.layer(0),
            {name: np.array(x) for name, x in batch.layer(0).storage.named.items()},
        )
        how: dict[str, Any] = {"interleaved": interleaved, "magnitude": 1.3}
        given: list[Any] = [backend.array(x) for x in (q, k, v)]
        norms: Any = (*map(mx.array, weights), EPS) if normed else None
        turns = mx.array(frequencies)
        found = ops.append(given[0], given[1], given[2], at, turns, norms=norms, **how)
        positions = np.concatenate(
            [layer.texts[i].position + np.arange(c) for i, c in counts.items()]
        )
        wanted_q = turned(q, positions, frequencies, weight=weights[0], **how)
        wanted_k = turned(k, positions, frequencies, weight=weights[1], **how)
        # float32 angles of up to 700 radians are exact to 3e-5, halves to 2^-11
        assert_near(found, wanted_q, 5e-4 if backend.is_gpu else 2e-4)
        keys, values = stored(at)
        half = 0 if backend.name == "reference" else 2.0**-11
        step = 1 / 254 if bits == 8 else half
        assert_near(keys, wanted_k, 2e-4 + half + step)
        assert_near(values, v, half + step if backend.is_gpu else step)
        others = np.setdiff1d(np.arange(before["keys"].shape[0] * size), at.paging.slots)
        for name, x in at.storage.named.items():
            was, now = (np.array(y)[others // size, :, others % size] for y in (before[name], x))
            assert np.array_equal(was, now), name


def assert_near(found: Any, wanted: np.ndarray, relative: float) -> None:
    """Errors relative to the largest number of a head."""
    off = np.abs(np.array(ops.to_mlx(found) if isinstance(found, mx.array) else found) - wanted)
    assert found.shape == wanted.shape
    assert (off <= relative * np.abs(wanted).max(axis=-1, keepdims=True) + 1e-6).all()


def append_values(backend: Backend, v: np.ndarray, bits: int) -> tuple[np.ndarray, Layer]:
    """Values (n, 1, dv) in storage, and the layer that holds them."""
    layer = Layer(backend, KV(1, 2, v.shape[2], bits=bits), 1)
    layer.begin(0)
    batch = layer.states.batch([(layer.texts[0], len(v))], np.arange(len(v)))
    nothing = backend.array(np.zeros((len(v), 1, 2), np.float32))
    at = batch.layer(0)
    ops.append(nothing, nothing, backend.array(v), at, mx.zeros(1), interleaved=True)
    return stored(at)[1], layer


def test_values_become_the_nearest_halves(native: Backend) -> None:
    """Ties go to even; what is too large becomes the largest half; NaN stays."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        middles = (halves[:-1] + halves[1:]) / 2
        near = [np.nextafter(middles, np.float32(to)) for to in (-np.inf, np.inf)]
        numbers = np.concatenate([halves, middles, *near])
        x: Any = numbers[: numbers.size // 37 * 37].reshape(-1, 1, 37)
        wanted = np.clip(x, -65504, 65504).astype(np.float16)
    found, layer = append_values(native, x, 16)
    assert np.array_equal(found, wanted, equal_nan=True)
    signs = np.signbit(found) == np.signbit(wanted)
    assert layer.states.storages[0].values.dtype == np.float16
    assert signs[~np.isnan(wanted)].all(), "also of zeros"


def test_eight_bits_are_off_by_half_a_step(backend: Backend) -> None:
    """Of the largest number of a row over 127, however large or small that is; zeros stay zeros."""
    rng = np.random.default_rng(1)
    sizes = 10.0 ** np.arange(-30, 5)
    x = (rng.normal(size=(35, 1, 33)) * sizes[:, None, None]).astype(np.float32)
    if backend.is_gpu:  # values are halves on their way
        x = np.clip(x, -65504, 65504).astype(np.float16).astype(np.float32)
    x[7] = 0
    x[8, 0, :-1] = 0
    found, _ = append_values(backend, x, 8)
    assert_stored(found, x, 8)
    assert (found[x == 0] == 0).all()
    largest = np.take_along_axis(found, np.abs(x).argmax(-1)[..., None], -1)
    assert np.allclose(np.abs(largest[..., 0]), np.abs(x).max(-1), rtol=1e-6), "the largest is kept"


@pytest.mark.parametrize("bits", [16, 8])
def test_no_number_stays_none(backend: Backend, bits: int) -> None:
    """In its own row; numbers beside it in the row may be lost with 8 bits."""
    x = np.random.default_rng(2).normal(size=(9, 1, 36)).astype(np.float16).astype(np.float32)
    x[3, 0, 35] = x[5, 0, 0] = np.nan
    found, _ = append_values(backend, x, bits)
    assert np.isnan(found[[3, 5], 0, [35, 0]]).all()
    others = [0, 1, 2, 4, 6, 7, 8]
    assert_stored(found[others], x[others], bits)


UNFIT: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int, str]] = [
    ((2, 4, 8), (2, 2, 8), (2, 2, 6), 5, "append: 5 pairs do not fit heads of 8"),
    (
        (2, 4, 6),
        (2, 2, 6),
        (2, 2, 6),
        3,
        r"append: q of shape \(2, 4, 6\) does not fit 2 rows of KV",
    ),
    ((2, 3, 8), (2, 2, 8), (2, 2, 6), 3, r"append: q of shape \(2, 3, 8\) does not fit"),
    ((3, 4, 8), (3, 2, 8), (3, 2, 6), 3, r"append: q of shape \(3, 4, 8\) does not fit 2 rows"),
    ((2, 4, 8), (2, 2, 6), (2, 2, 6), 3, r"append: k \(2, 2, 6\) and v \(2, 2, 6\), expected"),
    ((2, 4, 8), (2, 2, 8), (2, 1, 6), 3, r"expected \(\(2, 2, 8\), \(2, 2, 6\)\)"),
    ((2, 4, 8), (2, 2, 8), (2, 2, 8), 3, r"expected \(\(2, 2, 8\), \(2, 2, 6\)\)"),
    ((2, 4, 8), (1, 2, 8), (1, 2, 6), 3, r"append: k \(1, 2, 8\)"),
]


@pytest.mark.parametrize("case", UNFIT, ids=str)
def test_what_does_not_fit_is_refused(backend: Backend, case: Any) -> None:
    *shapes, pairs, said = case
    layer = Layer(backend, KV(2, 8, 6), 4)
    layer.begin(0)
    at = layer.states.batch([(layer.texts[0], 2)], np.arange(2)).layer(0)
    q, k, v = (backend.array(np.ones(shape, np.float32)) for shape in shapes)
    with pytest.raises(ValueError, match=said):
        ops.append(q, k, v, at, mx.zeros(pairs), interleaved=False)
    assert not np.array(at.storage.keys).any()
