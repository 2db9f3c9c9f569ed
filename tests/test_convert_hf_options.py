"""hf with importance, effort and types of single tensors: what quantize makes of the float file, in one pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf as gguf_py
import hf_folders
import numpy as np
import pytest

from mlx_ferrum import gguf
from mlx_ferrum.convert.command import main

WHICH = ("qwen3moe", "mixtral", "gemma3")


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(params=WHICH)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a model in m/, the same in F32 as m.gguf, and importance measured with it."""
    hf_folders.write(tmp_path / "m", request.param)
    (tmp_path / "text.txt").write_text(" ".join(f"{n} boats on the sea," for n in range(60)))
    run("hf", tmp_path / "m", tmp_path / "m.gguf", "--type", "f32")
    text, out = tmp_path / "text.txt", tmp_path / "im.gguf"
    run("imatrix", tmp_path / "m.gguf", text, out, "--chunk-size", 16, "--chunks", 2)
    return tmp_path


def tensors(path: Path) -> dict[str, bytes]:
    file = gguf.read(path)
    return {f"{n} {i.type}": file.data(n).tobytes() for n, i in file.tensors.items()}


@pytest.mark.parametrize(
    "options",
    [
        ("--type", "q8_0"),
        ("--type", "q4_0", "--effort", "best"),
        ("--type", "q5_1", "--tensor-type", "ffn_up=q4_1", "--output-type", "q8_0"),
        ("--type", "iq4_nl", "--embedding-type", "q5_0", "--threads", "1"),
    ],
)
def test_one_pass_is_two(made: Path, options: tuple[str, ...]) -> None:
    more = (*options, "--imatrix", made / "im.gguf")
    run("hf", made / "m", made / "one.gguf", *more)
    run("quantize", made / "m.gguf", made / "two.gguf", *more)
    one, two = tensors(made / "one.gguf"), tensors(made / "two.gguf")
    assert one == two
    run("hf", made / "m", made / "plain.gguf", *options)
    assert tensors(made / "plain.gguf") != one
    found = gguf.read(made / "one.gguf").metadata
    expected = gguf.read(made / "two.gguf").metadata
    keys = [key for key in expected if key.startswith("quantize.")]
    assert len(keys) == 4 and {k: found[k] for k in keys} == {k: expected[k] for k in keys}


def test_what_has_no_importance_is_said(made: Path, caplog: pytest.LogCaptureFixture) -> None:
    run("hf", made / "m", made / "one.gguf", "--type", "q8_0", "--imatrix", made / "im.gguf")
    assert "tensors quantized without importance: " in caplog.text


def test_a_pattern_that_no_tensor_has(made: Path, capsys: Any) -> None:
    command = ["hf", str(made / "m"), str(made / "x.gguf"), "--tensor-type", "ffn_sideways=q8_0"]
    assert main(command) == 1
    assert "ffn_sideways: found in the name of no tensor" in capsys.readouterr().err
    assert not (made / "x.gguf").exists()


def test_importance_of_another_model(made: Path, capsys: Any, tmp_path: Path) -> None:
    file = gguf.read(made / "im.gguf")
    name = next(n for n in file.tensors if n.endswith("attn_q.weight.in_sum2"))
    wrong = tmp_path / "wrong.gguf"
    writer = gguf_py.GGUFWriter(wrong, "")
    writer.add_type("imatrix")
    writer.add_tensor(name, np.ones((1, 32), np.float32))
    writer.add_tensor(name.replace("in_sum2", "counts"), np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    command = ["hf", str(made / "m"), str(made / "x.gguf"), "--imatrix", str(wrong)]
    assert main(command) == 1
    assert "has 32 values, expected" in capsys.readouterr().err
    assert not (made / "x.gguf").exists()


@pytest.mark.parametrize("command", ["hf", "quantize"])
def test_types_that_rows_cannot_have_are_told(
    made: Path, caplog: pytest.LogCaptureFixture, command: str
) -> None:
    given = made / ("m" if command == "hf" else "m.gguf")
    for wanted, said in (("q6_k", True), ("q4_0", False)):
        caplog.clear()
        options = ("--type", "q8_0", "--tensor-type", f"attn_q={wanted}", "--force")
        run(command, given, made / "x.gguf", *options)
        line = "Q6_K has blocks that do not divide rows of 64; Q8_0 for blk.0.attn_q"
        assert (line in caplog.text) == said and ("divide" in caplog.text) == said


@pytest.mark.parametrize("command", ["hf", "quantize"])
def test_a_pattern_of_norms_alone(made: Path, capsys: Any, command: str) -> None:
    given = made / ("m" if command == "hf" else "m.gguf")
    arguments = [command, str(given), str(made / "x.gguf"), "--type", "q8_0"]
    assert main([*arguments, "--tensor-type", "attn_norm=q4_0"]) == 1
    assert "found only in names of tensors that keep their type" in capsys.readouterr().err


def test_weights_are_not_replaced_by_what_is_made_of_them(made: Path, capsys: Any) -> None:
    weights = made / "m" / "model.safetensors"
    before = weights.read_bytes()
    assert main(["hf", str(made / "m"), str(weights), "--force"]) == 1
    assert "is the file that is read" in capsys.readouterr().err
    assert weights.read_bytes() == before
    importance = made / "im.gguf"
    command = ["hf", str(made / "m"), str(importance), "--imatrix", str(importance), "--force"]
    assert main(command) == 1
    assert "is the file that is read" in capsys.readouterr().err
