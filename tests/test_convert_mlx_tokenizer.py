"""tokenizer.json of a GGUF file: the ids of our tokenizer, special tokens and chat templates."""

import json
from pathlib import Path
from typing import Any

import hf_folders
import nasty_texts
import numpy as np
import pytest
import tokenizers
import vocabularies

from mlx_ferrum import catalog, gguf
from mlx_ferrum.convert import general, tokenizer_json
from mlx_ferrum.convert.command import main
from mlx_ferrum.tokenizer import Tokenizer
from mlx_ferrum.tokenizer.pretokenizers import table

# Cuts that no regular expression of the library makes, and vocabularies that are not spelled in byte letters.
REFUSED = {
    "tiny_aya",
    "cohere2moe",
    "afmoe",
    "superbpe",
    "gemma4",
    "granite-embed-multi-311m",
    "mmbert",
    "sarvam-moe",
}


def is_text(text: str) -> bool:
    """Whether it is UTF-8: the library takes nothing else."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def check(metadata: dict[str, Any], texts: list[str]) -> None:
    """Every text becomes the same ids, special tokens included."""
    made = tokenizer_json.files(metadata, 128)["tokenizer.json"]
    theirs, ours = (
        tokenizers.Tokenizer.from_str(json.dumps(made)),
        Tokenizer.from_metadata(metadata),
    )
    for text in filter(is_text, texts):
        ids = ours.encode(text, parse_special=True)
        assert theirs.encode(text).ids == ids, text
        bare = ours.encode(text, add_special=False, parse_special=True)
        assert theirs.encode(text, add_special_tokens=False).ids == bare, text


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m", "tiny-moe"])
def test_ids_of_real_vocabularies(name):
    check(dict(gguf.read(catalog.resolve(name)).metadata), nasty_texts.texts())


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2", "tekken", "deepseek-llm"])
def test_ids_of_pretokenizers(name):
    check(vocabularies.pairs(name), nasty_texts.short_texts())


@pytest.mark.parametrize("name", table())
def test_pretokenizers_are_written_or_refused(name):
    if name in REFUSED:
        with pytest.raises(NotImplementedError, match=f"'{name}' cannot be written for mlx_lm"):
            tokenizer_json.pre_tokenizer(name)
    else:
        made: dict[str, Any] = {"pre_tokenizer": tokenizer_json.pre_tokenizer(name)}
        made |= {"model": {"type": "BPE", "vocab": {}, "merges": []}}
        tokenizers.Tokenizer.from_str(
            json.dumps(made)
        )  # raises for an expression that it cannot read


def test_ids_with_a_space_before_text_and_tokens_around():
    """As in Llama 2's vocabulary; scores differ, since equal ones are merged from the left only here."""
    metadata = vocabularies.space_prefix(gguf.read(catalog.resolve("gemma3-270m")).metadata)
    order = np.argsort(-metadata["tokenizer.ggml.scores"], kind="stable")
    metadata["tokenizer.ggml.scores"] = -np.argsort(order).astype(np.float32)
    check(metadata, nasty_texts.texts())


def test_word_pieces_are_refused():
    tokens = [f"t{i}" for i in range(200)]
    metadata = {"tokenizer.ggml.model": "bert", vocabularies.TOKENS: tokens}
    with pytest.raises(NotImplementedError, match="'bert' cannot be written for mlx_lm"):
        tokenizer_json.files(metadata, 128)


def test_special_tokens_templates_and_sampling_are_written(tmp_path):
    metadata = vocabularies.pairs("qwen2") | {
        "tokenizer.chat_template": "{{ messages }}",
        "tokenizer.chat_template.tool_use": "{{ tools }}",
        "tokenizer.ggml.padding_token_id": 2,
        "general.sampling.temp": 0.6,
        "general.sampling.top_k": 20,
    }
    files = tokenizer_json.files(metadata, 4096)
    config, generation = files["tokenizer_config.json"], files["generation_config.json"]
    assert (config["bos_token"], config["eos_token"], config["pad_token"]) == (
        "<s>",
        "</s>",
        "<unk>",
    )
    assert config["chat_template"] == [
        {"name": "default", "template": "{{ messages }}"},
        {"name": "tool_use", "template": "{{ tools }}"},
    ]
    assert config["model_max_length"] == 4096
    assert generation["eos_token_id"] == [1, 4]  # </s> first, then <|im_end|>, which ends text, too
    assert (generation["temperature"], generation["top_k"], generation["do_sample"]) == (
        0.6,
        20,
        True,
    )


def test_padding_is_no_token(tmp_path):
    """hf fills the table of embeddings up with tokens that a tokenizer.json does not have."""
    hf_folders.write(tmp_path / "hf", "qwen3")
    assert main(["hf", str(tmp_path / "hf"), str(tmp_path / "m.gguf"), "--type", "f16"]) == 0
    made = tokenizer_json.files(dict(gguf.read(tmp_path / "m.gguf").metadata), 128)[
        "tokenizer.json"
    ]
    before = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())
    assert made["model"]["merges"] == before["model"]["merges"]
    assert made["model"]["vocab"].items() >= before["model"]["vocab"].items()
    assert max(made["model"]["vocab"].values()) == max(t["id"] for t in before["added_tokens"])
    added = [[(t["id"], t["content"]) for t in x["added_tokens"]] for x in (made, before)]
    assert added[0] == added[1]


def test_the_card_keeps_licence_and_name(tmp_path):
    metadata = {
        "general.name": "A: model",
        "general.license": "mit",
        "general.languages": ["de", "fr"],
    }
    hf_folders.write(tmp_path / "m", "qwen3")
    (tmp_path / "m" / "README.md").write_text(general.card(metadata))
    assert main(["hf", str(tmp_path / "m"), str(tmp_path / "m.gguf"), "--type", "f16"]) == 0
    found = gguf.read(Path(tmp_path / "m.gguf")).metadata
    assert {
        k: list(found[k]) if k.endswith("s") else found[k]
        for k in metadata
        if k != "general.license"
    } == {k: v for k, v in metadata.items() if k != "general.license"}
    assert found["general.license"] == "mit"
    assert general.card({}).startswith("---\n---\n")
