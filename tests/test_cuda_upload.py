"""Weights on their way into an NVIDIA GPU's memory, with a driver that needs none."""

from __future__ import annotations

import mmap
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from cuda import CudaHost, fake_gpu
from test_ops import random_tensor

from mlx_ferrum import blocks, catalog, gguf, launch, load, ops
from mlx_ferrum.backends import cuda
from mlx_ferrum.kernels.cuda import driver, runner, upload
from mlx_ferrum.load import _held
from mlx_ferrum.tensor import QTensor

pytestmark = pytest.mark.skipif(mx.metal.is_available(), reason="NVIDIA GPUs are Linux's")


@pytest.fixture
def mapped(tmp_path):
    """Random bytes of a mapped file, which is larger than some pages."""
    path = tmp_path / "bytes"
    path.write_bytes(np.random.default_rng(3).bytes((2 << 20) + 70))
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def bytes_of(x: mx.array) -> np.ndarray:
    return np.asarray(x).reshape(-1).view(np.uint8)


def resident(buffer: np.ndarray) -> int:
    """Bytes of the mapping at the buffer that this process holds."""
    start = f"{buffer.ctypes.data:x}-"
    of_it = Path("/proc/self/smaps").read_text().split(f"\n{start}")[1]
    found = re.search(r"Rss: +(\d+) kB", of_it)
    assert found
    return int(found[1]) << 10


def test_load_uploads_every_byte_of_a_model_once():
    with launch.use_runner(CudaHost()), fake_gpu() as gpu:
        ops.use_backend("cuda")
        model, _ = load("tiny-moe")
        weights = list(_held(model, QTensor))
        assert all(w.is_uploaded for w in weights)
    file = gguf.read(catalog.resolve("tiny-moe"))
    expected = sum(info.nbytes for info in file.tensors.values())
    assert sum(nbytes for _, nbytes in gpu.copies) == expected
    assert not gpu.pending
    # nothing was staged: all came from the mapping
    whole = weights[0].buffer
    begin, end = whole.ctypes.data, whole.ctypes.data + whole.size
    assert all(begin <= source and source + nbytes <= end for source, nbytes in gpu.copies)
    for w in weights:
        assert np.array_equal(bytes_of(w.array), w.data.reshape(-1))


@pytest.mark.parametrize("name", ["Q6_K", "Q8_0", "F32"])
def test_parts_lie_within_what_they_are_part_of(name):
    w = random_tensor(blocks.by_name(name), 12, 256, seed=1)
    with fake_gpu() as gpu:
        parts = [w.part(3, 5), w.part(5, 12), w.reshaped(3, 4, 256)]
        cuda.place(parts)
        assert sum(nbytes for _, nbytes in gpu.copies) == w.nbytes
        for part in parts:
            assert np.array_equal(bytes_of(part.array), part.data.reshape(-1))
        cuda.place(parts)  # again
        assert sum(nbytes for _, nbytes in gpu.copies) == w.nbytes


def test_space_between_matrices_is_left_out(mapped):
    block = blocks.Q8_0
    rows, count, step, offset = 7, 5, 4096, 96
    w = QTensor(block, (count, rows, 64), mapped, offset, step=step)
    with fake_gpu() as gpu:
        assert np.array_equal(bytes_of(w.array), w.data.reshape(-1))
        assert np.array_equal(bytes_of(w.matrix(3).array), w.data[3].reshape(-1))
    matrix = rows * block.row_bytes(64)
    assert gpu.copies == [(mapped.ctypes.data + offset + step * i, matrix) for i in range(count)]


def test_large_tensors_go_in_pieces_whose_pages_are_given_back(mapped, monkeypatch):
    monkeypatch.setattr(upload, "PIECE", 100_000)
    w = QTensor(blocks.Q8_0, (61_000, 32), mapped, 34)
    assert mapped.sum() > 0  # all of it is read
    before = resident(mapped)
    with fake_gpu() as gpu:
        assert np.array_equal(bytes_of(w.array), mapped[34 : 34 + w.nbytes])
        assert max(nbytes for _, nbytes in gpu.copies) == 100_000
    monkeypatch.undo()
    with fake_gpu():
        assert resident(mapped) >= before  # the comparison has read it again
        assert QTensor(blocks.Q8_0, (61_000, 32), mapped, 34).array.size
        assert resident(mapped) < before // 10
    assert mapped[-1] == np.random.default_rng(3).bytes(mapped.size)[-1]


def test_memory_that_no_file_is_behind_is_kept():
    held = np.frombuffer(mmap.mmap(-1, 1 << 20), np.uint8)
    held[:] = 7
    with fake_gpu():
        assert QTensor(blocks.Q8_0, (1024, 32), held).array.size
    assert (held == 7).all()


def test_what_does_not_fit_is_refused_before_anything_is_copied():
    ws = [random_tensor(blocks.Q4_K, 100, 256, seed=n) for n in range(3)]  # 14,400 bytes each
    with fake_gpu(free=3 * 16384 - 1) as gpu:
        with pytest.raises(OSError, match="the weights take 49 kB of the GPU's memory, but 49 kB"):
            cuda.place(ws)
        assert gpu.copies == []
        cuda.place(ws[:2])
    with fake_gpu(free=5_000), launch.use_runner(CudaHost()):
        ops.use_backend("cuda")
        with pytest.raises(OSError, match=r"^the weights take 5\.\d MB .*, but 5\.0 kB are free$"):
            load("tiny-moe")


def test_a_bar_counts_the_bytes(monkeypatch):
    seen: list[int] = []
    options: dict[str, object] = {}

    class Bar:
        def __init__(self, **given):
            options.update(given)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, n):
            seen.append(n)

    monkeypatch.setattr(cuda, "bar", Bar)
    ws = [random_tensor(blocks.Q6_K, n, 256, seed=n) for n in (2, 5)]
    with fake_gpu():
        cuda.place([ws[0], ws[1].part(1, 2), ws[1].part(2, 4)])
    assert seen == [w.nbytes for w in ws]
    assert options["total"] == sum(seen)
    assert (options["unit"], options["unit_scale"]) == ("B", True)


def test_what_the_driver_refuses_is_said_in_its_words():
    w = random_tensor(blocks.Q4_K, 3, 256, seed=0)
    with (
        fake_gpu(failing="cuMemcpyHtoD_v2"),
        pytest.raises(driver.DriverError, match=r"NVIDIA's driver: out of memory \(error 2\)"),
    ):
        _ = w.array


@pytest.mark.parametrize(
    ("found", "is_taken"), [("sm_75", False), ("sm_80", True), ("sm_120", True)]
)
def test_gpus_before_ampere_are_refused(found, is_taken, monkeypatch):
    with fake_gpu():
        monkeypatch.setattr(runner, "architecture", lambda: found)
        if is_taken:
            ops.use_backend("cuda")
        else:
            with pytest.raises(OSError, match="needs a GPU of sm_80 or newer, found sm_75"):
                ops.use_backend("cuda")


def test_arrays_that_are_written_are_not_looked_at_by_the_host():
    """MLX would move them into memory of both."""
    kernel = launch.Kernel("k", "", ("x",), ("y",), writes=("x",))

    class OnGpu:
        size, shape = 100, (100,)

    x: Any = OnGpu()
    with fake_gpu():
        kernel.check_written([x])
    with pytest.raises(TypeError):
        kernel.check_written([x])
