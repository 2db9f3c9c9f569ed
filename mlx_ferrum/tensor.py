"""QTensor: a block-quantized tensor over the bytes of the mapped file.

A tensor is never copied to be opened. MLX gets it as a *window*: the whole pages around its bytes, as
one array of the widest unsigned type that the block size divides, then a slice of that. On Metal the
window is the mapping itself. An axis of an MLX array has at most 2^31 - 1 elements; a window that would have
more is made of 64-bit words, whose slice is then seen as the narrower ones.
"""

from __future__ import annotations

import math
import mmap
from functools import cached_property
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from . import blocks

_WORDS = ((4, np.uint32), (2, np.uint16), (1, np.uint8))
_WIDE = np.dtype(np.uint64)
MOST = (1 << 31) - 1  # elements along an axis of an MLX array


class Window(NamedTuple):
    """Where a tensor lies in whole pages: bytes [start, stop) of the mapping, and the tensor's first byte in there."""

    start: int
    stop: int
    first: int


def window(offset: int, nbytes: int, page: int = mmap.PAGESIZE) -> Window:
    """The pages that hold bytes [offset, offset + nbytes) of a page-aligned mapping."""
    start = offset // page * page
    stop = -(-(offset + nbytes) // page) * page
    return Window(start, stop, offset - start)


def word(block: type[blocks.BlockType]) -> np.dtype:
    """The widest unsigned type, 4 bytes at most, that divides the block's bytes: MLX counts elements, not bytes."""
    return next(np.dtype(dtype) for size, dtype in _WORDS if block.bytes % size == 0)


class Layout(NamedTuple):
    """How the bytes of a tensor decode, its shape, and where matrices lie in its array: what a launch depends on.

    every: matrix i of a stack is matrix i * every of `QTensor.array`
    """

    block: type[blocks.Block]
    shape: tuple[int, ...]
    every: int = 1

    def __str__(self) -> str:
        return f"{self.block.name} {self.shape}"


class _Pages:
    """Whole pages of a mapping as an array interface; the mapping lives as long as any array made from it.

    The last page of a file may pass its end: such bytes are mapped and read as zero.
    """

    def __init__(self, mapping: np.ndarray, start: int, nbytes: int) -> None:
        self.mapping = mapping
        self.__array_interface__ = {
            "version": 3,
            "data": (mapping.ctypes.data + start, True),
            "shape": (nbytes,),
            "typestr": "|u1",
        }


class QTensor:
    """A tensor of block-quantized rows.

    block: how the bytes decode
    shape: (..., rows, k); k is a multiple of the block; a vector is (k,)
    buffer: (bytes,) uint8, the mapped file
    offset: the tensor's first byte in it
    name: in the file, also of parts; empty if it has none
    step: of a stack (n, rows, k), bytes from a matrix to the next one; they follow each other by default
    Raises ValueError if the bytes do not lie in the buffer or k does not fit the block.
    """

    def __init__(
        self,
        block: type[blocks.Block],
        shape: tuple[int, ...],
        buffer: np.ndarray,
        offset: int = 0,
        name: str = "",
        step: int | None = None,
    ) -> None:
        self.block, self.shape, self.name = block, tuple(shape), name
        self.layout = Layout(block, self.shape)
        self.buffer, self.offset = buffer, offset
        self.row_bytes = block.row_bytes(self.shape[-1])
        self.kept: dict[Any, Any] = {}  # what a backend keeps with the tensor
        # what reads a stack's matrices when they are wanted, and which of its sources this is
        self.stream: tuple[Any, int] | None = None
        self._whole: tuple[QTensor, int] | None = None  # the tensor that this is part of, and where
        self._order: np.ndarray | None = None  # which rows of the tensor in the file these are
        self.rows = int(np.prod(self.shape[:-1], dtype=np.int64))
        self.nbytes = self.rows * self.row_bytes
        self.words = self.nbytes // word(block).itemsize  # that hold its numbers
        matrix = self.row_bytes * (self.shape[-2] if len(self.shape) > 1 else 1)
        self.step = matrix if step is None else step
        if self.step < matrix or (step is not None and len(self.shape) != 3):
            raise ValueError(
                f"a {block.name} tensor of shape {self.shape}: expected a stack whose matrices are "
                f"{matrix} bytes or more apart, found {self.step}"
            )
        self.is_spaced = self.step > matrix and self.shape[0] > 1
        spaces = self.shape[0] - 1 if self.is_spaced else 0
        self.extent = self.nbytes + spaces * (self.step - matrix)  # from the first byte to the last
        stop = offset + self.extent
        if offset < 0 or stop > buffer.size:
            raise ValueError(
                f"a {block.name} tensor of shape {self.shape} needs bytes {offset} to "
                f"{stop}, found a buffer of {buffer.size}"
            )

    def __repr__(self) -> str:
        name = f"{self.name}, " if self.name else ""
        return f"QTensor({name}{self.block.name}, {self.shape})"

    @property
    def data(self) -> np.ndarray:
        """(..., rows, row bytes) uint8, a read-only view of the file."""
        if self.is_spaced:
            shape, strides = (*self.shape[:-1], self.row_bytes), (self.step, self.row_bytes, 1)
            return np.lib.stride_tricks.as_strided(
                self.buffer[self.offset :], shape, strides, writeable=False
            )
        flat = self.buffer[self.offset : self.offset + self.nbytes]
        return flat.reshape(*self.shape[:-1], self.row_bytes)

    @property
    def _lead(self) -> tuple[int, ...]:
        """The leading axes of the array."""
        every, (*lead, _) = self.layout.every, self.shape
        return tuple(lead) if every == 1 else (every * (lead[0] - 1) + 1, lead[1])

    @property
    def _bytes(self) -> np.ndarray:
        """What the array holds, (nbytes,) uint8."""
        if self.layout.every == 1:
            return np.ascontiguousarray(self.data).reshape(-1)
        return self.buffer[self.offset : self.offset + self.extent]

    @cached_property
    def array(self) -> mx.array:
        """(..., rows, words) of `word(block)`: the mapped bytes themselves on Metal, a copy elsewhere.

        Of a stack whose matrices are parts of others, also what lies between them; see `Layout.every`.
        Copies when the buffer is not a page-aligned mapping or the offset is not word-aligned.
        Raises NotImplementedError for a tensor of 16 GiB or more, for one of more than `MOST` words that is not a
        whole number of 64-bit words or does not start on one, and on Metal for a stack with space between its matrices.
        """
        dtype = word(self.block)
        shape = (*self._lead, self.row_bytes // dtype.itemsize)
        if mx.cuda.is_available():
            return self._uploaded(dtype, shape)
        if mx.metal.is_available() and self.is_spaced and self.layout.every == 1:
            raise NotImplementedError(
                f"{self}: its matrices lie {self.step} bytes apart, as in a packed file, which Metal kernels cannot "
                f"read; use the file that was packed, or the cpu backend"
            )
        mapped = self.buffer.ctypes.data % mmap.PAGESIZE == 0
        if not (mx.metal.is_available() and mapped) or self.offset % dtype.itemsize:
            return mx.array(self._bytes.view(dtype).reshape(shape))
        view = self._window(dtype).reshape(shape)
        mx.eval(view)  # moves no bytes; a lazy array would belong to this thread
        return view

    def _window(self, dtype: np.dtype) -> mx.array:
        """The mapped bytes as words in two axes, the first of which are groups of rows."""
        pages, first = self.pages()
        words, together = dtype, 1
        if pages.size // dtype.itemsize > MOST:
            words, together = _WIDE, _WIDE.itemsize // math.gcd(_WIDE.itemsize, self.row_bytes)
        size = words.itemsize
        rows = math.prod(self._lead)
        if pages.size // size > MOST or first % size or rows % together:
            raise NotImplementedError(
                f"{self}: {self.nbytes} bytes at byte {self.offset} are more than {MOST} words of {size} bytes, "
                f"or not a whole number of them"
            )
        flat = mx.from_dlpack(pages.view(words), copy=False)
        flat = flat[first // size : (first + rows * self.row_bytes) // size]
        return flat.reshape(rows // together, -1).view(getattr(mx, dtype.name))

    def _uploaded(self, dtype: np.dtype, shape: tuple[int, ...]) -> mx.array:
        """In an NVIDIA GPU's memory; parts of a tensor lie within it."""
        if self._whole is not None:
            whole, start = self._whole
            first = start // self.row_bytes
            rows = whole.array.reshape(whole.rows, -1)[first : first + math.prod(self._lead)]
            out = rows.reshape(shape)
            mx.eval(out)
            return out
        from .kernels.cuda.upload import upload

        spaced = self.is_spaced and self.layout.every == 1
        count, nbytes = (
            (self.shape[0], self.nbytes // self.shape[0]) if spaced else (1, self.extent)
        )
        starts = (self.offset + i * self.step for i in range(count))
        runs = [(start, start + nbytes) for start in starts]
        return upload(self.buffer, runs, shape, getattr(mx, dtype.name))

    @property
    def whole(self) -> QTensor:
        """The tensor that this is, or is a part of: its bytes are uploaded once for all parts."""
        return self if self._whole is None else self._whole[0]

    @property
    def is_uploaded(self) -> bool:
        """Whether `array` is there already."""
        return "array" in self.__dict__

    def pages(self) -> tuple[np.ndarray, int]:
        """The whole pages around the tensor, uint8, without a copy; and where the tensor starts in them."""
        if self.buffer.ctypes.data % mmap.PAGESIZE:
            raise ValueError(
                f"{self}: its buffer does not start on a page of {mmap.PAGESIZE} bytes"
            )
        start, stop, first = window(self.offset, self.extent)
        return np.asarray(_Pages(self.buffer, start, stop - start)), first

    def part(self, start: int, stop: int) -> QTensor:
        """Rows [start, stop) of a matrix, or of each one in a stack: (..., rows, k) -> (..., stop - start, k).

        The same bytes.
        """
        if len(self.shape) not in (2, 3) or not 0 <= start < stop <= self.shape[-2]:
            raise ValueError(f"{self} has no rows {start} to {stop}")
        step = self.step if len(self.shape) == 3 else None
        return self._within((*self.shape[:-2], stop - start, self.shape[-1]), start, step)

    def reshaped(self, *shape: int) -> QTensor:
        """The same bytes in another shape, with rows of the same length."""
        found = self._within(shape, 0)
        if found.row_bytes != self.row_bytes or found.rows != self.rows or self.is_spaced:
            raise ValueError(f"{self} cannot have shape {shape}")
        return found

    def matrix(self, i: int) -> QTensor:
        """Matrix i of a stack: (n, rows, k) -> (rows, k), the same bytes."""
        count, *shape = self.shape
        if not 0 <= i < count:
            raise ValueError(f"{self} has {count} matrices, there is no number {i}")
        return self._within(tuple(shape), i * (self.rows // count))

    def permuted(self, order: np.ndarray) -> QTensor:
        """Rows of a matrix in another order, copied: (rows, k) -> (len(order), k)."""
        rows = np.ascontiguousarray(self.data[order])
        found = QTensor(
            self.block, rows.shape[:1] + self.shape[1:], rows.reshape(-1), name=self.name
        )
        found._order = order
        return found

    def substitute(self, whole: QTensor | None) -> QTensor:
        """The same rows of `whole`, which holds the tensor that this is, or is a part of, in other blocks.

        whole: None stands for the tensor itself
        Raises ValueError if it has another number of rows, or rows of another length.
        """
        mine, start = self._whole or (self, 0)
        if whole is not None and mine._order is not None:
            whole = whole.permuted(mine._order)
        whole = mine if whole is None else whole
        if (whole.rows, whole.shape[-1]) != (mine.rows, mine.shape[-1]):
            raise ValueError(f"{whole} cannot stand in for {mine}: the rows differ")
        offset = whole._row_offset(start // mine.row_bytes)
        step = whole.step if len(self.shape) == len(whole.shape) == 3 else None
        found = QTensor(whole.block, self.shape, whole.buffer, offset, self.name, step)
        found.layout = found.layout._replace(every=self.layout.every)
        return found

    def _row_offset(self, row: int) -> int:
        """The first byte of a row, counted through the leading axes."""
        if not self.is_spaced:
            return self.offset + row * self.row_bytes
        matrix, row = divmod(row, self.shape[1])
        return self.offset + matrix * self.step + row * self.row_bytes

    def _within(self, shape: tuple[int, ...], row: int, step: int | None = None) -> QTensor:
        """Rows of this tensor, from row `row` on, counted through the leading axes. step: of a stack, as of QTensor"""
        found = QTensor(self.block, shape, self.buffer, self._row_offset(row), self.name, step)
        whole, start = self._whole or (self, 0)
        if len(self.shape) == len(whole.shape) == 3:  # it may have some rows of each matrix
            matrix, row = divmod(row, self.shape[1])
            row += matrix * whole.shape[1]
        found._whole = whole, start + row * self.row_bytes
        if found.is_spaced and found.shape[1] and self.shape[-2] % found.shape[1] == 0:
            found.layout = found.layout._replace(
                every=self.layout.every * self.shape[-2] // found.shape[1]
            )
        return found

    def tile(self, start: int, stop: int) -> mx.array:
        """Rows [start, stop) of all rows, counted through the leading axes: (stop - start, row bytes) uint8."""
        if mx.metal.is_available() and not self.is_spaced:
            return self.array.reshape(self.rows, -1)[start:stop].view(mx.uint8)
        return mx.array(self.data.reshape(self.rows, -1)[start:stop])

    def take(self, ids: mx.array) -> mx.array:
        """The rows of a matrix at ids: (...) integers -> (..., row bytes) uint8.

        Raises ValueError for an id outside the rows (on Metal ids are not looked at, so that nothing waits for them).
        """
        if mx.metal.is_available():
            return self.array[ids].view(mx.uint8)
        index = np.asarray(ids)
        if index.size and (index.min() < 0 or index.max() >= self.rows):
            raise ValueError(
                f"{self}: row ids lie between 0 and {self.rows - 1}, "
                f"found {index.min()} to {index.max()}"
            )
        return mx.array(self.data[index])
