"""When kernels take the form for tensor hardware: which machines have it, and what is done if it does not work."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import mlx.core as mx
import pytest
from metal_call import needs_host
from msl import Host
from test_metal_kernels import activations
from test_ops import random_tensor

from mlx_ferrum import blocks, launch
from mlx_ferrum.backends import metal
from mlx_ferrum.backends.metal import tensor_form
from mlx_ferrum.doctor import metal as doctor
from mlx_ferrum.kernels import tensor_products
from mlx_ferrum.kernels.matmul import matmul
from mlx_ferrum.launch import Kernel, Launch

INCLUDE = "#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>"


@pytest.mark.parametrize(
    "architecture, darwin, expected",
    [
        ("applegpu_g17g", "25.2.0", True),  # an M5 with macOS 26.2
        ("applegpu_g17s", "26.0.0", True),
        ("applegpu_g17g", "25.1.0", False),
        ("applegpu_g17g", "24.6.0", False),
        ("applegpu_g16s", "25.2.0", False),  # an M4
        ("applegpu_g13g", "26.0.0", False),
        ("applegpu_g17p", "25.2.0", False),  # an A18
        ("applegpu_g18p", "25.2.0", True),
        ("applegpu_g100d", "25.10.0", True),
        ("Intel", "25.2.0", False),
        ("", "25.2.0", False),
        ("applegpu_g17g", "", False),
    ],
)
def test_which_machines_have_the_hardware(architecture, darwin, expected):
    assert tensor_form.suits(architecture, darwin) is expected


def test_where_there_is_no_metal_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert not tensor_form.has_hardware()


@pytest.fixture
def on_an_m5(monkeypatch) -> Iterator[None]:
    """A machine that has the hardware, as far as this package is told."""
    monkeypatch.setattr(tensor_form, "has_hardware", lambda: True)
    tensor_form.works.cache_clear()
    yield
    tensor_form.works.cache_clear()


def names(host: Host) -> list[str]:
    return [kernel.name for kernel in host.kernels]


@needs_host
def test_the_backend_takes_the_form(on_an_m5):
    """After one small product for each size of tile; experts too."""
    w, host = random_tensor(blocks.Q4_0, 70, 96, seed=1), Host()
    stack = random_tensor(blocks.Q4_0, 3 * 70, 96, seed=1)
    stack.shape, stack.array = (3, 70, 96), stack.array.reshape(3, 70, -1)
    with launch.use_runner(host):
        for _ in range(2):
            metal.matmul(activations(9, 96), w)
            metal.gate_up(activations(9, 96), w, w, "silu")
            metal.gather_matmul(activations(30, 96), stack, mx.zeros((30, 1), mx.int32))
    assert names(host) == [
        "matmul_tensor_F16", "matmul_tensor_Q4_0", "sort_pairs", "gather_matmul_tensor_Q4_0",
    ]  # fmt: skip
    with_form = [k for k in host.kernels if "tensor" in k.name]
    assert all(k.bare_text.count(INCLUDE) == 1 for k in with_form)


@needs_host
def test_other_machines_compile_nothing_of_it():
    w, host = random_tensor(blocks.Q4_0, 70, 96, seed=1), Host()
    tensor_form.works.cache_clear()
    with launch.use_runner(host):
        metal.matmul(activations(9, 96), w)
    assert names(host) == ["matmul_Q4_0"]
    assert INCLUDE not in next(iter(host.kernels)).bare_text


def wrong(kernel: Kernel) -> Kernel:
    """A GPU that says of the sums that they are elsewhere."""
    text = kernel.text()
    return replace(
        kernel, header=text.replace("store(index[0],index[1]", "store(index[0]^1,index[1]")
    )


def inexact(kernel: Kernel) -> Kernel:
    """A GPU that rounds what it multiplies to fewer bits."""
    return replace(kernel, header=kernel.text().replace("half4(a)", "half4(bfloat4(a))"))


def refuse(kernel: Kernel, _: Launch) -> list[mx.array]:
    if "tensor" in kernel.name:
        raise RuntimeError("[metal::Device] Unable to build metal library\nfile not found\n")
    return Host()(kernel, _)


@needs_host
@pytest.mark.parametrize(
    "runner, reason",
    [
        (Host(edit=wrong), "products are wrong"),
        (Host(edit=inexact), "products are wrong"),
        (refuse, "Unable to build metal library file not found"),
    ],
    ids=["wrong", "inexact", "refused"],
)
def test_a_form_that_does_not_work_is_not_used(on_an_m5, caplog, runner, reason):
    w, x = random_tensor(blocks.Q4_0, 70, 96, seed=1), activations(9, 96)
    with launch.use_runner(runner), caplog.at_level(logging.WARNING):
        assert not any(tensor_form.works(16) for _ in range(3))
        check = doctor.tensor_tiles()
    assert reason in check.outcome and not check.failed
    (said,) = [r.getMessage() for r in caplog.records]
    assert reason in said and "\n" not in said
    with launch.use_runner(Host()):
        wanted = matmul(x, w, columns=16)
        assert mx.array_equal(metal.matmul(x, w), wanted)


@needs_host
def test_small_products_are_exact():
    with launch.use_runner(Host()):
        assert [tensor_products.failure(columns) for columns in (16, 32, 64)] == 3 * [None]


@needs_host
def test_the_doctor_times_both_forms(on_an_m5):
    with launch.use_runner(Host()):
        assert doctor.tensor_tiles().outcome == "every product was exact"
        outcome = doctor.tiles(blocks.Q4_K, 256, 9).outcome
    assert outcome.startswith("9 rows, (256, 256): simdgroup matrices ")
    assert "; tensor operations " in outcome and outcome.endswith(" TFLOP/s")
