"""quantize: the types, the blocks, importance in both formats, and what the user is told."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf as gguf_py
import numpy as np
import pytest
import random_models
from random_models import Sizes

from mlx_ferrum import gguf
from mlx_ferrum.blocks import Q4_K, by_name
from mlx_ferrum.convert import importance, quantize, quantizing
from mlx_ferrum.convert.command import main

SIZES = Sizes(layers=2, experts=4, used=2, expert_ffn=256)
STACK = "blk.1.ffn_up_exps.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts in F16."""
    path = tmp_path_factory.mktemp("quantize") / "model.gguf"
    return random_models.write(path, "qwen3moe", 1, sizes=SIZES, types=("F16",))


def run(*arguments: object) -> None:
    assert main(["quantize", *map(str, arguments)]) == 0


def floats(path: Path, name: str) -> np.ndarray:
    """A tensor by gguf-py's decoder."""
    file = gguf.read(path)
    info = file.tensors[name]
    kind = gguf_py.GGMLQuantizationType[info.type]
    raw = file.data(name).reshape(*info.shape[:-1], -1)
    return np.asarray(gguf_py.dequantize(raw, kind), np.float32).reshape(info.shape)


def write_gguf_imatrix(path: Path, entries: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Path:
    """entries: name -> sums (matrices, k), counts (matrices,)"""
    writer = gguf_py.GGUFWriter(path, "")
    writer.add_array("imatrix.datasets", ["calibration.txt"])
    writer.add_uint32("imatrix.chunk_count", 17)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (sums, counts) in entries.items():
        writer.add_tensor(f"{name}.in_sum2", sums.astype(np.float32))
        writer.add_tensor(f"{name}.counts", counts.astype(np.float32)[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_old_imatrix(path: Path, entries: Mapping[str, tuple[np.ndarray, int]]) -> Path:
    """entries: name -> sums, number of calls"""
    data = struct.pack("<i", len(entries))
    for name, (sums, calls) in entries.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, sums.size)
        data += sums.astype("<f4").tobytes()
    data += struct.pack("<ii", 17, 4) + b"text"
    path.write_bytes(data)
    return path


def test_blocks_types_and_metadata(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    run(model, out, "--type", "q4_k_m")
    before, after = gguf.read(model), gguf.read(out)
    assert list(before.tensors) == list(after.tensors)
    for name, info in after.tensors.items():
        if info.type == before.tensors[name].type:
            np.testing.assert_array_equal(after.data(name), before.data(name))
            continue
        x = floats(model, name)
        np.testing.assert_array_equal(after.data(name), by_name(info.type).quantize(x).reshape(-1))
        error = np.sqrt(np.mean((floats(out, name) - x) ** 2) / np.mean(x**2))
        assert error < 0.1, (name, error)
    assert after.metadata["general.file_type"] == 15
    assert after.metadata["general.quantization_version"] == 2
    for key in before.metadata:
        if key not in ("general.file_type", "general.quantization_version"):
            assert after.raw(key) == before.raw(key)


def test_pieces_make_the_same_bytes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(model, tmp_path / "whole.gguf", "--type", "q5_k_m")
    monkeypatch.setattr(quantizing, "CHUNK", 3 * 256)
    run(model, tmp_path / "pieces.gguf", "--type", "q5_k_m", "--threads", 1)
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "pieces.gguf").read_bytes()


def test_types_that_the_user_names(model: Path, tmp_path: Path) -> None:
    options = ["--tensor-type", "attn_[qk].weight=Q8_0", "--tensor-type", "attn=q5_1"]
    more = ["--output-type", "q5_0", "--embedding-type", "f32", "--effort", "fast"]
    run(model, tmp_path / "out.gguf", "--type", "q4_0", *options, *more)
    types = {name: info.type for name, info in gguf.read(tmp_path / "out.gguf").tensors.items()}
    assert types["blk.0.attn_k.weight"] == "Q8_0" and types["blk.0.attn_v.weight"] == "Q5_1"
    assert types["output.weight"] == "Q5_0" and types["token_embd.weight"] == "F32"
    assert types["blk.0.attn_k_norm.weight"] == "F32" and types[STACK] == "Q4_0"


@pytest.mark.parametrize("old", [False, True])
def test_importance_weighs_columns(
    model: Path,
    tmp_path: Path,
    old: bool,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    rng = np.random.default_rng(3)
    sums = rng.exponential(size=(4, 256)).astype(np.float32) ** 4
    counts = np.array([3.0, 0.0, 5.0, 1.0], np.float32)
    path = tmp_path / ("imatrix.dat" if old else "imatrix.gguf")
    if old:
        write_old_imatrix(path, {STACK: (sums, 4)})
        expected = sums / np.float32(4)
    else:
        write_gguf_imatrix(path, {STACK: (sums, counts)})
        expected = sums / np.where(counts > 0, counts, 1)[:, None]
        expected[1] = 1
    run(model, tmp_path / "out.gguf", "--type", "q4_k_s", "--imatrix", path)
    file = gguf.read(tmp_path / "out.gguf")
    raw = file.data(STACK).reshape(4, 256, -1)
    for expert, x in enumerate(floats(model, STACK)):
        np.testing.assert_array_equal(raw[expert], Q4_K.quantize(x, expected[expert]))
    assert not np.array_equal(raw[0], Q4_K.quantize(floats(model, STACK)[0]))
    keys = {
        k.removeprefix("quantize.imatrix."): v for k, v in file.metadata.items() if ".imatrix" in k
    }
    dataset = "text" if old else "calibration.txt"
    assert keys == {"file": str(path), "dataset": dataset, "entries_count": 1, "chunks_count": 17}
    told = caplog.text
    assert ("when importance was measured: 1;" in told and f"{STACK} 1" in told) is not old
    assert "quantized without importance: 15: token_embd.weight; " in told


def test_importance_counts_in_recipes(model: Path, tmp_path: Path) -> None:
    path = write_old_imatrix(tmp_path / "i.dat", {"blk.0.attn_q.weight": (np.ones(256), 1)})
    sizes = Sizes(layers=8, hidden=256, ffn=256)
    dense = random_models.write(tmp_path / "m.gguf", "llama", 1, sizes=sizes, types=("F16",))
    run(dense, tmp_path / "out.gguf", "--type", "q4_0", "--imatrix", path, "--effort", "fast")
    assert gguf.read(tmp_path / "out.gguf").tensors["blk.0.ffn_down.weight"].type == "Q4_1"


def test_requantizing_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run("tiny-moe", tmp_path / "a.gguf", "--type", "q8_0")
    assert "29 tensors are quantized already (20 of Q4_K, 9 of Q6_K)" in caplog.text
    assert "loses more" in caplog.text
    caplog.clear()
    run(tmp_path / "a.gguf", tmp_path / "b.gguf", "--type", "q4_k_m", "--dry-run")
    assert "would be a little more accurate" in caplog.text
    caplog.clear()
    run("tiny-moe", tmp_path / "c.gguf", "--type", "f16")
    assert not caplog.records
    expected = floats(tmp_path / "c.gguf", STACK)
    np.testing.assert_allclose(expected, floats(tiny_moe(), STACK), rtol=1e-3, atol=1e-6)


def tiny_moe() -> Path:
    from mlx_ferrum import catalog

    return catalog.resolve("tiny-moe")


def test_a_split_model_stays_split_if_asked(model: Path, tmp_path: Path) -> None:
    assert main(["split", str(model), str(tmp_path / "in"), "--max-tensors", "11"]) == 0
    part = next(tmp_path.glob("in-00002-*"))
    run(part, tmp_path / "one.gguf", "--type", "q4_0", "--effort", "fast")
    run(part, tmp_path / "out.gguf", "--type", "q4_0", "--effort", "fast", "--keep-split")
    one, split = gguf.read(tmp_path / "one.gguf"), gguf.read(next(tmp_path.glob("out-00001-*")))
    assert len(one.parts) == 1 and len(split.parts) == len(gguf.read(part).parts) > 1
    assert not [key for key in one.metadata if key.startswith("split.")]
    for name, info in gguf.read(part).tensors.items():
        assert split.tensors[name].part == info.part
        np.testing.assert_array_equal(one.data(name), split.data(name))


Make = Callable[[Path], Path]
SUMS = np.ones((4, 256))
BROKEN: list[tuple[Make | None, list[str], str]] = [
    (None, ["--tensor-type", "fnn=q4_0"], "--tensor-type fnn: found in the name of no tensor"),
    (None, ["--imatrix", "none.gguf"], "none.gguf: No such file"),
    (lambda p: write_old_imatrix(p, {STACK: (np.ones(7), 1)}), [], "7 values, expected 1024"),
    (lambda p: write_old_imatrix(p, {STACK: (-np.ones(1024), 1)}), [], "not negative, found -1"),
    (lambda p: write_old_imatrix(p, {STACK: (np.full(1024, np.nan), 1)}), [], "finite"),
    (lambda p: write_gguf_imatrix(p, {STACK: (SUMS, np.ones(3))}), [], "1024 sums do not fit 3"),
    (lambda p: write_gguf_imatrix(p, {STACK: (SUMS[:2], np.ones(2))}), [], "512 values, expected"),
    (lambda p: write_gguf_imatrix(p, {}), [], "no importance in this file"),
    (lambda p: tiny_moe(), [], "no importance in this file"),
    (lambda p: written(p, b"hello, my world"), [], "neither a GGUF nor an imatrix file"),
    (lambda p: written(p, b""), [], "found 0 bytes at 0, expected 4"),
    (lambda p: written(p, struct.pack("<iii", 1, 1, 97)), [], "calls: found 3 bytes at 9"),
]  # fmt: skip


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("make", "options", "message"), BROKEN)
def test_a_bad_input_is_one_line(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Make | None,
    options: list[str],
    message: str,
) -> None:
    given = [] if make is None else ["--imatrix", str(make(tmp_path / "imatrix"))]
    out = tmp_path / "out.gguf"
    assert main(["quantize", str(model), str(out), "--type", "q4_0", *options, *given]) == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith("error: ") and message in told[0], told
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_weights_that_a_type_cannot_hold_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = gguf_py.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_tensor("output.weight", np.full((2, 256), np.nan, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    arguments = ["quantize", str(tmp_path / "m.gguf"), str(tmp_path / "o.gguf"), "--type", "q6_k"]
    assert main(arguments) == 1
    assert "tensor 'output.weight': Q6_K: weights must be within" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_type_that_cannot_be_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gguf_bytes import STRING, U32, Draft, Tensor

    values = [("general.architecture", STRING, "llama"), ("llama.block_count", U32, 1)]
    tensor = Tensor("blk.0.ffn_up.weight", (256, 2), 16, bytes(132))
    (tmp_path / "m.gguf").write_bytes(Draft(values, [tensor]).raw)
    arguments = ["quantize", str(tmp_path / "m.gguf"), str(tmp_path / "o.gguf"), "--type", "q6_k"]
    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert "tensor 'blk.0.ffn_up.weight': tensors of type IQ2_XXS cannot be decoded" in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--type", "q4"], "expected q2_k, q3_k_s"),
        (["--type", "q4_0", "--tensor-type", "q4_0"], "expected REGEX=TYPE"),
        (["--type", "q4_0", "--tensor-type", "(=q4_0"], "is no regular expression"),
        (["--type", "q4_0", "--output-type", "q9"], "no ggml type is called 'Q9'"),
        (["--type", "q4_0", "--output-type", "iq2_xxs"], "cannot be decoded"),
        ([], "--type"),
    ],
)
def test_a_bad_command_line_is_explained(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["quantize", "m", "o", *options])
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_an_importance_that_does_not_fit_the_embeddings_is_left_out(tmp_path: Path) -> None:
    path = write_old_imatrix(tmp_path / "i.dat", {"token_embd.weight": (np.ones(7), 1)})
    assert importance.read(path).of("token_embd.weight", (300, 256)) is None


# -- from Python -----------------------------------------------------------------------------------------------------


def test_the_function_writes_what_the_command_writes(model: Path, tmp_path: Path) -> None:
    sums = write_gguf_imatrix(tmp_path / "i.gguf", {STACK: (SUMS, np.ones(4))})
    run(model, tmp_path / "a.gguf", "--type", "q3_k_m", "--effort", "fast", "--imatrix", sums)
    out = tmp_path / "b.gguf"
    out.write_text("old")
    made = quantize(model, out, "Q3_K_M", effort="fast", importance=sums)
    assert made == out and out.read_bytes() == (tmp_path / "a.gguf").read_bytes()


def test_the_function_refuses_what_it_cannot_do(model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    cases: list[tuple[str | Path, str, dict[str, str], str]] = [
        ("x.gguf", "q4_k_x", {}, "recipe: expected q2_k, .*, found 'q4_k_x'"),
        (
            "x.gguf",
            "q4_k_m",
            {"effort": "most"},
            "effort: expected fast, normal, best, found 'most'",
        ),
        (model, "q4_k_m", {}, "is the file that is read"),
    ]
    for out, recipe, options, told in cases:
        with pytest.raises(ValueError, match=told):
            quantize(model, tmp_path / out, recipe, **options)
    assert list(tmp_path.iterdir()) == [] and model.read_bytes() == before
