"""Where embeddings go: lines of JSON on stdout, or a file that appears when it is complete."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

import numpy as np


class Writer(Protocol):
    """What takes embeddings, in the order of the texts."""

    def write(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """texts: (n,), vectors: (n, d) float32"""


class JsonLines:
    """One object a line: {"text": ..., "embedding": [...]}; numbers are as short as float32 allows."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file

    def write(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """texts: (n,), vectors: (n, d) float32"""
        for text, vector in zip(texts, vectors, strict=True):
            numbers = [float(str(number)) for number in vector]
            self.file.write(json.dumps({"text": text, "embedding": numbers}) + "\n")
        self.file.flush()


class Array:
    """A NumPy file of (total, d) float32."""

    def __init__(self, file: IO[bytes], total: int, size: int) -> None:
        self.file = file
        header = {"descr": "<f4", "fortran_order": False, "shape": (total, size)}
        np.lib.format.write_array_header_1_0(file, header)

    def write(self, _texts: Sequence[str], vectors: np.ndarray) -> None:
        """vectors: (n, d) float32"""
        self.file.write(np.ascontiguousarray(vectors, "<f4").tobytes())


@contextlib.contextmanager
def opened(path: Path, total: int, size: int) -> Iterator[Writer]:
    """A writer of (total, size) numbers to a file, .npy or else lines of JSON.

    The file takes its place when the block ends, and nothing of it is left if the block fails.
    """
    target = Path(os.path.realpath(path))  # a link stays, the file that it names is replaced
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        if path.suffix == ".npy":
            with partial.open("wb") as binary:
                yield Array(binary, total, size)
        else:
            with partial.open("w", encoding="utf-8") as file:
                yield JsonLines(file)
        partial.replace(target)
    except OSError as error:
        named = error.filename not in (None, str(partial))
        raise error if named else OSError(error.errno, error.strerror, str(path)) from None
    finally:
        partial.unlink(missing_ok=True)
