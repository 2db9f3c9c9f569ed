"""The base's predictions on a text in a file, so that its next comparison need not run it; written as they are made.

A file is a header of HEADER bytes (MAGIC, then JSON that says what it belongs to), then a record for each chunk:

    codes  (positions, vocabulary) uint16: logit = low + step * code
    table  (positions,) of TABLE: low and step of the codes, and what is kept exactly
    crc    uint32, CRC-32 of the bytes before it

step is 1/65535 of the range of a position's logits, often 0.0005, and a logit is off by half of it at most.
KL divergence is computed from the decoded logits, normalised again, so that errors cancel: on SmolLM2 the mean KL of
Q8_0 (0.001) and of Q4_K_M (0.04) changes by 1e-8, a single token's by 1e-5 (root mean square).
A process that is killed leaves whole records and a part of one, which the next one writes anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from .divergence import Rows
from .output import replaced

MAGIC = b"ferrum-logits-1\n"
HEADER = 4096  # bytes
LEVELS = 65535
TABLE = np.dtype([("low", "<f4"), ("step", "<f4"), ("nats", "<f8"), ("top", "<i8")])
CRC = np.dtype("<u4")
Identity = Mapping[str, str | int]
Names = Mapping[str, str]


class SavedLogits:
    """An open file, which no other process writes. `count` chunks are in it.

    positions: scored in each chunk; vocabulary: logits of each
    identity: what the logits depend on; names: of files that parts of it stand for, which errors tell
    Opening raises ValueError for a file that is something else or belongs to another identity, BlockingIOError if
    another process uses it, OSError if it cannot be had.
    """

    def __init__(
        self, path: Path, identity: Identity, names: Names, *, positions: int, vocabulary: int
    ) -> None:
        self.path, self.positions, self.vocabulary = path, positions, vocabulary
        self._codes = positions * vocabulary * 2
        self.record_bytes = self._codes + positions * TABLE.itemsize + CRC.itemsize
        header = _header(identity, names)
        if not path.exists() or path.stat().st_size == 0:
            with replaced([path]) as (partial,):
                partial.write_bytes(header)
        self._file: BinaryIO = path.open("r+b")
        try:
            _lock(self._file, path)
            _check(self._file.read(HEADER), header, path)
            self.count = self._whole_records()
        except BaseException:
            self.close()
            raise

    def _whole_records(self) -> int:
        """A killed process may leave a part of a record, or after a power cut one that did not reach the disk."""
        count = (os.fstat(self._file.fileno()).st_size - HEADER) // self.record_bytes
        return count - 1 if count and not self._is_sound(count - 1) else count

    def _start(self, chunk: int) -> int:
        return HEADER + chunk * self.record_bytes

    def _mapped(self, chunk: int) -> np.ndarray:
        start = self._start(chunk)
        return np.memmap(self._file, np.uint8, "r", start, (self.record_bytes,))

    def _is_sound(self, chunk: int) -> bool:
        record = self._mapped(chunk)
        stored = int(record[-CRC.itemsize :].view(CRC)[0])
        return zlib.crc32(record[: -CRC.itemsize].data) == stored

    def check_space(self, chunks: int) -> None:
        """Raises OSError if the disk has no room for the records up to `chunks`."""
        needed = max(0, chunks - self.count) * self.record_bytes
        free = shutil.disk_usage(self.path.parent).free
        if free < needed:
            raise OSError(
                f"{self.path}: needs {needed / 1e6:,.0f} MB of disk, {free / 1e6:,.0f} MB are free"
            )

    def rows(self, chunk: int, most: int) -> Iterator[Rows]:
        """The base's predictions on a chunk below `count`, in pieces of `most` positions.

        Raises ValueError if the record is damaged.
        """
        if not self._is_sound(chunk):
            raise ValueError(
                f"{self.path}: chunk {chunk + 1} of {self.count} is damaged; delete the file"
            )
        record = self._mapped(chunk)
        codes = record[: self._codes].view("<u2").reshape(self.positions, self.vocabulary)
        table = record[self._codes : -CRC.itemsize].view(TABLE)
        for start in range(0, self.positions, most):
            part = slice(start, start + most)
            low, step = table["low"][part, None], table["step"][part, None]
            logits = codes[part].astype(np.float32)
            logits *= step
            logits += low
            yield Rows(logits, table["nats"][part].copy(), table["top"][part].copy())

    def append(self, rows: Iterable[Rows]) -> None:
        """Write the next chunk. Raises OSError, which names the file, if the disk fails; the file stays sound."""
        self._file.seek(self._start(self.count))
        try:
            self._write(rows)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.count += 1

    def _write(self, rows: Iterable[Rows]) -> None:
        tables, crc = [], 0
        for piece in rows:
            codes, table = encode(piece)
            tables.append(table)
            crc = zlib.crc32(codes.data, crc)
            self._file.write(codes.data)
        table = np.concatenate(tables)
        assert len(table) == self.positions
        crc = zlib.crc32(table.data, crc)
        self._file.write(table.data)
        self._file.write(crc.to_bytes(CRC.itemsize, "little"))

    def close(self) -> None:
        """Let go of the file, and cut off a record that is not whole."""
        if not self._file.closed:
            if hasattr(self, "count"):
                self._file.truncate(self._start(self.count))
            self._file.close()

    def __enter__(self) -> SavedLogits:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def encode(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Codes (n, vocabulary) uint16 and a table (n,) of TABLE, as in the file."""
    table = np.empty(len(rows.nats), TABLE)
    low, high = rows.logits.min(axis=-1), rows.logits.max(axis=-1)
    step = (high - low) / np.float32(LEVELS)
    table["low"], table["step"] = low, step
    table["nats"], table["top"] = rows.nats, rows.top
    codes = rows.logits - low[:, None]
    codes /= np.where(step > 0, step, 1)[:, None]
    np.rint(codes, out=codes)
    return np.minimum(codes, LEVELS, out=codes).astype("<u2"), table


def _header(identity: Identity, names: Names) -> bytes:
    found = MAGIC + json.dumps({"identity": dict(identity), "names": dict(names)}).encode()
    assert len(found) <= HEADER
    return found.ljust(HEADER)


def _lock(file: BinaryIO, path: Path) -> None:
    """Held until the file is closed, or its process ends in any way."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(error.errno, "is in use by another process", str(path)) from None


def _check(header: bytes, expected: bytes, path: Path) -> None:
    """Raises ValueError, which says what differs, unless both headers have the same identity."""
    if not header.startswith(MAGIC):
        raise ValueError(f"{path}: is not a file of saved logits, so it is not written to")
    if len(header) < HEADER:
        raise ValueError(f"{path}: the header of saved logits is cut off; delete the file")
    try:
        found = json.loads(header[len(MAGIC) :])
        identity, names = dict(found["identity"]), dict(found["names"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: the header of saved logits is damaged") from None
    wanted = json.loads(expected[len(MAGIC) :])
    for name, value in wanted["identity"].items():
        if identity.get(name) != value:
            raise ValueError(
                f"{path}: holds logits of another {name}: "
                f"found {_told(name, identity.get(name), names)}, "
                f"expected {_told(name, value, wanted['names'])}; name another file or delete this one"
            )


def _told(name: str, value: object, names: Names) -> str:
    return f"{names[name]} ({value})" if name in names else str(value)
