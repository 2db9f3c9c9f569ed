"""Weights locked in memory: which pages, how long, and what is said where the system refuses."""

from __future__ import annotations

import gc
import mmap
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import random_models
from backends import REFERENCE, Backend

import mlx_ferrum
from mlx_ferrum import catalog, gguf, locked, memory
from mlx_ferrum.chat import command as chat
from mlx_ferrum.convert.command import main as convert
from mlx_ferrum.experts import command as experts
from mlx_ferrum.generate import command as generate
from mlx_ferrum.server import command as server
from mlx_ferrum.server.loading import Loader
from mlx_ferrum.system import first_line

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux says how much is locked")
PAGE = mmap.PAGESIZE


def held() -> int:
    """Bytes that this process has locked."""
    gc.collect()
    return 1024 * int(first_line("/proc/self/status", r"VmLck:\s*(\d+) kB"))


def pages(infos: Iterable[gguf.TensorInfo]) -> int:
    """Bytes of the pages of tensors, each once; vectors and convolutions are copied."""
    found = set[tuple[int, int]]()
    for info in infos:
        if len(info.shape) > 1 and "conv1d" not in info.name:
            stop = -(-(info.offset + info.nbytes) // PAGE)
            found |= {(info.part, page) for page in range(info.offset // PAGE, stop)}
    return PAGE * len(found)


def check(name: str | Path, expected: int, **options: int) -> None:
    """Load a model with mlock: so many bytes are locked, or the error names the limit, until it is gone."""
    before, most = held(), locked.limit()
    if most is not None and before + expected > most:
        with pytest.raises(OSError, match=r"mlock: .* cannot be locked in memory.*: the limit is "):
            mlx_ferrum.load(name, mlock=True, **options)
    else:
        model = mlx_ferrum.load(name, mlock=True, **options)
        assert held() - before == expected
        del model
    assert held() == before


@pytest.mark.parametrize("name", ["tiny-moe", "tiny-hybrid"])
def test_all_weights_are_locked(name: str) -> None:
    infos = gguf.read(catalog.resolve(name)).tensors.values()
    with REFERENCE.in_use():
        check(name, pages(infos))


def test_experts_that_are_streamed_are_not(cpu: Backend) -> None:
    file = gguf.read(catalog.resolve("tiny-moe"))
    dense = pages(info for name, info in file.tensors.items() if "_exps." not in name)
    assert 0 < dense < pages(file.tensors.values()) / 2
    check("tiny-moe", dense, expert_memory=2_000_000)


def test_the_files_of_a_split_model(tmp_path: Path) -> None:
    model = random_models.write_case(tmp_path / "m.gguf", "mixtral", seed=2)
    split = ["split", str(model), str(tmp_path / "part"), "--max-tensors", "7"]
    assert convert(split) == 0
    first = min(tmp_path.glob("part-*"))
    with REFERENCE.in_use():
        check(first, pages(gguf.read(first).tensors.values()))


# A process that may lock so many bytes: root could lock any number.
LIMITED = """
import ctypes, resource, sys
import mlx_ferrum
from mlx_ferrum import locked
none = (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), none) == 0
most, locked.PIECE = int(sys.argv[1]), 1 << 16
resource.setrlimit(resource.RLIMIT_MEMLOCK, (most, most))
assert locked.limit() == most
mlx_ferrum.use_backend("reference")
try:
    mlx_ferrum.load("tiny-moe", mlock=True)
except OSError as error:
    print(error)
    kept = error  # with the mapping
print(open("/proc/self/status").read().partition("VmLck:")[2].split()[0])
"""


@pytest.mark.parametrize("most", [0, 1 << 16])
def test_the_limit_is_named(most: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(most)], capture_output=True, text=True, check=True
    )
    error, left = done.stdout.splitlines()
    nbytes = pages(gguf.read(catalog.resolve("tiny-moe")).tensors.values())
    shown = "0 B" if not most else "66 kB"
    assert error == (
        f"mlock: {nbytes / 1e6:.1f} MB of weights cannot be locked in memory: the limit is {shown}, expected "
        f"{nbytes // 1024} KiB: ulimit -l {nbytes // 1024} raises it, as root where the hard limit is lower"
    )
    assert left == "0"  # nothing stays locked


def test_what_is_locked_already_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that the model would fit in alone."""
    nbytes = pages(gguf.read(catalog.resolve("tiny-moe")).tensors.values())
    monkeypatch.setattr(locked, "limit", lambda: nbytes + 4096)
    monkeypatch.setattr(locked, "_call", lambda *_: 12)
    monkeypatch.setattr(locked, "first_line", lambda *_: "8")
    wanted = f"beside 8.2 kB that are: .*, expected {nbytes // 1024 + 8} KiB"
    with REFERENCE.in_use(), pytest.raises(OSError, match=wanted):
        mlx_ferrum.load("tiny-moe", mlock=True)
    monkeypatch.setattr(locked, "limit", lambda: None)
    with REFERENCE.in_use(), pytest.raises(OSError, match="Cannot allocate memory"):
        mlx_ferrum.load("tiny-moe", mlock=True)


def test_more_than_is_free_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1_000_000)
    before = held()
    with REFERENCE.in_use(), pytest.raises(OSError, match=r"mlock: 5.0 MB .* only 1.0 MB are free"):
        mlx_ferrum.load("tiny-moe", expert_memory=0, mlock=True)
    assert held() == before


def test_the_commands_lock(
    cpu: Backend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locked, "_call", lambda *_: 12)
    for main, *options in (
        (generate.main, "--model", "tiny-moe", "--max-tokens", "1"),
        (chat.main, "--model", "tiny-moe"),
        (experts.main, "tiny-moe", "--prompt", "x"),
    ):
        assert main([*options, "--mlock", "--backend", "cpu"]) == 1
        assert "weights cannot be locked in memory" in capsys.readouterr().err
    args = server.arguments(["--model", "tiny-moe", "--mlock", "--backend", "cpu"])
    with pytest.raises(OSError, match="weights cannot be locked in memory"):
        Loader(args).load("tiny-moe", None)
