"""How weights find their codes: scales and minimums by least squares, from a few candidates.

NumPy, vectorised over blocks. Knows how K-quants are made (groups of codes, a small whole scale and minimum
for each group, a float16 factor of both for each block), not how they are packed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import product, starmap
from typing import NamedTuple

import numpy as np

Array = np.ndarray

HALF_MAX, HALF_MIN = 65504.0, 2.0**-24  # the largest and the smallest float16
# What a group's range is taken to be: as wide as so many codes more than there are, and beginning at such a share
# of its least weight (nearer to 0 where one weight stands far above the others).
_STRETCH, _STARTS = np.linspace(-1.0, 1.5, 21), (1.0, 0.5, 0.0)
_ROUNDS = 6
_NEIGHBOURS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))


class Levels(NamedTuple):
    """What codes, and scales and minimums of a group, can be: the first and the last of each."""

    codes: tuple[int, int]
    scales: tuple[int, int]
    minimums: tuple[int, int] = (0, 0)


class Fit(NamedTuple):
    """n blocks of g groups of w weights: d s q - dmin m, all but d and dmin whole numbers."""

    d: Array  # (n,) float16
    dmin: Array  # (n,) float16
    s: Array  # (n, g)
    m: Array  # (n, g)
    q: Array  # (n, g, w)


def k_quant(x: Array, levels: Levels) -> Fit:
    """The fit of least square error that is found for x: (n, g, w) float32."""
    exponent = np.frexp(np.abs(x).max(axis=(1, 2)))[1]
    x = np.ldexp(x, -exponent[:, None, None])  # so that no square overflows or vanishes
    return Fit(*_best(_rounds(x, exponent, levels))[1:])


def half(value: Array) -> Array:
    """(n,) -> float16; what is not 0 stays so, what is too large becomes the largest."""
    value = value.astype(np.float32)
    least = np.copysign(np.float32(HALF_MIN), value)
    value = np.where((value != 0) & (np.abs(value) < HALF_MIN), least, value)
    return np.clip(value, -HALF_MAX, HALF_MAX).astype(np.float16)


def over(numerator: Array | np.float32, denominator: Array) -> Array:
    """The quotient, 0 where the denominator is."""
    ones = np.where(denominator == 0, np.float32(1), denominator)
    return np.where(denominator == 0, np.float32(0), numerator / ones)


def _rounds(x: Array, exponent: Array, levels: Levels) -> Iterator[tuple[Array, ...]]:
    """Fits after their errors, each from the d and dmin that suited the one before best."""
    scale, minimum = _affine(x, levels) if levels.minimums[1] else _symmetric(x, levels)
    d = _extreme(scale) / max(levels.scales, key=abs)
    dmin = _extreme(minimum) / (levels.minimums[1] or 1)
    for _ in range(_ROUNDS):
        d16, dmin16 = half(np.ldexp(d, exponent)), half(np.ldexp(dmin, exponent))
        d, dmin = (np.ldexp(y.astype(np.float32), -exponent)[:, None] for y in (d16, dmin16))
        s = np.clip(np.rint(over(scale, d)), *levels.scales)
        m = np.clip(np.rint(over(minimum, dmin)), *levels.minimums)
        error, s, m, q = _best(_nearby(x, d, dmin, s, m, levels=levels))
        yield error.sum(-1), d16, dmin16, s, m, q
        d, dmin = _factors(x, s, m, q)
        scale, minimum = d[:, None] * s, dmin[:, None] * m


def _affine(x: Array, levels: Levels) -> tuple[Array, Array]:
    """Scale and minimum of each group by itself, x ~ scale q - minimum: (n, g, w) -> (n, g), (n, g) >= 0."""
    least, high, top = np.minimum(x.min(-1), 0), x.max(-1), levels.codes[1]
    width, x1, x2 = x.shape[-1], x.sum(-1), _dot(x, x)

    def candidate(start: float, stretch: float) -> tuple[Array, Array, Array]:
        low = np.float32(start) * least
        inverse = over(np.float32(top + stretch), high - low)
        q = np.clip(np.rint((x - low[..., None]) * inverse[..., None]), 0, top)
        q1, q2, xq = q.sum(-1), _dot(q, q), _dot(x, q)
        a = over(width * xq - x1 * q1, width * q2 - q1 * q1)
        b = (a * q1 - x1) / width
        a = np.where(b < 0, over(xq, q2), a)
        b = np.maximum(b, 0)
        error = x2 + a * (a * q2 - 2 * xq) + b * (2 * x1 - 2 * a * q1 + width * b)
        return error, a, b

    _, scale, minimum = _best(starmap(candidate, product(_STARTS, _STRETCH)))
    return scale, minimum


def _symmetric(x: Array, levels: Levels) -> tuple[Array, Array]:
    """Scale of each group by itself, of either sign, x ~ scale q: (n, g, w) -> (n, g), zeros (n, g)."""
    peak = _extreme(x)

    def candidate(end: float) -> tuple[Array, Array]:
        q = np.clip(np.rint(x * over(np.float32(end), peak)[..., None]), *levels.codes)
        xq, q2 = _dot(x, q), _dot(q, q)
        return -over(xq * xq, q2), over(xq, q2)  # the error, but for x's own square

    ends = [np.sign(end) * (abs(end) + stretch) for end in levels.codes for stretch in _STRETCH]
    _, scale = _best(map(candidate, ends))
    return scale, np.zeros_like(scale)


def _nearby(
    x: Array, d: Array, dmin: Array, s: Array, m: Array, *, levels: Levels
) -> Iterator[tuple[Array, ...]]:
    """Errors, s, m and q of each group, for s and m as given and one away. d, dmin: (n, 1)."""
    for step_s, step_m in _NEIGHBOURS:
        if step_m and not levels.minimums[1]:
            continue
        near_s, near_m = np.clip(s + step_s, *levels.scales), np.clip(m + step_m, *levels.minimums)
        scale, minimum = (d * near_s)[..., None], (dmin * near_m)[..., None]
        q = np.clip(np.rint((x + minimum) * over(np.float32(1), scale)), *levels.codes)
        rest = x + minimum - scale * q
        yield _dot(rest, rest), near_s, near_m, q


def _factors(x: Array, s: Array, m: Array, q: Array) -> tuple[Array, Array]:
    """The d and dmin that suit these whole numbers best: (n,), (n,)."""
    n, _, width = x.shape
    u, v = (s[..., None] * q).reshape(n, -1), np.repeat(-m, width, axis=1)
    x = x.reshape(n, -1)
    uu, uv, vv, xu, xv = _dot(u, u), _dot(u, v), _dot(v, v), _dot(x, u), _dot(x, v)
    determinant = uu * vv - uv * uv
    apart = determinant > 1e-6 * uu * vv  # else there are no minimums
    d = np.where(apart, over(xu * vv - xv * uv, determinant), over(xu, uu))
    return d, np.where(apart, over(xv * uu - xu * uv, determinant), 0)


def _best(candidates: Iterable[tuple[Array, ...]]) -> tuple[Array, ...]:
    """Element by element, the candidate whose first array, an error, is least."""

    def smaller(kept: tuple[Array, ...], found: tuple[Array, ...]) -> tuple[Array, ...]:
        better = found[0] < kept[0]
        return tuple(
            np.where(better.reshape(better.shape + (1,) * (new.ndim - better.ndim)), new, old)
            for new, old in zip(found, kept, strict=True)
        )

    return reduce(smaller, candidates)


def _dot(a: Array, b: Array) -> Array:
    """(..., w), (..., w) -> (...)."""
    return np.einsum("...i,...i->...", a, b)


def _extreme(x: Array) -> Array:
    """The element furthest from 0, with its sign: (..., w) -> (...)."""
    at = np.abs(x).argmax(-1, keepdims=True)
    return np.take_along_axis(x, at, -1)[..., 0]
