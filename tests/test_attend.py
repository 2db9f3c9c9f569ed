"""Attention of ragged batches over keys and values in blocks, on every backend, against NumPy in float64."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from backends import CPU, CPU_PORTABLE, METAL, REFERENCE, Backend
from pages import Layer, Rows

from mlx_ferrum import ops
from mlx_ferrum.state.kinds import KV

# Of the largest number. float32: scores of some units are exact to 1e-6, and so are their exponentials. metal
# rounds results to float16.
EXACT = {"gpu": 2.0**-10 + 1e-5}  # the kernel for many rows rounds weights and results to halves
KINDS = [  # query heads, key-value heads, key and value dims, window, softcap, sinks
    (3, 1, 64, 64, None, 0.0, False),
    (6, 2, 128, 128, 33, 0.0, False),
    (8, 1, 20, 36, 7, 0.0, True),
    (4, 4, 256, 256, None, 30.0, False),
    (8, 8, 80, 80, 100, 2.0, True),
    (6, 2, 33, 5, 1, 0.0, False),
    (8, 1, 192, 128, 64, 0.0, True),
]
LENGTHS = (1, 2, 31, 32, 33, 63, 64, 65, 127, 130)  # around the ends of blocks and tiles


def options(heads: int, d: int, softcap: float, sinks: bool) -> dict[str, Any]:
    """Scores of some units, half of what bounds them, and sinks of that size."""
    made = np.random.default_rng(heads).normal(size=heads).astype(np.float32) if sinks else None
    return {
        "scale": 1.7 * d**-0.5,
        "softcap": softcap,
        "sinks": None if made is None else mx.array(made),
    }


def assert_attends(layer: Layer, rows: Rows, **how: Any) -> None:
    found, wanted = layer.attended(rows, **how), layer.wanted(rows, **how)
    assert found.shape == wanted.shape
    worst = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert worst <= EXACT.get(layer.backend.kind, 1e-5), worst


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_ragged_batches(backend: Backend, kind: tuple[Any, ...], bits: int) -> None:
    """Prefill chunks beside decodes, of one to nine sequences, which come and go."""
    heads, groups, d, dv, window, softcap, sinks = kind
    how, rng = options(heads, d, softcap, sinks), np.random.default_rng(d)
    for size, count in ((2, 3), (4, 9), (32, 1), (32, 6)):
        layer = Layer(backend, KV(groups, d, dv, window, bits), heads, size=size, seed=count)
        layer.begin(*rng.choice([0, *LENGTHS], count))
        for many in (True, False, True):
            which = rng.permutation(count)[: rng.integers(1, count + 1)]
            new = rng.choice(LENGTHS if many else [1], len(which))
            assert_attends(
                layer, layer.append(dict(zip(which.tolist(), new.tolist(), strict=True))), **how
            )


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("held", [[2500], [900, 3, 1300], [70] * 9], ids=str)
def test_threads_share_long_and_many_sequences(
    native: Backend, held: list[int], threads: int
) -> None:
    """Keys of one sequence are split into runs, whose softmaxes are merged; windows end amid them."""
    ops.use_backend("cpu", threads=threads)
    for window in (None, 700):
        layer = Layer(native, KV(2, 64, 48, window), 6)
        layer.begin(*held)
        for new in (1, 3, 40):
            rows = layer.append(dict.fromkeys(range(len(held)), new))
            for how in (options(6, 64, 0.0, sinks=False), options(6, 64, 5.0, sinks=True)):
                assert_attends(layer, rows, **how)


def test_other_sequences_change_nothing(native: Backend) -> None:
    """To the last bit, as long as the keys are not shared between threads in another way."""
    ops.use_backend("cpu", threads=1)
    together, alone = (Layer(native, KV(1, 64, 64), 3, seed=5) for _ in range(2))
    for layer in (together, alone):
        layer.begin(100)
    together.begin(7, 300)
    together.rng, alone.rng = np.random.default_rng(1), np.random.default_rng(1)
    first, other = alone.append({0: 5}), together.append({0: 5})
    rows = together.append({1: 1, 2: 20})
    joined = together.append({2: 1, 0: 1, 1: 9})
    assert np.array_equal(alone.attended(first, scale=0.1), together.attended(other, scale=0.1))
    wanted = together.wanted(joined, scale=0.1)
    assert np.allclose(together.attended(joined, scale=0.1), wanted, atol=1e-5)
    assert rows.which == [1, 2]


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("new", [1, 24])
def test_a_sequence_that_is_no_number_spoils_no_other(
    backend: Backend, new: int, poison: float, bits: int
) -> None:
    layer = Layer(backend, KV(2, 64, 64, bits=bits), 6, size=4)
    layer.begin(37, 5, 90)
    rows = layer.append({0: new, 1: new, 2: new}, spoiled=1, poison=poison)
    found = layer.attended(rows, scale=0.2)
    if np.isnan(poison):  # an infinity may have become the largest half
        assert np.isnan(found[rows.of(1)]).any()
    with np.errstate(invalid="ignore"):
        wanted = layer.wanted(rows, scale=0.2)
    for n in (0, 2):
        worst = (
            np.abs(found[rows.of(n)] - wanted[rows.of(n)]).max() / np.abs(wanted[rows.of(n)]).max()
        )
        assert worst <= EXACT.get(backend.kind, 1e-5)


def spoil_free_blocks(layer: Layer, used: set[int], poison: float) -> int:
    """Overwrite all blocks but the `used` ones; returns how many of them a sequence had once."""
    storage, pool = layer.states.storages[0], layer.states.groups[0].pool
    free = [block for block in range(pool.capacity) if block not in used]
    for x in storage.arrays:
        for block in free:
            x[block] = (
                int(np.nan_to_num(poison, nan=127)) if x.dtype in (np.int8, mx.int8) else poison
            )
    return len(free)


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("poison", [np.nan, 99.0])
@pytest.mark.parametrize("window, size", [(1, 2), (7, 4), (33, 32), (70, 4)])
def test_blocks_behind_a_window_are_not_read(
    backend: Backend, window: int, size: int, poison: float, bits: int
) -> None:
    """They are free, so they hold anything: another sequence's numbers, or none."""
    layer = Layer(backend, KV(1, 64, 64, window, bits), 3, size=size)
    layer.begin(130, 77)
    spoiled = 0
    for new in (1, 1, 20, 1, 3):
        batch = {0: new, 1: 1}
        # rows see blocks from before them, so they are reserved, and freed, before they are appended
        layer.states.reserve([(layer.texts[i], count) for i, count in batch.items()])
        used = {b for text in layer.texts for b in text.parts[0].blocks if b >= 0}
        spoiled += spoil_free_blocks(layer, used, poison)
        assert_attends(layer, layer.append(batch), scale=0.2)
    assert spoiled >= 10


@pytest.mark.parametrize("bits", [16, 8])
def test_forks_share_what_was_before(backend: Backend, bits: int) -> None:
    layer = Layer(backend, KV(2, 20, 12, bits=bits), 4, size=4)
    layer.begin(10)
    layer.texts.append(layer.states.fork(layer.texts[0]))
    layer.past.append(layer.past[0])
    for new in ({0: 1, 1: 1}, {1: 7}, {0: 3, 1: 2}):
        assert_attends(layer, layer.append(new), scale=0.3)


@pytest.mark.parametrize("made", [REFERENCE, CPU, CPU_PORTABLE, METAL], ids=str)
def test_eight_bits_are_as_exact_as_said(made: Backend) -> None:
    """Against keys and values that were never rounded.

    Each number is off by max|x| / 254 of its row at most, so a score by e = scale sum|q| max|k| / 254. A weight
    changes by a factor of exp(2 e) at most, so the result by (exp(2 e) - 1) max|v| + max|v| / 254.
    """
    with made.in_use() as backend:
        exact, rounded = (Layer(backend, KV(2, 64, 64, bits=bits), 6, seed=3) for bits in (16, 8))
        for layer in (exact, rounded):
            layer.begin(150)
        rows = exact.append({0: 5}), rounded.append({0: 5})
        assert np.array_equal(rows[0].q, rows[1].q)
        keys, values = exact.past[0]
        off = 0.1 * np.abs(rows[0].q).sum(-1).max() * np.abs(keys).max() / 254
        allowed = (math.exp(2 * off) - 1 + 1 / 254) * np.abs(values).max()
        found = np.abs(
            rounded.attended(rows[1], scale=0.1) - exact.wanted(rows[0], scale=0.1)
        ).max()
        assert 1e-4 < found < allowed
        assert found < 0.02 * np.abs(values).max(), "in practice much less"


def test_what_does_not_fit_is_refused(backend: Backend) -> None:
    layer = Layer(backend, KV(2, 64, 64), 4)
    layer.begin(3)
    rows = layer.append({0: 2})
    for shape in ((3, 4, 64), (2, 4, 32), (2, 3, 64), (2, 64)):
        with pytest.raises(ValueError, match="attend: q of shape"):
            ops.attend(backend.array(np.zeros(shape, np.float32)), rows.at, scale=1)
    with pytest.raises(ValueError, match=r"attend: sinks of shape \(3,\), expected \(4,\)"):
        ops.attend(rows.turned, rows.at, scale=1, sinks=mx.zeros(3))
