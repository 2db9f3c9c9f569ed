"""GGUF files as gguf-py and by hand write them come back whole, also in parts."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf as gguf_py
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType
from gguf_bytes import ARRAY, F32, STRING, U8, U16, U32, Draft, Tensor

from mlx_ferrum import gguf

DTYPES = {
    GGUFValueType.UINT8: np.uint8,
    GGUFValueType.INT8: np.int8,
    GGUFValueType.UINT16: np.uint16,
    GGUFValueType.INT16: np.int16,
    GGUFValueType.UINT32: np.uint32,
    GGUFValueType.INT32: np.int32,
    GGUFValueType.FLOAT32: np.float32,
    GGUFValueType.BOOL: np.bool_,
    GGUFValueType.UINT64: np.uint64,
    GGUFValueType.INT64: np.int64,
    GGUFValueType.FLOAT64: np.float64,
}
STRINGS = ["", "a", "▁naïve", "👩\u200d💻", "\0", "x" * 70_000, "e\u0301", "\0" * 8, "日本語"]


def bits(dtype: type[np.generic], n: int, seed: int) -> np.ndarray:
    """(n,) of `dtype`: random bits, without NaN so that values compare; booleans are 0 or 1."""
    raw = np.random.default_rng(seed).bytes(n * np.dtype(dtype).itemsize)
    if dtype is np.bool_:
        return (np.frombuffer(raw, np.uint8) & 1).view(np.bool_)
    values = np.frombuffer(raw, dtype)
    return np.nan_to_num(values) if np.issubdtype(dtype, np.floating) else values


def written(path: Path, draft: Draft) -> Path:
    path.write_bytes(draft.raw)
    return path


def saved(writer: gguf_py.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", DTYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("shift", range(3))
def test_numbers_and_arrays_of_each_type(tmp_path: Path, kind: GGUFValueType, shift: int) -> None:
    values = bits(DTYPES[kind], 65, seed=10 * kind + shift)
    writer = gguf_py.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_key_value("one" + "." * shift, values[0].item(), kind)  # shifts the alignment
    writer.add_key_value("all", values.tolist(), GGUFValueType.ARRAY, sub_type=kind)
    saved(writer)
    metadata = gguf.read(tmp_path / "a.gguf").metadata
    one, found = metadata["one" + "." * shift], metadata["all"]
    assert one == values[0].item() and type(one) is type(values[0].item())
    assert found.dtype == values.dtype and np.array_equal(found, values)
    assert found.flags.aligned and not found.flags.writeable


def test_strings(tmp_path: Path) -> None:
    writer = gguf_py.GGUFWriter(tmp_path / "a.gguf", "llama")
    for i, text in enumerate(STRINGS):
        writer.add_key_value(f"text.{i}", text, GGUFValueType.STRING)
    writer.add_array("all", STRINGS)
    saved(writer)
    metadata = gguf.read(tmp_path / "a.gguf").metadata
    assert [metadata[f"text.{i}"] for i in range(len(STRINGS))] == STRINGS
    found = metadata["all"]
    assert list(found) == STRINGS and len(found) == len(STRINGS)
    assert [found[i] for i in range(-len(STRINGS), len(STRINGS))] == STRINGS * 2
    assert found[2:5] == STRINGS[2:5] and found[::-3] == STRINGS[::-3] and found[99:] == []
    assert "日本語" in found and found.index("a") == 1
    for outside in (len(STRINGS), -len(STRINGS) - 1):
        with pytest.raises(IndexError, match="of 9"):
            found[outside]


def test_nested_arrays(tmp_path: Path) -> None:
    nested = [[[1, 2], [3]], [[4, 5, 6]]]
    writer = gguf_py.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_key_value("deep", nested, GGUFValueType.ARRAY)
    writer.add_key_value("texts", [["a", "b"], ["", "ü"]], GGUFValueType.ARRAY)
    writer.add_string("after", "still in step")
    saved(writer)
    metadata = gguf.read(tmp_path / "a.gguf").metadata
    assert [[inner.tolist() for inner in outer] for outer in metadata["deep"]] == nested
    assert [list(texts) for texts in metadata["texts"]] == [["a", "b"], ["", "ü"]]
    assert metadata["after"] == "still in step"


@pytest.mark.parametrize("element", range(13))
def test_empty_arrays(tmp_path: Path, element: int) -> None:
    draft = Draft([("none", ARRAY, (element, [])), ("after", U8, 7)])
    metadata = gguf.read(written(tmp_path / "a.gguf", draft)).metadata
    assert len(metadata["none"]) == 0 and list(metadata["none"]) == []
    assert metadata["after"] == 7


@pytest.mark.parametrize("alignment", [1, 32, 4096])
def test_tensors_of_each_type_where_gguf_py_finds_them(tmp_path: Path, alignment: int) -> None:
    rng, path = np.random.default_rng(alignment), tmp_path / "a.gguf"
    writer = gguf_py.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    for kind in GGMLQuantizationType:
        if kind == GGMLQuantizationType.Q8_1:  # 40 bytes in gguf-py 0.19, where ggml has 36
            continue
        weights, size = gguf_py.GGML_QUANT_SIZES[kind]
        shape = (*rng.integers(1, 4, rng.integers(0, 4)), size * rng.integers(1, 4))
        raw = rng.integers(0, 256, shape, dtype=np.uint8)
        writer.add_tensor(f"{kind.name} of {weights}", raw, raw_dtype=kind)
    saved(writer)
    model, oracle = gguf.read(path), gguf_py.GGUFReader(path)
    assert model.alignment == alignment and model.version == 3
    assert list(model.tensors) == [t.name for t in oracle.tensors]
    for wanted in oracle.tensors:
        info, data = model.tensors[wanted.name], model.data(wanted.name)
        assert info.type == wanted.tensor_type.name and info.part == 0
        assert info.shape == tuple(wanted.shape.tolist()[::-1])
        assert (info.offset, info.nbytes) == (wanted.data_offset, wanted.n_bytes)
        assert data.shape == (info.nbytes,) and data.tobytes() == wanted.data.tobytes()


@pytest.mark.parametrize("version", [2, 3])
def test_versions(tmp_path: Path, version: int) -> None:
    tensors = [Tensor("a", (4, 2), data=bytes(range(32))), Tensor("b", (2, 2, 2))]
    draft = Draft([("k", STRING, "v"), ("x", F32, 0.5)], tensors, version=version)
    model = gguf.read(written(tmp_path / "a.gguf", draft))
    assert model.version == version and model.metadata == {"k": "v", "x": 0.5}
    assert model.tensors["a"].shape == (2, 4) and model.tensors["b"].shape == (2, 2, 2)
    assert model.data("a").tobytes() == bytes(range(32))


def test_a_file_of_metadata_alone(tmp_path: Path) -> None:
    draft = Draft([("k", U32, 1)])
    model = gguf.read(written(tmp_path / "a.gguf", draft))
    assert model.metadata == {"k": 1} and model.tensors == {}


def test_arrays_outlive_the_model_and_are_mapped_read_only(tmp_path: Path) -> None:
    content = np.random.default_rng(1).bytes(4096)
    draft = Draft(tensors=[Tensor("a", (1024,), data=content)])
    model = gguf.read(written(tmp_path / "a.gguf", draft))
    data, part = model.data("a"), model.parts[0]
    assert part.ctypes.data % 4096 == 0 and part.nbytes == len(draft.raw)
    assert np.shares_memory(data, part)
    del model, part
    assert data.tobytes() == content
    with pytest.raises(ValueError, match="read-only"):
        data[0] = 1


def test_a_tensor_that_is_not_there(tmp_path: Path) -> None:
    model = gguf.read(written(tmp_path / "a.gguf", Draft(tensors=[Tensor("a")])))
    with pytest.raises(ValueError, match=r"a\.gguf: no tensor 'b' among its 1"):
        model.data("b")


@pytest.fixture
def split(tmp_path: Path) -> list[Path]:
    """A model of five tensors in three parts, by gguf-py."""
    writer = gguf_py.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    writer.add_string("general.name", "in parts")
    for i in range(5):
        writer.add_tensor(f"t{i}", np.full((2, 8), i, np.float32))
    saved(writer)
    return [tmp_path / f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]


@pytest.mark.parametrize("opened", range(3))
def test_any_part_opens_the_whole(split: list[Path], opened: int) -> None:
    model = gguf.read(split[opened])
    assert model.path == split[opened] and len(model.parts) == 3
    assert model.metadata["general.name"] == "in parts"
    assert [(t.name, t.part) for t in model.tensors.values()] == [
        ("t0", 0), ("t1", 0), ("t2", 1), ("t3", 1), ("t4", 2)
    ]  # fmt: skip
    for i in range(5):
        assert model.data(f"t{i}").view(np.float32).tolist() == [i] * 16


@pytest.mark.parametrize("lost", range(3))
def test_a_missing_part_is_named(split: list[Path], lost: int) -> None:
    split[lost].unlink()
    expected = f"{split[lost].name}: part {lost + 1} of 3 missing"
    with pytest.raises(FileNotFoundError, match=expected):
        gguf.read(split[(lost + 1) % 3])


def test_a_part_without_its_name(split: list[Path]) -> None:
    renamed = split[1].rename(split[1].with_name("second.gguf"))
    with pytest.raises(ValueError, match=r"part 2 of 3 .* ends in -00002-of-00003\.gguf"):
        gguf.read(renamed)


def part(number: Any, count: Any = 2, total: Any = 2, name: str = "t") -> Draft:
    values = [("split.no", U16, number), ("split.count", U16, count)]
    return Draft([*values, ("split.tensors.count", U32, total)], [Tensor(name)])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (part(0, name="u"), "'split.no': found part 1 of 2, expected 2 of 2"),
        (part(1, count=3, name="u"), "'split.no': found part 2 of 3, expected 2 of 2"),
        (part(1, total=3, name="u"), "'split.tensors.count': found 3, expected 2"),
        (part(1, name="t"), "tensor 't': found it twice"),
        (part(2, name="u"), "'split.no': found part 2 of 2"),
        (Draft(), "'split.no': found part 1 of 1, expected 2 of 2"),
        (Draft(values=part(1).values[:2], tensors=[Tensor("u")]), "count': found nothing"),
    ],
)
def test_parts_that_do_not_belong_together(tmp_path: Path, second: Draft, message: str) -> None:
    first = written(tmp_path / "m-00001-of-00002.gguf", part(0))
    path = written(tmp_path / "m-00002-of-00002.gguf", second)
    with pytest.raises(ValueError, match=message) as raised:
        gguf.read(first)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("count", [0, 1])
def test_a_split_of_one_is_a_whole_file(tmp_path: Path, count: int) -> None:
    draft = Draft([("split.count", U16, count)], [Tensor("t")])
    assert len(gguf.read(written(tmp_path / "a.gguf", draft)).parts) == 1


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    values = [
        ("general.architecture", STRING, "llama"),
        ("epsilon", F32, 1e-6),
        ("not a number", F32, float("nan")),
        ("unsafe", STRING, "\x1b[31m\n"),
        ("long", STRING, "y" * 500),
        ("tokens", ARRAY, (STRING, [f"<{i}>" for i in range(100)])),
        ("scores", ARRAY, (F32, [0.5] * 100)),
        ("nested", ARRAY, (ARRAY, [(U8, [1, 2])])),
    ]
    tensors = [Tensor("w", (32, 2), 2, bytes(36)), Tensor("\x1b[0m", (8,), 0, bytes(32))]
    return written(tmp_path / "listed.gguf", Draft(values, tensors))


def test_command_prints_a_summary(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gguf.main([str(listed)]) == 0
    out = capsys.readouterr().out
    words = {" ".join(line.split()) for line in out.splitlines()}
    assert {"general.architecture 'llama'", "epsilon 1e-06", r"unsafe '\x1b[31m\n'"} <= words
    assert "tokens str[100] ['<0>', '<1>', '<2>', '<3>', …]" in words
    assert "nested array[1] [uint8[2] [1, 2]]" in words
    assert {"w Q4_0 2 x 32 36", r"'\x1b[0m' F32 8 32", "total 2 72 68 7.56"} <= words
    assert "y" * 81 not in out and "\x1b" not in out


def test_command_prints_all_with_full(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gguf.main([str(listed), "--full"]) == 0
    out = capsys.readouterr().out
    assert "y" * 500 in out and "'<99>'" in out and "…" not in out


def test_command_prints_json(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gguf.main([str(listed), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = gguf.read(listed)
    assert found["metadata"]["tokens"] == list(model.metadata["tokens"])
    assert found["metadata"]["scores"] == [0.5] * 100 and found["metadata"]["nested"] == [[1, 2]]
    assert found["metadata"]["not a number"] is None
    assert found["version"] == 3 and found["parts"] == [listed.stat().st_size]
    assert [gguf.TensorInfo(**t | {"shape": tuple(t["shape"])}) for t in found["tensors"]] == list(
        model.tensors.values()
    )


def test_command_fails_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gguf.main([str(tmp_path / "no.gguf")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: {tmp_path / 'no.gguf'}: no such file or folder\n"


def test_command_refuses_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        gguf.main(["--no-such-option"])
    assert raised.value.code == 2 and "usage:" in capsys.readouterr().err


def test_command_ends_cleanly_when_its_reader_leaves(tmp_path: Path) -> None:
    draft = Draft([("long", STRING, "y" * (1 << 20))])
    path = written(tmp_path / "a.gguf", draft)
    command = [sys.executable, "-m", "mlx_ferrum.gguf", "--full", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 128 + signal.SIGPIPE


def test_command_prints_where_the_terminal_lacks_a_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a.gguf", Draft([("k", STRING, "é")]))
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    assert gguf.main([str(path)]) == 0
    assert rb"'\xe9'" in buffer.getvalue()
