"""Native attention against the reference backend, with each instruction set."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from backends import Backend
from cpu_cases import by_reference, normal

from mlx_ferrum import ops

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


@pytest.mark.parametrize("d", [32, 33])
@pytest.mark.parametrize("lengths", [[1], [7, 15, 16], [64, 63, 200]], ids=str)
def test_attend_both_ways(native: Backend, lengths: list[int], d: int) -> None:
    q, k, v = (normal(len(lengths), 4, max(lengths), d) for _ in range(3))
    wanted = by_reference(ops.attend_both_ways, q, k, v, lengths, scale=2.5 * d**-0.5)
    found = ops.attend_both_ways(q, k, v, lengths, scale=2.5 * d**-0.5)
    for i, n in enumerate(lengths):
        assert np.allclose(found[i, :, :n], wanted[i, :, :n], atol=2e-5)


def test_attend_reads_a_cache_in_place(native: Backend) -> None:
    """Keys and values are views of storage that has room for more, in either direction."""
    q, k, v = normal(2, 4, 3, 16), normal(2, 2, 40, 16), normal(2, 2, 50, 24)
    inner_k, inner_v = k[:, :, 7:29], v[:, :, 20:42]
    wanted = by_reference(ops.attend, q, inner_k.copy(), inner_v.copy(), scale=0.3)
    assert np.allclose(ops.attend(q, inner_k, inner_v, scale=0.3), wanted, atol=1e-5)


def test_values_become_the_nearest_halves(native: Backend) -> None:
    """Ties go to even; what is too large becomes the largest half; NaN stays."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        middles = (halves[:-1] + halves[1:]) / 2
        near = [np.nextafter(middles, np.float32(to)) for to in (-np.inf, np.inf)]
        numbers = np.concatenate([halves, middles, *near, normal(1 << 16)])
        x: Any = numbers[: numbers.size // 37 * 37].reshape(1, -1, 1, 37)
        wanted = np.clip(x, -65504, 65504).astype(np.float16).swapaxes(1, 2)
    q: Any = np.zeros((1, x.shape[1], 1, 2), np.float32)
    _, new = ops.rotate(q, q, x, mx.ones(1), offset=0, interleaved=True)
    found = np.asarray(new[1])
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
