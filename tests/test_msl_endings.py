"""Kernels that end otherwise than they should: never, without room for their variables, or by an order or by chance."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from metal_call import findings, kernel, launch, needs_host
from msl import Host, KernelError, metal_on_cpu
from msl.fills import differences

from mlx_ferrum.launch import use_runner

pytestmark = needs_host

NUMBERS = mx.array([7, 9])
INTEGERS = [((64,), mx.int32)]
ENDLESS = {
    "a lock that nobody opens": (
        "device atomic_uint* open = (device atomic_uint*)y;\n"
        "while (atomic_load_explicit(open, memory_order_relaxed) == 0) {}"
    ),
    "a barrier again and again": "int k = a[0];\nwhile (k) { threadgroup_barrier(mem_flags::mem_none); k ^= 8; }",
    "a function of the library": "float x = a[0];\nwhile (x > 0) x = 2 + sin(x); y[0] = x;",
}


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("checked", [False, True], ids=["plain", "checked"])
def test_a_kernel_that_does_not_end_is_an_error(name: str, checked: bool) -> None:
    """It is stopped where it is; the next launch is none the worse for it."""
    text = kernel(ENDLESS[name], 1, 1)
    host = Host(checked, seconds=0.1)
    with use_runner(host):
        if checked:
            launch(text, [NUMBERS], INTEGERS, grid=64, init_value=0)
        else:
            with pytest.raises(KernelError, match=r"endless loop: no end within 0.1 s \[test\]"):
                launch(text, [NUMBERS], INTEGERS, grid=64, init_value=0)
    if checked:
        (found,) = [f for f in host.findings if f.kind == "endless loop"]
        at, _, said = str(found).rpartition(": endless")
        assert said == " loop: no end within 0.1 s [test]"
        # stopped within a barrier, it is not always known where that was called
        assert at == "test body:2" or ("barrier" in name and at == "??:0")
    with metal_on_cpu():
        (y,) = launch(
            kernel("y[thread_position_in_grid.x] = a[1];", 1, 1), [NUMBERS], INTEGERS, grid=64
        )
    assert (y == 9).all()


def large(count: int) -> str:
    """A kernel with an array of `count` ints that no compiler does without."""
    return f"""
    int v[{count}], n = a[1];
    for (int k = 0; k < {count}; k++) v[k] = k * n;
    for (int k = 0; k < n; k++) v[(k * 77 + a[0]) % {count}] += v[k * 31];
    y[thread_position_in_grid.x] = v[77 + a[0]];
    """


def test_a_thread_array_without_room_is_an_error() -> None:
    for count in (1 << 15, 1 << 17):
        with (
            metal_on_cpu(),
            pytest.raises(KernelError, match="thread memory: a thread's variables"),
        ):
            launch(kernel(large(count), 1, 1), [NUMBERS], INTEGERS, grid=64)
        found = findings(large(count), [NUMBERS], INTEGERS, grid=64)
        assert [f.detail for f in found] == ["a thread's variables take more than 128 KiB"]
    with metal_on_cpu():
        (y,) = launch(kernel(large(1 << 13), 1, 1), [NUMBERS], INTEGERS, grid=64)
    assert (y == 84 * 9 + 31 * 9).all()


def test_seeds_change_the_order_of_lanes() -> None:
    """Without a seed it is that of their numbers."""
    source = """
    uint at = atomic_fetch_add_explicit((device atomic_uint*)y, 1u, memory_order_relaxed);
    z[at] = thread_index_in_simdgroup;
    """
    orders = set()
    for seed in range(4):
        with metal_on_cpu(checked=True, seed=seed) as host:
            outputs = [((1,), mx.uint32), ((32,), mx.uint32)]
            _, z = launch(kernel(source, 0, 2), [], outputs, grid=32, init_value=0)
        assert host.findings == []
        assert sorted(z.tolist()) == list(range(32))
        orders.add(tuple(z.tolist()))
    assert len(orders) == 4
    assert tuple(range(32)) in orders


# What reads memory that nothing wrote, and in what order of y's bytes it shows
UNSET = {
    "a variable": "int v; if (a[0] > 7) v = 3; y[i] = v;",
    "an element of an array": "int v[4]; v[0] = 1; v[1] = 2; v[2] = 3; y[i] = v[(i + a[0]) % 4];",
    "a matrix": "simdgroup_float8x8 m; y[i] = as_type<int>(m.thread_elements()[0]);",
    "threadgroup memory": "threadgroup int t[64]; y[i] = t[i ^ 1];",
    "an output": "y[i] |= 5;",
    "past an input": "y[i] = a[2 + i];",
    "before an input": "y[i] = a[int(i) - 64];",
}


@pytest.mark.parametrize("name", UNSET)
def test_what_nothing_wrote_shows_in_a_result(name: str) -> None:
    source = f"uint i = thread_index_in_threadgroup; {UNSET[name]}"
    found = differences(
        lambda: launch(kernel(source, 1, 1), [NUMBERS], INTEGERS, grid=64, threadgroup=64)
    )
    assert len(found) == 1
    assert found[0].startswith("test: y, first at byte ")


def test_what_does_not_depend_on_it_is_left_alone() -> None:
    """A variable that is set before it counts, and an input that is written in place."""
    source = """
    uint i = thread_index_in_threadgroup; int v; threadgroup int t[64];
    if (i % 2) t[i] = 3;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    v = i % 2 ? t[i] : a[0]; y[i] = v + simd_shuffle_down(v, 3);
    """
    x = mx.array(np.random.default_rng(1).integers(0, 99, 64).astype(np.int32))
    assert (
        differences(lambda: launch(kernel(source, 1, 1), [x], INTEGERS, grid=64, threadgroup=64))
        == []
    )
