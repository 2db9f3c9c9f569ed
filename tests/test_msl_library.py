"""Metal's library on the host, against NumPy; on a Mac the GPU's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal_call import also_on_metal, results

pytestmark = also_on_metal

N = 64
RNG = np.random.default_rng(7)
ANY = np.clip(RNG.normal(0, 3, N), -4, 4).astype(np.float32)
POSITIVE = np.abs(ANY) + 0.01
UNIT = np.tanh(ANY) * 0.99
ONE: dict[str, tuple[Callable[..., Any], np.ndarray]] = {
    "abs": (np.abs, ANY), "acos": (np.arccos, UNIT), "acosh": (np.arccosh, 1 + POSITIVE), "asin": (np.arcsin, UNIT),
    "asinh": (np.arcsinh, ANY), "atan": (np.arctan, ANY), "atanh": (np.arctanh, UNIT), "ceil": (np.ceil, ANY),
    "cos": (np.cos, ANY), "cosh": (np.cosh, ANY), "cospi": (lambda x: np.cos(np.pi * x), ANY), "exp": (np.exp, ANY),
    "exp10": (lambda x: 10**x, ANY), "exp2": (np.exp2, ANY), "fabs": (np.fabs, ANY), "floor": (np.floor, ANY),
    "fract": (lambda x: x - np.floor(x), ANY), "log": (np.log, POSITIVE), "log10": (np.log10, POSITIVE),
    "log2": (np.log2, POSITIVE), "rint": (np.rint, ANY), "round": (lambda x: np.trunc(x + np.copysign(0.5, x)), ANY),
    "rsqrt": (lambda x: 1 / np.sqrt(x), POSITIVE), "saturate": (lambda x: np.clip(x, 0, 1), ANY),
    "sign": (np.sign, ANY), "sin": (np.sin, ANY), "sinh": (np.sinh, ANY), "sinpi": (lambda x: np.sin(np.pi * x), ANY),
    "sqrt": (np.sqrt, POSITIVE), "tan": (np.tan, UNIT), "tanh": (np.tanh, ANY), "trunc": (np.trunc, ANY),
}  # fmt: skip
TWO: dict[str, tuple[Callable[..., Any], np.ndarray]] = {
    "atan2": (np.arctan2, ANY), "copysign": (np.copysign, ANY), "divide": (np.divide, ANY),
    "fdim": (lambda x, y: np.maximum(x - y, 0), ANY), "fmax": (np.fmax, ANY), "fmin": (np.fmin, ANY),
    "fmod": (np.fmod, ANY), "max": (np.maximum, ANY), "min": (np.minimum, ANY), "pow": (np.power, POSITIVE),
    "powr": (np.power, POSITIVE), "step": (lambda x, y: np.where(y < x, 0, 1), ANY),
}  # fmt: skip
THREE: dict[str, Callable[..., Any]] = {
    "clamp": lambda x, y, z: np.minimum(np.maximum(x, y), z), "fma": lambda x, y, z: x * y + z,
    "mix": lambda x, y, z: x + (y - x) * z, "max3": lambda x, y, z: np.maximum(x, np.maximum(y, z)),
    "min3": lambda x, y, z: np.minimum(x, np.minimum(y, z)),
}  # fmt: skip
FLOATS = {mx.float32: 3e-6, mx.float16: 2e-3, mx.bfloat16: 1.6e-2}


def run(source, *arrays, dtype, size=N):
    """`source` for each i."""
    return results(
        f"uint i = thread_position_in_grid.x; {source}", arrays, [((size,), dtype)], grid=N
    )[0]


def rounded(x, dtype):
    """(the values in the type, the same as float64)"""
    array = mx.array(x).astype(dtype)
    return array, np.array(array.astype(mx.float32)).astype(np.float64)


def assert_near(found, expected, dtype):
    error = FLOATS[dtype]
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=error, atol=error)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_functions_of_one_number(dtype):
    """All in one kernel: a thread a function and number."""
    calls = [f"case {k}: y[i] = metal::{name}(a[i]); break;" for k, name in enumerate(ONE)]
    inputs = [rounded(x, dtype) for _, x in ONE.values()]
    x = mx.concatenate([x for x, _ in inputs])
    source = f"uint i = thread_position_in_grid.x; switch (i / {N}) {{ {' '.join(calls)} }}"
    (y,) = results(source, [x], [((x.size,), dtype)], grid=x.size)
    for (name, (f, _)), (_, values), found in zip(
        ONE.items(), inputs, y.reshape(-1, N), strict=True
    ):
        print(name)
        assert_near(found, f(values), dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_functions_of_two_and_three_numbers(dtype):
    names = [*TWO, *THREE]
    first = [*(x for _, x in TWO.values()), *[ANY] * len(THREE)]
    (a, x), (b, y), (c, z) = (
        rounded(v, dtype)
        for v in (
            np.stack(first),
            RNG.normal(0, 2, (len(names), N)),
            RNG.normal(0, 2, (len(names), N)),
        )
    )
    calls = [
        f"case {k}: y[i] = metal::{n}(a[i], b[i]{', c[i]' if n in THREE else ''}); break;"
        for k, n in enumerate(names)
    ]
    source = f"uint i = thread_position_in_grid.x; switch (i / {N}) {{ {' '.join(calls)} }}"
    (found,) = results(source, [a, b, c], [(a.shape, dtype)], grid=a.size)
    for k, name in enumerate(names):
        print(name)
        expected = THREE[name](x[k], y[k], z[k]) if name in THREE else TWO[name][0](x[k], y[k])
        assert_near(found[k], expected, dtype)


@pytest.mark.parametrize("scalar", ["float", "half"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_functions_of_vectors(scalar, size):
    dtype = mx.float32 if scalar == "float" else mx.float16
    a, x = rounded(RNG.normal(0, 2, (N, size)), dtype)
    b, y = rounded(RNG.normal(0, 2, (N, size)), dtype)
    source = f"""
    {scalar}{size} u, v;
    for (int k = 0; k < {size}; k++) {{ u[k] = a[i * {size} + k]; v[k] = b[i * {size} + k]; }}
    {scalar}{size} r = fma(max(u, v), exp(min(u, {scalar}(0.5))), clamp(v, {scalar}(-1), {scalar}(1)));
    for (int k = 0; k < {size}; k++) y[i * {size} + k] = r[k] + dot(u, v);
    """
    found = run(source, a, b, dtype=dtype, size=N * size).reshape(N, size)
    expected = np.maximum(x, y) * np.exp(np.minimum(x, 0.5)) + np.clip(y, -1, 1)
    expected = expected + (x * y).sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=FLOATS[dtype], atol=10 * FLOATS[dtype])


@pytest.mark.parametrize("space", ["fast", "precise"])
def test_fast_and_precise_functions(space):
    found = run(
        f"y[i] = {space}::exp(a[i]) + {space}::tanh(a[i]);", mx.array(UNIT), dtype=mx.float32
    )
    assert_near(found, np.exp(UNIT) + np.tanh(UNIT), mx.float32)


def test_what_kind_of_number_it_is():
    values = np.array([0, -0.0, 1, -2, np.inf, -np.inf, np.nan, 5e-39] * 8, np.float32)
    source = "float x = a[i]; y[i] = isnan(x) | isinf(x) << 1 | isfinite(x) << 2 | signbit(x) << 3;"
    found = run(source, mx.array(values), dtype=mx.int32)
    bits = (
        np.isnan(values)
        | np.isinf(values) << 1
        | np.isfinite(values) << 2
        | np.signbit(values) << 3
    )
    np.testing.assert_array_equal(found[~np.isnan(values)], bits[~np.isnan(values)])
    assert (found[np.isnan(values)] & 7 == 1).all()


def test_numbers_taken_apart():
    source = """
    int n; float m = frexp(a[i], n), whole, c, s = sincos(a[i], c), part = modf(a[i], whole);
    y[i] = ldexp(m, n) + 2 * (whole + part) + s * s + c * c;
    """
    assert_near(run(source, mx.array(ANY), dtype=mx.float32), 3 * ANY + 1, mx.float32)


@pytest.mark.parametrize(
    "dtype",
    [mx.int8, mx.uint8, mx.int16, mx.uint16, mx.int32, mx.uint32, mx.int64, mx.uint64],
    ids=str,
)
def test_integer_functions(dtype):
    kind = np.dtype(str(dtype).removeprefix("mlx.core."))
    x = np.concatenate(
        [[0, 1], RNG.integers(np.iinfo(kind).min // 2, np.iinfo(kind).max // 2, N - 2)]
    ).astype(kind)
    v = x.view(f"u{kind.itemsize}")
    bits = 8 * kind.itemsize
    text = [format(int(n), f"0{bits}b") for n in v]
    expected = {
        "popcount(x)": [t.count("1") for t in text],
        "clz(x)": [len(t) - len(t.lstrip("0")) for t in text],
        "ctz(x)": [len(t) - len(t.rstrip("0")) for t in text],
        "reverse_bits(x)": [int(t[::-1], 2) for t in text],
        "rotate(x, T(3))": [int(t[3:] + t[:3], 2) for t in text],
        "max(x, T(5))": np.maximum(x, 5),
        "min(x, T(5))": np.minimum(x, 5),
        "clamp(x, T(3), T(9))": np.clip(x, 3, 9),
        "abs(x)": np.abs(x),
    }
    if kind.kind == "u":
        del expected["abs(x)"]
    for call, values in expected.items():
        (y,) = results(
            f"uint i = thread_position_in_grid.x; T x = a[i]; y[i] = {call};",
            [mx.array(x)], [((N,), dtype)], grid=N, template={"T": dtype},
        )  # fmt: skip
        np.testing.assert_array_equal(
            y.view(v.dtype), np.array([int(n) % 2**bits for n in values], v.dtype), call
        )


def test_integer_functions_of_32_bits():
    x = RNG.integers(0, 2**32, N, dtype=np.uint64).astype(np.uint32)
    source = """
    uint x = a[i]; int s = as_type<int>(x);
    y[i] = extract_bits(x, 5, 7) + insert_bits(0u, x, 20, 4) + mulhi(x, x) + uint(extract_bits(s, 3, 9) + mulhi(s, s))
         + mul24(x, 3u) + mad24(x, x, 1u) + absdiff(x, 77u) + absdiff(s, -5) + extract_bits(x, 9, 0);
    """
    found = run(source, mx.array(x), dtype=mx.uint32)
    u, s = x.astype(object), x.view(np.int32).astype(object)
    low = u % 2**24
    expected = (
        (u >> 5) % 128 + (u % 16) * 2**20 + (u * u >> 32) + ((s >> 3) + 256) % 512 - 256 + (s * s >> 32)
        + low * 3 + low * low + 1 + abs(u - 77) + abs(s + 5)
    )  # fmt: skip
    np.testing.assert_array_equal(found, (expected % 2**32).astype(np.uint32))


def test_limits_and_constants():
    source = """
    y[0] = numeric_limits<T>::max() == T(HIGH); y[1] = numeric_limits<T>::lowest() == T(-HIGH);
    y[2] = isinf(float(numeric_limits<T>::infinity())); y[3] = numeric_limits<uchar>::max() == 255;
    y[4] = numeric_limits<int>::min() == INT_MIN; y[5] = abs(M_PI_F - 3.14159265f) < 1e-6f; y[6] = FLT_MAX < INFINITY;
    """
    for dtype, high in (
        (mx.float32, "FLT_MAX"),
        (mx.float16, "HALF_MAX"),
        (mx.bfloat16, "3.3895314e38f"),
    ):
        text = source.replace("HIGH", high)
        (y,) = results(text, [], [((7,), mx.int32)], grid=1, template={"T": dtype})
        assert y.all()


def test_half_and_bfloat_round_after_each_operation():
    a, x = rounded(ANY, mx.float16)
    found = run("half x = a[i]; y[i] = x * x * x + x;", a, dtype=mx.float16)
    h = x.astype(np.float16)
    np.testing.assert_array_equal(found, h * h * h + h)
    b, x = rounded(ANY, mx.bfloat16)
    found = run("bfloat x = a[i]; y[i] = x * x + x;", b, dtype=mx.bfloat16)
    square = rounded((x * x).astype(np.float32), mx.bfloat16)[1]
    np.testing.assert_array_equal(found, rounded((square + x).astype(np.float32), mx.bfloat16)[1])


def test_subnormal_floats_are_zero_and_subnormal_halves_are_not():
    source = "y[0] = a[0] * 0.5f * 2.0f; y[1] = float(half(3e-6f)) > 0; y[2] = float(b[0]) > 0;"
    (y,) = results(
        source, [mx.array([2e-38]), mx.array([3e-6], mx.float16)], [((3,), mx.float32)], grid=1
    )
    assert y.tolist() == [0, 1, 1]
