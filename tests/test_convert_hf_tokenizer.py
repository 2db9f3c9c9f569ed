"""Tokenizers of Hugging Face folders in GGUF files: the same ids, the right pre-tokenizer, types and special ids."""

import json
from pathlib import Path

import gguf
import hf_folders
import pytest
import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from mlx_ferrum.convert import huggingface, recognise
from mlx_ferrum.convert.command import main
from mlx_ferrum.convert.quantizing import Options
from mlx_ferrum.tokenizer import Tokenizer
from mlx_ferrum.tokenizer.pretokenizers import table
from mlx_ferrum.tokenizer.vocabulary import TokenType

TEXTS = (
    "hello the world",
    "  lead and trail ",
    "I'm 1234 años\n\n<|end|><tool>x",
    "我 🚀 <|begin|>\t",
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def bytes_after(*steps: pre_tokenizers.PreTokenizer, words: bool = False):
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    return pre_tokenizers.Sequence([*steps, last])


def cut(expression: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(expression), "isolated")


# What the authors of models write in tokenizer.json, and whether words that are tokens stay whole.
KNOWN = {
    "gpt-2": (bytes_after(words=True), False),
    "smollm": (bytes_after(pre_tokenizers.Digits(individual_digits=True), words=True), False),
    "qwen2": (bytes_after(cut(hf_folders.QWEN2)), False),
    "llama-bpe": (bytes_after(cut(hf_folders.LLAMA3_WORDS)), True),
    "smaug-bpe": (bytes_after(cut(hf_folders.LLAMA3_WORDS)), False),
    "gpt-4o": (bytes_after(cut(GPT4O)), False),
    "deepseek-v3": (
        bytes_after(cut(r"\p{N}{1,3}"), cut("[一-龥぀-ゟ゠-ヿ]+"), cut(DEEPSEEK3)),
        False,
    ),
}


def metadata(folder: Path, **options: str) -> dict:
    return {
        k: v.value for k, v in huggingface.plan(folder, Options("f16"), **options).metadata.items()
    }


def change(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("name", KNOWN)
def test_pretokenizers_are_recognised(name):
    pre, whole_words = KNOWN[name]
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre
    assert recognise.pretokenizer(tokenizer, whole_words) == name


def test_texts_tell_pretokenizers_apart():
    """All that differ, but two that differ in nothing but how they are written."""
    alike: dict[tuple, set] = {}
    for pre in table().values():
        if not pre.raw:
            key = tuple(
                tuple(sorted(recognise.cuts(pre, text)))
                for text in recognise.COMMON + recognise.RARE
            )
            alike.setdefault(key, set()).add(pre.steps)
    assert sorted(len(steps) for steps in alike.values())[-3:] == [1, 2, 2]


def test_an_unknown_pretokenizer_can_be_named(tmp_path):
    hf_folders.write(tmp_path / "m", "qwen3")
    hf_folders.write_tokenizer(tmp_path / "m", r"[a-z]+")
    with pytest.raises(NotImplementedError, match="--pre"):
        metadata(tmp_path / "m")
    assert metadata(tmp_path / "m", pre="qwen2")["tokenizer.ggml.pre"] == "qwen2"
    with pytest.raises(NotImplementedError, match="'nothing' is not supported"):
        metadata(tmp_path / "m", pre="nothing")


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_ids_are_those_of_the_folder(kind, tmp_path):
    hf_folders.write(tmp_path / "m", kind)
    ours = Tokenizer.from_metadata(metadata(tmp_path / "m"))
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "m" / "tokenizer.json"))
    for text in TEXTS:
        assert ours.encode(text, parse_special=True) == theirs.encode(text).ids, text


def test_types_padding_and_special_ids(tmp_path):
    hf_folders.write(tmp_path / "m", "qwen3")
    found = metadata(tmp_path / "m")
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert tokens[262:] == [*hf_folders.SPECIAL, *(f"[PAD{n}]" for n in range(266, 272))]
    wanted = [TokenType.CONTROL] * 3 + [TokenType.USER_DEFINED] + [TokenType.UNUSED] * 6
    assert types[262:] == [int(kind) for kind in wanted]
    assert found["tokenizer.ggml.merges"] == hf_folders.MERGES
    assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.eos_token_id"]) == (
        262,
        263,
    )
    assert found["tokenizer.ggml.add_bos_token"] is False


def test_merges_as_text_are_read_too(tmp_path):
    hf_folders.write(tmp_path / "m", "qwen3")
    file = tmp_path / "m" / "tokenizer.json"
    model = json.loads(file.read_text())["model"]
    change(file, model=model | {"merges": [" ".join(pair) for pair in model["merges"]]})
    assert metadata(tmp_path / "m")["tokenizer.ggml.merges"] == hf_folders.MERGES


def test_a_token_that_is_put_before_text_is_added(tmp_path):
    hf_folders.write(tmp_path / "m", "llama")
    piece = {"Sequence": {"id": "A", "type_id": 0}}
    begin = {"SpecialToken": {"id": "<|begin|>", "type_id": 0}}
    change(
        tmp_path / "m" / "tokenizer.json",
        post_processor={
            "type": "TemplateProcessing",
            "single": [begin, piece],
            "pair": [begin, piece],
            "special_tokens": {
                "<|begin|>": {"id": "<|begin|>", "ids": [262], "tokens": ["<|begin|>"]}
            },
        },
    )
    assert metadata(tmp_path / "m")["tokenizer.ggml.add_bos_token"] is True


def test_end_tokens_that_have_no_known_text_become_eot_and_eom(tmp_path):
    hf_folders.write(tmp_path / "m", "qwen3")
    defaults = {
        "eos_token_id": [263, 264, 265, 100],
        "temperature": 0.6,
        "top_k": 20,
        "repetition_penalty": 1.1,
    }
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps(defaults))
    found = metadata(tmp_path / "m")
    assert found["tokenizer.ggml.eos_token_id"] == 263
    assert found["tokenizer.ggml.eot_token_id"] == 265  # 264 is <|endoftext|>
    assert found["tokenizer.ggml.eom_token_id"] == 100
    assert Tokenizer.from_metadata(found).eos_token_ids >= {263, 264, 265, 100}
    assert found["general.sampling.temp"] == 0.6
    assert found["general.sampling.top_k"] == 20
    assert found["general.sampling.penalty_repeat"] == 1.1


def test_named_chat_templates_and_files_of_them(tmp_path):
    hf_folders.write(tmp_path / "m", "qwen3")
    file = tmp_path / "m" / "tokenizer_config.json"
    change(
        file,
        chat_template=[{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}],
    )
    found = metadata(tmp_path / "m")
    assert found["tokenizer.chat_template"] == "A"
    assert found["tokenizer.chat_template.tool_use"] == "B"
    file.write_text(json.dumps({"eos_token": "<|end|>"}))
    (tmp_path / "m" / "chat_template.jinja").write_text("C")
    assert metadata(tmp_path / "m")["tokenizer.chat_template"] == "C"


def test_the_model_card_gives_licence_and_languages(tmp_path):
    hf_folders.write(tmp_path / "Tiny-Instruct", "qwen3")
    card = "---\nlicense: apache-2.0\nlanguage: [en, fr]\nbase_model: some/Base-1B\n---\n# Tiny\n"
    (tmp_path / "Tiny-Instruct" / "README.md").write_text(card)
    found = metadata(tmp_path / "Tiny-Instruct")
    assert found["general.license"] == "apache-2.0"
    assert found["general.languages"] == ["en", "fr"]
    assert found["general.base_model.0.name"] == "Base 1B"
    assert found["general.name"] == "Tiny Instruct"
    assert found["general.finetune"] == "Instruct"
    named = metadata(tmp_path / "Tiny-Instruct", name="owner/Other-2B")
    assert (named["general.name"], named["general.organization"]) == ("Other 2B", "Owner")


@pytest.fixture(scope="module")
def sentence_piece(tmp_path_factory) -> bytes:
    """A small tokenizer.model."""
    import sentencepiece

    stem = tmp_path_factory.mktemp("spm") / "m"
    text = (Path(__file__).parent / "nasty_texts.py").read_text().splitlines()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for line in text if line.isascii()),
        model_prefix=str(stem),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return stem.with_suffix(".model").read_bytes()


@pytest.fixture
def spm_folder(tmp_path, sentence_piece) -> Path:
    """A folder with tokenizer.model, and two tokens that were added later."""
    folder = tmp_path / "m"
    hf_folders.write(folder, "mistral", vocab_size=404)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(sentence_piece)
    added = {"1": ("<s>", True), "400": ("<|im_start|>", False), "401": ("▁▁x", False)}
    decoder = {i: {"content": text, "special": special} for i, (text, special) in added.items()}
    config = {"added_tokens_decoder": decoder, "add_bos_token": True, "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    change(folder / "config.json", bos_token_id=1, eos_token_id=2)
    return folder


def test_sentence_piece_models(spm_folder):
    import sentencepiece

    found = metadata(spm_folder)
    assert found["tokenizer.ggml.model"] == "llama"
    types = found["tokenizer.ggml.token_type"]
    assert types[:4] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    assert types[400:] == [
        TokenType.CONTROL,
        TokenType.USER_DEFINED,
        TokenType.UNUSED,
        TokenType.UNUSED,
    ]
    assert found["tokenizer.ggml.tokens"][400:] == ["<|im_start|>", "  x", "[PAD402]", "[PAD403]"]
    assert "tokenizer.ggml.add_space_prefix" not in found
    ours = Tokenizer.from_metadata(found)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(spm_folder / "tokenizer.model"))
    for text in TEXTS:
        assert ours.encode(text, add_special=False) == theirs.encode(text), text


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_piece_written_as_merges(prefix, spm_folder):
    import sentencepiece

    theirs = sentencepiece.SentencePieceProcessor(model_file=str(spm_folder / "tokenizer.model"))
    texts = [theirs.id_to_piece(i) for i in range(400)]
    ids = {text: i for i, text in enumerate(texts)}
    merges = [  # in the order of the scores, as transformers writes them
        (text[:n], text[n:])
        for text in sorted(texts[259:], key=lambda text: -theirs.get_score(ids[text]))
        for n in range(1, len(text))
        if text[:n] in ids and text[n:] in ids
    ]
    model = models.BPE(
        vocab=ids, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True
    )
    tokenizer = tokenizers.Tokenizer(model)
    steps: list = [tokenizers.normalizers.Prepend("▁")] if prefix else []
    steps.append(tokenizers.normalizers.Replace(" ", "▁"))
    tokenizer.normalizer = tokenizers.normalizers.Sequence(steps)
    tokenizer.save(str(spm_folder / "tokenizer.json"))
    (spm_folder / "tokenizer.model").unlink()
    (spm_folder / "tokenizer_config.json").write_text("{}")
    found = metadata(spm_folder)
    assert found.get("tokenizer.ggml.add_space_prefix") is (None if prefix else False)
    ours = Tokenizer.from_metadata(found)
    for text in (*TEXTS, *Path(__file__).read_text().splitlines()[:60]):
        if text:
            wanted = theirs.encode(text) if prefix else tokenizer.encode(text).ids
            assert ours.encode(text, add_special=False) == wanted, text


def test_gguf_files_hold_what_was_planned(spm_folder):
    out = spm_folder.with_suffix(".gguf")
    assert main(["hf", str(spm_folder), str(out), "--type", "f16"]) == 0
    fields = gguf.GGUFReader(out).fields
    assert fields["tokenizer.ggml.tokens"].contents()[400:402] == ["<|im_start|>", "  x"]
    assert fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_F16


@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"400": 1}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "y"}}}),
        ("added_tokens.json", {"<x>": "400"}),
    ],
)
def test_damaged_added_tokens_are_refused(name, added, spm_folder):
    (spm_folder / name).write_text(json.dumps(added))
    with pytest.raises(ValueError, match="m: damaged tokenizer files: "):
        metadata(spm_folder)
