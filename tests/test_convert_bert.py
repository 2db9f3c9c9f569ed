"""Folders of sentence-transformers to GGUF: BERT's tensors and metadata, its pooling, and the tokens of its texts."""

import json
from pathlib import Path
from typing import Any

import hf_bert
import hf_folders
import nasty_texts
import numpy as np
import pytest
import tokenizers

from mlx_ferrum import gguf
from mlx_ferrum.convert.command import main
from mlx_ferrum.tokenizer import Tokenizer

GOLDEN = json.loads((Path(__file__).parent / "golden" / "convert_hf.json").read_text())["bert"]
OWN = {  # keys that llama.cpp does not write
    "sentence_transformers.max_seq_length": 32,
    "sentence_transformers.normalize": True,
    "tokenizer.huggingface.max_input_chars_per_word": 100,
    "tokenizer.huggingface.normalizer": "BertNormalizer",
}
TEXTS = (
    "Hello, the Café is OPENING!",
    "한국 각",  # syllables become two or three letters
    "\u0958\u093e का स",  # a letter with a nonspacing mark, which goes, and a vowel sign, which stays
    "中中x λόγος Łódź",
    "a\x0bb\x0cc\x85d\u2028e\tf",
    "hello\u2581the \u2581",
    "x" * 100 + " " + "x" * 101,
    "[MASK] the [SEP]",
    "",
)


def convert(folder: Path, *arguments: str) -> gguf.GGUF:
    out = folder.with_suffix(".gguf")
    assert main(["hf", str(folder), str(out), "--force", *arguments]) == 0
    return gguf.read(out)


def refused(folder: Path, capsys: Any) -> str:
    """The last line on stderr."""
    assert main(["hf", str(folder), str(folder.with_suffix(".gguf"))]) == 1
    assert not folder.with_suffix(".gguf").exists()
    return str(capsys.readouterr().err.splitlines()[-1])


@pytest.fixture
def folder(tmp_path):
    hf_bert.write(tmp_path / "m")
    return tmp_path / "m"


def test_tensors_and_metadata_are_those_of_llama_cpp(tmp_path):
    hf_bert.write(tmp_path / "Tiny-bert")
    file = convert(tmp_path / "Tiny-bert", "--type", "f16")
    found = {
        name: [t.type, list(t.shape), hf_folders.digest(file.data(name).tobytes())]
        for name, t in file.tensors.items()
    }
    assert found == GOLDEN["tensors"]
    metadata = {
        k: v.tolist() if isinstance(v, np.ndarray) else v
        for k, v in file.metadata.items()
        if not k.endswith(".tokens")
    }
    assert metadata == GOLDEN["metadata"] | OWN


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"pooling_mode_mean_tokens": True}, 1),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, 2),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, 3),
        ({"pooling_mode": "cls", "embedding_dimension": 64}, 2),
        ({"pooling_mode": ["lasttoken"]}, 3),
    ],
)
def test_pooling_is_read(config, wanted, folder):
    hf_bert.write_steps(folder, **config)
    assert convert(folder, "--type", "f16").metadata["bert.pooling_type"] == wanted


def test_vectors_that_are_not_normalized_are_known(folder):
    hf_bert.write_steps(folder, "Transformer", "Pooling")
    assert convert(folder, "--type", "f16").metadata["sentence_transformers.normalize"] is False


@pytest.mark.parametrize(
    ("options", "tokenizer", "wanted"),
    [
        ({"max_seq_length": 16}, {"model_max_length": 8}, 16),
        ({"max_seq_length": None}, {"model_max_length": 8}, 8),
        ({}, {"model_max_length": 1000000000000000019884624838656}, 40),
        ({"max_seq_length": 512}, {}, 40),
        ({}, {}, 40),
    ],
    ids=str,
)
def test_the_longest_text(options, tokenizer, wanted, folder):
    """What sentence-transformers truncates at, and the model's positions at most."""
    write(SENTENCES, options)(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | tokenizer))
    metadata = convert(folder, "--type", "f16").metadata
    assert metadata["sentence_transformers.max_seq_length"] == wanted


def test_a_folder_without_steps_leaves_the_pooling_open(folder):
    (folder / "modules.json").unlink()
    metadata = convert(folder, "--type", "f16").metadata
    assert "bert.pooling_type" not in metadata
    assert not any(key.startswith("sentence_transformers.") for key in metadata)


def write(name: str, found: object) -> Any:
    return lambda folder: (folder / name).write_text(json.dumps(found))


POOLING, SENTENCES = "1_Pooling/config.json", "sentence_bert_config.json"
BROKEN: dict[str, tuple[Any, str]] = {
    "maximum": (write(POOLING, {"pooling_mode_max_tokens": True}), "pooling max_tokens is not supported"),
    "two modes": (
        write(POOLING, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}),
        "pooling cls and mean is not supported",
    ),
    "no mode": (write(POOLING, {}), "pooling without a mode is not supported"),
    "a new mode": (write(POOLING, {"pooling_mode": "weightedmean"}), "pooling weightedmean is not"),
    "no pooling file": (lambda f: (f / POOLING).unlink(), "modules.json names it for the pooling"),
    "a dense step": (lambda f: hf_bert.write_steps(f, *hf_bert.STEPS, "Dense"), "'3_Dense' of type Dense is not"),
    "no pooling step": (lambda f: hf_bert.write_steps(f, "Transformer"), "expected one Pooling, found Transformer"),
    "steps of text": (write("modules.json", "x"), "expected a list of steps with type and path"),
    "a step elsewhere": (write("modules.json", [{"type": "Pooling", "path": "../x"}]), "folders within this one"),
    "no longest text": (write(SENTENCES, {"max_seq_length": 0}), "max_seq_length: expected a positive number"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_steps_that_cannot_be_honoured_are_refused(what, folder, capsys):
    change, message = BROKEN[what]
    change(folder)
    assert message in refused(folder, capsys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is"),
        ({"is_decoder": True}, "is_decoder True is not supported, expected False"),
        ({"hidden_act": "relu"}, "activation 'relu' is not supported, expected 'gelu'"),
        ({"hidden_act": "gelu_new"}, "activation 'gelu_new' is not supported"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "activation 'gelu_pytorch_tanh' is not supported"),
        ({"architectures": ["BertForSequenceClassification"]}, "SequenceClassification' is not"),
    ],
)
def test_options_that_do_not_run_are_refused(changes, message, tmp_path, capsys):
    hf_bert.write(tmp_path / "m", **changes)
    assert message in refused(tmp_path / "m", capsys)


@pytest.mark.parametrize(
    "name",
    [
        "encoder.layer.1.attention.self.key.bias",
        "encoder.layer.0.output.LayerNorm.bias",
        "embeddings.LayerNorm.bias",
        "embeddings.token_type_embeddings.weight",
    ],
)
def test_a_missing_tensor_is_noticed(name, folder, capsys):
    made = hf_bert.tensors(hf_bert.CONFIG)
    del made[name]
    hf_folders.save(folder / "model.safetensors", made)
    assert "1 tensors missing: " in refused(folder, capsys)


def test_older_names_and_heads(folder):
    """Layer norms as TensorFlow named them, in a model with a head for masked words; defaults are left out."""
    wanted = convert(folder, "--type", "f16")
    made = {}
    for name, x in hf_bert.tensors(hf_bert.CONFIG).items():
        if "LayerNorm" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        made[f"bert.{name}"] = x
    made["cls.predictions.bias"] = np.zeros(3, np.float32)
    options: dict[str, Any] = {
        "layer_norm_eps": None,
        "hidden_act": "gelu_python",
        "type_vocab_size": None,
    }
    hf_bert.write(folder, architectures=["BertForMaskedLM"], **options)
    hf_folders.save(folder / "model.safetensors", made)
    found = convert(folder, "--type", "f16")
    assert found.metadata.keys() == wanted.metadata.keys()
    assert found.tensors.keys() == wanted.tensors.keys()
    for name in wanted.tensors:
        np.testing.assert_array_equal(found.data(name), wanted.data(name), name)


@pytest.mark.parametrize(
    "normalizer",
    [{}, {"lowercase": False}, {"strip_accents": False}, {"lowercase": False, "strip_accents": True}],
    ids=str,
)  # fmt: skip
def test_tokens_are_those_of_the_folder(normalizer, folder):
    hf_bert.write_tokenizer(folder, **normalizer)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.no_padding()
    theirs.no_truncation()
    ours = Tokenizer.from_metadata(convert(folder, "--type", "f16").metadata)
    for text in (*TEXTS, *filter(is_text, nasty_texts.texts())):
        assert ours.encode(text, parse_special=True) == theirs.encode(text).ids, text


def is_text(text: str) -> bool:
    return text.encode(errors="ignore").decode() == text


def test_without_the_packages_key_tokens_are_those_of_llama_cpp(folder):
    metadata = convert(folder, "--type", "f16").metadata
    del metadata["tokenizer.huggingface.normalizer"]
    ids = Tokenizer.from_metadata(metadata).encode("한", add_special=False)
    assert [metadata["tokenizer.ggml.tokens"][i] for i in ids] == ["\u2581\u1112"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("normalizer", "NFKC", "'NFKC' is not supported, expected 'BertNormalizer'"),
        ("max_input_chars_per_word", 0, "0 found, expected a positive number"),
    ],
)
def test_unknown_values_of_the_packages_keys_are_refused(key, value, message, folder):
    metadata = convert(folder, "--type", "f16").metadata
    metadata[f"tokenizer.huggingface.{key}"] = value
    with pytest.raises((ValueError, NotImplementedError), match=message):
        Tokenizer.from_metadata(metadata)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("normalizer", {"type": "NFC"}, "normalizer: type 'NFC' is not supported"),
        ("pre_tokenizer", {"type": "Whitespace"}, "pre_tokenizer: type 'Whitespace' is not"),
        ("post_processor", None, "expected an unknown token and two tokens around a text"),
    ],
)
def test_other_word_piece_tokenizers_are_refused(part, value, message, folder, capsys):
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {part: value}))
    assert message in refused(folder, capsys)


def test_what_is_done_to_texts_before_is_told(folder, caplog):
    write(SENTENCES, {"do_lower_case": True})(folder)
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    write("config_sentence_transformers.json", prompts)(folder)
    convert(folder, "--type", "f16")
    assert "do_lower_case" in caplog.text
    assert "the prompt 'query: '" in caplog.text


@pytest.mark.parametrize("recipe", ["q8_0", "q4_k_m", "iq4_xs"])
def test_one_pass_is_as_two(recipe, folder):
    """Types and blocks are those of `quantize`, by way of a file in F32."""
    whole = convert(folder, "--type", "f32")
    two = folder.with_name("two.gguf")
    assert main(["quantize", str(folder.with_suffix(".gguf")), str(two), "--type", recipe]) == 0
    found, wanted = convert(folder, "--type", recipe), gguf.read(two)
    assert found.metadata.keys() == wanted.metadata.keys() == whole.metadata.keys()
    for name, t in wanted.tensors.items():
        assert found.tensors[name].type == t.type
        np.testing.assert_array_equal(found.data(name), wanted.data(name), name)
    assert found.tensors["position_embd.weight"].type == "F32"
