"""A launch on the host is one of mx.fast.metal_kernel: the text, what the parameters are, where threads are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal_call import HAS_METAL, also_on_metal, kernel, launch, needs_host, results
from msl import KernelError, SourceError, metal_on_cpu
from msl.signature import ATTRIBUTES, signature

import mlx_ferrum.launch
from mlx_ferrum.launch import Kernel, Launch, expand, use_runner

pytestmark = also_on_metal

TYPES = [
    mx.bool_, mx.int8, mx.uint8, mx.int16, mx.uint16, mx.int32, mx.uint32, mx.int64, mx.uint64,
    mx.float16, mx.bfloat16, mx.float32,
]  # fmt: skip
EVERYTHING = " ".join(ATTRIBUTES) + " a_shape a_strides a_ndim b_ndim c_shape b_stride"


@needs_host
@pytest.mark.parametrize("source", ["y[0] = 1;", f"// {EVERYTHING}"], ids=["little", "everything"])
@pytest.mark.parametrize(
    "template",
    [{}, {"T": mx.bfloat16, "N": 7, "M": 0, "B": True, "C": False, "U": mx.int64}],
    ids=["plain", "template"],
)
def test_the_text_is_what_mlx_generates(source, template, capfd, tmp_path):
    text = kernel(source, 4, 2, "// header\n")
    arrays = [
        mx.zeros((2, 4)),
        mx.zeros((7,), mx.float16),
        mx.zeros(3)[0],
        mx.zeros((8,), mx.bool_),
    ]
    call = Launch(
        arrays, template, (1, 1, 1), (1, 1, 1), [(1,), (2,)], [mx.int8, mx.bfloat16], None
    )

    def run(*inputs: mx.array) -> list[mx.array]:
        built: Any = mx.fast.metal_kernel("test", list("abcd"), ["y", "z"], source, "// header\n")
        return built(
            inputs=list(inputs),
            template=list(template.items()),
            grid=call.grid,
            threadgroup=call.threadgroup,
            output_shapes=call.output_shapes,
            output_dtypes=call.output_dtypes,
            verbose=True,
        )

    mx.export_function(str(tmp_path / "f.mlxfn"), run, *arrays)
    printed = capfd.readouterr().out
    assert f"```\n{signature(text, call).text()}\n```" in printed


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("n", [7, 8])
def test_every_type_goes_in_and_out(dtype, n):
    x = mx.arange(n).astype(dtype)
    (y,) = results(
        "y[thread_position_in_grid.x] = a[thread_position_in_grid.x];", [x], [((n,), dtype)], grid=n
    )
    np.testing.assert_array_equal(y, np.array(x.astype(mx.float32) if dtype == mx.bfloat16 else x))


def test_small_arrays_are_constant_and_numbers_references():
    header = """
    inline int space(const device float*) { return 1; }
    inline int space(const constant float*) { return 2; }
    """
    arrays = [mx.zeros(8), mx.zeros(7), mx.array(5.0), 6.0]
    source = "y[0] = space(a); y[1] = space(b); y[2] = int(c); y[3] = int(d); y[4] = space(&c);"
    (y,) = results(source, arrays, [((5,), mx.int32)], header=header, grid=1)
    assert y.tolist() == [1, 2, 5, 6, 2]


def test_shapes_and_strides():
    x = mx.arange(24).reshape(2, 3, 4)
    source = """
    for (int i = 0; i < a_ndim; i++) { y[i] = a_shape[i]; y[3 + i] = a_strides[i]; }
    """
    (y,) = results(source, [x], [((6,), mx.int64)], grid=1)
    assert y.tolist() == [2, 3, 4, 12, 4, 1]


def test_arrays_out_of_row_order_are_copied():
    x = mx.arange(12).reshape(3, 4)
    source = "uint i = thread_position_in_grid.x; y[i] = a[i]; if (i < 2) z[i] = a_strides[i];"
    for view in (x.T, x[:, 1:3], x[::2]):
        rows = np.array(view)
        y, z = results(source, [view], [((view.size,), mx.int32), ((2,), mx.int64)], grid=view.size)
        np.testing.assert_array_equal(y, rows.reshape(-1))
        assert z.tolist() == [rows.shape[1], 1]


@needs_host
def test_a_fresh_output_is_no_number():
    text = kernel("if (thread_position_in_grid.x > 0) y[thread_position_in_grid.x] = 1;", 0, 1)
    with metal_on_cpu():
        for dtype in (mx.float32, mx.float16, mx.bfloat16):
            (y,) = launch(text, [], [((4,), dtype)], grid=4)
            assert np.isnan(y[0])
            assert (y[1:] == 1).all()


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.int32], ids=str)
def test_an_initial_value(dtype):
    source = "y[thread_position_in_grid.x] += 1;"
    (y,) = results(source, [], [((2, 3), dtype)], grid=5, init_value=4)
    assert y.reshape(-1).tolist() == [5, 5, 5, 5, 5, 4]


def test_template_arguments():
    source = "y[0] = T(N) / 2; y[1] = B ? 1 : 0; y[2] = sizeof(T);"
    for dtype, size, half in ((mx.float32, 4, 1.5), (mx.float16, 2, 1.5), (mx.int8, 1, 1)):
        template = {"T": dtype, "N": 3, "B": True}
        (y,) = results(source, [], [((3,), mx.float32)], grid=1, template=template)
        assert y.tolist() == [half, 1, size]


@pytest.mark.parametrize(
    ("grid", "group"),
    [
        ((64, 1, 1), (32, 1, 1)),
        ((5, 1, 1), (32, 1, 1)),
        ((100, 3, 2), (32, 2, 1)),
        ((7, 5, 3), (4, 4, 2)),
        ((70, 1, 1), (64, 1, 1)),
    ],
)
def test_where_threads_are(grid, group):
    """The grid is of threads; a threadgroup is no larger than it, and the last of an axis may be smaller."""
    ones = [name for name, kind in ATTRIBUTES.items() if kind == "uint"]
    threes = [name for name, kind in ATTRIBUTES.items() if kind == "uint3"]
    writes = [f"to[{i}] = {name};" for i, name in enumerate(ones)]
    for i, name in enumerate(threes):
        writes += [f"to[{len(ones) + 3 * i + k}] = {name}.{axis};" for k, axis in enumerate("xyz")]
    width = len(ones) + 3 * len(threes)
    source = f"""
    uint3 p = thread_position_in_grid;
    device uint* to = y + ((p.z * {grid[1]} + p.y) * {grid[0]} + p.x) * {width};
    {" ".join(writes)}
    """
    shape = (*grid[::-1], width)
    (y,) = results(source, [], [(shape, mx.uint32)], grid=grid, threadgroup=group)
    for at in np.ndindex(grid):
        found = y[at[2], at[1], at[0]]
        expected = _expected(grid, group, at)
        assert dict(zip(ones, found, strict=False)) == {n: expected[n] for n in ones}
        for i, name in enumerate(threes):
            start = len(ones) + 3 * i
            assert (name, *found[start : start + 3]) == (name, *expected[name])


def _expected(grid, group, at):
    full = np.minimum(group, grid)
    position = np.array(at)
    where = position // full
    size = np.minimum(full, grid - where * full)
    inside = position - where * full
    index = int(inside[0] + size[0] * (inside[1] + size[1] * inside[2]))
    return {
        "dispatch_quadgroups_per_threadgroup": -(-full.prod() // 4),
        "dispatch_simdgroups_per_threadgroup": -(-full.prod() // 32),
        "dispatch_threads_per_threadgroup": full,
        "grid_origin": (0, 0, 0),
        "grid_size": grid,
        "quadgroup_index_in_threadgroup": index // 4,
        "quadgroups_per_threadgroup": -(-size.prod() // 4),
        "simdgroup_index_in_threadgroup": index // 32,
        "simdgroups_per_threadgroup": -(-size.prod() // 32),
        "thread_execution_width": 32,
        "thread_index_in_quadgroup": index % 4,
        "thread_index_in_simdgroup": index % 32,
        "thread_index_in_threadgroup": index,
        "thread_position_in_grid": position,
        "thread_position_in_threadgroup": inside,
        "threadgroup_position_in_grid": where,
        "threadgroups_per_grid": -(-np.array(grid) // full),
        "threads_per_grid": grid,
        "threads_per_simdgroup": 32,
        "threads_per_threadgroup": size,
    }


@needs_host
def test_what_metal_refuses_to_launch():
    text = kernel("y[0] = 1;", 1, 1)
    with metal_on_cpu():
        with pytest.raises(KernelError, match="1025 threads"):
            launch(text, [mx.zeros(1)], [((1,), mx.int32)], grid=2000, threadgroup=1025)
        with pytest.raises(ValueError, match="1 inputs expected, found 2"):
            launch(text, [mx.zeros(1)] * 2, [((1,), mx.int32)], grid=1)
        with pytest.raises(ValueError, match="complex"):
            launch(text, [mx.zeros(1, mx.complex64)], [((1,), mx.int32)], grid=1)
        with pytest.raises(ValueError, match="template argument T"):
            launch(text, [mx.zeros(1)], [((1,), mx.int32)], grid=1, template={"T": 1.5})


@pytest.mark.parametrize("template", [{"ACT": -1}, {"T": mx.float32, "ACT": -7, "B": True}])
def test_negative_template_integers_are_refused(template):
    """MLX 0.32.1 to 0.32.3 leave the minus sign in the kernel's name, which Metal's compiler then refuses."""
    text = kernel("y[0] = ACT;", 0, 1, name="product")
    wanted = f"product: template argument ACT is {template['ACT']}, expected 0 or more"
    with metal_on_cpu(), pytest.raises(ValueError, match=wanted):
        launch(text, [], [((1,), mx.int32)], grid=1, template=template)


@pytest.mark.parametrize("name, value", [("product", -1), ("a-product", 1)])
def test_the_host_takes_no_name_that_metal_refuses(name, value):
    """MLX before 0.32.4 would make that name, whatever launched the kernel."""
    call = Launch([], {"N": value}, (1, 1, 1), (1, 1, 1), [(1,)], [mx.int32], None)
    with pytest.raises(
        ValueError, match=rf"custom_kernel_{name}__{value}_int32_t, is not an ident"
    ):
        signature(kernel("y[0] = N;", 0, 1, name=name), call)


def test_a_runner_takes_launches_for_as_long_as_it_is_used():
    text = kernel("y[0] = 1;", 0, 1)
    taken = []

    def runner(kernel: Kernel, call: Launch) -> list[mx.array]:
        taken.append((kernel, call.grid, dict(call.template)))
        return [mx.zeros(1)]

    with use_runner(runner):
        launch(text, [], [((1,), mx.float32)], grid=3, template={"N": 2})
    assert taken == [(text, (3, 1, 1), {"N": 2})]
    assert mlx_ferrum.launch._runner is mlx_ferrum.launch.metal


@pytest.mark.skipif(HAS_METAL, reason="there is Metal")
def test_without_metal_or_host_a_launch_says_so():
    with pytest.raises(RuntimeError, match="No Metal back-end"):
        launch(kernel("y[0] = 1;", 0, 1), [], [((1,), mx.float32)], grid=1)


def test_files_are_expanded_once_and_name_their_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(mlx_ferrum.launch, "FOLDER", tmp_path)
    Path(tmp_path, "blocks").mkdir()
    Path(tmp_path, "blocks/a.h").write_text('#pragma once\n#include "../p.metal"\nint a;\n')
    Path(tmp_path, "p.metal").write_text("#include <metal_stdlib>\nint p;\n")
    Path(tmp_path, "k.metal").write_text('#include "p.metal"\n#include "blocks/a.h"\nint k;\n')
    text = expand.__wrapped__("k.metal", "p.metal")
    assert [line for line in text.splitlines() if line.startswith("int")] == [
        "int p;",
        "int a;",
        "int k;",
    ]
    bad = text.replace("int a;", "int a = ;")
    with metal_on_cpu(), pytest.raises(SourceError, match=r"kernels/blocks/a\.h:3:"):
        launch(kernel("y[0] = 1;", 0, 1, bad), [], [((1,), mx.float32)], grid=1)
    with pytest.raises(ValueError, match=r"missing\.h"):
        expand.__wrapped__("missing.h")
    with pytest.raises(ValueError, match="no kernel text"):
        expand.__wrapped__("../outside.h")
