"""Packed files: what `convert pack` writes, as other readers see it; the models that are loaded; damaged files."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf as gguf_py
import mlx.core as mx
import numpy as np
import pytest
import random_models
from backends import CPU, CPU_PORTABLE, REFERENCE, Backend
from streamed_models import read_some, reading

import mlx_ferrum
from mlx_ferrum import convert, gguf
from mlx_ferrum.convert import output, packing, parts, source
from mlx_ferrum.convert.command import main
from mlx_ferrum.convert.output import Planned

PAGE = 16384
EXPERT = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down)\.(\d+)\.weight")
RANDOM = ("qwen3moe-60-dense", "mixtral", "qwen2moe", "qwen35moe-predictor")


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-moe."""
    path = tmp_path_factory.mktemp("packed") / "moe.gguf"
    run("pack", "tiny-moe", path)
    return path


def stacks(name: str | Path) -> dict[str, np.ndarray]:
    """The bytes of every tensor, those of experts by the names of single ones."""
    file, found = source.read(name), dict[str, np.ndarray]()
    for key, info in file.tensors.items():
        if "_exps." not in key:
            found[key] = file.data(key)
            continue
        for i, matrix in enumerate(file.data(key).reshape(info.shape[0], -1)):
            found[key.replace("_exps.", f".{i}.")] = matrix
    return found


def logits(model: Any, seed: int) -> np.ndarray:
    """Of a prompt, and of tokens after it."""
    ids = np.random.default_rng(seed).integers(0, model.args.vocab_size, (1, 30))
    cache = model.make_cache()
    found = [np.array(model(mx.array(part), cache)[0]) for part in np.split(ids, [22, 23, 26], 1)]
    return np.concatenate(found)


# -- the file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny-moe", "mixtral", "qwen35moe-predictor"])
def test_gguf_py_reads_the_same_tensors_on_pages(name: str, tmp_path: Path) -> None:
    given: str | Path = name
    if name in random_models.CASES:
        given = random_models.write_case(tmp_path / "m.gguf", name, seed=3)
    run("pack", given, tmp_path / "packed.gguf")
    reader, wanted = gguf_py.GGUFReader(tmp_path / "packed.gguf"), stacks(given)
    assert reader.alignment == PAGE
    assert {tensor.name for tensor in reader.tensors} == wanted.keys()
    end = reader.data_offset
    for tensor in reader.tensors:  # ggml's own rule
        assert tensor.data_offset == end and end % PAGE == 0
        end += -(-int(tensor.n_bytes) // PAGE) * PAGE
        np.testing.assert_array_equal(
            np.ascontiguousarray(tensor.data).view(np.uint8).reshape(-1), wanted[tensor.name]
        )
    assert (tmp_path / "packed.gguf").stat().st_size == end
    names = [tensor.name for tensor in reader.tensors]
    experts = [m.groups() for n in names if (m := EXPERT.fullmatch(n))]
    assert names[-len(experts) :] == [n for n in names if EXPERT.fullmatch(n)]
    parts = ("gate", "up", "down")
    keys = [(int(layer), int(expert), parts.index(part)) for layer, part, expert in experts]
    assert keys == sorted(keys)


def test_metadata_stays(packed: Path) -> None:
    before, after = source.read("tiny-moe"), gguf.read(packed)
    raw = {key: after.raw(key) for key in after.metadata if key != "general.alignment"}
    assert raw == {key: before.raw(key) for key in before.metadata}


def test_the_parts_of_a_split_model(tmp_path: Path, packed: Path) -> None:
    run("split", "tiny-moe", tmp_path / "part", "--max-tensors", 7)
    first = next(iter(sorted(tmp_path.glob("part-*"))))
    run("pack", first, tmp_path / "packed.gguf")
    assert (tmp_path / "packed.gguf").read_bytes() == packed.read_bytes()


def test_a_larger_alignment_stays(tmp_path: Path) -> None:
    model = random_models.write_case(tmp_path / "m.gguf", "mixtral", seed=1)
    run("edit", model, tmp_path / "wide.gguf", "--set", "general.alignment:u32=65536", "--force")
    run("pack", tmp_path / "wide.gguf", tmp_path / "packed.gguf")
    assert gguf.read(tmp_path / "packed.gguf").alignment == 65536


# -- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [CPU, CPU_PORTABLE, REFERENCE], ids=str)
def test_logits_are_those_of_the_original(backend: Backend, packed: Path) -> None:
    with backend.in_use():
        model, original = (mlx_ferrum.load(name)[0] for name in (packed, "tiny-moe"))
        assert model.body.layers[1].mlp.up.is_spaced
        np.testing.assert_array_equal(logits(model, 1), logits(original, 1))
    assert (model.nbytes, model.parameter_count) == (original.nbytes, original.parameter_count)
    assert model.types == original.types


@pytest.mark.parametrize("name", RANDOM)
def test_logits_of_random_models(name: str, tmp_path: Path) -> None:
    given = random_models.write_case(tmp_path / "m.gguf", name, seed=4)
    run("pack", given, tmp_path / "packed.gguf")
    for backend in (CPU, REFERENCE):
        with backend.in_use():
            model, original = (mlx_ferrum.load(p)[0] for p in (tmp_path / "packed.gguf", given))
            np.testing.assert_array_equal(logits(model, 2), logits(original, 2))


def test_experts_with_tensors_of_their_own_need_no_pages(tmp_path: Path) -> None:
    """As in files from before stacks: part by part, with another alignment."""
    given = random_models.write_case(tmp_path / "m.gguf", "mixtral", seed=5)
    file = packing.plan(gguf.read(given), tmp_path / "old.gguf")
    tensors = sorted(file.tensors, key=lambda t: t.name.split(".")[:3])
    metadata = {k: v for k, v in file.metadata.items() if k != output.ALIGNMENT}
    output.write(file.path, metadata, tensors)
    with CPU.in_use():
        model, original = (mlx_ferrum.load(path)[0] for path in (file.path, given))
        np.testing.assert_array_equal(logits(model, 3), logits(original, 3))


@pytest.mark.parametrize("each", [1, 1.6, 3, 7.5, 100])
def test_experts_from_disk(packed: Path, each: float) -> None:
    """With room for so many of the 8 experts of each layer."""
    file = gguf.read(packed)
    experts = [info for name, info in file.tensors.items() if EXPERT.fullmatch(name)]
    one_each = sum(info.nbytes for info in experts) // 8
    with CPU.in_use():
        model = mlx_ferrum.load(packed, expert_memory=int(each * one_each))[0]
        reads: list[tuple[int, int]] = []

        def noted(file: int, to: int, size: int, at: int) -> int:
            reads.append((at, size))
            return read_some(file, to, size, at)

        with reading(noted):
            found = logits(model, 5)
        np.testing.assert_array_equal(found, logits(mlx_ferrum.load("tiny-moe")[0], 5))
    counts = [counts for layer in model.streams.layers for counts in layer.counts()]
    assert len(reads) == sum(count.read for count in counts)  # gate and up in one
    starts = {info.offset for info in experts}
    assert {at for at, _ in reads} <= starts and all(at % PAGE == 0 for at, _ in reads)
    # gate, the space after it, and up; down of Q4_K, or of Q6_K, whose last sector is read whole if reads are direct
    assert {size for _, size in reads} <= {49152 + 36864, 36864, 53760, 57344}


def test_large_experts_are_read_in_pieces(tmp_path: Path) -> None:
    sizes = random_models.Sizes(layers=2, hidden=512, experts=4, used=2, expert_ffn=840)
    given = random_models.write(tmp_path / "m.gguf", "qwen3moe", 6, sizes=sizes, types=("F32",))
    run("pack", given, tmp_path / "packed.gguf")
    pieces: list[int] = []

    def noted(file: int, to: int, size: int, at: int) -> int:
        pieces.append(size)
        return read_some(file, to, size, at)

    with CPU.in_use():
        wanted = logits(mlx_ferrum.load(given)[0], 6)
        # a matrix has 1.64 MiB, gate and up together 3.28, and a read at most 1.5
        for path, expected in ((given, 4), (tmp_path / "packed.gguf", 3)):
            model = mlx_ferrum.load(path, expert_memory=40_000_000)[0]
            pieces.clear()
            with reading(noted):
                np.testing.assert_array_equal(logits(model, 6), wanted)
            assert max(pieces) <= (3 << 19) + 4096
            reads = [[count.read for count in layer.counts()] for layer in model.streams.layers]
            assert len(pieces) == sum(expected * first + 2 * second for first, second in reads)


# -- damaged files -------------------------------------------------------------------------------

NAME = "blk.1.ffn_up.3.weight"
Change = Callable[[list[Planned]], list[Planned]]


def without(*names: str) -> Change:
    return lambda tensors: [t for t in tensors if t.name not in names]


def changed(**fields: Any) -> Change:
    """The tensor NAME in another way, with the bytes that this takes."""

    def change(t: Planned) -> Planned:
        new = replace(t, **fields)
        return replace(new, data=lambda: np.zeros(new.nbytes, np.uint8))

    return lambda tensors: [change(t) if t.name == NAME else t for t in tensors]


def moved(tensors: list[Planned]) -> list[Planned]:
    """The tensor NAME at the end, and those after it one place to the front."""
    return sorted(tensors, key=lambda t: t.name == NAME)


def swapped(tensors: list[Planned]) -> list[Planned]:
    """The experts of each layer in the order of 7 to 0."""
    return sorted(tensors, key=lambda t: -int(m[3]) if (m := EXPERT.fullmatch(t.name)) else -9)


def renamed(name: str, new: str) -> Change:
    return lambda tensors: [replace(t, name=new) if t.name == name else t for t in tensors]


def added(name: str, shape: tuple[int, ...]) -> Change:
    def add(tensors: list[Planned]) -> list[Planned]:
        model = next(t for t in tensors if t.name == NAME)
        new = replace(model, name=name, shape=shape)
        return [*tensors, replace(new, data=lambda: np.zeros(new.nbytes, np.uint8))]

    return add


LAST = [f"blk.1.ffn_{part}.7.weight" for part in packing.PARTS]
DAMAGED: dict[str, tuple[Change, str]] = {
    "one missing": (without(NAME), f"tensor '{NAME}': found none, expected experts 0 to 7"),
    "the last missing": (without(*LAST), "tensor 'blk.1.ffn_gate.7.weight': found none, expected"),
    "a part missing": (
        without(*(f"blk.1.ffn_down.{i}.weight" for i in range(8))),
        r"tensor 'blk.1.ffn_down.0.weight': found none, expected experts 0 to 7",
    ),
    "one more": (
        added("blk.1.ffn_up.8.weight", (256, 256)),
        r"tensor 'blk.1.ffn_up.8.weight': found one more, expected experts 0 to 7",
    ),
    "a stack, too": (
        added("blk.1.ffn_up_exps.weight", (8, 256, 256)),
        r"tensor 'blk.1.ffn_up_exps.weight': found a stack, expected none beside single experts",
    ),
    "another type": (
        changed(block=mlx_ferrum.blocks.Q8_0),
        f"tensor '{NAME}': type: found Q8_0, expected Q4_K, as 'blk.1.ffn_up.0.weight' is",
    ),
    "another shape": (
        changed(shape=(255, 256)),
        rf"tensor '{NAME}': shape: found \(255, 256\), expected \(256, 256\), as 'blk.1.ffn_up.0",
    ),
    "elsewhere": (
        moved,
        r"tensor 'blk.1.ffn_gate.4.weight': data: found byte \d+, expected \d+: experts are the",
    ),
    "backwards": (swapped, r"tensor 'blk.0.ffn_gate.1.weight': data: found byte \d+, expected"),
    "another name": (
        renamed(NAME, "blk.1.ffn_up.03.weight"),
        f"tensor '{NAME}': found none, expected experts 0 to 7",
    ),
    "of a layer that is not there": (
        added("blk.4.ffn_up.0.weight", (256, 256)),
        r"tensor 'blk.4.ffn_gate.0.weight': found none, expected experts 0 to 7",
    ),
    "all of another shape": (
        lambda tensors: [
            replace(t, shape=(128, 512)) if re.match(r"blk.1.ffn_up\.\d", t.name) else t
            for t in tensors
        ],
        r"tensor 'blk.1.ffn_up_exps.weight': expected shape \(8, 256, 256\), found \(8, 128, 512\)",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused_by_name(case: str, tmp_path: Path) -> None:
    change, message = DAMAGED[case]
    file = packing.plan(source.read("tiny-moe"), tmp_path / "m.gguf")
    output.write(file.path, file.metadata, change(list(file.tensors)))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file.path))}: {message}"):
        mlx_ferrum.load(file.path)


def test_an_expert_twice(packed: Path, tmp_path: Path) -> None:
    raw = packed.read_bytes()
    again = raw.replace(b"blk.1.ffn_up.3.weight", b"blk.1.ffn_up.2.weight", 1)
    (tmp_path / "m.gguf").write_bytes(again)
    with pytest.raises(ValueError, match=r"tensor 'blk.1.ffn_up.2.weight': found it twice"):
        mlx_ferrum.load(tmp_path / "m.gguf")


def test_experts_in_two_files(tmp_path: Path) -> None:
    model = packing.plan(source.read("tiny-moe"), tmp_path / "m.gguf")
    half = len(model.tensors) - 40  # within a layer
    groups = [model.tensors[:half], model.tensors[half:]]
    files = parts.files(tmp_path / "m", model.metadata, groups)
    output.write_files(files)
    message = r"tensor 'blk.2.ffn_(gate|up|down).\d.weight': file: found 2, expected 1, as 'blk.2"
    with pytest.raises(ValueError, match=message):
        mlx_ferrum.load(files[0].path)


# -- commands ------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The line that a command says."""
    assert main([str(argument) for argument in arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_cannot_be_packed(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.gguf"
    assert "has no experts, expected a mixture" in refused(capsys, "pack", "tiny-hybrid", out)
    assert "is packed already" in refused(capsys, "pack", packed, out)
    m, model = source.read("tiny-moe"), tmp_path / "m.gguf"
    tensors = [source.copied(m, info) for info in m.tensors.values()]
    for name, new, message in (
        ("blk.2.ffn_up_exps.weight", "blk.2.ffn_raise.weight", "'blk.2.ffn_up_exps.weight' is missing"),
        ("blk.2.ffn_gate_exps.weight", "blk.2.ffn_gate_up_exps.weight", "'blk.2.ffn_up_exps.weight': found beside"),
    ):  # fmt: skip
        output.write(model, source.metadata(m), renamed(name, new)(tensors))
        assert message in refused(capsys, "pack", model, out)
    both = "blk.2.ffn_gate_up_exps.weight"
    odd = [t for t in tensors if "blk.2.ffn_up_exps" not in t.name]
    odd = renamed("blk.2.ffn_gate_exps.weight", both)(odd)
    odd = [replace(t, shape=(8, 1, 65536)) if t.name == both else t for t in odd]
    output.write(model, source.metadata(m), odd)
    assert "expected gate and up of as many rows" in refused(capsys, "pack", model, out)
    fewer = [replace(t, shape=(4, 512, 256)) if "2.ffn_up_exps" in t.name else t for t in tensors]
    output.write(model, source.metadata(m), fewer)
    assert "expected a stack of 8 matrices, found (4, 512, 256)" in refused(
        capsys, "pack", model, out
    )
    assert not out.exists()


def test_commands_that_need_stacks_refuse(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, out, *options in (
        ("quantize", "out.gguf", "--type", "q2_k"),
        ("split", "out", "--max-size", "1M"),
        ("mlx", "out"),
    ):
        line = refused(capsys, command, packed, tmp_path / out, *options)
        assert line == f"error: {packed}: is a packed file, expected the one that it was made of"
    with pytest.raises(NotImplementedError, match="is a packed file"):
        convert.quantize(packed, tmp_path / "out.gguf", "q2_k")
    assert not list(tmp_path.iterdir())


def test_commands_that_take_packed_files(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("compare", "tiny-moe", packed)
    said = capsys.readouterr().out
    assert f"{len(source.read('tiny-moe').tensors)} tensors" in said and "all are equal" in said
    run("edit", packed, tmp_path / "edited.gguf", "--set", "general.name=another name")
    np.testing.assert_array_equal(
        logits(mlx_ferrum.load(tmp_path / "edited.gguf")[0], 4),
        logits(mlx_ferrum.load(packed)[0], 4),
    )
    text = tmp_path / "text"
    text.write_text("The boat lay on the sand near the sea. " * 60)
    for model, out in (("tiny-moe", "a"), (packed, "b")):
        run("imatrix", model, text, tmp_path / f"{out}.gguf", "--chunks", 1, "--chunk-size", 64)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    capsys.readouterr()
    run("show", packed)
    short = capsys.readouterr().out.split("\n  ")
    assert "blk.3.ffn_gate.*.weight    Q4_K  8 x 256 x 256  294,912" in short
    assert not [line for line in short if re.match(EXPERT, line)]
    run("show", packed, "--full")
    full = capsys.readouterr().out.split("\n  ")
    assert len([line for line in full if re.match(EXPERT, line)]) == 4 * 3 * 8
