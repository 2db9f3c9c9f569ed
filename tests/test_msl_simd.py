"""Operations across threads on the host, against NumPy; on a Mac the GPU's own."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal_call import also_on_metal, kernel, launch, results
from msl import metal_on_cpu

pytestmark = also_on_metal

LANES = np.arange(32)
BITS: dict[str, Callable[..., Any]] = {
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
}
RNG = np.random.default_rng(5)
FLOATS = {mx.float32: 1e-5, mx.float16: 2e-2, mx.bfloat16: 1e-1}
ALL_TYPES = [*FLOATS, mx.int32, mx.uint32, mx.int16, mx.uint16]


def run(source, *arrays, dtype, n=64, **how):
    """`source` for each i, as y[i]."""
    text = f"uint i = thread_position_in_grid.x; uint lane = thread_index_in_simdgroup; {source}"
    return results(text, arrays, [((n,), dtype)], grid=n, threadgroup=n, **how)[0]


def draw(dtype, n=64):
    """(the values in the type, the same as float64)"""
    x = mx.array(RNG.uniform(1, 2, n) if dtype in FLOATS else RNG.integers(1, 9, n)).astype(dtype)
    return x, np.array(x.astype(mx.float32)).astype(np.float64)


def assert_near(found, expected, dtype):
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=FLOATS.get(dtype, 0))


@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
def test_reductions(dtype):
    x, values = draw(dtype)
    groups = values.reshape(2, 32)
    functions: dict[str, Any] = {"sum": np.sum, "max": np.max, "min": np.min}
    for name, f in functions.items():
        found = run(f"y[i] = simd_{name}(a[i]);", x, dtype=dtype)
        assert_near(found, f(groups, 1).repeat(32), dtype)
    small = x[:64] if dtype in FLOATS else mx.where(mx.arange(64) % 8 == 0, 2, 1).astype(dtype)
    found = run("y[i] = simd_product(a[i]);", small, dtype=mx.float32)
    expected = np.array(small.astype(mx.float32)).astype(np.float64).reshape(2, 32).prod(1)
    if dtype != mx.float16 or expected.max() < 60000:
        np.testing.assert_allclose(found, expected.repeat(32), rtol=10 * FLOATS.get(dtype, 0))


@pytest.mark.parametrize("dtype", [mx.int32, mx.uint32, mx.uint16], ids=str)
def test_bits(dtype):
    x = RNG.integers(0, 30000, 64)
    for name, f in BITS.items():
        found = run(f"y[i] = simd_{name}(a[i]);", mx.array(x).astype(dtype), dtype=dtype)
        np.testing.assert_array_equal(
            found, np.repeat([functools.reduce(f, g) for g in x.reshape(2, 32)], 32)
        )


@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
def test_prefixes(dtype):
    x, values = draw(dtype)
    sums = values.reshape(2, 32).cumsum(1)
    found = run("y[i] = simd_prefix_inclusive_sum(a[i]);", x, dtype=dtype)
    assert_near(found, sums.reshape(-1), dtype)
    found = run("y[i] = simd_prefix_exclusive_sum(a[i]);", x, dtype=dtype)
    np.testing.assert_allclose(
        found,
        (sums - values.reshape(2, 32)).reshape(-1),
        rtol=FLOATS.get(dtype, 0),
        atol=FLOATS.get(dtype, 0),
    )


def test_prefix_products():
    x = RNG.uniform(0.9, 1.1, 64).astype(np.float32)
    products = x.reshape(2, 32).cumprod(1)
    found = run("y[i] = simd_prefix_inclusive_product(a[i]);", mx.array(x), dtype=mx.float32)
    np.testing.assert_allclose(found, products.reshape(-1), rtol=1e-5)
    found = run("y[i] = simd_prefix_exclusive_product(a[i]);", mx.array(x), dtype=mx.float32)
    np.testing.assert_allclose(found.reshape(2, 32)[:, 1:], products[:, :-1], rtol=1e-5)


@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
def test_shuffles(dtype):
    x, values = draw(dtype)
    groups = values.reshape(2, 32)
    calls = {
        "simd_shuffle(a[i], lane / 2)": groups[:, LANES // 2],
        "simd_shuffle_xor(a[i], 5)": groups[:, LANES ^ 5],
        "simd_broadcast(a[i], 7)": groups[:, LANES * 0 + 7],
        "simd_broadcast_first(a[i])": groups[:, LANES * 0],
        "simd_shuffle_rotate_down(a[i], 3)": groups[:, (LANES + 3) % 32],
        "simd_shuffle_rotate_up(a[i], 3)": groups[:, (LANES - 3) % 32],
        "simd_shuffle_and_fill_down(a[i], a[63 - i], 4)": np.hstack([groups, groups[::-1, ::-1]])[
            :, LANES + 4
        ],
        "simd_shuffle_and_fill_up(a[i], a[63 - i], 4)": np.hstack([groups[::-1, ::-1], groups])[
            :, 28 + LANES
        ],
        "quad_broadcast(a[i], 2)": groups[:, LANES // 4 * 4 + 2],
        "quad_shuffle(a[i], 3 - lane % 4)": groups[:, LANES ^ 3],
        "quad_shuffle_xor(a[i], 1)": groups[:, LANES ^ 1],
    }
    for call, expected in calls.items():
        np.testing.assert_array_equal(
            run(f"y[i] = {call};", x, dtype=dtype), expected.reshape(-1), call
        )


def test_shifts_leave_the_edge_undefined():
    x, values = draw(mx.float32)
    groups = values.reshape(2, 32)
    for call, found_at, from_at in (
        ("simd_shuffle_down(a[i], 4)", LANES[:28], LANES[4:]),
        ("simd_shuffle_up(a[i], 4)", LANES[4:], LANES[:28]),
    ):
        found = run(f"y[i] = {call};", x, dtype=mx.float32).reshape(2, 32)
        np.testing.assert_array_equal(found[:, found_at], groups[:, from_at])
    found = run(
        "y[i] = quad_shuffle_down(a[i], 1) - quad_shuffle_up(a[i], 1);", x, dtype=mx.float32
    )
    inner = groups.reshape(-1, 4)
    np.testing.assert_allclose(found.reshape(-1, 4)[:, 1:3], inner[:, 2:] - inner[:, :2], rtol=1e-6)


@pytest.mark.parametrize("kind", ["float4", "half2", "uint3"])
def test_vectors_are_shuffled_and_added_too(kind):
    size = int(kind[-1])
    x = RNG.integers(0, 50, (32, size))
    source = f"""
    {kind} v; for (int k = 0; k < {size}; k++) v[k] = a[i * {size} + k];
    {kind} s = simd_sum(v), t = simd_shuffle_xor(v, 9);
    for (int k = 0; k < {size}; k++) {{ y[i * {size} + k] = s[k]; z[i * {size} + k] = t[k]; }}
    """
    y, z = results(
        f"uint i = thread_position_in_grid.x; {source}",
        [mx.array(x)], [((32, size), mx.float32), ((32, size), mx.float32)], grid=32,
    )  # fmt: skip
    np.testing.assert_array_equal(y, np.tile(x.sum(0), (32, 1)))
    np.testing.assert_array_equal(z, x[LANES ^ 9])


def test_votes():
    x = np.r_[np.zeros(31), 1, np.ones(32)].astype(np.int32)
    source = """
    bool v = a[i] != 0;
    y[i] = simd_any(v) | simd_all(v) << 1 | simd_is_first() << 2 | quad_any(v) << 3 | quad_all(v) << 4
         | simd_ballot(v).all() << 5 | simd_ballot(v).any() << 6 | (ulong(simd_ballot(v)) == 0x80000000ul) << 7;
    """
    found = run(source, mx.array(x), dtype=mx.int32).reshape(2, 32)
    assert found[0].tolist() == [0b11000101] + [0b11000001] * 27 + [0b11001001] * 4
    assert found[1].tolist() == [0b1111111] + [0b1111011] * 31


@pytest.mark.parametrize("name", ["sum", "product", "min", "max", "and", "or", "xor"])
def test_quads(name):
    x = RNG.integers(1, 9, 64)
    f: Any = {"sum": np.sum, "product": np.prod, "min": np.min, "max": np.max}.get(name)
    quads = x.reshape(-1, 4)
    expected = f(quads, 1) if f else [functools.reduce(BITS[name], q) for q in quads]
    found = run(f"y[i] = quad_{name}(a[i]);", mx.array(x).astype(mx.int32), dtype=mx.int32)
    np.testing.assert_array_equal(found, np.repeat(expected, 4))


BRANCHES: dict[str, tuple[str, Callable[..., Any]]] = {
    "if": ("int s = 0; if (lane % 3 == 0) s = simd_sum(1); y[i] = s;", lambda x: 11 * (x % 3 == 0)),
    "else if": (
        "int s = 7; if (lane < 4) s = 0; else if (lane >= 10) s = simd_sum(1); y[i] = s;",
        lambda x: np.select([x < 4, x < 10], [0, 7], 22),
    ),
    "loop": (
        "int s = 0; for (uint k = 0; k < lane / 8; k++) s += simd_sum(1); y[i] = s;",
        lambda x: np.array([0, 24, 40, 48])[x // 8],
    ),
    "return": ("y[i] = 0; if (lane >= 20) return; y[i] = simd_sum(1);", lambda x: 20 * (x < 20)),
    "helper": (
        "int s = 0; if (lane < 10) s = helper(1) + helper(2); y[i] = s;",
        lambda x: 30 * (x < 10),
    ),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_the_threads_that_come_take_part(name):
    source, expected = BRANCHES[name]
    header = "inline int helper(int x) { return simd_sum(x); }"
    found = run(source, dtype=mx.int32, n=32, header=header)
    np.testing.assert_array_equal(found, expected(LANES))


def test_a_simdgroup_that_is_not_full():
    found = run("y[i] = simd_sum(1) * 100 + simd_max(lane);", dtype=mx.int32, n=45)
    assert found.tolist() == [3231] * 32 + [1312] * 13


@pytest.mark.parametrize("seed", range(3))
def test_barriers_order_threadgroup_memory(seed):
    x = np.random.default_rng(seed).permutation(128).astype(np.int32)
    source = """
    threadgroup int t[128], u[128];
    uint i = thread_position_in_threadgroup.x;
    t[i] = a[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int k = 0; k < 7; k++) {
        int v = t[(i + (1 << k)) % 128];
        threadgroup_barrier(mem_flags::mem_threadgroup);
        t[i] += v;
        threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
    }
    u[127 - i] = t[i] + int(i);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = u[(127 - i / 32 * 32 - 31) + i % 32];
    """
    (y,) = results(source, [mx.array(x)], [((128,), mx.int32)], grid=128, threadgroup=128)
    index = np.arange(128)
    np.testing.assert_array_equal(y, x.sum() + index // 32 * 32 + 31 - index % 32)


def test_threadgroup_variables():
    """Each threadgroup has its own; arrays of arrays, structs, vectors, several of one declaration."""
    header = """
    struct Pair { float a; half b[3]; };
    template <typename T, int N> struct Box { T v[N]; };
    inline float take(threadgroup float* p, threadgroup Pair& q) { return p[1] + float(q.b[2]); }
    """
    source = """
    threadgroup float x[2][3], w;
    threadgroup Pair pair; threadgroup Box<float4, 2> box; alignas(16) threadgroup half h[8];
    threadgroup float4* pointer = box.v;
    uint g = threadgroup_position_in_grid.x;
    if (thread_index_in_threadgroup == 0) {
        x[1][0] = 1; x[1][1] = g; w = 10; pair.b[2] = 0.5h; pointer[1] = float4(100); h[7] = 1000;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[thread_position_in_grid.x] = take(x[1], pair) + w + box.v[1].z + h[7];
    """
    (y,) = results(source, [], [((96,), mx.float32)], grid=96, header=header)
    np.testing.assert_array_equal(y, 1110.5 + np.arange(96) // 32)


MATRIX = """
simdgroup_matrix<A, 8, 8> p, r; simdgroup_matrix<float, 8, 8> q(0.0f), s;
simdgroup_load(p, a + 3, 24); simdgroup_load(r, b, 16, ulong2(2, 1), true);
simdgroup_multiply(s, p, r);
simdgroup_multiply_accumulate(q, p, r, s);
simdgroup_store(q, y, 12); simdgroup_store(r, z, 8, ulong2(0, 0), true);
"""


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_matrices(dtype):
    a, x = draw(dtype, 8 * 24 + 3)
    b, w = draw(dtype, 16 * 16)
    y, z = results(
        MATRIX,
        [a, b],
        [((8 * 12,), mx.float32), ((64,), dtype)],
        grid=32,
        template={"A": dtype},
        init_value=0,
    )
    left = x[3:].reshape(8, 24)[:, :8]
    right = w.reshape(16, 16)[1:9, 2:10]
    np.testing.assert_allclose(y.reshape(8, 12)[:, :8], 2 * left @ right.T, rtol=1e-5)
    assert (y.reshape(8, 12)[:, 8:] == 0).all()
    np.testing.assert_array_equal(z.reshape(8, 8), right)


def test_matrix_elements_and_constants():
    """thread_elements as MLX's own kernels count them: two neighbours of a row."""
    source = """
    simdgroup_float8x8 m(3.0f), n = make_filled_simdgroup_matrix<float, 8, 8>(2.0f);
    uint l = thread_index_in_simdgroup;
    m.thread_elements()[1] += l; n.thread_elements() = float2(l, l + 100);
    simdgroup_store(m, y); simdgroup_store(n, z);
    """
    y, z = results(source, [], [((8, 8), mx.float32), ((8, 8), mx.float32)], grid=32)
    rows = (LANES // 4 & 4) + LANES // 2 % 4
    columns = (LANES // 4 & 2) * 2 + LANES % 2 * 2
    expected = 3.0 * np.eye(8)
    expected[rows, columns + 1] += LANES
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(z[rows, columns], LANES)
    np.testing.assert_array_equal(z[rows, columns + 1], LANES + 100)


ATOMICS: dict[str, Callable[..., Any]] = {
    "fetch_add": lambda x: x.sum(), "fetch_sub": lambda x: -x.sum(), "fetch_max": lambda x: x.max(initial=0),
    "fetch_min": lambda x: x.min(initial=0), "fetch_or": np.bitwise_or.reduce,
    "fetch_xor": np.bitwise_xor.reduce, "fetch_and": lambda x: 0,
}  # fmt: skip


@pytest.mark.parametrize("name", ATOMICS)
def test_atomics_on_integers(name):
    x = RNG.integers(-50, 50, 256).astype(np.int32)
    source = f"""
    atomic_{name}_explicit((device atomic_int*)y, a[thread_position_in_grid.x], memory_order_relaxed);
    """
    (y,) = results(source, [mx.array(x)], [((1,), mx.int32)], grid=256, init_value=0)
    assert y[0] == ATOMICS[name](x)


def test_atomics_in_threadgroup_memory_and_on_floats():
    source = """
    threadgroup atomic_uint count; threadgroup atomic_float total;
    uint t = thread_index_in_threadgroup;
    if (t == 0) {
        atomic_store_explicit(&count, 0u, memory_order_relaxed);
        atomic_store_explicit(&total, 0.0f, memory_order_relaxed);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint at = atomic_fetch_add_explicit(&count, 1u, memory_order_relaxed);
    atomic_fetch_add_explicit(&total, 0.5f, memory_order_relaxed);
    y[threadgroup_position_in_grid.x * 64 + at] = t;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (t == 0) z[threadgroup_position_in_grid.x] = atomic_load_explicit(&total, memory_order_relaxed)
        + 1000 * atomic_exchange_explicit(&count, 7u, memory_order_relaxed);
    """
    outputs = [((128,), mx.uint32), ((2,), mx.float32)]
    for checked in (False, True):
        with metal_on_cpu(checked) as host:
            y, z = launch(kernel(source, 0, 2), [], outputs, grid=128, threadgroup=64)
        assert host.findings == []
        # threads come in any order
        np.testing.assert_array_equal(np.sort(y.reshape(2, 64), 1), np.tile(np.arange(64), (2, 1)))
        assert z.tolist() == [64032, 64032]


def test_compare_exchange():
    """A lock-free maximum over two threadgroups."""
    x = RNG.integers(0, 10**6, 512).astype(np.uint32)
    source = """
    device atomic_uint* top = (device atomic_uint*)y;
    uint mine = a[thread_position_in_grid.x], seen = atomic_load_explicit(top, memory_order_relaxed);
    while (seen < mine &&
           !atomic_compare_exchange_weak_explicit(top, &seen, mine, memory_order_relaxed, memory_order_relaxed)) {}
    """
    (y,) = results(
        source, [mx.array(x)], [((1,), mx.uint32)], grid=512, threadgroup=256, init_value=0
    )
    assert y[0] == x.max()
