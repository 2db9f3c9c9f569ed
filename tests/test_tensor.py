"""QTensor: windows, slices and lifetimes of the mapped bytes."""

import gc
import mmap
import weakref

import mlx.core as mx
import numpy as np
import pytest
from backends import CPU, REFERENCE

from mlx_ferrum import blocks, ops
from mlx_ferrum.tensor import QTensor, window, word

PAGE = mmap.PAGESIZE


@pytest.fixture
def mapped(tmp_path):
    """Three pages and a bit of random bytes, mapped from a file."""
    path = tmp_path / "bytes"
    path.write_bytes(np.random.default_rng(5).bytes(3 * PAGE + 321))
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


@pytest.mark.parametrize("page", [4096, 16384])
def test_windows_are_whole_pages_around_the_bytes(page):
    rng = np.random.default_rng(page)
    for offset, nbytes in rng.integers(1, 10 * page, (200, 2)).tolist():
        start, stop, first = window(offset, nbytes, page)
        assert start % page == stop % page == 0
        assert start <= offset < start + page and stop - page < offset + nbytes <= stop
        assert start + first == offset


def test_words_are_the_widest_that_divide_the_block():
    found = {
        b.name: word(b).itemsize for b in (blocks.Q4_K, blocks.Q6_K, blocks.Q8_0, blocks.MXFP4)
    }
    assert found == {"Q4_K": 4, "Q6_K": 2, "Q8_0": 2, "MXFP4": 1}
    for block in blocks.SUPPORTED:
        assert block.bytes % word(block).itemsize == 0


@pytest.mark.parametrize("block", blocks.SUPPORTED, ids=lambda b: b.name)
def test_array_tile_and_take_hold_the_bytes(block, mapped):
    offset, rows = 96, 7
    tensor = QTensor(block, (rows, 2 * block.weights), mapped, offset)
    wanted = mapped[offset : offset + tensor.nbytes].reshape(rows, 2 * block.bytes)
    assert np.array_equal(tensor.data, wanted)
    assert np.array_equal(np.asarray(tensor.array).view(np.uint8), wanted)
    assert np.array_equal(np.asarray(tensor.tile(2, 5)), wanted[2:5])
    ids = mx.array([[6, 0], [3, 3]])
    assert np.array_equal(np.asarray(tensor.take(ids)), wanted[np.asarray(ids)])


@pytest.mark.parametrize("offset", [0, 32, PAGE - 32, PAGE, 2 * PAGE + 64])
def test_pages_are_the_mapping_itself(offset, mapped):
    tensor = QTensor(blocks.Q4_0, (4, 64), mapped, offset)
    pages, first = tensor.pages()
    assert pages.ctypes.data % PAGE == 0 and pages.size % PAGE == 0
    assert pages.ctypes.data + first == mapped.ctypes.data + offset
    assert not pages.flags.writeable
    assert np.array_equal(pages[first : first + tensor.nbytes], mapped[offset:][: tensor.nbytes])


def test_the_last_page_reads_as_zero_past_the_end_of_the_file(mapped):
    tensor = QTensor(blocks.Q4_0, (1, 32), mapped, mapped.size - 18)
    pages, first = tensor.pages()
    assert pages.size == PAGE and not pages[first + 18 :].any()


def test_a_mapping_lives_as_long_as_its_pages(mapped):
    mapping = weakref.ref(mapped.base.obj if isinstance(mapped.base, memoryview) else mapped.base)
    pages, _ = QTensor(blocks.Q4_0, (4, 64), mapped, PAGE).pages()
    total = int(pages.sum())
    del mapped
    gc.collect()
    assert mapping() is not None
    assert int(pages.sum()) == total


def test_experts_keep_their_leading_axis(mapped):
    tensor = QTensor(blocks.Q4_0, (3, 5, 64), mapped, 64)
    assert tensor.rows == 15 and tensor.data.shape == (3, 5, 36)
    assert np.array_equal(np.asarray(tensor.tile(5, 10)), tensor.data[1])


SPACED = (blocks.Q4_0, (3, 5, 64))  # matrices of 180 bytes


@pytest.mark.parametrize("step", [180, 192, 4096])
def test_a_stack_with_space_between_its_matrices(step, mapped):
    tensor = QTensor(*SPACED, mapped, 64, "w", step=step)
    wanted = [mapped[64 + i * step :][:180].reshape(5, 36) for i in range(3)]
    assert tensor.nbytes == 540 and tensor.is_spaced == (step > 180)
    assert np.array_equal(tensor.data, wanted)
    assert not tensor.data.flags.writeable
    assert np.array_equal(np.asarray(tensor.array).view(np.uint8), wanted)
    assert np.array_equal(np.asarray(tensor.tile(3, 12)), np.concatenate(wanted)[3:12])
    for i, matrix in enumerate(wanted):
        assert np.array_equal(tensor.matrix(i).data, matrix)
        assert np.array_equal(tensor.matrix(i).part(1, 4).data, matrix[1:4])
    for backend in (REFERENCE, CPU):
        with backend.in_use():
            found = [np.asarray(ops.dequantize(tensor.matrix(i))) for i in range(3)]
            assert np.array_equal(np.asarray(ops.dequantize(tensor)), found)


def test_others_stand_in_for_a_stack_with_space_and_for_its_parts(mapped):
    spaced = QTensor(*SPACED, mapped, 64, "w", step=4096)
    other = QTensor(*SPACED, mapped, 2048)
    assert np.array_equal(spaced.substitute(None).data, spaced.data)
    assert np.array_equal(spaced.substitute(other).data, other.data)
    assert np.array_equal(other.substitute(spaced).data, spaced.data)
    part = spaced.matrix(2).part(1, 4)
    assert np.array_equal(part.substitute(None).data, part.data)
    assert np.array_equal(part.substitute(other).data, other.data[2, 1:4])


def test_what_a_stack_with_space_is_not(mapped, monkeypatch):
    for shape, step in (((3, 5, 64), 179), ((3, 64), 64), ((2, 3, 5, 64), 4096)):
        with pytest.raises(
            ValueError, match=r"expected a stack whose matrices are \d+ bytes or more"
        ):
            QTensor(blocks.Q4_0, shape, mapped, 0, step=step)
    with pytest.raises(ValueError, match=r"needs bytes 64 to 12532, found a buffer of 12500"):
        QTensor(*SPACED, mapped[:12500], 64, step=6144)
    spaced = QTensor(*SPACED, mapped, 64, "w", step=4096)
    with pytest.raises(ValueError, match=r"cannot have shape \(15, 64\)"):
        spaced.reshaped(15, 64)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    with pytest.raises(NotImplementedError, match=r"w, .*4096 bytes apart, as in a packed file"):
        _ = spaced.array


def test_vectors_are_one_row(mapped):
    tensor = QTensor(blocks.F32, (8,), mapped)
    assert tensor.nbytes == 32 and tensor.tile(0, 1).shape == (1, 32)


@pytest.mark.parametrize(
    "shape, offset", [((1000, 256), 0), ((1, 256), 3 * PAGE + 300), ((1, 256), -1)]
)
def test_bytes_outside_the_buffer_are_refused(shape, offset, mapped):
    with pytest.raises(ValueError, match=r"needs bytes .* found a buffer of"):
        QTensor(blocks.Q4_0, shape, mapped, offset)


def test_unaligned_buffers_have_no_pages(mapped):
    with pytest.raises(ValueError, match="does not start on a page"):
        QTensor(blocks.Q4_0, (4, 64), mapped[32:], 0).pages()


@pytest.mark.parametrize("ids", [[0, 7], [-1]])
def test_rows_outside_the_matrix_are_refused(ids, mapped):
    with pytest.raises(ValueError, match="row ids lie between 0 and 6, found"):
        QTensor(blocks.Q4_0, (7, 32), mapped).take(mx.array(ids))
