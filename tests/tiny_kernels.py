"""A source of one function in place of the kernels', for the tests of how they are built and found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mlx_ferrum.kernels.cpu import build

TINY = 'extern "C" int answer() { return %d; }\n'


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source of one function in place of the kernels', a cache of its own, and no temporary folder from before."""
    folder = tmp_path / "kernels" / "cpu"
    folder.mkdir(parents=True)
    (tmp_path / "temporary").mkdir()
    (folder / "tiny.cpp").write_text(TINY % 42)
    (folder / "tiny.h").write_text("")
    monkeypatch.setattr(build, "HERE", folder)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.delenv("CXX", raising=False)
    use_cache(monkeypatch, tmp_path / "cache")
    return folder / "tiny.cpp"


def use_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("HOME", str(folder))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if not path.is_dir())


def script(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def answer(library: Path) -> int:
    """What the library says, asked in a process of its own."""
    code = f"import ctypes; print(ctypes.CDLL({str(library)!r}).answer())"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
