"""Embeddings of a small random BERT, converted from a Hugging Face folder, against float32 NumPy."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from bert_numpy import embedding
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import mlx_ferrum
from mlx_ferrum.convert.command import main as convert
from mlx_ferrum.embed.command import main as command

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [*SPECIAL, *"abcdefgh", *(f"##{c}" for c in "abcdefgh"), ",", "cafe", "##fed"]
CONFIG = {
    "architectures": ["BertModel"],
    "hidden_act": "gelu",
    "hidden_size": 24,
    "intermediate_size": 40,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 32,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": len(WORDS),
}
TEXTS = ["a", "Café, bad hedge", "", "abcdefgh " * 3, "zzz a"]
LINEARS = {
    "attention.self.query": (24, 24),
    "attention.self.key": (24, 24),
    "attention.self.value": (24, 24),
    "attention.output.dense": (24, 24),
    "intermediate.dense": (40, 24),
    "output.dense": (24, 40),
}


def random_weights():
    rng = np.random.default_rng(11)
    w = {
        f"embeddings.{name}_embeddings.weight": rng.normal(size=(rows, 24))
        for name, rows in (("word", len(WORDS)), ("position", 32), ("token_type", 2))
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(2):
        at = f"encoder.layer.{i}."
        norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
        for name, shape in LINEARS.items():
            w[f"{at}{name}.weight"] = rng.normal(size=shape) * 0.3
            w[f"{at}{name}.bias"] = rng.normal(size=shape[:1]) * 0.3
    for name in norms:
        w[f"{name}.weight"], w[f"{name}.bias"] = 1 + rng.normal(size=(2, 24)) * 0.2
    return {name: np.ascontiguousarray(x, np.float32) for name, x in w.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    fast = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer()
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast.add_special_tokens(SPECIAL)
    fast.enable_padding(length=30)
    fast.save(str(path / "tokenizer.json"))
    (path / "config.json").write_text(json.dumps(CONFIG))
    save_file(random_weights(), path / "model.safetensors")
    assert convert(["hf", str(path), str(path / "m.gguf"), "--type", "f32"]) == 0
    return path


@pytest.fixture(scope="module")
def wanted(folder):
    fast, w = Tokenizer.from_file(str(folder / "tokenizer.json")), random_weights()
    fast.no_padding()
    return np.stack([embedding(fast.encode(text).ids, w, CONFIG) for text in TEXTS])


def test_ragged_texts_are_embedded_as_each_alone(backend, folder, wanted):
    model, tokenizer = mlx_ferrum.load(folder / "m.gguf")
    found = mlx_ferrum.embed(model, tokenizer, TEXTS)
    assert found.dtype == np.float32
    assert found.shape == (5, 24)
    # The cosine of an error of 1e-3 of the length; float32 sums in another order, half-precision tiles on Metal.
    assert (found * wanted).sum(1).min() > 0.99999


def test_pooling(reference, folder):
    model: Any
    model, tokenizer = mlx_ferrum.load(folder / "m.gguf")
    made = {}
    for pooling in ("mean", "cls", "last"):
        model.args = dataclasses.replace(model.args, pooling=pooling)
        made[pooling] = mlx_ferrum.embed(model, tokenizer, ["bad"], normalize=False)[0]
        batch = mlx_ferrum.embed(model, tokenizer, ["abcdefgh", "bad"], normalize=False)
        np.testing.assert_allclose(batch[1], made[pooling], atol=2e-6)
    assert abs(made["cls"] - made["last"]).max() > 0.1


def test_command_prints_one_object_a_line(folder, wanted, capsys):
    assert command([str(folder / "m.gguf"), "--backend", "reference", *TEXTS[:2]]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == TEXTS[:2]
    np.testing.assert_allclose([line["embedding"] for line in lines], wanted[:2], atol=1e-5)


@pytest.mark.parametrize("texts", ["one string", ["a " * 31]])
def test_refused_texts(reference, folder, texts):
    model, tokenizer = mlx_ferrum.load(folder / "m.gguf")
    with pytest.raises(ValueError, match="texts"):
        mlx_ferrum.embed(model, tokenizer, texts)
