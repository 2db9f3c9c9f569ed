"""Folders of mlx_lm to GGUF files: codes are kept where blocks hold them, and damaged folders are refused."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hf_folders
import mlx.core as mx
import mlx_folders
import numpy as np
import pytest
from mlx_folders import change

from mlx_ferrum import blocks, gguf
from mlx_ferrum.convert import mlx_folder, pieces
from mlx_ferrum.convert.command import main

DOWN, DOWN_GGUF = "model.layers.1.mlp.down_proj", "blk.1.ffn_down.weight"


def convert(folder: Path, *arguments: str) -> gguf.GGUF:
    out = folder.with_suffix(".gguf")
    out.unlink(missing_ok=True)
    assert main(["mlx", str(folder), str(out), *arguments]) == 0
    return gguf.read(out)


def decoded(file: gguf.GGUF, name: str) -> np.ndarray:
    """A tensor's weights by the definition of its type, float32."""
    info = file.tensors[name]
    block = blocks.by_name(info.type)
    raw = mx.array(file.data(name).reshape(*info.shape[:-1], block.row_bytes(info.shape[-1])))
    return np.array(block.dequantize(raw))


@pytest.mark.parametrize("kind", hf_folders.ALL)
def test_codes_are_kept_in_every_architecture(kind, tmp_path):
    """Rows of queries have other places in GGUF files, so float32 by way of the tested converter is the measure."""
    held = mlx_folders.write(tmp_path / "m", kind)
    found = convert(tmp_path / "m")
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in (tmp_path / "m").glob("*.json"):
        (plain / file.name).write_text(file.read_text())
    change(plain, quantization=None, quantization_config=None)
    hf_folders.save(plain / "model.safetensors", held, "F32")
    wanted = convert(plain)
    assert found.tensors.keys() == wanted.tensors.keys()
    for name in wanted.tensors:
        np.testing.assert_array_equal(decoded(found, name), decoded(wanted, name), name)
    assert found.tensors["blk.0.attn_q.weight"].type == "Q4_1"
    assert found.metadata["general.file_type"] == 3


@pytest.mark.parametrize(
    ("layout", "dtype", "type"),
    [
        ({"bits": 2}, mx.bfloat16, "Q4_1"),
        ({"bits": 3}, mx.float16, "Q4_1"),
        ({"bits": 4}, mx.float16, "Q4_1"),
        ({"bits": 4, "group_size": 64}, mx.bfloat16, "Q4_1"),
        ({"bits": 5}, mx.bfloat16, "Q5_1"),
        ({"mode": "mxfp4"}, mx.bfloat16, "MXFP4"),
    ],
)
def test_bits_of_each_tensor_count(layout, dtype, type, tmp_path):
    own = {**mlx_folders.LAYOUT, **layout}
    usual, wide = {**mlx_folders.LAYOUT, "bits": 8}, {"intermediate_size": 128}
    held = mlx_folders.write(tmp_path / "m", "qwen2", usual, dtype, wide, __1__mlp__down_proj=own)
    file = convert(tmp_path / "m")
    assert file.tensors[DOWN_GGUF].type == type
    assert file.tensors["blk.0.ffn_down.weight"].type == "Q8_0"
    np.testing.assert_array_equal(decoded(file, DOWN_GGUF), held[f"{DOWN}.weight"])


def test_what_no_block_holds_is_decoded_and_said(tmp_path, caplog):
    held = mlx_folders.write(tmp_path / "m", "qwen3", {**mlx_folders.LAYOUT, "bits": 6})
    file = convert(tmp_path / "m")
    assert "tensors from 6 bits to Q8_0: relative error 0.0" in caplog.text
    found, wanted = decoded(file, DOWN_GGUF), held[f"{DOWN}.weight"]
    assert file.tensors[DOWN_GGUF].type == "Q8_0"
    assert 0 < np.abs(found - wanted).max() <= np.abs(wanted).max() / 254 * 1.01
    file = convert(tmp_path / "m", "--type", "f32")
    np.testing.assert_array_equal(decoded(file, DOWN_GGUF), wanted)
    assert convert(tmp_path / "m", "--type", "q5_1").tensors[DOWN_GGUF].type == "Q5_1"


def test_scales_that_float16_rounds_keep_their_codes_without_a_type(tmp_path, caplog):
    held = mlx_folders.write(tmp_path / "m", "qwen3", dtype=mx.float32)
    file = convert(tmp_path / "m")
    assert "from 4 bits to Q4_1: relative error 0.000" in caplog.text
    np.testing.assert_allclose(decoded(file, DOWN_GGUF), held[f"{DOWN}.weight"], atol=4e-3)
    assert convert(tmp_path / "m", "--type", "q8_0").tensors[DOWN_GGUF].type == "Q8_0"


@pytest.mark.parametrize("exact", [True, False])
def test_symmetric_codes_need_scales_of_float16(exact, tmp_path):
    """Of 8 bits, whose block type has no bias."""
    mlx_folders.write(tmp_path / "m", "qwen3", {**mlx_folders.LAYOUT, "bits": 8}, mx.float32)
    scales = mx.array(np.full((64, 3), 2.0**-7 if exact else 0.01, np.float32))
    edit(lambda a: a.update({f"{DOWN}.scales": scales, f"{DOWN}.biases": -128 * scales}))(
        tmp_path / "m"
    )
    held = mlx_folders.weights(tmp_path / "m")[f"{DOWN}.weight"]
    file = convert(tmp_path / "m")
    assert file.tensors[DOWN_GGUF].type == "Q8_0"
    assert np.array_equal(decoded(file, DOWN_GGUF), held) is exact
    file = convert(tmp_path / "m", "--type", "q5_1")
    assert file.tensors[DOWN_GGUF].type == ("Q8_0" if exact else "Q5_1")


def test_scales_beyond_float16_are_decoded(tmp_path):
    mlx_folders.write(tmp_path / "m", "qwen3", dtype=mx.float32)
    edit(lambda a: a.update({f"{DOWN}.scales": a[f"{DOWN}.scales"] * 1e6}))(tmp_path / "m")
    file = convert(tmp_path / "m", "--type", "f32")
    assert np.abs(decoded(file, DOWN_GGUF)).max() > 65504
    assert main(["mlx", str(tmp_path / "m"), str(tmp_path / "x.gguf"), "--type", "bf16"]) == 0


def test_hf_reads_such_a_folder_too(tmp_path, caplog):
    mlx_folders.write(tmp_path / "m", "qwen3moe")
    out = tmp_path / "m.gguf"
    assert main(["hf", str(tmp_path / "m"), str(out), "--type", "q8_0"]) == 0
    assert "tensors are quantized by MLX: their codes are kept" in caplog.text
    assert gguf.read(out).tensors["blk.0.ffn_up_exps.weight"].type == "Q4_1"


def test_large_tensors_are_converted_in_parts(monkeypatch, tmp_path):
    mlx_folders.write(tmp_path / "m", "mixtral", {**mlx_folders.LAYOUT, "bits": 5})
    wanted = convert(tmp_path / "m")
    monkeypatch.setattr(pieces, "PART", 100)
    found = convert(tmp_path / "m")
    monkeypatch.setattr(mlx_folder, "CHUNK", 100)
    assert main(["mlx", str(tmp_path / "m.gguf"), str(tmp_path / "again")]) == 0
    again = convert(tmp_path / "again")
    for name in wanted.tensors:
        np.testing.assert_array_equal(found.data(name), wanted.data(name), name)
        np.testing.assert_array_equal(again.data(name), wanted.data(name), name)


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change the arrays of a folder."""

    def changed(folder: Path) -> None:
        file = folder / "model.safetensors"
        arrays = dict(mx.load(str(file)))  # type: ignore[arg-type]
        change(arrays)
        mx.eval(arrays)
        mx.save_safetensors(str(file), arrays)

    return changed


def replaced(part: str, new: Callable[[mx.array], mx.array]) -> Callable[[Path], None]:
    return edit(lambda a: a.update({f"{DOWN}.{part}": new(a[f"{DOWN}.{part}"])}))


def configured(**quantization: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder, quantization=quantization)


def own(layout: Mapping[str, Any]) -> Callable[[Path], None]:
    return configured(**mlx_folders.LAYOUT, **{DOWN: layout})


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def without(*parts: str) -> Callable[[Path], None]:
    return edit(lambda a: [a.pop(f"{DOWN}.{part}") for part in parts])


def halved(arrays: dict[str, Any]) -> None:
    for part in ("weight", "scales", "biases"):
        arrays[f"{DOWN}.{part}"] = arrays[f"{DOWN}.{part}"][:32]


def elsewhere(folder: Path) -> None:
    index = {"weight_map": {"a": "/etc/passwd"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


FOUR = "expected U32 (64, 12) by config.json, found "
FLOATS = "expected F32 or F16 or BF16 (64, 3)"
# What is done to a folder of Qwen 3, and what the message says.
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no scales": (without("scales"), "down_proj.biases': there are no scales for it"),
    "no biases": (without("biases"), "down_proj.biases' is missing"),
    "no codes": (without("weight"), "down_proj.weight' is missing"),
    "codes alone": (without("scales", "biases"), "down_proj.weight': expected shape (64, 96)"),
    "codes of floats": (replaced("weight", lambda x: x.astype(mx.float32)), f"{FOUR}F32"),
    "fewer codes": (replaced("weight", lambda x: x[:, :8]), f"{FOUR}U32 (64, 8)"),
    "fewer rows": (replaced("weight", lambda x: x[:32]), f"{FOUR}U32 (32, 12)"),
    "fewer scales": (replaced("scales", lambda x: x[:, :2]), "expected U32 (64, 8) by config.json"),
    "scales of a vector": (replaced("scales", lambda x: x.reshape(-1)), "a matrix, found shape (192,)"),
    "scales of bytes": (replaced("scales", lambda x: x.astype(mx.uint8)), FLOATS),
    "other biases": (replaced("biases", lambda x: x[:, :1]), FLOATS),
    "NaN": (replaced("scales", lambda x: x * float("nan")), "a scale or a bias is not finite"),
    "infinite": (replaced("biases", lambda x: x / 0), "a scale or a bias is not finite"),
    "another shape": (edit(halved), "expected shape (64, 96) by config.json, found (32, 96)"),
    "wrong bits": (own({"bits": 8, "group_size": 32}), "expected U32 (64, 24) by config.json"),
    "seven bits": (own({"bits": 7, "group_size": 32}), f"quantization of {DOWN}: 7 bits in groups"),
    "bits of text": (own({"bits": "4", "group_size": 32}), "'4' bits in groups of 32 are not what"),
    "bits of a list": (own({"bits": [4], "group_size": 32}), "[4] bits in groups of 32"),
    "groups of 48": (own({"bits": 4, "group_size": 48}), "4 bits in groups of 48"),
    "groups of a list": (own({"bits": 4, "group_size": [32]}), "4 bits in groups of [32]"),
    "no bits": (configured(group_size=32), "None bits in groups of 32"),
    "other mode": (own({"bits": 4, "group_size": 16, "mode": "nvfp4"}), "mode 'nvfp4' is not supported"),
    "mode of a list": (own({"bits": 4, "group_size": 32, "mode": ["a"]}), "mode ['a'] is not supported"),
    "quantization of text": (lambda f: change(f, quantization="4"), "quantization: expected an object"),
    "truncated": (cut, "truncated: expected"),
    "a file elsewhere": (elsewhere, "expected names of files"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_broken_folders_are_refused_in_one_line(what, tmp_path, capsys):
    mlx_folders.write(tmp_path / "m", "qwen3")
    action, message = BROKEN[what]
    action(tmp_path / "m")
    assert main(["mlx", str(tmp_path / "m"), str(tmp_path / "m.gguf")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def small(tmp_path: Path) -> Path:
    """A GGUF file."""
    hf_folders.write(tmp_path / "hf", "qwen3")
    assert main(["hf", str(tmp_path / "hf"), str(tmp_path / "m.gguf"), "--type", "q4_0"]) == 0
    return tmp_path / "m.gguf"


def test_a_folder_with_something_in_it_stays(tmp_path, capsys):
    path, out = small(tmp_path), tmp_path / "out"
    out.mkdir()
    assert main(["mlx", str(path), str(out)]) == 0  # an empty one is filled
    before = sorted(p.name for p in out.iterdir())
    assert main(["mlx", str(path), str(out)]) == 1
    assert "is there already and not empty" in capsys.readouterr().err
    assert sorted(p.name for p in out.iterdir()) == before
    assert main(["mlx", str(path), str(path)]) == 1
    assert "is a file" in capsys.readouterr().err
    assert main(["mlx", str(path), str(tmp_path / "no" / "out")]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_options_of_the_other_direction_are_refused(tmp_path, capsys):
    path = small(tmp_path)
    assert main(["mlx", str(path), str(tmp_path / "out"), "--type", "q8_0"]) == 1
    assert "--type: has no meaning where a folder is written" in capsys.readouterr().err
    for option, value in (("--bits", "4"), ("--group-size", "64"), ("--dtype", "float16")):
        out = tmp_path / "out.gguf"
        assert main(["mlx", str(tmp_path / "hf"), str(out), option, value]) == 1
        assert f"{option}: has no meaning where a GGUF file" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "m.gguf"]


def test_ctrl_c_leaves_nothing(monkeypatch, tmp_path):
    path = small(tmp_path)
    pack, calls = mlx_folder.affine.pack, []

    def interrupted(codes: np.ndarray, bits: int) -> np.ndarray:
        calls.append(bits)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return pack(codes, bits)

    monkeypatch.setattr(mlx_folder.affine, "pack", interrupted)
    assert main(["mlx", str(path), str(tmp_path / "out")]) == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "m.gguf"]


def test_a_killed_conversion_leaves_no_folder_under_the_name(tmp_path):
    code = (
        "import os, sys\n"
        "from mlx_ferrum.convert import affine\n"
        "from mlx_ferrum.convert.command import main\n"
        "affine.pack = lambda codes, bits: os.kill(os.getpid(), 9)\n"
        "main(['mlx', sys.argv[1], sys.argv[2]])\n"
    )
    arguments = [sys.executable, "-c", code, str(small(tmp_path)), str(tmp_path / "out")]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()


def test_dry_run_shows_a_table_and_writes_nothing(tmp_path, capsys):
    path = small(tmp_path)
    assert main(["mlx", str(path), str(tmp_path / "out"), "--bits", "4", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("model.layers.0.mlp.up_proj"))
    assert row.split()[1:] == ["96", "x", "64", "Q4_0", "4", "bits", "4,608"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("bits", "group"), [(4, 64), (3, 32), (8, 64)])
def test_matrices_are_quantized_to_the_bits_that_are_asked_for(bits, group, tmp_path, caplog):
    hf_folders.write(tmp_path / "hf", "qwen3moe")
    assert main(["hf", str(tmp_path / "hf"), str(tmp_path / "m.gguf"), "--type", "f16"]) == 0
    arguments = ["--bits", str(bits), "--group-size", str(group)]
    assert main(["mlx", str(tmp_path / "m.gguf"), str(tmp_path / "out"), *arguments]) == 0
    assert f"from F16 to {bits} bits: relative error" in caplog.text
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"]["bits"] == bits
    found = mlx_folders.weights(tmp_path / "out")
    wanted = mlx_folders.weights(tmp_path / "hf")
    router = "model.layers.0.mlp.gate.weight"
    np.testing.assert_array_equal(found[router], wanted[router])
    for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.o_proj.weight"):
        error = np.abs(found[name] - wanted[name]).max()
        assert 0 < error < 4 / ((1 << bits) - 1), name
