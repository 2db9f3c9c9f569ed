"""A model's file that changes while it is mapped: an error that says so, not a crash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import random_models
from gguf_bytes import Draft, Tensor

from mlx_ferrum import gguf

# Generates with a copy of the model; `{when}` cuts it short.
PROGRAM = """
import os, sys
import mlx.core as mx
import mlx_ferrum

path, backend = sys.argv[1:]
mlx_ferrum.use_backend(backend)
model, tokenizer = mlx_ferrum.load(path)
cut = lambda: os.truncate(path, 8192)
responses = mlx_ferrum.stream_generate(model, tokenizer, [32, 117, 112], max_tokens=20, ignore_eos=True)
try:
{when}
except ValueError as error:
    sys.exit(f"error: {{error}}")
"""
WHEN = {
    "before": "    cut()\n    next(responses)",
    "meanwhile": "    for n, _ in enumerate(responses):\n        n == 3 and cut()",
    "direct": "    cut()\n    model(mx.array([[32, 117]]))",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    return random_models.write_case(path, "llama", seed=3).read_bytes()


def run(path: Path, backend: str, when: str) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(when=when)
    command = [sys.executable, "-c", program, str(path), backend]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("when", WHEN)
def test_a_file_cut_short_while_in_use(
    model: bytes, backend: str, when: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(model)
    done = run(path, backend, WHEN[when])
    expected = f"cut short while in use, found 8192 bytes, expected {len(model)}"
    assert (done.returncode, done.stderr) == (1, f"error: {path}: {expected}\n")


def test_a_file_cut_short_within_a_step_ends_with_a_line(model: bytes, tmp_path: Path) -> None:
    """Nothing looks at the file between the kernels of a step: the signal is caught."""
    path = tmp_path / "m.gguf"
    path.write_bytes(model)
    done = run(path, "cpu", "    cut()\n    model.body(model.make_cache().batch(mx.array([[32]])))")
    message = "error: a mapped file was cut short while in use, or its disk cannot be read (SIGBUS)"
    assert (done.returncode, done.stderr) == (1, f"{message}\n")


def test_a_handler_of_the_program_stays(model: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(model)
    program = "import faulthandler; faulthandler.enable()\n" + PROGRAM.format(
        when="    cut()\n    model.body(model.make_cache().batch(mx.array([[32]])))"
    )
    command = [sys.executable, "-c", program, str(path), "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode < 0 and done.stderr.startswith("Fatal Python error: Bus error")


@pytest.fixture
def opened(tmp_path: Path) -> gguf.GGUF:
    path = tmp_path / "a.gguf"
    path.write_bytes(Draft(tensors=[Tensor("a", (4096,), data=bytes(4 * 4096))]).raw)
    return gguf.read(path)


def test_a_file_written_to(opened: gguf.GGUF) -> None:
    opened.check()
    with opened.path.open("r+b") as file:
        file.seek(1000)
        file.write(b"\1")
    later = opened.path.stat().st_mtime_ns + 10**9  # clocks of file systems are coarse
    os.utime(opened.path, ns=(later, later))
    with pytest.raises(ValueError, match=r"a\.gguf: written to while in use"):
        opened.check()


@pytest.mark.parametrize("change", ["removed", "replaced", "grown"])
def test_changes_that_do_no_harm(opened: gguf.GGUF, change: str, tmp_path: Path) -> None:
    path, before = opened.path, opened.data("a").tobytes()
    if change == "replaced":
        (tmp_path / "b").write_bytes(b"another")
        (tmp_path / "b").replace(path)
    elif change == "removed":
        path.unlink()
    else:
        times = path.stat()
        with path.open("ab") as file:
            file.write(b"more")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    opened.check()
    assert opened.data("a").tobytes() == before
