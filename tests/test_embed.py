"""Embeddings of a small random BERT, converted from a Hugging Face folder, against float32 NumPy."""

import dataclasses
from pathlib import Path
from typing import Any

import bert_numpy
import gguf
import hf_bert
import numpy as np
import pytest
from hf_bert import converted

import mlx_ferrum
from mlx_ferrum.convert.command import main as convert
from mlx_ferrum.embed import texts as embedding_texts

TEXTS = ["a", "Café, the long text", "", "abc " * 9, "zzz 한국", "hello - text!"]
LONG = "b " * 60  # 62 tokens with those around them; the folder says 32, the model could take 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert") / "m"
    hf_bert.write(path)
    return path


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
    most = {"gpu": 1e-3, "cpu": 1e-4}.get(backend.kind, 1e-5)
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
        np.testing.assert_allclose(vector, wanted, atol=2e-2 if backend.is_gpu else 2e-4)


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


def rewritten(path: Path, out: Path, change: Any) -> Path:
    """A file with other tensors: `change` takes those by their names and returns what is written."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, "bert")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)
    for name, data in change({t.name: t.data for t in reader.tensors}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def fused(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One tensor for queries, keys and values, as some converters write them."""
    for i in range(2):
        for end in ("weight", "bias"):
            parts = [tensors.pop(f"blk.{i}.attn_{n}.{end}") for n in "qkv"]
            tensors[f"blk.{i}.attn_qkv.{end}"] = np.concatenate(parts)
    return tensors


def test_queries_keys_and_values_in_one_tensor(reference, path, tmp_path):
    wanted = mlx_ferrum.embed(*mlx_ferrum.load(path), TEXTS)
    found = mlx_ferrum.embed(*mlx_ferrum.load(rewritten(path, tmp_path / "m.gguf", fused)), TEXTS)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_file_without_token_types(reference, path, tmp_path):
    """As of models that have none, such as DistilBERT; the rows of words and types are added up otherwise."""

    def added(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        types = tensors.pop("token_types.weight")
        return tensors | {"token_embd.weight": tensors["token_embd.weight"] + types[0]}

    wanted = mlx_ferrum.embed(*mlx_ferrum.load(path), TEXTS)
    found = mlx_ferrum.embed(*mlx_ferrum.load(rewritten(path, tmp_path / "m.gguf", added)), TEXTS)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["blk.1.attn_q.weight", "token_embd_norm.bias"])
def test_a_missing_tensor_is_noticed(name, path, tmp_path):
    def without(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        del tensors[name]
        return tensors

    with pytest.raises(ValueError, match=f"tensor '{name}' is missing"):
        mlx_ferrum.load(rewritten(path, tmp_path / "m.gguf", without))


def test_an_array_of_texts(reference, path):
    model, tokenizer = mlx_ferrum.load(path)
    wanted = mlx_ferrum.embed(model, tokenizer, TEXTS)
    found = mlx_ferrum.embed(model, tokenizer, np.array(TEXTS))
    np.testing.assert_array_equal(found, wanted)
    with pytest.raises(ValueError, match="texts: ndarray found, expected a sequence of strings"):
        mlx_ferrum.embed(model, tokenizer, np.array("a"))


def test_the_other_kind_of_model_is_refused(reference, path):
    model, tokenizer = mlx_ferrum.load(path)
    with pytest.raises(NotImplementedError, match=r"use mlx_ferrum\.embed"):
        mlx_ferrum.generate(model, tokenizer, "a")
    with pytest.raises(NotImplementedError, match="expected an encoder"):
        mlx_ferrum.embed(*mlx_ferrum.load("tiny-moe"), ["a"])
