"""Damaged and hostile GGUF files: each loads or is refused by name, and none costs much memory."""

from __future__ import annotations

import gc
import os
import random
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf as gguf_py
import pytest
from gguf_bytes import ARRAY, BOOL, F32, STRING, U8, U32, U64, Draft, Tensor

from mlx_ferrum import gguf

# Sizes, signs and overflows that a careless sum or product falls for.
HOSTILE = [
    0,
    1,
    7,
    9,
    13,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**61,
    2**63 - 1,
    2**63,
    2**64 - 1,
]
PEAK = 1 << 20  # bytes; the files below have some kilobytes


def model_like() -> Draft:
    """Every kind of field that a real header has, and nested arrays."""
    values = [
        ("general.architecture", STRING, "llama"),
        ("general.alignment", U32, 32),
        ("llama.context_length", U64, 128),
        ("flag", BOOL, 1),
        ("epsilon", F32, 1e-5),
        ("tokens", ARRAY, (STRING, ["<s>", "", "▁a", "é" * 9])),
        ("scores", ARRAY, (F32, [0.0, -1.0, 2.5])),
        ("flags", ARRAY, (BOOL, [1, 0])),
        ("nested", ARRAY, (ARRAY, [(U8, [1, 2]), (STRING, ["x"])])),
    ]
    tensors = [
        Tensor("token_embd.weight", (256, 4), 12, bytes(4 * 144)),
        Tensor("output_norm.weight", (8,), 0, bytes(32)),
        Tensor("blk.0.experts", (32, 2, 3), 2, bytes(6 * 18)),
    ]
    return Draft(values, tensors)


def loads_or_is_refused(path: Path, raw: bytes) -> bool:
    """Whether the file loads; if so, all that it holds can be used."""
    path.write_bytes(raw)
    try:
        model = gguf.read(path)
    except (ValueError, NotImplementedError) as error:
        message = str(error)
        assert message.startswith(f"{path}: ") and "expected" in message
        assert "\n" not in message and len(message) < 1000
        return False
    for name, info in model.tensors.items():
        assert model.data(name).size == info.nbytes > 0
    for value in model.metadata.values():
        if isinstance(value, gguf.Strings):
            assert len(list(value)) == len(value)
    return True


def survivors(folder: Path, files: Iterable[bytes]) -> list[int]:
    """Reads all; the indices of those that load. Memory stays within PEAK for each."""
    loaded = []
    for i, raw in enumerate(files):
        path = folder / f"{i}.gguf"
        tracemalloc.start()
        if loads_or_is_refused(path, raw):
            loaded.append(i)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < PEAK, f"file {i} took {peak} bytes"
        path.unlink()
    return loaded


def test_the_undamaged_file_loads(tmp_path: Path) -> None:
    assert loads_or_is_refused(tmp_path / "a.gguf", bytes(model_like().raw))


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    raw = bytes(model_like().raw)
    assert len(raw) > 1000
    assert survivors(tmp_path, (raw[:size] for size in range(len(raw)))) == []


def test_hostile_numbers_everywhere(tmp_path: Path) -> None:
    draft = model_like()

    def files() -> Iterable[bytes]:
        for position, size in draft.numbers:
            for value in HOSTILE:
                raw = bytearray(draft.raw)
                raw[position : position + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")
                yield bytes(raw)

    count = len(draft.numbers) * len(HOSTILE)
    assert count > 500
    assert len(survivors(tmp_path, files())) < count / 2


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bits(tmp_path: Path, seed: int) -> None:
    rng, raw = random.Random(seed), bytes(model_like().raw)
    header = raw.index(b"blk.0.experts") + 60

    def files() -> Iterable[bytes]:
        for _ in range(250):
            damaged = bytearray(raw)
            for _ in range(rng.choice([1, 1, 2, 8])):
                damaged[rng.randrange(header)] ^= 1 << rng.randrange(8)
            yield bytes(damaged)

    loaded = survivors(tmp_path, files())
    assert 0 < len(loaded) < 250  # flips in text are harmless, flips in lengths are not


@pytest.mark.parametrize("seed", range(4))
def test_moved_and_random_bytes(tmp_path: Path, seed: int) -> None:
    rng, raw = random.Random(100 + seed), bytes(model_like().raw)

    def files() -> Iterable[bytes]:
        for _ in range(100):
            at, size = rng.randrange(4, len(raw)), rng.randrange(1, 40)
            yield raw[:at] + rng.randbytes(size) + raw[at + size :]
            yield raw[:at] + rng.randbytes(size) + raw[at:]
            yield raw[:at] + raw[at + size :]

    assert len(survivors(tmp_path, files())) < 300


def test_a_vocabulary_with_flipped_bits(tmp_path: Path) -> None:
    """As gguf-py writes it, with enough strings that most flips fall into their lengths and text."""
    writer = gguf_py.GGUFWriter(tmp_path / "whole.gguf", "llama")
    writer.add_token_list([f"▁token{i}" for i in range(300)])
    writer.add_token_scores([float(-i) for i in range(300)])
    writer.add_token_types([1] * 300)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    rng, raw = random.Random(7), (tmp_path / "whole.gguf").read_bytes()

    def files() -> Iterable[bytes]:
        for _ in range(250):
            damaged = bytearray(raw)
            damaged[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            yield bytes(damaged)

    assert 0 < len(survivors(tmp_path, files())) < 250


def values(*items: tuple[str | bytes, int, Any]) -> bytes:
    return bytes(Draft(items).raw)


def tensors(*items: Tensor, **more: Any) -> bytes:
    return bytes(Draft(tensors=items, **more).raw)


def nested(depth: int) -> tuple[int, list[Any]]:
    return (U8, [1]) if depth == 0 else (ARRAY, [nested(depth - 1)])


def with_number(index: int, value: int, draft: Draft) -> bytes:
    position, size = draft.numbers[index]
    raw = bytearray(draft.raw)
    raw[position : position + size] = value.to_bytes(size, "little")
    return bytes(raw)


W = Tensor("w", (32,), data=bytes(128))
REFUSED = {
    "empty": (b"", "found an empty file"),
    "short": (b"GG", "magic: found b'GG', expected b'GGUF'"),
    "zip": (b"PK\x03\x04" + bytes(30), "magic: found a zip archive"),
    "safetensors": (b"\x40" + bytes(7) + b'{"a":{}}', "found a safetensors file"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\n", "found a Git LFS pointer"),
    "web page": (b"<!DOCTYPE html>", "found a web page"),
    "ggml": (b"tjgg" + bytes(30), "found a GGML file, older than GGUF"),
    "pickle": (b"\x80\x02}q\x00.", "found a Python pickle"),
    "version 1": (tensors(version=1), "version: found 1, expected 2 or 3"),
    "version 0": (tensors(version=0), "version: found 0, expected 2 or 3"),
    "version 4": (tensors(version=4), "version: found 4, expected 2 or 3"),
    "big-endian": (b"GGUF\0\0\0\3" + bytes(16), "byte order: found a big-endian file"),
    "many values": (with_number(2, 2**60, Draft()), "at most [0-9]+ in the rest of the file"),
    "more values": (with_number(2, 3, Draft()), "count: found a count of 3, expected at most 0"),
    "many tensors": (with_number(1, 2**60, Draft()), "tensor count: found a count of"),
    "unknown type": (values(("k", 13, 0)), "metadata 'k': type: found 13"),
    "unknown element": (values(("k", ARRAY, (13, []))), "metadata 'k': type: found 13"),
    "bad boolean": (values(("k", BOOL, 2)), "metadata 'k': found a boolean of 2"),
    "bad booleans": (values(("k", ARRAY, (BOOL, [1, 255]))), "a boolean of 255, expected 0 or 1"),
    "empty key": (values(("", U8, 1)), "metadata key 0: found an empty name"),
    "long key": (values(("k" * 65_536, U8, 1)), "key 0: length: found 65536 bytes"),
    "key not UTF-8": (values((b"k\xff", U8, 1)), "key 0: found byte 0xff at 33, expected UTF-8"),
    "second key": (values(("k", U8, 1), ("k", U8, 1)), "metadata key 1: found a second 'k'"),
    "text not UTF-8": (
        values(("tokenizer.chat_template", STRING, b"a\xc3")),
        "'tokenizer.chat_template': found byte 0xc3 at .* UTF-8",
    ),
    "item not UTF-8": (
        values(("tokenizer.k", ARRAY, (STRING, ["a", b"\xc3", b"\xa9"]))),
        r"metadata 'tokenizer.k'\[1\]: found byte 0xc3 at 76, expected UTF-8",
    ),
    "architecture not UTF-8": (
        values(("general.architecture", STRING, b"\xff")),
        "'general.architecture': found byte 0xff",
    ),
    "deep": (values(("k", ARRAY, nested(8))), "arrays nested 9 deep"),
    "terminal codes": (values(("\x1b[2J\n", 13, 0)), r"metadata '\\x1b\[2J\\n': type"),
    "alignment 0": (values(("general.alignment", U32, 0)), "alignment': found 0, expected a power"),
    "alignment 48": (values(("general.alignment", U32, 48)), "alignment': found 48"),
    "alignment 2^31": (values(("general.alignment", U32, 2**31)), "found 2147483648"),
    "alignment text": (values(("general.alignment", STRING, "32")), "found a value of type str"),
    "alignment float": (values(("general.alignment", F32, 32)), "type float, expected an integer"),
    "split number": (values(("split.no", U32, 3), ("split.count", U32, 3)), "found part 3 of 3"),
    "split count": (values(("split.count", BOOL, 1)), "'split.count': found a value of type bool"),
    "tensor without name": (tensors(Tensor("")), "tensor 0: name: found an empty name"),
    "tensor not UTF-8": (tensors(Tensor(b"\xff")), "tensor 0: name: found byte 0xff"),
    "no dimension": (tensors(Tensor("w", ())), "tensor 'w': dimensions: found 0, expected 1 to 4"),
    "5 dimensions": (tensors(Tensor("w", (1,) * 5)), "dimensions: found 5"),
    "dimension 0": (tensors(Tensor("w", (32, 0))), r"'w': shape: found \(0, 32\)"),
    "dimension 2^31": (tensors(Tensor("w", (32, 2**31))), "dimensions from 1 to 2147483647"),
    "2^64 weights": (tensors(Tensor("w", (65_536,) * 4)), f"expected {2**66 + 96}, where the last tensor ends"),
    "unknown ggml type": (tensors(Tensor("w", kind=43)), "'w': type: found 43, expected a ggml type"),
    "part of a block": (tensors(Tensor("w", (33,), 8)), "length: found 33, expected a multiple of 32"),
    "unaligned": (tensors(Tensor("w", offset=16)), "offset: found 16, expected a multiple of .* 32"),
    "outside": (tensors(Tensor("w", offset=32)), "'w': data: found a file truncated at 192 bytes, expected 224"),
    "far outside": (tensors(Tensor("w", offset=2**64 - 32)), "'w': data: found a file truncated at"),
    "overlap": (tensors(W, Tensor("v", (32,), offset=64)), "tensor 'v': data: .* where 'w' ends"),
    "same place": (tensors(W, Tensor("v", (32,), offset=0)), "found bytes from .* 'w' ends"),
    "second tensor": (tensors(W, W), "tensor 'w': found it twice"),
}  # fmt: skip


@pytest.mark.parametrize("kind", [4, 5, 31, 32, 33, 36, 37, 38])
def test_a_type_that_ggml_removed_says_what_to_take(tmp_path: Path, kind: int) -> None:
    names = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8"}
    names |= {36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"}
    instead = {4: "Q4_0", 5: "Q4_1"}.get(kind, "Q4_0" if kind < 36 else "IQ4_NL")
    (tmp_path / "a.gguf").write_bytes(tensors(Tensor("w", kind=kind)))
    expected = f"found {kind}, {names[kind]}, a type that ggml has removed, .* {instead} file"
    with pytest.raises(ValueError, match=expected):
        gguf.read(tmp_path / "a.gguf")


def test_text_that_nothing_uses_need_not_be_utf_8(tmp_path: Path) -> None:
    texts = (STRING, [b"Ren\xe9", "Ren\xe9", b"\xff\xfe"])
    draft = Draft([("general.author", STRING, b"Ren\xe9"), ("llama.tags", ARRAY, texts)])
    (tmp_path / "a.gguf").write_bytes(draft.raw)
    metadata = gguf.read(tmp_path / "a.gguf").metadata
    assert metadata["general.author"] == "Ren\ufffd"
    assert list(metadata["llama.tags"]) == ["Ren\ufffd", "Ren\xe9", "\ufffd\ufffd"]
    assert metadata["llama.tags"][0] == "Ren\ufffd" and metadata["llama.tags"][2] == "\ufffd\ufffd"


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    raw, message = REFUSED[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message) as raised:
        gguf.read(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_more_arrays_than_any_model_has(tmp_path: Path) -> None:
    many: list[tuple[int, list[int]]] = [(U8, [])] * 33_000
    raw = values(("j", ARRAY, (ARRAY, many)), ("k", ARRAY, (ARRAY, many)))
    (tmp_path / "a.gguf").write_bytes(raw)
    with pytest.raises(
        ValueError, match="metadata 'k': length: found a count of 33000, expected at most 32536"
    ):
        gguf.read(tmp_path / "a.gguf")


@pytest.mark.parametrize("element", [U8, STRING])
def test_a_header_without_end(tmp_path: Path, element: int) -> None:
    """An array of 2^27 items in a sparse file of a gigabyte: the header's limit ends it."""
    path = tmp_path / "a.gguf"
    path.write_bytes(with_number(6, 1 << 27, Draft([("k", ARRAY, (element, []))])))
    os.truncate(path, 1 << 30)
    with pytest.raises(ValueError, match="metadata 'k': length: found a count of 134217728"):
        gguf.read(path)


def test_a_string_of_a_gigabyte(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(with_number(5, 1 << 29, Draft([("k", STRING, "")])))
    os.truncate(path, 1 << 30)
    with pytest.raises(ValueError, match="'k': length: found 536870912 bytes"):
        gguf.read(path)


@pytest.mark.parametrize("kind", ["folder", "pipe", "missing"])
def test_what_is_not_a_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.gguf"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    expected = FileNotFoundError if kind == "missing" else ValueError
    reason = {"folder": "found a folder", "pipe": "found a special file", "missing": "no such file"}
    with pytest.raises(expected, match=f"^{re.escape(str(path))}: {reason[kind]}"):
        gguf.read(path)


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(REFUSED["overlap"][0])
    result = subprocess.run(
        [sys.executable, "-m", "mlx_ferrum.gguf", str(path)], capture_output=True, text=True
    )
    assert result.returncode == 1 and result.stdout == ""
    assert re.fullmatch(r"error: .*bad\.gguf: tensor 'v': data: found .*\n", result.stderr)


def test_a_refused_file_is_let_go(tmp_path: Path) -> None:
    """Its mapping goes with the error: whoever opens bad files for ever runs out of nothing."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(REFUSED["overlap"][0])
    gc.collect()  # what earlier tests left is let go now and not between the two counts
    before = len(list(Path("/dev/fd").iterdir()))  # a mapping holds its file open
    for _ in range(3):
        with pytest.raises(ValueError, match="where 'w' ends"):
            gguf.read(path)
    gc.collect()
    assert len(list(Path("/dev/fd").iterdir())) == before
