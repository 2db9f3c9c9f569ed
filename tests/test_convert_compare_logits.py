"""Saved logits of the base: rounding, runs that go on after a kill, files of something else."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models
from backends import CPU, REFERENCE
from random_models import Sizes

from mlx_ferrum.convert import comparing, divergence, perplexity, saved_logits
from mlx_ferrum.convert.command import main
from mlx_ferrum.convert.comparing import compare
from mlx_ferrum.convert.comparison import Divergence

SIZE = 16
TEXT = " ".join(f"{n} boats on the sea near Oban," for n in range(40))
ARRAYS = ("nats", "base_nats", "kls", "agrees")
SECONDS = 60


@pytest.fixture(scope="module", autouse=True)
def cpu() -> Iterator[None]:
    """The backend that the command uses by itself here, whatever tests before have chosen."""
    with CPU.in_use():
        yield


@pytest.fixture(scope="module")
def folder(cpu: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models a and b, a text, and whole logits of a."""
    folder = tmp_path_factory.mktemp("logits")
    (folder / "text.txt").write_text(TEXT)
    for seed, name in ((1, "a"), (2, "b")):
        random_models.write(folder / f"{name}.gguf", "llama", seed, sizes=Sizes(layers=2))
    run(folder, folder / "whole")
    return folder


def run(folder: Path, logits: Path | None, **options: Any) -> Divergence:
    options = {"size": SIZE, "tensors": False, "text": folder / "text.txt", **options}
    a, b = folder / "a.gguf", folder / "b.gguf"
    (other,) = compare(options.pop("base", a), b, logits=logits, **options).others
    assert other.divergence is not None
    return other.divergence


def assert_equal(found: Divergence, expected: Divergence) -> None:
    for name in ARRAYS:
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes(), name


def test_rounding() -> None:
    rng = np.random.default_rng(3)
    logits = (rng.normal(size=(7, 1000)) * 8 ** rng.random((7, 1))).astype(np.float32)
    logits[5] = 4.0  # all alike: a step of 0
    rows = divergence.rows(logits, [3] * 7)
    codes, table = saved_logits.encode(rows)
    decoded = codes * table["step"][:, None] + table["low"][:, None]
    bound = (np.ptp(logits, axis=1) / 65535 / 2)[:, None]
    assert (np.abs(decoded - logits) <= bound * 1.01 + 1e-6).all()
    assert (np.abs(decoded - logits).max(1) > bound[:, 0] * 0.9)[[0, 1, 2, 3, 4, 6]].all()
    assert (table["nats"] == rows.nats).all() and (table["top"] == rows.top).all()


def test_rounded_logits_change_next_to_nothing(folder: Path, tmp_path: Path) -> None:
    exact, rounded = run(folder, None), run(folder, tmp_path / "a.logits")
    assert_equal(rounded, run(folder, tmp_path / "a.logits"))
    for name in ("nats", "base_nats", "agrees"):
        assert (getattr(exact, name) == getattr(rounded, name)).all()
    assert exact.kl.value > 1e-2
    assert abs(exact.kl.value - rounded.kl.value) < 2e-6 * exact.kl.value
    assert (np.abs(exact.kls - rounded.kls) < 5e-5 * exact.kls).all()


def test_a_whole_file_spares_the_base(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(folder, folder / "whole")

    def fail(*_: object) -> None:
        raise AssertionError("the base has been run")

    monkeypatch.setattr(divergence, "rows", fail)
    assert_equal(run(folder, folder / "whole"), expected)
    few = run(folder, folder / "whole", count=2)
    assert (few.kls == expected.kls[: few.tokens]).all() and few.tokens == 14


def test_a_file_cut_at_any_byte_goes_on(folder: Path, tmp_path: Path) -> None:
    expected, whole = run(folder, None), (folder / "whole").read_bytes()
    expected = run(folder, folder / "whole")
    rng = random.Random(1)
    cuts = [
        0,
        saved_logits.HEADER,
        len(whole) - 1,
        *(rng.randrange(4097, len(whole)) for _ in range(5)),
    ]
    for cut in cuts:
        path = tmp_path / "cut"
        path.write_bytes(whole[:cut])
        assert_equal(run(folder, path), expected)
        assert path.read_bytes() == whole
    # fewer chunks first, more later; and a last record that did not reach the disk
    (tmp_path / "few").unlink(missing_ok=True)
    run(folder, tmp_path / "few", count=2)
    data = bytearray((tmp_path / "few").read_bytes())
    data[-100] ^= 1
    (tmp_path / "few").write_bytes(data)
    assert_equal(run(folder, tmp_path / "few"), expected)
    assert (tmp_path / "few").read_bytes() == whole


def test_killed_runs_go_on(folder: Path, tmp_path: Path) -> None:
    """A larger vocabulary, so that a kill meets the writing of a record."""
    sizes = Sizes(layers=2, vocab=5000, context=256)
    for seed, name in ((1, "a"), (2, "b")):
        random_models.write(tmp_path / f"{name}.gguf", "llama", seed, sizes=sizes, types=("F16",))
    (tmp_path / "text.txt").write_text(TEXT * 3)
    expected = run(tmp_path, tmp_path / "whole", size=128)
    path, rng = tmp_path / "killed", random.Random(5)
    command = [
        sys.executable,
        "-m",
        "mlx_ferrum.convert",
        "compare",
        "a.gguf",
        "b.gguf",
        "--no-tensors",
    ]
    command += [
        "--text",
        "text.txt",
        "--chunk-size",
        "128",
        "--logits",
        path.name,
        "--backend",
        "cpu",
    ]
    grown = 0
    for _ in range(2):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
        end = time.monotonic() + SECONDS
        while not path.exists() or path.stat().st_size <= max(grown, saved_logits.HEADER):
            if process.poll() is not None:
                break
            assert time.monotonic() < end
        time.sleep(rng.random() / 10)
        process.kill()
        process.wait()
        grown = path.stat().st_size
    assert_equal(run(tmp_path, path, size=128), expected)
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()


# -- files that are refused, and stay as they are ------------------------------------------------


def refused(folder: Path, path: Path, message: str, **options: Any) -> None:
    before = path.read_bytes()
    with pytest.raises((ValueError, OSError), match=message):
        run(folder, path, **options)
    assert path.read_bytes() == before


def test_files_of_something_else(folder: Path, tmp_path: Path) -> None:
    path = folder / "whole"
    refused(
        folder,
        path,
        r"whole: holds logits of another text: found text.txt \(\w{16}\), exp",
        text=TEXT + "x" * 99,
    )
    refused(folder, path, "another chunk size: found 16, expected 17", size=17)
    refused(
        folder,
        path,
        r"another model: found a.gguf \(\w+\), expected b.gguf",
        base=folder / "b.gguf",
    )
    edited = tmp_path / "a.gguf"
    assert (
        main(["edit", str(folder / "a.gguf"), str(edited), "--set", "llama.rope.freq_base=5000"])
        == 0
    )
    refused(folder, path, "another model", base=edited)
    # names mean nothing
    shutil.copy(folder / "a.gguf", tmp_path / "renamed.gguf")
    assert_equal(run(folder, path, base=tmp_path / "renamed.gguf", text=TEXT), run(folder, path))
    with REFERENCE.in_use():
        refused(folder, path, "another backend: found cpu, expected reference")


def test_files_that_are_no_logits_or_damaged(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"precious " * 1000)
    refused(folder, path, "x: is not a file of saved logits, so it is not written to")
    data = bytearray((folder / "whole").read_bytes())
    path.write_bytes(data[:20] + b"?" + data[21:])
    refused(folder, path, "the header of saved logits is damaged")
    path.write_bytes(data[: saved_logits.HEADER // 2])
    refused(folder, path, "the header of saved logits is cut off; delete the file")
    data[saved_logits.HEADER + 10] ^= 1
    path.write_bytes(data)
    refused(folder, path, "x: chunk 1 of [0-9]+ is damaged; delete the file")


def test_the_name_of_a_file_may_be_text(folder: Path, tmp_path: Path) -> None:
    compare(*(folder / f"{n}.gguf" for n in "ab"), TEXT, size=SIZE, logits=str(tmp_path / "x"))
    found, expected = (p.read_bytes() for p in (tmp_path / "x", folder / "whole"))
    assert found[saved_logits.HEADER :] == expected[saved_logits.HEADER :]


def test_a_file_in_use_and_a_full_disk(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (folder / "whole").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(folder, folder / "whole", "is in use by another process")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"needs .* MB of disk, 0 MB are free"):
        run(folder, tmp_path / "new")


def test_a_run_that_fails_leaves_whole_records(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, path = comparing.Reading._computed, tmp_path / "x"

    def stop(self: comparing.Reading, tokens: list[int]) -> Any:
        for n, rows in enumerate(real(self, tokens)):
            if self.done == 3 and n == 1:
                raise KeyboardInterrupt
            yield rows

    monkeypatch.setattr(perplexity, "ROWS", 3)  # several pieces a chunk
    expected = run(folder, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(comparing.Reading, "_computed", stop)
        with pytest.raises(KeyboardInterrupt):
            run(folder, path)
    record = (len(whole) - saved_logits.HEADER) * 7 // expected.tokens
    assert path.read_bytes() == whole[: saved_logits.HEADER + 3 * record]
    assert_equal(run(folder, path), expected)


def test_a_base_that_is_written_to_is_not_saved(folder: Path, tmp_path: Path) -> None:
    a, b = (Path(shutil.copy(folder / f"{name}.gguf", tmp_path)) for name in "ab")
    files = [comparing.open_model(path) for path in (a, b)]
    reading = comparing.Reading.of([a, b], files, TEXT, size=SIZE)
    real = reading._computed

    def write(tokens: Any) -> Any:
        if reading.done == 2:
            with a.open("r+b") as file:
                file.seek(-1, 2)
                file.write(b"?")
            os.utime(a, (1, 1))
        yield from real(tokens)

    reading._computed = write
    with pytest.raises(ValueError, match=r"a.gguf"):
        reading.run(tmp_path / "x")
    whole, saved = ((f / n).stat().st_size - 4096 for f, n in ((folder, "whole"), (tmp_path, "x")))
    assert saved == 2 * whole // len(reading.pieces)
