"""Subnormal halves: how a process learns whether they count, and kernels where they do not."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from metal_call import needs_host
from msl import Host
from msl.flushing import FlushingHost
from test_metal_kernels import FLOATS, HALVES, activations, assert_product, few_rows, wide
from test_ops import float64

from mlx_ferrum import blocks, launch
from mlx_ferrum.blocks import Block
from mlx_ferrum.kernels.matmul import matmul
from mlx_ferrum.kernels.matvec import matvec
from mlx_ferrum.kernels.rows import rows
from mlx_ferrum.kernels.subnormals import are_kept
from mlx_ferrum.launch import Kernel
from mlx_ferrum.tensor import QTensor

QUANTIZED = [b for b in blocks.SUPPORTED if b.weights > 1]


def flushing_text(kernel: Kernel) -> Kernel:
    return replace(kernel, header=kernel.text("flushed"))


def with_scales(block: type[Block], scales: np.ndarray, shape: tuple[int, int]) -> QTensor:
    """Random codes under given scales, in turn."""
    rng = np.random.default_rng(block.id)
    raw = rng.integers(0, 256, (shape[0], block.row_bytes(shape[1])), np.uint8)
    blocks_of = raw.reshape(-1, block.bytes)
    start, sizes = 0, {"u8": 1, "i8": 1, "u16": 2, "i16": 2, "f16": 2, "u32": 4, "f32": 4}
    for dtype, count in block.fields.values():
        stop = start + sizes[dtype] * count
        if dtype in ("f16", "f32"):
            given = np.resize(scales, (len(blocks_of), count)).astype(f"<{dtype[0]}{sizes[dtype]}")
            blocks_of[:, start:stop] = given.view(np.uint8)
        start = stop
    if block is blocks.MXFP4:
        blocks_of[:, 0] = 125
    return QTensor(block, shape, raw.reshape(-1))


SUBNORMALS = np.array([0x0001, 0x8003, 0x03FF, 0x8200, 0x0155], np.uint16).view(np.float16)


@pytest.fixture
def asked_anew() -> Iterator[None]:
    launch.keeps_half_subnormals.cache_clear()
    yield
    launch.keeps_half_subnormals.cache_clear()


@needs_host
@pytest.mark.parametrize(
    "host, kept", [(Host(), True), (FlushingHost(), False)], ids=["kept", "flushed"]
)
def test_a_process_asks_once(asked_anew, host, kept, caplog):
    with launch.use_runner(host), caplog.at_level(logging.WARNING):
        assert are_kept() is kept
        assert [launch.keeps_half_subnormals() for _ in range(3)] == [kept] * 3
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == (not kept)
    assert all("subnormal float16 numbers for 0" in line for line in said)
    assert sum(k.name == "subnormals" for k in host.kernels) == 1


@needs_host
def test_the_text_for_such_a_gpu_is_chosen(asked_anew):
    """Of kernels that read files; that of a few lines stays."""
    with launch.use_runner(FlushingHost()):
        w = with_scales(blocks.Q4_0, SUBNORMALS, (9, 32))
        host = Host()
        with launch.use_runner(host):
            matvec(activations(1, 32), w)
        (kernel,) = host.kernels
        placed = kernel.text("flushed").splitlines()
        assert kernel.text_here.splitlines() == [x for x in placed if not x.startswith("#line")]
        assert kernel.text_here != kernel.bare_text


@needs_host
@pytest.mark.parametrize("block", QUANTIZED, ids=lambda b: b.name)
def test_decoders_without_subnormals(block):
    """Every code, and scales of all sizes, on a GPU that takes subnormal halves for 0."""
    k, x = 3 * block.weights, activations(9, 3 * block.weights)
    scales = np.concatenate([SUBNORMALS, np.array([0.5, -2e-3, 6.2e-5], np.float16)])
    with launch.use_runner(FlushingHost(edit=flushing_text)):
        for given in (scales, SUBNORMALS):
            w = with_scales(block, given, (7, k))
            assert np.array_equal(np.array(rows(w, mx.arange(7))), float64(w))
            assert_product(matvec(x[:2], w), x[:2], w, few_rows(block, 2))
        w = with_scales(block, scales[5:], (7, k))
        assert_product(matmul(x, w, columns=32), x, w, HALVES)


@needs_host
def test_all_halves_become_the_same_floats():
    """As weights, loaded by fours and alone."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    numbers = bits.view(np.float16)
    finite = bits[np.isfinite(numbers)]
    w = QTensor(blocks.F16, (1, bits.size), bits.view(np.uint8))
    few = QTensor(
        blocks.F16, (finite.size // 37, 37), finite[: finite.size // 37 * 37].view(np.uint8)
    )
    x = activations(1, 37)
    with launch.use_runner(FlushingHost(edit=flushing_text)):
        found = np.array(rows(w, mx.array([0])))[0]
        assert np.array_equal(found, numbers.astype(np.float32), equal_nan=True)
        assert_product(matvec(x, few), x, few, FLOATS)


@needs_host
def test_the_usual_text_needs_subnormals():
    """The host that flushes does: without the other text, products are 0."""
    w, x = with_scales(blocks.Q8_0, SUBNORMALS, (7, 64)), activations(1, 64)
    with launch.use_runner(FlushingHost()):
        assert not wide(matvec(x, w)).any()
    with launch.use_runner(Host()):
        assert_product(matvec(x, w), x, w, FLOATS)
