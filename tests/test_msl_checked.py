"""Checked mode finds the faults that are put in, names their lines, and finds nothing in what is right."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal_call import findings, kernel, launch, needs_host, results
from msl import KernelError, metal_on_cpu, mutations, survivors
from msl_faults import FAULTS, HEADER, RIGHT, around

pytestmark = needs_host

ARRAYS = (mx.arange(128), mx.array([7, 9]), mx.array(0))
OUTPUTS = [((128,), mx.int32), ((1,), mx.int32)]
HOW: dict[str, Any] = {"grid": 128, "threadgroup": 64}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found_where_they_are(name):
    fault, expected = FAULTS[name]
    found = findings(around(fault), ARRAYS, OUTPUTS, header=HEADER, **HOW)
    assert f"test body:6: {expected} [test]" in [str(f) for f in found]


@pytest.mark.parametrize("seed", range(3))
def test_without_a_fault_nothing_is_found(seed):
    text = kernel(around(""), 3, 2, HEADER)
    with metal_on_cpu(checked=True, seed=seed) as host:
        y, _ = launch(text, ARRAYS, OUTPUTS, **HOW)
    assert host.findings == []
    np.testing.assert_array_equal(y, 2 * (np.arange(128) % 64) + 9)


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_left_alone(name):
    assert findings(around(RIGHT[name]), ARRAYS, OUTPUTS, header=HEADER, **HOW) == []


def test_an_output_that_is_not_filled():
    found = findings(
        "if (thread_position_in_grid.x != 3) y[thread_position_in_grid.x] = 1;",
        [],
        [((8,), mx.float32)],
        grid=8,
    )
    assert [str(f) for f in found] == ["unwritten output: y, first at byte 12 [test]"]


@pytest.mark.parametrize(
    "name",
    ["barrier in a branch", "one of two barriers", "shuffle in a branch", "one of two operations"],
)
def test_plain_mode_stops_at_what_it_notices(name):
    fault, expected = FAULTS[name]
    with metal_on_cpu(), pytest.raises(KernelError, match=expected):
        launch(kernel(around(fault), 3, 2, HEADER), ARRAYS, OUTPUTS, **HOW)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("y[int(b[0]) * 1000000000l] = 1;", "out of bounds: no memory there"),
        ("y[i] = a[i] / int(b[0] - 7);", "division by zero: of integers"),
        (
            "int4 v = *(const device int4*)(a + 1 + n); v *= v; y[i] = v.x + v.y + v.z + v.w;",
            "misaligned: the address of a vector",
        ),
    ],
)
def test_a_fault_in_plain_mode_is_an_error(fault, expected):
    with metal_on_cpu(), pytest.raises(KernelError, match=f"body:6: {expected}"):
        launch(kernel(around(fault), 3, 2, HEADER), ARRAYS, OUTPUTS, **HOW)


@pytest.mark.parametrize("fault", ["y[i] = a[128 + i];", "y[int(b[0]) * 100000] = 1;", "z[7] = 1;"])
def test_a_fault_does_no_harm_to_the_process(fault):
    """Inputs are copies with room around them, and what goes further ends the run."""
    x = mx.arange(128)
    mx.eval(x)
    assert findings(around(fault), (x, *ARRAYS[1:]), OUTPUTS, header=HEADER, **HOW)
    assert x.tolist() == list(range(128))


def test_the_offset_of_a_slice_counts_for_alignment():
    """A window into a file starts where it starts: MLX binds slices with their offset."""
    source = "uint i = thread_position_in_grid.x; y[i] = ((const device uint4*)a)[i].y;"
    whole = mx.arange(64).astype(mx.uint16)
    for start, aligned in ((8, True), (4, False)):
        part = whole[start : start + 32]
        found = findings(source, [part], [((4,), mx.uint32)], grid=4)
        assert [f.kind for f in found] == ([] if aligned else ["misaligned"])
    part = whole[8:40]
    with metal_on_cpu():
        (y,) = launch(kernel(source, 1, 1), [part], [((4,), mx.uint32)], grid=4)
    first = 8 + np.arange(4) * 8 + 2
    np.testing.assert_array_equal(y, first | (first + 1) << 16)


def test_findings_name_lines_of_headers_and_parameters():
    header = '#line 40 "kernels/some.metal"\ninline int take(const device int* p, int i) {\n    return p[i];\n}\n'
    (found,) = findings(
        "y[0] = take(b, 9);",
        [mx.zeros(1), mx.zeros(9, mx.int32)],
        [((1,), mx.int32)],
        grid=1,
        header=header,
    )
    assert str(found) == "kernels/some.metal:41: out of bounds: read of b, byte 36 of 36 [test]"


SUM = """
inline int total(threadgroup int* t, uint i) {
    for (uint k = 64; k > 0; k /= 2) {
        if (i < k) t[i] += t[i + k];
        threadgroup_barrier(mem_flags::mem_threadgroup); // needed
    }
    /* threadgroup_barrier(mem_flags::mem_threadgroup); */
    return t[0];
}
"""


def test_each_barrier_in_turn_is_left_out():
    source = """
    threadgroup int t[128];
    uint i = thread_index_in_threadgroup;
    t[i] = a[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = total(t, i);
    """
    text = kernel(source, 1, 1, SUM)
    x = mx.arange(128)

    def run() -> None:
        (y,) = launch(text, [x], [((128,), mx.int32)], grid=128, threadgroup=128)
        assert y.shape == (128,)

    places = [place for place, _ in mutations(text)]
    assert places == ["test header:5", "test body:5", "test body:6"]
    assert survivors(run) == ["test body:6"]  # which orders nothing


def test_seeds_change_the_order_of_simdgroups_and_threadgroups():
    source = """
    if (thread_index_in_simdgroup == 0) {
        uint at = atomic_fetch_add_explicit((device atomic_uint*)y, 1u, memory_order_relaxed);
        z[at] = simdgroup_index_in_threadgroup + 4 * threadgroup_position_in_grid.x;
    }
    """
    orders = set()
    for seed in range(4):
        with metal_on_cpu(checked=True, seed=seed):
            _, z = launch(
                kernel(source, 0, 2),
                [],
                [((1,), mx.uint32), ((16,), mx.uint32)],
                grid=512,
                threadgroup=128,
                init_value=0,
            )
        assert sorted(z.tolist()) == list(range(16))
        orders.add(tuple(z.tolist()))
    assert len(orders) > 2
    assert tuple(range(16)) in orders


def test_address_spaces_can_be_told_apart_in_llvm_ir():
    """What counts accesses by kind of memory will read."""
    from msl.compiler import llvm_ir
    from msl.signature import signature

    from mlx_ferrum.launch import Launch

    text = kernel(
        "threadgroup float t[32]; uint i = thread_position_in_grid.x; t[i] = a[i] + b[0]; y[i] = t[i ^ 1];",
        2,
        1,
    )
    call = Launch(
        [mx.zeros(32), mx.zeros(2)], {}, (32, 1, 1), (32, 1, 1), [(32,)], [mx.float32], None
    )
    ir = llvm_ir(signature(text, call))
    for access in (
        "load float, ptr addrspace(1)",
        "load float, ptr addrspace(2)",
        "store float %",
        "addrspace(3)",
    ):
        assert access in ir


def test_results_are_those_of_plain_mode():
    """A kernel with everything in it, in both modes and three orders."""
    header = (
        "template <typename T> inline T twice(threadgroup T* t, uint i) { return t[i] + t[i]; }"
    )
    source = """
    threadgroup half t[96];
    uint i = thread_index_in_threadgroup;
    t[i] = half(a[thread_position_in_grid.x]);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float s = simd_sum(float(twice(t, 95 - i)));
    y[thread_position_in_grid.x] = bfloat(exp(s / 32));
    """
    x = mx.array(np.random.default_rng(0).normal(size=192).astype(np.float32))
    (y,) = results(source, [x], [((192,), mx.bfloat16)], header=header, grid=192, threadgroup=96)
    halves = np.array(x.astype(mx.float16)).astype(np.float32).reshape(2, 3, 32)
    expected = np.exp(2 * halves.sum(2) / 32)[:, ::-1].repeat(32, 1).reshape(-1)
    np.testing.assert_allclose(y, expected, rtol=1e-2)


def test_no_distance_leads_from_a_buffer_into_another():
    """A buffer of 1 MiB: 3 MiB on either side of it, in steps of 128 KiB, are no other buffer's memory."""
    text = kernel("y[0] = b[d] + a[0] + c[0];", 4, 1)
    whole, others = 1 << 18, [mx.zeros(1 << 18, mx.int32)] * 3
    steps = [k << 15 for k in range(24)]
    for at in [whole + s for s in steps] + [-1 - s for s in steps]:
        with metal_on_cpu(checked=True) as host:
            launch(text, [*others, mx.array(at)], [((whole,), mx.int32)], grid=1)
        assert "out of bounds: read of b, byte" in str(host.findings[0])
        assert f"byte {4 * at} of {4 * whole}" in host.findings[0].detail
