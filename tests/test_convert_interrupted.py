"""A command that is stopped at any moment, or whose disk is full, leaves no file under a final name."""

from __future__ import annotations

import contextlib
import errno
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import random_models
from gguf import GGUFValueType
from random_models import Sizes

from mlx_ferrum import gguf
from mlx_ferrum.blocks import F16
from mlx_ferrum.convert import output, parts
from mlx_ferrum.convert.command import main

SIZES = Sizes(layers=24, ffn=4096)
SECONDS = 30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 170 MB in F32, which takes seconds to quantize with the best effort."""
    path = tmp_path_factory.mktemp("interrupted") / "model.gguf"
    random_models.write(path, "llama", 1, sizes=SIZES, types=("F32",))
    return path


def start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlx_ferrum.convert", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for_data(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Until the temporary file has data."""
    end = time.monotonic() + SECONDS
    while not any(path.stat().st_size > 1 << 16 for path in folder.glob(".*.partial")):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.01)


QUANTIZE = ("--type", "q3_k_m", "--effort", "best", "--threads", 1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_while_it_writes(model: Path, tmp_path: Path, number: int) -> None:
    rng = random.Random(number)
    for _ in range(2):
        process = start("quantize", model, tmp_path / "out.gguf", *QUANTIZE)
        wait_for_data(process, tmp_path)
        time.sleep(rng.random() / 2)
        process.send_signal(number)
        process.communicate(timeout=SECONDS)
        assert process.returncode == (130 if number == signal.SIGINT else -number)
        assert not (tmp_path / "out.gguf").exists()
    if number == signal.SIGINT:
        assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_it_packs(tmp_path: Path) -> None:
    sizes = Sizes(layers=3, ffn=512, experts=60, used=2, expert_ffn=768)
    experts = random_models.write(tmp_path / "moe.gguf", "qwen3moe", 1, sizes=sizes, types=("F32",))
    for _ in range(2):
        process = start("pack", experts, tmp_path / "out.gguf")
        wait_for_data(process, tmp_path)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=SECONDS)
        assert process.returncode == 130
        assert list(tmp_path.iterdir()) == [experts]


def test_killed_while_it_splits(model: Path, tmp_path: Path) -> None:
    process = start("split", model, tmp_path / "part", "--max-size", "1M")
    time.sleep(random.Random(1).random() * 2)
    process.kill()
    process.communicate(timeout=SECONDS)
    found = list(tmp_path.glob("part-*"))
    if found:  # it was done, or the renames were under way
        with contextlib.suppress(FileNotFoundError):
            assert len(gguf.read(found[0]).parts) == len(found)


def test_what_was_there_stays_when_force_fails(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("before")
    process = start("quantize", model, out, "--force", *QUANTIZE)
    wait_for_data(process, tmp_path)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=SECONDS)
    assert out.read_text() == "before" and list(tmp_path.iterdir()) == [out]


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 1 MB; a write past that fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize(
    "arguments",
    [
        ["quantize", "tiny-moe", "out.gguf", "--type", "q4_0"],
        ["split", "tiny-moe", "out", "--max-size", "2M"],
        ["edit", "tiny-moe", "out.gguf", "--set", "general.name=x"],
        ["pack", "tiny-moe", "out.gguf"],
    ],
)
def test_a_full_disk(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: out") and told.endswith(".gguf: File too large")
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_is_told_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert main(["quantize", "tiny-moe", str(tmp_path / "o.gguf"), "--type", "f16"]) == 1
    assert "MB of disk, 1 MB are free" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_rename_that_fails_leaves_no_first_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [parts.part_path(tmp_path / "part", i, 3) for i in range(3)]
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if target == paths[1]:
            assert not paths[0].exists()
            raise OSError(errno.EIO, "failed", str(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="failed"), output.replaced(paths) as partials:
        for partial in partials:
            partial.write_text("data")
    assert list(tmp_path.iterdir()) == []


# Quantizes, looks every few milliseconds at the memory that is no file's, and prints the most of it in KiB.
WATCHED = """
import sys, threading, time
from mlx_ferrum.convert.command import main
done, most = threading.Event(), 0
def watch():
    global most
    while not done.wait(0.003):
        found = open("/proc/self/status").read().split("RssAnon:")[1].split()[0]
        most = max(most, int(found))
watcher = threading.Thread(target=watch)
watcher.start()
main(["quantize", sys.argv[1], sys.argv[2], "--type", "q8_0", "--effort", "fast"])
done.set()
watcher.join()
print(most)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """A model of one matrix of 512 MB in F16 is quantized with less than half of that, its mapping aside."""
    path = tmp_path / "model.gguf"
    values = {
        "general.architecture": output.Value("llama", GGUFValueType.STRING),
        "llama.block_count": output.Value(1, GGUFValueType.UINT32),
        "llama.attention.head_count": output.Value(1, GGUFValueType.UINT32),
    }
    piece = np.zeros(32 << 20, np.uint8)
    matrix = output.Planned("output.weight", F16, (65536, 4096), "F16", lambda: iter([piece] * 16))
    output.write(path, values, [matrix])
    command = [sys.executable, "-c", WATCHED, str(path), str(tmp_path / "out.gguf")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(shown[-1]) << 10 < 256 << 20
