"""How much memory is free, what a model takes of it, and what its experts get."""

from __future__ import annotations

import logging
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hf_bert
import mlx.core as mx
import numpy as np
import pytest
import random_models
from backends import CPU, REFERENCE, Backend

import mlx_ferrum
from mlx_ferrum import budget, catalog, gguf, memory, sizes
from mlx_ferrum.budget import BESIDE, MAPPED, plan
from mlx_ferrum.generate import command
from mlx_ferrum.nn import Experts
from mlx_ferrum.server.command import arguments
from mlx_ferrum.server.loading import Loader

MB, GB = 10**6, 10**9


# -- what is free ----------------------------------------------------------------------------------


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(folder: str, version: int, limit: str, usage: int, cached: int) -> dict[str, str]:
    """The files of a control group; half of `cached` is of each kind."""
    names = ("memory.max", "memory.current", "")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
    stat = "".join(f"{names[2]}{kind}_file {cached // 2}\n" for kind in ("inactive", "active"))
    stat += "inactive_file 1\n" if version == 1 else ""  # without the groups within
    top = "sys/fs/cgroup/" + ("memory/" if version == 1 else "")
    return {
        f"{top}{folder}/{names[0]}": f"{limit}\n",
        f"{top}{folder}/{names[1]}": f"{usage}\n",
        f"{top}{folder}/memory.stat": f"anon 7\n{stat}",
    }


MEMINFO = "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    5000 kB\n"
MINE = {2: "1:cpu:/x\n0::/a/b\n", 1: "9:name=systemd:/\n4:memory:/a/b\n0::/\n"}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("groups", "limit", "free"),
    [
        ([("a/b", "3000000", 1_200_000, 200_000)], 3_000_000, 2_000_000),
        ([("a", "2000000", 500_000, 0), ("a/b", "max", 1, 0)], 2_000_000, 1_500_000),
        ([(".", "1000000", 600_000, 200_000)], 1_000_000, 600_000),  # a container sees no path
        ([("a/b", "4000000", 5_000_000, 0)], 4_000_000, 0),
        ([("other", "5", 1, 0)], None, 5_120_000),
        ([("a/b", "max", 1, 0)], None, 5_120_000),
        ([("a/b", str(1 << 62), 1, 0)], None, 5_120_000),
    ],
)
def test_groups_limit_memory(
    tmp_path: Path, version: int, groups: list[Any], limit: int | None, free: int
) -> None:
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": MINE[version]}
    for folder, *rest in groups:
        files |= group(folder, version, *rest)
    root = written(tmp_path, files)
    assert memory.available(root) == free
    whole = memory.total(Path("/nowhere"))
    assert memory.total(root) == (whole if limit is None else limit)


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert memory.available(tmp_path) is None
    assert memory.total(tmp_path) > 0


def test_a_mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free:  10.\nPages active: 99.\n"
    said += "Pages inactive:   20.\nPages speculative:  3.\n"
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert memory.available() is None
    (tmp_path / "vm_stat").write_text(f"#!/bin/sh\necho '{said}'\n")
    (tmp_path / "vm_stat").chmod(0o755)
    assert memory.available() == 33 * 16384


# -- what a model takes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", ["llama", "qwen3moe", "qwen2moe", "qwen3next", "qwen35moe-predictor"]
)
def test_sizes_from_the_header(tmp_path: Path, case: str) -> None:
    path = random_models.write_case(tmp_path / "m.gguf", case, 1)
    found = sizes.of_file(gguf.read(path))
    assert found is not None
    with CPU.in_use():
        model = mlx_ferrum.load(path)[0]
    layers = [(i, layer.mlp) for i, layer in enumerate(model.body.layers)]
    stacks = {i: [mlp.gate, mlp.up, mlp.down] for i, mlp in layers if isinstance(mlp, Experts)}
    assert found.layers == {
        i: sum(w.nbytes // w.shape[0] for w in each) for i, each in stacks.items()
    }
    assert found.experts == sum(w.nbytes for each in stacks.values() for w in each)
    args = model.args.experts
    assert (found.count, found.used) == ((args.count, args.routing.used) if args else (0, 0))
    assert found.context == model.args.context_length
    table = model.body.embed_tokens.weight
    is_tied = "output.weight" not in gguf.read(path).tensors
    assert found.table == (0 if is_tied else table.nbytes)
    assert found.dense == found.nbytes - found.experts - found.table > 0


def test_layers_that_predict_further_tokens_take_nothing() -> None:
    file = gguf.read(catalog.resolve("tiny-moe"))
    last = file.metadata["qwen3moe.block_count"] - 1
    whole = sizes.of_file(file)
    file.metadata["qwen3moe.block_count"] = last
    less = sizes.of_file(file)
    assert whole is not None and less is not None
    assert set(whole.layers) - set(less.layers) == {last}
    names = [name for name in file.tensors if name.startswith(f"blk.{last}.")]
    assert whole.nbytes - less.nbytes == sum(file.tensors[name].nbytes for name in names)


# -- what experts get ------------------------------------------------------------------------------

MIXTURE = sizes.Sizes(
    nbytes=18 * GB, table=GB, layers=dict.fromkeys(range(10), 10 * MB), count=160, used=8,
    context=4096, keeps=[],
)  # fmt: skip
DENSE = sizes.Sizes(nbytes=4 * GB, table=0, layers={}, count=0, used=0, context=4096, keeps=[])


@pytest.mark.parametrize(
    ("free", "options", "wanted"),
    [
        (21 * GB, {}, 0),
        (21 * GB, {"reserve": GB}, int(2 / 3 * 21 * GB)),
        (12 * GB, {}, 8 * GB),
        (12 * GB, {"bypasses_cache": False}, 4 * GB),
        (3 * GB, {}, 3 * GB - GB - BESIDE),
        (3 * GB, {"reserve": GB // 2}, 3 * GB - GB - BESIDE - GB // 2),
        (100 * GB, {"reserve": 80 * GB}, 16 * GB),
    ],
)
def test_plans(free: int, options: dict[str, Any], wanted: int) -> None:
    found = plan(MIXTURE, free, **options)
    assert abs(found.nbytes - wanted) <= 1 and not found.is_short
    assert ("is mapped" in found.reason) == (not wanted)
    assert "\n" not in found.reason


def test_memory_that_is_short() -> None:
    a_token = 8 * 10 * 10 * MB
    few = plan(MIXTURE, GB + BESIDE + a_token, reserve=GB)
    assert (few.nbytes, few.is_short) == (a_token, True)
    none = plan(MIXTURE, GB + BESIDE + a_token - 1)
    assert (none.nbytes, none.is_short) == (0, True)
    assert "only 2.1 GB are free, expected 2.1 GB" in none.reason
    dense = plan(DENSE, 4 * GB)
    needs = "it needs 4.3 GB with 0 B for keys and values, only 4.0 GB are free"
    assert dense == budget.Plan(0, f"the model is mapped: {needs}")
    assert "only" not in plan(DENSE, int((4 * GB + BESIDE) / MAPPED) + 1).reason


# -- what load and the commands make of it ---------------------------------------------------------


@pytest.fixture
def tiny() -> sizes.Sizes:
    found = sizes.of_file(gguf.read(catalog.resolve("tiny-moe")))
    assert found is not None
    return found


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch, tiny: sizes.Sizes) -> Iterator[int]:
    """So much memory is free that three experts a layer fit, beside the keys and values of the whole context."""
    nbytes = tiny.dense + tiny.pool(min(tiny.context, 8192)) + BESIDE + 3 * tiny.one_each
    monkeypatch.setattr(memory, "available", lambda: nbytes)
    yield nbytes
    logging.getLogger("mlx_ferrum.told").setLevel(logging.NOTSET)


def slots(model: Any) -> set[int]:
    return {layer.first.slots for layer in model.streams.layers} if model.streams else set()


@pytest.mark.parametrize(("asked", "wanted"), [(None, {3}), ("auto", {3}), (0, set())])
def test_load_chooses(cpu: Backend, room: int, caplog: Any, asked: Any, wanted: set[int]) -> None:
    model, _ = mlx_ferrum.load("tiny-moe", expert_memory=asked)
    assert slots(model) == wanted
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(wanted)
    assert all("of experts are kept in memory" in line for line in said)


def test_load_leaves_room_for_the_keys_and_values(
    cpu: Backend, room: int, tiny: sizes.Sizes
) -> None:
    pool = tiny.pool(min(tiny.context, 8192))
    model, _ = mlx_ferrum.load("tiny-moe", reserve=pool + tiny.one_each)
    assert slots(model) == {2}
    wrongs: list[Any] = ["most", 2e6, float("nan"), True, -1]
    for wrong in wrongs:
        expected = f"expert_memory is {wrong!r}, expected bytes, 'auto' or None"
        with pytest.raises(ValueError, match=re.escape(expected)):
            mlx_ferrum.load("tiny-moe", expert_memory=wrong)


def test_load_maps_what_fits_and_says_so_if_asked(cpu: Backend, caplog: Any) -> None:
    assert mlx_ferrum.load("tiny-moe")[0].streams is None
    assert not caplog.records
    assert mlx_ferrum.load("tiny-moe", expert_memory="auto")[0].streams is None
    assert mlx_ferrum.load("tiny-hybrid", expert_memory="auto")[0].streams is None
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all(line.startswith("the model is mapped: it needs") for line in said)


def test_other_backends_and_encoders_are_mapped(room: int, tmp_path: Path, caplog: Any) -> None:
    hf_bert.write(tmp_path / "bert")
    path = hf_bert.converted(tmp_path / "bert")
    caplog.clear()
    with REFERENCE.in_use():
        assert mlx_ferrum.load("tiny-moe", expert_memory="auto")[0].streams is None
    with CPU.in_use():
        assert mlx_ferrum.load(path, expert_memory="auto")[0].streams is None
    said = [record.getMessage() for record in caplog.records]
    where = ("on the reference backend", "an encoder")
    assert said == [f"the model is mapped, as always {each}" for each in where]


def test_a_system_that_does_not_say_what_is_free(
    cpu: Backend, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(memory, "available", lambda: None)
    assert mlx_ferrum.load("tiny-moe")[0].streams is None
    assert not caplog.records
    assert mlx_ferrum.load("tiny-moe", expert_memory="auto")[0].streams is None
    assert "does not say how much memory is free" in caplog.records[0].getMessage()


def test_generate_chooses(cpu: Backend, room: int, capsys: Any, caplog: Any) -> None:
    options = ["--model", "tiny-moe", "--max-tokens", "4", "--backend", "cpu"]
    texts, told = [], []
    for more in ([], ["--expert-memory", "auto"], ["--expert-memory", "none"], ["--quiet"]):
        caplog.clear()
        assert command.main([*options, *more]) == 0
        out, err = capsys.readouterr()
        texts.append(out)
        told.append((len(caplog.records), "found in memory" in err))
    assert len(set(texts)) == 1
    assert told == [(1, True), (1, True), (0, False), (0, False)]


@pytest.mark.parametrize("text", ["1x", "-1", "automatic"])
def test_wrong_sizes_are_refused(text: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        command.main(["--prompt", "x", f"--expert-memory={text}"])
    assert "expected a size such as 500M" in capsys.readouterr().err


def test_the_server_chooses(cpu: Backend, room: int, tiny: sizes.Sizes) -> None:
    """Its pool is larger or smaller than what `load` leaves room for."""
    tokens = min(tiny.context, 8192)
    each = tiny.pool(1)
    for more in (1, -1):
        pool = tokens - more * (tiny.one_each // each + 1)
        args = arguments(["--model", "tiny-moe", "--backend", "cpu", "--pool", str(pool)])
        assert max(slots(Loader(args).load_for_texts("tiny-moe").model)) == 3 + more
    args = arguments(["--model", "tiny-moe", "--backend", "cpu", "--expert-memory", "none"])
    assert slots(Loader(args).load_for_texts("tiny-moe").model) == set()


def test_a_size_is_for_one_model(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        arguments(["--models", ".", "--expert-memory", "1GB"])
    assert "expected auto or none with --models" in capsys.readouterr().err
    assert arguments(["--models", ".", "--expert-memory", "auto"]).expert_memory == "auto"


def test_the_choice_changes_no_bits(cpu: Backend, room: int) -> None:
    ids = mx.array(np.random.default_rng(3).integers(0, 200, (1, 40)))
    chosen, mapped = (mlx_ferrum.load("tiny-moe", expert_memory=each)[0] for each in (None, 0))
    np.testing.assert_array_equal(np.array(chosen(ids)), np.array(mapped(ids)))
