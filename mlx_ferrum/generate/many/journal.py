"""Results in a file that is whole or not there, and that goes on where a killed process left it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

FORMAT = "mlx_ferrum results 1"


class Journal:
    """Lines of JSON beside `path`, in `path`.part, until `finish` gives them their name.

    count: lines, those that an earlier process wrote too
    failed: those of them that have an "error"
    """

    def __init__(self, path: Path, about: Mapping[str, str]) -> None:
        """Begin, or go on with what is there.

        about: what the results depend on; it is written first, and must be the same when the work goes on
        Raises FileExistsError if the results are complete, ValueError if the part is of other work or no part at all,
        BlockingIOError if another process writes it.
        """
        self.count = self.failed = 0
        self.path, self._part = path, Path(f"{path}.part")
        if path.exists():
            raise FileExistsError(
                errno.EEXIST,
                "the results are there already; remove the file to make them again",
                str(path),
            )
        self._file: BinaryIO = self._part.open("a+b")
        try:
            _lock(self._file, self._part)
            self._resume({"format": FORMAT, **about})
        except BaseException:
            self._file.close()
            raise

    def _resume(self, about: dict[str, str]) -> None:
        """Check the first line, drop a last one that is not whole, and count the others."""
        self._file.seek(0)
        text = self._file.read()
        if not text:
            self._write(about)
            return
        whole = text[: text.rfind(b"\n") + 1]
        first, *rest = whole.splitlines() or [text]
        try:
            found = json.loads(first)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"{self._part}: is no part of results, and is not replaced; remove it")
        for key, value in about.items():
            if found.get(key) != value:
                raise ValueError(
                    f"{self._part}: was begun with other {key}; remove it to begin anew"
                )
        self._file.truncate(len(whole))
        self.count = len(rest)
        self.failed = sum("error" in json.loads(line) for line in rest)

    def add(self, result: Mapping[str, Any]) -> None:
        """Write a result; it is kept whatever happens to the process."""
        self._write(result)
        self.count += 1
        self.failed += "error" in result

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            text = json.dumps(line, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half of a surrogate pair, as an id may have
            text = json.dumps(line).encode()
        self._file.write(text + b"\n")
        self._file.flush()

    def finish(self) -> None:
        """Give the results their name, without the first line."""
        self._file.seek(0)
        self._file.readline()
        with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=".results-") as folder:
            new = Path(folder) / self.path.name
            with new.open("wb") as file:
                shutil.copyfileobj(self._file, file)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)
        self._part.unlink()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def _lock(file: BinaryIO, path: Path) -> None:
    """Until the file is closed, no other process may have it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(error.errno, "another process is writing it", str(path)) from None
