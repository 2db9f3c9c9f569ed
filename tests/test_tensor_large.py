"""Tensors whose words, or whose elements, no 32-bit number counts: windows, and the offsets of every kernel.

Their bytes are sparse: a few rows are written, the rest is a hole in a file.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal_call import needs_host
from msl import Host
from msl.native import INPUT, Memory
from msl.signature import Signature
from test_metal_kernels import FLOATS, HALVES, activated, activations, assert_product, size, wide
from test_ops import float64, random_tensor

from mlx_ferrum import launch
from mlx_ferrum.blocks import BF16, MXFP4, Q6_K, Block
from mlx_ferrum.kernels.gate_up import gate_up
from mlx_ferrum.kernels.gather_down import gather_down
from mlx_ferrum.kernels.gather_gate_up import gather_gate_up
from mlx_ferrum.kernels.gather_matmul import gather_matmul
from mlx_ferrum.kernels.gather_matvec import gather_matvec
from mlx_ferrum.kernels.matmul import matmul
from mlx_ferrum.kernels.matvec import matvec
from mlx_ferrum.kernels.matvecs import matvecs
from mlx_ferrum.kernels.norm_matvec import norm_matvec
from mlx_ferrum.kernels.rows import rows
from mlx_ferrum.kernels.sort_pairs import Order
from mlx_ferrum.launch import Kernel, Launch
from mlx_ferrum.tensor import MOST, QTensor

OFFSET = 96  # of the tensor in its file
ELEMENTS = 1 << 32  # an offset beyond is wrong in 32 bits, with a sign and without


def sparse(path: Path, block: type[Block], shape: tuple[int, ...], written: list[int]) -> QTensor:
    """A tensor in a file of holes. written: rows, of all rows, that get random bytes"""
    drawn = random_tensor(block, len(written), shape[-1], seed=1)
    count = int(np.prod(shape[:-1], dtype=np.int64))
    with path.open("w+b") as file:
        file.truncate(OFFSET + count * drawn.row_bytes)
        for row, raw in zip(written, drawn.data, strict=True):
            file.seek(OFFSET + row * drawn.row_bytes)
            file.write(raw.tobytes())
        file.flush()
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    path.unlink()
    return QTensor(block, shape, np.frombuffer(mapping, np.uint8), OFFSET)


@dataclass
class Sparse(Host):
    """Runs kernels over large tensors in place of the small arrays that stand for them.

    large: the tensors, by the names of the inputs
    start: the first threadgroup to be run, of `groups`; None: all of them
    """

    large: Mapping[str, QTensor] = field(default_factory=dict)
    start: int | None = None
    groups: int = 1

    def __call__(self, kernel: Kernel, call: Launch) -> list[mx.array]:
        """Run one launch, or its last threadgroups."""
        if self.start is not None:
            here = "threadgroup_position_in_grid.x"
            kernel = replace(kernel, source=kernel.source.replace(here, f"({here} + {self.start})"))
            call = replace(call, grid=(self.groups * call.threadgroup[0], 1, 1))
        return super().__call__(kernel, call)

    def _execute(self, made: Signature, call: Launch, memory: list[Memory]) -> None:
        for i, buffer in enumerate(made.buffers):
            name = buffer.name.removesuffix("_shape")
            if name not in self.large:
                continue
            w = self.large[name]
            words = np.array([*w.shape[:-1], w.row_bytes // 2], np.int32)
            memory[i] = Memory(w.data if name == buffer.name else words, INPUT)
        super()._execute(made, call, memory)


def stand_in(w: QTensor) -> None:
    """An array of the same type and rank in place of the tensor's own."""
    w.array = mx.zeros((2,) * (len(w.shape) - 1) + (8,), mx.uint16)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> QTensor:
    n_rows, k = 3, 1024
    count = ELEMENTS // (n_rows * k) + 5
    written = [e * n_rows + r for e in chosen(count) for r in range(n_rows)]
    w = sparse(tmp_path_factory.mktemp("large") / "w", BF16, (count, n_rows, k), written)
    stand_in(w)
    return w


def chosen(count: int) -> list[int]:
    """The first expert, one at 2^31 elements, and the last."""
    return [0, count // 2 + 1, count - 1]


@needs_host
def test_experts(experts):
    ids, k = chosen(experts.shape[0]), experts.shape[2]
    x, parts, given = activations(1, k), activations(3, k), mx.array([ids])
    ones = mx.ones((1, 3))
    matrices = [experts.matrix(e) for e in ids]
    single = np.concatenate([wide(x) @ float64(m).T for m in matrices])
    each = np.stack([float64(m) @ p for m, p in zip(matrices, wide(parts), strict=True)])
    order = Order(
        mx.arange(3, dtype=mx.int32), mx.array([[e, i, 1] for i, e in enumerate(ids)]), 16
    )
    with launch.use_runner(Sparse(large={"w": experts, "gate": experts, "up": experts})):
        found = [
            gather_matvec(x, experts, given),
            gather_gate_up(x, experts, experts, given, "silu"),
            gather_down(parts, experts, given, ones),
            gather_matmul(x, experts, order),
        ]
    wanted = [single, activated(single, "silu") * single, each.sum(0, keepdims=True), single]
    for y, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(wide(y), expected, rtol=1e-3, atol=1e-2 * np.abs(expected).max())
        assert np.abs(expected).min() > 0


@needs_host
def test_rows(experts):
    flat = experts.reshaped(experts.rows, experts.shape[2])
    flat.array = mx.zeros((2, 8), mx.uint16)  # the runner has the words
    ids = [0, experts.rows // 2 + 2, experts.rows - 1]
    with launch.use_runner(Sparse(large={"w": flat})):
        found = np.array(rows(flat, mx.array(ids)))
    for y, i in zip(found, ids, strict=True):
        assert np.array_equal(y, float64(flat.part(i, i + 1))[0])
    assert found[[0, 2]].any(axis=1).all()


@needs_host
def test_products(tmp_path):
    """The last rows of a matrix, by the threadgroups that compute them."""
    k = 8192
    count = ELEMENTS // k + 70
    w = sparse(tmp_path / "w", BF16, (count, k), list(range(count - 70, count)))
    stand_in(w)
    x, norm = activations(2, k), (mx.ones(k), 1e-5)
    large = {"w": w, "w0": w, "gate": w, "up": w}

    def last(call: Any, group_rows: int) -> tuple[Any, int]:
        """What the last threadgroup computes of `count` rows, and the first of these."""
        start = -(-count // group_rows) - 1
        with launch.use_runner(Sparse(large=large, start=start)):
            return call(), start * group_rows

    for call, group_rows, exactness in [
        (lambda: matvec(x, w, rows=4), 8, FLOATS),
        (lambda: matvecs(x, [w], [None], rows=4)[0], 8, FLOATS),
        (lambda: matmul(x, w, columns=32), 64, HALVES),
    ]:
        y, first = last(call, group_rows)
        assert_product(y[:, first:], x, w.part(first, count), exactness)
    y, first = last(lambda: norm_matvec(x, w, norm, rows=1)[1], 2)
    part = float64(w.part(first, count))
    normed = wide(x) / np.sqrt((wide(x) ** 2).mean(-1, keepdims=True) + 1e-5)
    assert (np.abs(wide(y[:, first:]) - normed @ part.T) <= FLOATS * size(normed, part)).all()
    y, first = last(lambda: gate_up(x, w, w, "silu", rows=2), 4)
    part = float64(w.part(first, count))
    products, off = wide(x) @ part.T, 3 * FLOATS * size(wide(x), part)
    error = off * (np.abs(products) + 1)
    assert (np.abs(wide(y[:, first:]) - activated(products, "silu") * products) <= error).all()


def test_a_window_of_more_words_than_an_axis_holds(monkeypatch):
    """2 GiB of MXFP4, whose words are bytes. Zeros that nothing has written take no memory."""
    row_bytes = MXFP4.row_bytes(2880)
    n_rows = MOST // row_bytes // 8 * 8 + 16
    room = np.zeros(OFFSET + n_rows * row_bytes + 2 * mmap.PAGESIZE, np.uint8)
    buffer = room[-room.ctypes.data % mmap.PAGESIZE :]
    w = QTensor(MXFP4, (4, n_rows // 4, 2880), buffer, OFFSET)
    assert w.nbytes > MOST
    for at in ((0, 0), (2, 1), (3, -1)):
        w.data[at] = np.random.default_rng(at[0]).integers(0, 256, row_bytes)
    made: list[mx.array] = []

    def wrap(pages: np.ndarray, copy: bool) -> mx.array:
        made.append(mx.array(pages))
        return made[0]

    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "from_dlpack", wrap)
    assert w.array.shape == (4, n_rows // 4, w.row_bytes) and w.array.dtype == mx.uint8
    whole, view = np.asarray(made[0]), np.asarray(w.array)
    assert view.ctypes.data == whole.ctypes.data + OFFSET, "not copied"
    assert view.flags.c_contiguous
    assert np.array_equal(view.reshape(n_rows, -1)[-3:], w.data.reshape(n_rows, -1)[-3:])
    assert np.array_equal(np.array(w.tile(n_rows // 2, n_rows // 2 + 2)[1]), w.data[2, 1])


@pytest.mark.parametrize("block, n_rows, k", [(MXFP4, 1 << 15, 1 << 20), (Q6_K, 40965, 1 << 19)])
def test_a_window_that_is_refused(block, n_rows, k, tmp_path, monkeypatch):
    """It is 17 GiB, or has rows that are no whole 64-bit words."""
    w = sparse(tmp_path / "w", block, (n_rows, k), [0])
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    with pytest.raises(NotImplementedError, match=rf"QTensor\({block.name}.* bytes at byte 96"):
        assert w.array
