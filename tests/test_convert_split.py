"""split, merge and edit: tensors bit for bit, metadata with its types, files whole or none."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from gguf_bytes import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    STRING,
    U8,
    U16,
    U32,
    U64,
    Draft,
    Tensor,
)

from mlx_ferrum import gguf
from mlx_ferrum.convert.command import main

VALUES = [
    ("general.architecture", STRING, "llama"),
    ("u8", U8, 255),
    ("i8", I8, -1),
    ("u16", U16, 65535),
    ("i16", I16, -2),
    ("u32", U32, 4_000_000_000),
    ("i32", I32, -3),
    ("u64", U64, 1 << 63),
    ("i64", I64, -(1 << 62)),
    ("f32", F32, 0.1),
    ("f64", F64, 0.1),
    ("bool", BOOL, 1),
    ("empty", STRING, ""),
    ("bytes", STRING, b"\xff\xfe not UTF-8"),
    ("strings", ARRAY, (STRING, ["a", "", "ä"])),
    ("none", ARRAY, (F32, [])),
    ("no strings", ARRAY, (STRING, [])),
    ("bools", ARRAY, (BOOL, [1, 0])),
    ("nested", ARRAY, (ARRAY, [(U8, [1]), (I16, [-1, 2]), (STRING, ["x"])])),
]
# I32 and IQ2_XXS, which cannot be decoded, are copied all the same
TENSORS = [
    Tensor("a.weight", (32, 3), 0, bytes(range(128)) * 3),
    Tensor("b.bias", (5,), 0, bytes(range(20))),
    Tensor("c.weight", (256, 1, 2), 16, bytes(range(132))),
    Tensor("d", (3,), 26, bytes(range(12))),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file with values of all types and tensors of four."""
    path = tmp_path / "model.gguf"
    path.write_bytes(Draft(VALUES, TENSORS).raw)
    return path


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def assert_same(found: Path, expected: Path) -> None:
    """The same tensors, and the same values byte by byte."""
    a, b = gguf.read(found), gguf.read(expected)
    assert list(a.tensors) == list(b.tensors)
    for name, info in b.tensors.items():
        assert (a.tensors[name].type, a.tensors[name].shape) == (info.type, info.shape)
        np.testing.assert_array_equal(a.data(name), b.data(name))
    assert {key: a.raw(key) for key in a.metadata} == {key: b.raw(key) for key in b.metadata}


@pytest.mark.parametrize(
    "options", [["--max-tensors", 1], ["--max-tensors", 3], ["--max-size", "384"]]
)
def test_split_and_merged_is_the_same(model: Path, tmp_path: Path, options: list[object]) -> None:
    run("split", model, tmp_path / "part", *options)
    parts = sorted(tmp_path.glob("part-*.gguf"))
    assert_same_tensors_and_totals(parts, model)
    run("merge", parts[-1], tmp_path / "merged.gguf")
    assert_same(tmp_path / "merged.gguf", model)
    assert not list(tmp_path.glob(".*"))


def assert_same_tensors_and_totals(parts: list[Path], model: Path) -> None:
    whole = gguf.read(parts[0])
    assert list(whole.tensors) == list(gguf.read(model).tensors)
    assert parts[0].name == f"part-00001-of-{len(parts):05}.gguf"
    count, total = whole.raw("split.count"), whole.raw("split.tensors.count")
    assert count[:4] == U16.to_bytes(4, "little") and count[4:] == len(parts).to_bytes(2, "little")
    assert total[:4] == I32.to_bytes(4, "little") and total[4:] == (4).to_bytes(4, "little")


def test_max_size_counts_tensors_with_their_padding(model: Path, tmp_path: Path) -> None:
    run("split", model, tmp_path / "part", "--max-size", 384 + 32)
    held = [gguf.read(model).tensors[n].nbytes for n in ("a.weight", "b.bias")]
    assert held == [384, 20]
    parts = gguf.read(tmp_path / "part-00001-of-00002.gguf").tensors.values()
    assert [info.part for info in parts] == [0, 0, 1, 1]


def test_alignment_is_kept_in_all_parts(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    values = [VALUES[0], ("general.alignment", U32, 256)]
    path.write_bytes(Draft(values, TENSORS, alignment=256).raw)
    run("split", path, tmp_path / "part", "--max-tensors", 2)
    offsets = [
        info.offset for info in gguf.read(tmp_path / "part-00002-of-00002.gguf").tensors.values()
    ]
    assert all(offset % 256 == 0 for offset in offsets)
    run("merge", tmp_path / "part-00001-of-00002.gguf", tmp_path / "merged.gguf")
    assert_same(tmp_path / "merged.gguf", path)


def test_an_edit_of_nothing_else(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    run("edit", model, out, "--set", "i32=7", "--delete", "none", "--rename", "f64=double")
    before, after = gguf.read(model), gguf.read(out)
    assert after.metadata["i32"] == 7 and after.raw("i32")[:4] == before.raw("i32")[:4]
    assert "none" not in after.metadata and "f64" not in after.metadata
    assert after.raw("double") == before.raw("f64")
    for key in set(before.metadata) - {"i32", "none", "f64"}:
        assert after.raw(key) == before.raw(key)
    for name in before.tensors:
        np.testing.assert_array_equal(after.data(name), before.data(name))


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("k:u8=7", U8, b"\x07"),
        ("k:uint16=0x102", U16, b"\x02\x01"),
        ("k:bool=true", BOOL, b"\x01"),
        ("k:f32=0.5", F32, b"\0\0\0\x3f"),
        ("k:str=a=b", STRING, b"\x03\0\0\0\0\0\0\0a=b"),
        ("k:i16[]=[-1, 2]", ARRAY, b"\x03\0\0\0\x02\0\0\0\0\0\0\0\xff\xff\x02\0"),
        ("k:string[]=[]", ARRAY, b"\x08\0\0\0" + bytes(8)),
        ("a:b:i8=-1", I8, b"\xff"),
    ],
)
def test_a_new_value_has_its_type(
    model: Path, tmp_path: Path, text: str, kind: int, value: bytes
) -> None:
    run("edit", model, tmp_path / "out.gguf", "--set", text)
    key = text.partition("=")[0].rpartition(":")[0]
    assert gguf.read(tmp_path / "out.gguf").raw(key) == kind.to_bytes(4, "little") + value


def test_a_template_from_a_file_in_place(model: Path, tmp_path: Path) -> None:
    template, link = tmp_path / "t.jinja", tmp_path / "link.gguf"
    template.write_text("{{ 'ä' }}\n", encoding="utf-8")
    link.symlink_to(model)
    model.chmod(0o640)
    run("edit", link, "--in-place", "--chat-template", template)
    assert link.is_symlink() and not model.is_symlink()
    assert gguf.read(model).metadata["tokenizer.chat_template"] == "{{ 'ä' }}\n"
    assert model.stat().st_mode & 0o777 == 0o640


def test_a_dry_run_writes_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = model.read_bytes()
    run("edit", model, "--in-place", "--set", "i32=7", "--delete", "u8", "--dry-run")
    assert "i32 = int32 -3 -> int32 7" in capsys.readouterr().out
    run("split", model, tmp_path / "part", "--max-tensors", 2, "--dry-run")
    shown = capsys.readouterr().out
    assert "part-00002-of-00002.gguf" in shown and "IQ2_XXS" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert model.read_bytes() == before


def test_force_changes_what_a_file_needs(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    run("edit", model, out, "--set", "general.alignment:u32=128", "--force")
    assert gguf.read(out).alignment == 128
    run("edit", model, out, "--set", "general.architecture=qwen2", "--force")
    assert gguf.read(out).metadata["general.architecture"] == "qwen2"


BROKEN = [
    (["edit", "MODEL", "MODEL", "--delete", "u8"], "is the file that is read"),
    (["edit", "MODEL", "LINK", "--delete", "u8"], "is the file that is read"),
    (["edit", "MODEL", "THERE", "--delete", "u8"], "is there already; --force replaces it"),
    (["edit", "MODEL", "no/folder.gguf", "--delete", "u8"], "there is no folder"),
    (["edit", "MODEL", ".", "--delete", "u8"], "is a folder"),
    (
        ["edit", "MODEL", "OUT", "--delete", "stringz"],
        "stringz: no such metadata key; did you mean strings?",
    ),
    (["edit", "MODEL", "OUT", "--rename", "u8=i8"], "i8: is there already"),
    (["edit", "MODEL", "OUT", "--set", "new=1"], "new: a new key needs a type"),
    (["edit", "MODEL", "OUT", "--set", "u8=256"], "u8: 256 is not a value of type uint8"),
    (["edit", "MODEL", "OUT", "--set", "bool=1"], "bool: expected true or false, found '1'"),
    (["edit", "MODEL", "OUT", "--set", "f32=x"], "expected a number of type float32, found 'x'"),
    (["edit", "MODEL", "OUT", "--set", "bools=[1]"], "elements of type bool, found 1"),
    (["edit", "MODEL", "OUT", "--set", "nested=[[1]]"], "expected a JSON array"),
    (["edit", "MODEL", "OUT", "--set", "k:f32[]={}"], "expected a JSON array"),
    (["edit", "MODEL", "OUT", "--set", "k:i8[]=[300]"], "an array that is not of type int8"),
    (["edit", "MODEL", "OUT", "--delete", "general.architecture"], "--force does it"),
    (["edit", "MODEL", "OUT", "--set", "split.count:u16=2"], "--force does it"),
    (["edit", "MODEL", "OUT", "--set", "general.alignment:u32=3", "--force"], "a power of two"),
    (["edit", "MODEL", "OUT", "--chat-template", "none.jinja"], "none.jinja"),
    (["edit", "MODEL", "OUT", "--chat-template", "MODEL"], "not UTF-8"),
    (["edit", "tiny-moe", "--in-place", "--delete", "u8"], "--in-place takes a file of your own"),
    (["edit", "TEXT", "OUT", "--delete", "u8"], "expected b'GGUF'"),
    (["edit", "SHORT", "OUT", "--delete", "u8"], "truncated"),
    (["split", "MODEL", "OUT", "--max-size", "100"], "'a.weight': 384 bytes, expected at most 100"),
    (["split", "EMPTY", "OUT", "--max-tensors", "3"], "0 parts: expected 1 to 65535"),
    (["merge", "MODEL", "OUT"], "is one file, expected a part of a split model"),
    (["merge", "none-00001-of-00002.gguf", "OUT"], "no such file"),
]


@pytest.mark.parametrize(("arguments", "message"), BROKEN)
def test_a_bad_input_is_one_line(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("THERE").write_text("there")
    Path("TEXT").write_text("text, not a model")
    Path("SHORT").write_bytes(model.read_bytes()[:-8])
    Path("EMPTY").write_bytes(Draft(VALUES[:1]).raw)
    os.link(model, "LINK")
    model.rename("MODEL")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(arguments) == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith("error: ") and message in told[0], told
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["edit", "m", "o"], "nothing to do"),
        (["edit", "m", "o", "--in-place", "--delete", "a"], "either OUT.gguf or --in-place"),
        (["edit", "m", "--delete", "a"], "either OUT.gguf or --in-place"),
        (["edit", "m", "o", "--set", "a"], "expected KEY=VALUE"),
        (["edit", "m", "o", "--set", "a:u7=1"], "expected a type"),
        (["edit", "m", "o", "--rename", "a"], "expected OLD=NEW"),
        (["split", "m", "o"], "--max-size --max-tensors"),
        (["split", "m", "o", "--max-size", "2X"], "expected a size such as 500M"),
        (["split", "m", "o", "--max-tensors", "0"], "0 is not 1 or more"),
    ],
)
def test_a_bad_command_line_is_explained(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_a_missing_part_is_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("split", model, tmp_path / "part", "--max-tensors", 2)
    (tmp_path / "part-00001-of-00002.gguf").unlink()
    capsys.readouterr()
    assert main(["merge", str(tmp_path / "part-00002-of-00002.gguf"), str(tmp_path / "o")]) == 1
    assert "part 1 of 2 missing" in capsys.readouterr().err
