"""What the doctor says of a model before it is loaded."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hf_bert
import pytest
from backends import Backend

from mlx_ferrum import amounts, budget, catalog, gguf, locked, memory, sizes
from mlx_ferrum.convert.commands import split
from mlx_ferrum.doctor import disk, main, model
from mlx_ferrum.doctor.disk import DEPTHS, SECTOR, Disk
from mlx_ferrum.sizes import Sizes
from mlx_ferrum.state.kinds import KV

MB, GB = 10**6, 10**9


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.measure, "__defaults__", (0.002,))


@pytest.fixture
def tiny() -> tuple[gguf.GGUF, Sizes]:
    file = gguf.read(catalog.resolve("tiny-moe"))
    found = sizes.of_file(file)
    assert found is not None
    return file, found


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch, tiny: tuple[gguf.GGUF, Sizes]) -> Iterator[int]:
    """So much memory is free that three experts a layer fit, beside the keys and values of 100 tokens."""
    found = tiny[1]
    nbytes = found.dense + found.pool(100) + budget.BESIDE + 3 * found.one_each
    monkeypatch.setattr(memory, "available", lambda: nbytes)
    yield nbytes


def test_experts_are_read_where_they_lie(tiny: tuple[gguf.GGUF, Sizes]) -> None:
    file, found = tiny
    stacks = sizes.stacks(file, found)
    assert len(stacks) == 3 * len(found.layers)
    places = disk.stretches(file, stacks)
    assert len(set(places)) == len(places) == found.count * len(stacks)
    assert sum(place.nbytes for place in places) == found.experts
    for place in places:
        [at] = [
            place.offset - info.offset
            for info in stacks
            if info.offset <= place.offset < info.offset + info.nbytes
        ]
        assert at % place.nbytes == 0


def test_dense_tensors_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "LARGEST", 10_000)
    file = gguf.read(catalog.resolve("tiny-hybrid"))
    places = disk.stretches(file, [])
    assert max(place.nbytes for place in places) == 10_000
    assert sum(place.nbytes for place in places) == sum(t.nbytes for t in file.tensors.values())


def test_reads_are_whole_sectors_of_the_right_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert (
        split.main([str(catalog.resolve("tiny-moe")), str(tmp_path / "m"), "--max-size", "2M"]) == 0
    )
    capsys.readouterr()
    paths = sorted(tmp_path.iterdir())
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in paths]
    file = gguf.read(paths[0])
    found = sizes.of_file(file)
    assert found is not None and len(file.parts) > 1
    places = disk.stretches(file, sizes.stacks(file, found))
    right, made = os.preadv, list[tuple[Path, int, int]]()
    by_inode = {path.stat().st_ino: path for path in paths}

    def noting(number: int, buffers: list[memoryview], at: int) -> int:
        [buffer] = buffers
        assert at % SECTOR == len(buffer) % SECTOR == 0
        size = right(number, buffers, at)
        made.append((by_inode[os.fstat(number).st_ino], at, size))
        return size

    monkeypatch.setattr(os, "preadv", noting)
    measured = disk.measure(file, places)
    assert set(measured.speeds) == set(DEPTHS) and min(measured.speeds.values()) > 0
    assert len(made) >= sum(DEPTHS)
    starts = {(file.files[p.part].path, p.offset // SECTOR * SECTOR): p for p in places}
    for path, at, size in made:
        place = starts[path, at]
        end = min(place.offset + place.nbytes, path.stat().st_size)
        assert at + size >= end
    assert measured.nbytes == sum(size for *_, size in made) // len(made)
    assert before == [(path.stat().st_mtime_ns, path.read_bytes()) for path in paths]


def test_a_disk_that_fails_is_an_error(
    cpu: Backend, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def failing(*_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", failing)
    assert main(["--no-test", "--model", "tiny-moe"]) == 1
    assert "Input/output error" in capsys.readouterr().err


SIZES = Sizes(
    nbytes=11 * GB, table=GB, layers={0: 100 * MB}, count=80, used=8, context=5000,
    keeps=[KV(1, 500, 500)],
)  # fmt: skip


def test_speeds_by_hand() -> None:
    """2 GB of dense weights and 0.8 of experts a token at 14 GB/s: 0.2 s; the experts from disk at 1 GB/s: 0.8 s."""
    found = model.expected(SIZES, GB, 14e9, (0.25, 0.5))
    assert found["memory"] == pytest.approx((5, 5))
    assert found["cold"] == pytest.approx((1, 1))
    assert found["warm"] == pytest.approx((1 / 0.8, 1 / 0.6))
    mapped = model.expected(SIZES, GB, 14e9, None)
    assert set(mapped) == {"memory", "cold"}
    assert mapped["cold"] == pytest.approx((1 / 3, 1 / 3))


def test_the_longest_context() -> None:
    """2,000 bytes a token."""
    weights = 11 * GB + budget.BESIDE
    assert model.longest(SIZES, weights + 2_000_000) == 1000
    assert model.longest(SIZES, weights + 1_999_999) == 999
    assert model.longest(SIZES, weights + GB) == 5000
    assert model.longest(SIZES, weights - 1) == model.longest(SIZES, weights) == 0


def test_a_mixture_that_does_not_fit(cpu: Backend, room: int, tiny: Any) -> None:
    found = model.examine("tiny-moe", 100)
    assert found.plan.nbytes == 3 * tiny[1].one_each
    assert found.hits == pytest.approx((3 / 8, math.sqrt(3 / 8)))
    (low, high), (cold, _), (top, _) = (found.speeds[name] for name in ("warm", "cold", "memory"))
    assert cold < low < high < top
    rows = dict(model.as_rows(found))
    assert rows["model"].startswith("tiny-moe.gguf, 5.0 MB of weights, ")
    assert rows["model"].endswith("2 of 8 a token in 4 layers")
    assert rows["needs"].endswith("are free: it does not fit") and "context" not in rows
    size = amounts.size(found.plan.nbytes)
    assert rows["best"].startswith(f"--expert-memory auto keeps {size} of experts (38%) in memory")
    assert "once 38% to 61% of uses find theirs there" in rows["decode"]


@pytest.mark.parametrize("most", [None, 2_000_000, 65536])
def test_what_may_be_locked(
    cpu: Backend, room: int, tiny: Any, monkeypatch: pytest.MonkeyPatch, most: int | None
) -> None:
    """1.8 MB of dense weights; not the experts, which are read from disk."""
    monkeypatch.setattr(locked, "limit", lambda: most)
    found = model.examine("tiny-moe", 100)
    assert found.locks == tiny[1].nbytes - tiny[1].experts
    verdict = "the system allows it"
    if most == 65536:
        verdict = f"the limit is 66 kB, expected {-(-found.locks // 1024)} KiB: ulimit -l "
    wanted = f"--mlock keeps {amounts.size(found.locks)} of weights in memory: {verdict}"
    assert dict(model.as_rows(found))["mlock"].startswith(wanted)


def test_a_model_that_fits(cpu: Backend) -> None:
    found = model.examine("tiny-hybrid")
    assert (found.hits, found.plan.nbytes, found.longest) == (None, 0, found.sizes.context)
    rows = dict(model.as_rows(found))
    assert "no experts" in rows["model"] and rows["best"].startswith("the model is mapped: it")
    assert rows["needs"].endswith("are free: it fits")
    assert found.locks == found.sizes.nbytes
    assert "with all weights in memory; " in rows["decode"] and "while none are" in rows["decode"]


def test_a_cache_that_cannot_be_bypassed_is_told(cpu: Backend) -> None:
    found = model.examine("tiny-moe")
    for bypasses in (True, False):
        speeds = Disk(10**6, {1: 1e9, 4: 2e9}, bypasses)
        rows = dict(model.as_rows(dataclasses.replace(found, disk=speeds)))
        assert rows["disk"].startswith(
            "reads of 1.0 MB, by reads at a time: 1: 1.0 GB/s, 4: 2.0 GB/s"
        )
        assert ("through the page cache" in rows["disk"]) != bypasses


def test_the_command(cpu: Backend, capsys: Any, tmp_path: Path) -> None:
    assert main(["--no-test", "--model", "tiny-moe", "--context", "50"]) == 0
    out = capsys.readouterr().out
    assert "keys and values of 50 tokens" in out and "\ndecode      estimated tok/s: " in out
    assert str(catalog.resolve("tiny-moe").parent) not in out
    assert main(["--no-test", "--model", "tiny-moe", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["model"]
    assert found["weights"]["count"] == 8 and found["plan"]["nbytes"] == 0
    assert set(found["disk"]["speeds"]) == {str(depth) for depth in DEPTHS}
    assert main(["--no-test", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] is None


def test_what_the_command_refuses(cpu: Backend, capsys: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--context", "9"])
    assert "--context: needs --model" in capsys.readouterr().err
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    hf_bert.write(tmp_path / "bert")
    bert = hf_bert.converted(tmp_path / "bert")
    capsys.readouterr()
    for path, said in (
        (tmp_path / "x.gguf", "x.gguf"),
        (bert, "is an encoder, expected a language"),
    ):
        assert main(["--no-test", "--model", str(path)]) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ") and said in err and err.count("\n") == 1
