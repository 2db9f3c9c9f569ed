"""What the host counts, on kernels of a few lines whose cost is known."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from metal_call import kernel, launch, needs_host
from msl.counting import Counts, counting
from test_ops import random_tensor

from mlx_ferrum import blocks
from mlx_ferrum.kernels.matvec import matvec
from mlx_ferrum.kernels.rows import rows

pytestmark = needs_host
INDEX = "uint i = thread_position_in_grid.x, lane = thread_index_in_simdgroup;"
N = 256  # threads, 64 in each threadgroup: 8 simdgroups
FREE = {"device load", "device store", "constant load", "address"}


def counted(body: str, x: mx.array, dtype: mx.Dtype = mx.float32) -> tuple[np.ndarray, Counts]:
    """What y (N,) is, and what the launch cost; a: the kernel's input."""
    with counting() as host:
        (y,) = launch(kernel(INDEX + body, 1, 1), [x], [((N,), dtype)], grid=N, threadgroup=64)
    return y, host.counts[0]


def test_a_copy():
    x = mx.arange(N, dtype=mx.float32)
    y, cost = counted("y[i] = a[i];", x)
    assert np.array_equal(y, np.array(x))
    assert cost.issued == {"device load": 8, "device store": 8, "address": 16}
    assert (cost.groups, cost.sampled, cost.threads, cost.threadgroup_bytes) == (4, 4, 64, 0)
    for traffic in (cost.reads["a"], cost.writes["y"]):
        assert (
            traffic.asked == traffic.group_bytes == traffic.simdgroup_bytes == traffic.size == 4 * N
        )
        assert traffic.accesses == traffic.lines == traffic.least == traffic.steps == 8
    assert cost.reads["y"].asked == cost.writes["a"].asked == 0


@pytest.mark.parametrize(
    "index, asked, distinct, lines, least",
    [
        ("32 * i", 4, 32 * 4, 32, 1),  # a line each
        ("i / 32", 4, 4, 1, 1),  # all the same
        ("i + 1", 4, 32 * 4, 2, 1),  # a line and a neighbour's first number
        ("2 * i", 4, 32 * 4, 2, 1),  # every other number
    ],
)
def test_lines_of_an_access(index, asked, distinct, lines, least):
    """Of each of 8 simdgroups; the buffer starts where a line does."""
    read = counted(f"y[i] = a[{index}];", mx.zeros(32 * N))[1].reads["a"]
    assert read.asked == asked * N
    assert read.simdgroup_bytes == distinct * 8
    assert (read.lines, read.least) == (8 * lines, 8 * least)


def test_loads_of_a_step_share_lines():
    """Four loads of neighbouring numbers touch the same four lines, once."""
    body = "float s = 0; for (int j = 0; j < 4; j++) s += a[4 * i + j]; y[i] = s;"
    read = counted(body, mx.zeros(4 * N))[1].reads["a"]
    assert (read.accesses, read.lines, read.least) == (8 * 4, 8 * 16, 8 * 4)
    assert (read.steps, read.step_lines, read.step_bytes) == (8, 8 * 4, 8 * 4 * 128)


def test_bytes_that_simdgroups_share():
    """Both simdgroups of each of the 4 threadgroups read the same 128 bytes."""
    read = counted("y[i] = a[lane];", mx.zeros(32))[1].reads["a"]
    assert (read.asked, read.simdgroup_bytes, read.group_bytes) == (4 * N, 8 * 128, 4 * 128)


def test_a_barrier_and_threadgroup_memory():
    body = """threadgroup float part[64]; uint t = thread_position_in_threadgroup.x;
        part[t] = a[i]; threadgroup_barrier(mem_flags::mem_threadgroup); y[i] = part[63 - t];"""
    x = mx.arange(N, dtype=mx.float32)
    y, cost = counted(body, x)
    assert np.array_equal(y, np.array(x).reshape(4, 64)[:, ::-1].reshape(-1))
    assert cost.threadgroup_bytes == 256
    kinds = ("barrier", "threadgroup load", "threadgroup store")
    assert [cost.issued[kind] for kind in kinds] == [8, 8, 8]


@pytest.mark.parametrize(
    "body, dtype, wanted",
    [
        ("y[i] = a[i] * 2.5f + 1;", mx.float32, {"float": 1}),
        ("y[i] = dot(float4(a[i]), float4(5, 6, 7, 8));", mx.float32, {"float": 4}),
        ("y[i] = float(as_type<half2>(a[i]).x) * 3;", mx.float32, {"float": 1}),
        ("y[i] = float(as_type<uint>(a[i]));", mx.float32, {"convert": 1}),
        ("y[i] = (as_type<uint>(a[i]) >> 5) & 15;", mx.uint32, {"shift": 1}),
        ("y[i] = (as_type<uint>(a[i]) >> 5) & 10;", mx.uint32, {"shift": 1, "integer": 1}),
        # a shift by `lane` is one by `lane & 31`
        ("y[i] = as_type<uint>(a[i]) << lane;", mx.uint32, {"integer": 1, "shift": 1}),
        ("y[i] = as_type<uint>(a[i]) >> lane;", mx.uint32, {"integer": 1, "runtime shift": 1}),
        ("y[i] = (as_type<uint>(a[i]) >> lane) & 15;", mx.uint32, {"integer": 1, "shift": 1}),
        (
            "y[i] = (as_type<uint>(a[i]) >> lane) & 10;",
            mx.uint32,
            {"integer": 2, "runtime shift": 1},
        ),
        ("y[i] = as_type<uint>(a[i]) * 77;", mx.uint32, {"multiply": 1}),
        ("y[i] = a[i] < 3 ? a[i] : 4;", mx.float32, {"select": 1}),
        ("y[i] = sqrt(a[i]);", mx.float32, {"root": 1}),
        ("y[i] = simd_sum(a[i]);", mx.float32, {"reduction": 1}),
        ("y[i] = simd_shuffle_xor(a[i], 1);", mx.float32, {"shuffle": 1, "integer": 1}),
    ],
)
def test_kinds_of_instructions(body, dtype, wanted):
    _, cost = counted(body, mx.ones(N), dtype)
    found = {kind: n / 8 for kind, n in cost.issued.items() if kind not in FREE}
    assert found == wanted


def test_a_simdgroup_waits_for_the_lane_with_most_to_do():
    body = "float s = a[i]; for (uint j = 0; j < lane; j++) s = sqrt(s); y[i] = s;"
    assert counted(body, mx.ones(N))[1].issued["root"] == 8 * 31


def test_both_sides_of_a_branch_cost_where_lanes_differ():
    body = "if (lane < 8) y[i] = sqrt(a[i]); else y[i] = sin(a[i]);"
    issued = counted(body, mx.ones(N))[1].issued
    assert (issued["root"], issued["sine"]) == (8, 8)


def test_a_sample_stands_for_the_whole():
    w, x = random_tensor(blocks.Q6_K, 256, 1024, seed=1), mx.ones((2, 1024))
    found = []
    for sample in (None, 4):
        with counting(sample, whole=["rows_Q6_K"]) as host:
            y, ids = matvec(x, w, staged=False), mx.arange(64)
            read = rows(w, ids)
        found.append(host.counts[0])
    whole, part = found
    assert (whole.sampled, part.sampled, part.groups) == (32, 4, 32)
    assert np.isnan(np.array(y)).any()  # of threadgroups that did not run
    assert not np.isnan(np.array(read)).any()  # of a kernel that is to run whole
    assert part.issued == pytest.approx(whole.issued)
    for name in ("x", "w"):
        a, b = whole.reads[name], part.reads[name]
        assert (b.asked, b.group_bytes, b.least) == (a.asked, a.group_bytes, a.least)
        # where a row starts in a line differs from threadgroup to threadgroup
        assert b.lines == pytest.approx(a.lines, rel=0.02)
        assert b.step_lines == pytest.approx(a.step_lines, rel=0.02)
