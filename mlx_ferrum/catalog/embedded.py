"""Models whose files are part of the package: nothing is fetched.

`training/` made them, and says how.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """How to show what a model writes."""

    prompt: str
    temp: float
    seed: int


@dataclass(frozen=True)
class Embedded:
    """A model file beside this one. sample: what to run when nothing else is asked for."""

    name: str
    licence: str
    sample: Sample

    @property
    def path(self) -> Path:
        """The file."""
        return Path(__file__).with_name(f"{self.name}.gguf")

    @property
    def nbytes(self) -> int:
        """Of the file."""
        return self.path.stat().st_size


_LICENCE = "MIT; trained on the King James Bible, which is in the public domain"

EMBEDDED = (
    Embedded(name="tiny-moe", licence=_LICENCE, sample=Sample(prompt="", temp=0.7, seed=1)),
    Embedded(name="tiny-hybrid", licence=_LICENCE, sample=Sample(prompt="", temp=0.7, seed=1)),
)
