"""Embeddings of a small random BERT, converted from a Hugging Face folder, against float32 NumPy."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import bert_numpy
import hf_bert
import numpy as np
import pytest

import mlx_ferrum
from mlx_ferrum import catalog
from mlx_ferrum.convert.command import main as convert
from mlx_ferrum.embed import output
from mlx_ferrum.embed import texts as embedding_texts
from mlx_ferrum.embed.command import main as command
from mlx_ferrum.generate.command import main as generate

TEXTS = ["a", "Café, the long text", "", "abc " * 9, "zzz 한국", "hello - text!"]
LONG = "b " * 60  # 62 tokens with those around them; the folder says 32, the model could take 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert") / "m"
    hf_bert.write(path)
    return path


def converted(folder: Path, recipe: str = "f32") -> Path:
    out = folder.parent / f"{recipe}.gguf"
    if not out.exists():
        assert convert(["hf", str(folder), str(out), "--type", recipe]) == 0
    return out


@pytest.fixture(scope="module")
def path(folder):
    return converted(folder)


def oracle(path: Path, texts: list[str], tokenizer: Any) -> np.ndarray:
    found = bert_numpy.read(path)
    return np.stack([bert_numpy.embedding(tokenizer.encode(text), *found) for text in texts])


@pytest.mark.parametrize("recipe", ["f32", "f16", "q8_0", "q4_k_m", "iq4_nl"])
def test_ragged_texts_are_embedded_as_each_alone(recipe, backend, folder, monkeypatch):
    monkeypatch.setattr(embedding_texts, "BATCH", 4)
    model, tokenizer = mlx_ferrum.load(converted(folder, recipe))
    found = mlx_ferrum.embed(model, tokenizer, TEXTS)
    assert found.dtype == np.float32
    assert found.shape == (6, 64)
    wanted = oracle(converted(folder, recipe), TEXTS, tokenizer)
    # Vectors of length 1: tiles of half-precision on Metal, activations of 15 bits on a CPU.
    most = {"metal": 1e-3, "cpu": 1e-4}.get(backend.name, 1e-5)
    assert np.linalg.norm(found - wanted, axis=1).max() < most


@pytest.mark.parametrize("mode", ["mean", "cls", "last"])
def test_pooling(mode, backend, path):
    model: Any
    model, tokenizer = mlx_ferrum.load(path)
    model.pooling = dataclasses.replace(model.pooling, mode=mode)
    found = mlx_ferrum.embed(model, tokenizer, TEXTS, normalize=False)
    for text, vector in zip(TEXTS, found, strict=True):
        x = bert_numpy.hidden(tokenizer.encode(text), *bert_numpy.read(path))
        wanted = {"mean": x.mean(0), "cls": x[0], "last": x[-1]}[mode]
        np.testing.assert_allclose(vector, wanted, atol=2e-2 if backend.name == "metal" else 2e-4)


def test_length_is_the_authors_choice(reference, path):
    model: Any
    model, tokenizer = mlx_ferrum.load(path)
    raw, normed = (mlx_ferrum.embed(model, tokenizer, ["a"], normalize=n) for n in (False, True))
    assert abs(np.linalg.norm(raw) - 1) > 0.1
    assert np.linalg.norm(normed) == pytest.approx(1)
    np.testing.assert_array_equal(mlx_ferrum.embed(model, tokenizer, ["a"]), normed)
    model.pooling = dataclasses.replace(model.pooling, normalize=False)
    np.testing.assert_array_equal(mlx_ferrum.embed(model, tokenizer, ["a"]), raw)


def test_a_long_text_is_truncated_with_a_notice(reference, path, caplog):
    model, tokenizer = mlx_ferrum.load(path)
    found = mlx_ferrum.embed(model, tokenizer, ["a", LONG])
    kept = tokenizer.encode(LONG)[:31] + tokenizer.encode("")[-1:]
    wanted = bert_numpy.embedding(kept, *bert_numpy.read(path))
    assert found[1] @ wanted > 0.999999
    assert "1 of 2 texts have more than 32 tokens and were truncated, first texts[1] with 62" in (
        caplog.text
    )


def test_a_file_that_does_not_say_the_pooling(reference, folder, tmp_path, caplog):
    hf_bert.write(tmp_path / "m")
    (tmp_path / "m" / "modules.json").unlink()
    model, tokenizer = mlx_ferrum.load(converted(tmp_path / "m"))
    assert "bert.pooling_type: not in the file" in caplog.text
    caplog.clear()
    found = mlx_ferrum.embed(model, tokenizer, [*TEXTS, "b " * 38])  # 40 tokens: all positions
    assert not caplog.text
    wanted = oracle(converted(folder), [*TEXTS, "b " * 38], tokenizer)
    assert (found * wanted).sum(1).min() > 0.999999


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bert.pooling_type=0", None, "bert.pooling_type: 0 is not supported, expected 1 .mean"),
        ("bert.pooling_type=4", None, "bert.pooling_type: 4 is not supported"),
        ("bert.attention.causal=true", None, "causal attention is not supported"),
        ("sentence_transformers.max_seq_length=0", None, "0 found, expected a positive number"),
        ("bert.attention.head_count=5", None, "64 is not a multiple of 5 heads"),
        ("tokenizer.ggml.token_type_count=0", None, "0 found, expected a positive number"),
    ],
)
def test_files_that_are_refused(key, value, message, path, tmp_path):
    out = tmp_path / "m.gguf"
    assert convert(["edit", str(path), str(out), "--set", key]) == 0
    with pytest.raises((ValueError, NotImplementedError), match=message):
        mlx_ferrum.load(out)


@pytest.mark.parametrize("texts", ["one string", b"bytes", 3, ["a", 3], ["a", b"b"]])
def test_refused_texts(reference, path, texts):
    model, tokenizer = mlx_ferrum.load(path)
    with pytest.raises(ValueError, match=r"^texts.* found, expected"):
        mlx_ferrum.embed(model, tokenizer, texts)


def test_no_texts(reference, path):
    assert mlx_ferrum.embed(*mlx_ferrum.load(path), []).shape == (0, 64)


def test_damaged_weights_are_noticed(reference, path):
    model: Any
    model, tokenizer = mlx_ferrum.load(path)
    model.norm.eps = float("nan")
    with pytest.raises(ValueError, match=r"texts\[0\] is not finite"):
        mlx_ferrum.embed(model, tokenizer, ["a"])


def run(path: Path, *arguments: str) -> int:
    return command([str(path), "--backend", "reference", *arguments])


def test_command_prints_one_object_a_line(path, capsys):
    assert run(path, *TEXTS[:2]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == TEXTS[:2]
    wanted = mlx_ferrum.embed(*mlx_ferrum.load(path), TEXTS[:2])
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


def test_commands_that_want_the_other_kind_of_model_refuse_in_one_line(path, capsys):
    assert generate(["--model", str(path), "--prompt", "a"]) == 1
    error = capsys.readouterr().err
    assert (
        error
        == f"error: {path}: an encoder makes embeddings and no text; use python -m mlx_ferrum.embed\n"
    )
    assert run(catalog.resolve("tiny-moe"), "a") == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "a language model of architecture qwen3moe makes no embeddings" in error


def test_the_other_kind_of_model_is_refused(reference, path):
    model, tokenizer = mlx_ferrum.load(path)
    with pytest.raises(NotImplementedError, match=r"use mlx_ferrum\.embed"):
        mlx_ferrum.generate(model, tokenizer, "a")
    with pytest.raises(NotImplementedError, match="expected an encoder"):
        mlx_ferrum.embed(*mlx_ferrum.load("tiny-moe"), ["a"])
