"""The embed command, and how the others refuse its models."""

import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import hf_bert
import mlx.core as mx
import numpy as np
import pytest

import mlx_ferrum
from mlx_ferrum import catalog
from mlx_ferrum.embed import output
from mlx_ferrum.embed.command import main as command
from mlx_ferrum.experts import routes

TEXTS = ["a", "Café, the long text"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert") / "m"
    hf_bert.write(folder)
    return hf_bert.converted(folder)


def run(path: Path, *arguments: str) -> int:
    return command([str(path), "--backend", "reference", *arguments])


def test_command_prints_one_object_a_line(path, capsys):
    assert run(path, *TEXTS) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    wanted = mlx_ferrum.embed(*mlx_ferrum.load(path), TEXTS)
    np.testing.assert_array_equal(
        np.array([line["embedding"] for line in lines], np.float32), wanted
    )


@pytest.mark.parametrize("suffix", [".npy", ".jsonl"])
def test_command_writes_files(suffix, path, tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("mlx_ferrum.embed.command"), "CHUNK", 2)
    lines, out = tmp_path / "lines.txt", tmp_path / f"out{suffix}"
    lines.write_text("hello\r\n\nthe text\u2028more\nlast", encoding="utf-8", newline="")
    texts = ["first", "hello", "", "the text\u2028more", "last"]
    out.write_text("before")
    assert run(path, "first", "--file", str(lines), "--out", str(out), "--raw") == 0
    if suffix == ".npy":
        found = np.load(out)
    else:
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [row["text"] for row in rows] == texts
        found = np.array([row["embedding"] for row in rows], np.float32)
    model, tokenizer = mlx_ferrum.load(path)
    wanted = mlx_ferrum.embed(model, tokenizer, texts, normalize=False)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lines.txt", out.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failure_leaves_what_was_there(error, path, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.npy"
    out.write_text("before")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(output.Array, "write", fail)
    assert run(path, "a", "--out", str(out)) == (130 if error is KeyboardInterrupt else 1)
    if isinstance(error, OSError):
        assert f"error: {out}: No space left on device" in capsys.readouterr().err
    assert out.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["out.npy"]


@pytest.mark.parametrize("read", ["lines.jsonl", "model.npy"])
def test_a_file_that_is_read_is_not_replaced(read, path, tmp_path, capsys):
    lines, model, out = tmp_path / "lines.jsonl", tmp_path / "model.npy", tmp_path / read
    lines.write_text("a\nb\n")
    model.write_bytes(path.read_bytes())
    before = out.read_bytes()
    assert run(model, "--file", str(lines), "--out", str(out)) == 1
    assert f"{out}: is the file that is read" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_stdin_and_ctrl_c(path):
    arguments = [sys.executable, "-m", "mlx_ferrum.embed", str(path), "-", "--backend", "reference"]
    done = subprocess.run(arguments, input=b"a\nb\n", capture_output=True, check=True)
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["a", "b"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stderr is not None
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) in (130, -signal.SIGINT)
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no text: write some, or --file FILE"),
        (["a", "--out", "x.txt"], "expected a name that ends in .npy or .jsonl"),
    ],
)
def test_usage(arguments, message, path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(path, *arguments)
    assert message in capsys.readouterr().err


def test_a_file_of_other_bytes_is_refused(path, tmp_path, capsys):
    (tmp_path / "lines").write_bytes(b"a\xff\n")
    assert run(path, "--file", str(tmp_path / "lines")) == 1
    assert "lines is not valid UTF-8" in capsys.readouterr().err


REFUSING = {
    "mlx_ferrum.generate.command": ["--model", "MODEL", "--prompt", "a"],
    "mlx_ferrum.chat.command": ["--model", "MODEL"],
    "mlx_ferrum.experts.command": ["MODEL", "--prompt", "a"],
    "mlx_ferrum.convert.commands.perplexity": ["MODEL", "TEXT"],
    "mlx_ferrum.convert.commands.imatrix": ["MODEL", "TEXT", "OUT"],
    "mlx_ferrum.convert.commands.compare": ["MODEL", "MODEL", "--text", "TEXT"],
    "mlx_ferrum.convert.commands.quantize": ["MODEL", "OUT", "--budget", "30", "--text", "TEXT"],
}


@pytest.mark.parametrize("module", REFUSING)
def test_commands_for_language_models_refuse_in_one_line(module, path, tmp_path, capsys):
    (tmp_path / "text").write_text("a text")
    names = {"MODEL": path, "TEXT": tmp_path / "text", "OUT": tmp_path / "out"}
    arguments = [str(names.get(argument, argument)) for argument in REFUSING[module]]
    assert import_module(module).main(arguments) == 1
    assert capsys.readouterr().err == (
        f"error: {path}: an encoder makes embeddings and no text; use python -m mlx_ferrum.embed\n"
    )


def test_an_encoder_is_not_converted_for_mlx_lm(path, tmp_path, capsys):
    assert import_module("mlx_ferrum.convert.commands.mlx").main([str(path), f"{tmp_path}/o"]) == 1
    assert "architecture 'bert': mlx_lm runs no encoders" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("way", ["make_cache", "hidden_states", "logits"])
def test_what_only_language_models_have_is_refused(way, path):
    with pytest.raises(NotImplementedError, match="the model is an encoder"):
        getattr(mlx_ferrum.load(path)[0], way)(mx.array([[1]]))


def test_an_encoder_has_no_experts(path):
    with pytest.raises(NotImplementedError, match="an encoder has no experts"):
        routes(mlx_ferrum.load(path)[0], [1])


def test_a_language_model_is_refused_in_one_line(capsys):
    assert run(catalog.resolve("tiny-moe"), "a") == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.endswith(
        "a language model of architecture qwen3moe makes no embeddings, expected an encoder such as bert"
    )
