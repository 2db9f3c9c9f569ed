"""Token ids against llama.cpp's (golden file, and live where it is installed), decoding, and refusals."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import nasty_texts
import numpy as np
import pytest
import vocabularies

from mlx_ferrum import gguf
from mlx_ferrum.tokenizer import Tokenizer, merging, pretokenizers, unicode
from mlx_ferrum.tokenizer.splitting import split

GOLDEN = json.loads((Path(__file__).parent / "golden" / "tokens.json").read_text())
VARIANTS = {name: group for group in GOLDEN["variants"] for name in group["names"]}
REAL = ["smollm2", "gemma3"]
needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="llama.cpp's bindings are not installed"
)


@pytest.fixture(scope="session")
def real_paths(smollm2_path, gemma3_path):
    return {"smollm2": smollm2_path, "gemma3": gemma3_path}


@pytest.fixture(scope="session")
def real_metadata(real_paths):
    return {name: gguf.read(path).metadata for name, path in real_paths.items()}


@pytest.fixture(scope="session")
def real(real_metadata):
    return {name: Tokenizer.from_metadata(data) for name, data in real_metadata.items()}


@pytest.fixture(scope="session")
def made(real_metadata):
    """Metadata of every kind of tokenizer, by name."""
    return vocabularies.variants(real_metadata["smollm2"], real_metadata["gemma3"])


@pytest.fixture
def metadata():
    """A small tokenizer that a test may damage."""
    return vocabularies.pairs("gpt-2")


@pytest.mark.parametrize("name", REAL)
def test_ids_of_real_vocabularies(real, name):
    tokenizer, golden = real[name], GOLDEN["real"][name]
    for place, text in enumerate(GOLDEN["texts"]):
        plain = golden["plain"][place]
        parsed = golden["parsed"].get(str(place), plain)
        assert tokenizer.encode(text, add_special=False) == plain, repr(text)
        assert tokenizer.encode(text, add_special=False, parse_special=True) == parsed, repr(text)
    assert tokenizer.encode("") == golden["around"]
    assert sorted(tokenizer.eos_token_ids) == golden["end_ids"]


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_ids_of_every_kind(made, name):
    tokenizer, golden = Tokenizer.from_metadata(made[name]), VARIANTS[name]
    for text, ids in zip(GOLDEN["short"], golden["ids"], strict=True):
        assert tokenizer.encode(text, parse_special=True) == ids, repr(text)
    assert sorted(tokenizer.eos_token_ids) == golden["end_ids"]


def test_every_pre_tokenizer_has_golden_ids():
    assert set(pretokenizers.table()) <= set(VARIANTS)


@needs_llama_cpp
@pytest.mark.parametrize("name", [*REAL, *(group["names"][0] for group in GOLDEN["variants"])])
def test_ids_of_random_texts_live(real_paths, real_metadata, made, name, tmp_path):
    from llama_vocabulary import LlamaVocabulary, write

    path = real_paths.get(name) or tmp_path / "vocabulary.gguf"
    metadata = real_metadata.get(name) or made[name]
    if name not in REAL:
        write(path, metadata)
    tokenizer, oracle = Tokenizer.from_metadata(metadata), LlamaVocabulary(path)
    rng = random.Random()
    for _ in range(100):
        text = nasty_texts.scrambled(rng)
        special, parse = rng.random() < 0.5, rng.random() < 0.5
        assert tokenizer.encode(text, special, parse) == oracle.encode(text, special, parse), repr(
            text
        )
    oracle.close()


def test_parsed_text_between_special_tokens(real):
    tokenizer = real["smollm2"]
    im_start, im_end = (tokenizer.tokens.index(t) for t in ("<|im_start|>", "<|im_end|>"))
    ids = tokenizer.encode("<|im_start|>user<|im_end|>", parse_special=True)
    assert (ids[0], ids[-1]) == (im_start, im_end)
    assert im_start not in tokenizer.encode("<|im_start|>user<|im_end|>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.vocab_size == len(tokenizer.tokens) == 49152


@pytest.mark.parametrize("name", REAL)
def test_bytes_are_the_same_as_escaped_text(real, name):
    for text in GOLDEN["texts"]:
        data = text.encode("utf-8", "surrogateescape")
        assert real[name].encode(data, parse_special=True) == real[name].encode(
            data.decode("utf-8", "surrogateescape"), parse_special=True
        )


LONG = ["a", " ", "7", "\n", "word ", "é", "<|im_end|>", "\udcff"]


@pytest.mark.parametrize("kind", ["gpt-2", "deepseek-llm", "superbpe", "space prefix"])
@pytest.mark.parametrize("unit", LONG)
def test_long_texts(made, kind, unit):
    """Quadratic work on 100,000 characters would take minutes."""
    tokenizer = Tokenizer.from_metadata(made[kind])
    text = unit * (100_000 // len(unit))
    ids = tokenizer.encode(text, add_special=False, parse_special=True)
    assert tokenizer.decode(ids) == text.replace("\udcff", "\ufffd")


@pytest.mark.parametrize("kind", ["llama-bpe", "gpt-4o", "gemma4", "gemma3"])
def test_decode_gives_the_text_back(real, made, kind):
    tokenizer = real.get(kind) or Tokenizer.from_metadata(made[kind])
    rng = random.Random()
    for _ in range(300):
        text = nasty_texts.scrambled(rng, escapes=False).replace("\u2581", "")
        ids = tokenizer.encode(text, add_special=False)
        assert tokenizer.decode(ids) == text, text


@pytest.mark.parametrize("name", REAL)
def test_streamed_text_is_the_decoded_text(real, name):
    tokenizer, rng = real[name], random.Random()
    for _ in range(100):
        ids = rng.choices(range(tokenizer.vocab_size), k=20)
        ids += tokenizer.encode(nasty_texts.scrambled(rng), add_special=False)
        for skip_special in (False, True):
            stream = tokenizer.detokenizer(skip_special)
            text = "".join(map(stream.add, ids)) + stream.finish()
            assert text == tokenizer.decode(ids, skip_special)


def test_streaming_never_splits_a_character(real):
    tokenizer = real["gemma3"]
    ids = [tokenizer.tokens.index(f"<0x{byte:02X}>") for byte in "é😀".encode()]
    stream = tokenizer.detokenizer()
    assert [stream.add(i) for i in ids] == ["", "é", "", "", "", "😀"]
    assert stream.finish() == ""


def test_bytes_that_are_not_utf8_become_replacement_characters(real):
    tokenizer, rng = real["gemma3"], random.Random()
    first = tokenizer.tokens.index("<0x00>")
    for _ in range(300):
        data = bytes(rng.choices([0x41, 0x80, 0xC3, 0xE2, 0x96, 0x81, 0xED, 0xF0, 0x9F, 0xFF], k=6))
        stream = tokenizer.detokenizer()
        text = "".join(stream.add(first + byte) for byte in data) + stream.finish()
        assert text == tokenizer.decode(first + byte for byte in data)
        assert text == data.decode("utf-8", "replace")


def test_decoding_special_tokens(made):
    tokenizer = Tokenizer.from_metadata(made["space prefix"])
    ids = tokenizer.encode("Hello there")
    assert tokenizer.decode(ids) == "<bos>Hello there<eos>"
    assert tokenizer.decode(ids, skip_special=True) == "Hello there"
    with pytest.raises(ValueError, match=f"token id {tokenizer.vocab_size} found"):
        tokenizer.decode([tokenizer.vocab_size])
    with pytest.raises(ValueError, match="token id -1 found"):
        tokenizer.decode([-1])


@pytest.mark.parametrize("text", [5, None, 1.5, ["a"], np.array([1])])
def test_what_is_not_text_is_refused(metadata, text):
    with pytest.raises(ValueError, match=r"text: \w+ found, expected a string or bytes"):
        Tokenizer.from_metadata(metadata).encode(text)


@pytest.mark.parametrize("ids", ["text", b"text", 5, None])
def test_what_is_no_list_of_ids_is_refused(metadata, ids):
    with pytest.raises(ValueError, match=r"token ids: \w+ found, expected integers"):
        Tokenizer.from_metadata(metadata).decode(ids)


@pytest.mark.parametrize("ids", [["text"], [1.0], [[1]], [None], np.array([[1]]), np.array([1.5])])
def test_ids_that_are_no_integers_are_refused(metadata, ids):
    with pytest.raises(ValueError, match=r"token id .+ found, expected an integer"):
        Tokenizer.from_metadata(metadata).decode(ids)


def test_arrays_of_ids_are_decoded(metadata):
    tokenizer = Tokenizer.from_metadata(metadata)
    ids = tokenizer.encode("Hello there")
    arrays: list[Any] = [np.array(ids), mx.array(ids), tuple(ids), iter(ids)]
    for array in arrays:
        assert tokenizer.decode(array) == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("texts", "ends"),
    [
        (["<|eot_id|>", "<|eom_id|>"], ["<|eot_id|>", "<|eom_id|>"]),
        (["<|end|>", "<|return|>"], ["<|end|>", "<|return|>"]),
        (["<|end|>", "<|return|>", "<|call|>"], ["<|return|>", "<|call|>"]),
        (["<|fim_pad|>", "<|fim_prefix|>", "<|file_sep|>"], ["<|fim_pad|>", "<|file_sep|>"]),
        (["<|channel|>", "[EOT]"], ["[EOT]"]),
    ],
)
def test_tokens_that_end_generation_are_found_by_their_text(metadata, texts, ends):
    """As llama.cpp has them; such a token is a control token whatever its type says."""
    metadata["tokenizer.ggml.tokens"] += texts
    types = [*metadata["tokenizer.ggml.token_type"], *[vocabularies.NORMAL] * len(texts)]
    metadata["tokenizer.ggml.token_type"] = np.array(types)
    tokenizer = Tokenizer.from_metadata(metadata)
    found = {tokenizer.tokens[i] for i in tokenizer.eos_token_ids}
    assert found == {"</s>", "<|im_end|>", *ends}
    for text in ends:
        assert tokenizer.encode(text, parse_special=True) == [tokenizer.tokens.index(text)]
        assert tokenizer.decode([tokenizer.tokens.index(text)], skip_special=True) == ""


DAMAGE = [
    ("model", None, ValueError, "tokenizer.ggml.model: nothing found"),
    ("model", ["gpt2"], ValueError, "tokenizer.ggml.model: list found"),
    (
        "model",
        "rwkv",
        NotImplementedError,
        "'rwkv' is not supported; known: gpt2 gemma4 llama bert",
    ),
    ("pre", "klingon", NotImplementedError, "'klingon' is not supported; known: a.x-4.0 afmoe"),
    ("pre", 7, ValueError, "tokenizer.ggml.pre: int found"),
    ("tokens", None, ValueError, "tokenizer.ggml.tokens: missing"),
    ("tokens", [], ValueError, "no token found"),
    ("tokens", "text", ValueError, "str found, expected an array of strings"),
    ("tokens", ["a", 1], ValueError, "not a string"),
    ("token_type", np.ones(3, np.int32), ValueError, r"token_type: 3 values found, expected \d+"),
    ("token_type", np.ones(3), ValueError, "token_type: ndarray found"),
    ("scores", np.ones(3, np.float32), ValueError, r"scores: 3 values found, expected \d+"),
    ("eot_token_id", "x", ValueError, "eot_token_id: 'x' found"),
    ("padding_token_id", True, ValueError, "padding_token_id: True found"),
    ("add_bos_token", 1, ValueError, "add_bos_token: 1 found, expected a boolean"),
    ("merges", None, ValueError, "tokenizer.ggml.merges: missing"),
]


@pytest.mark.parametrize(("key", "value", "error", "message"), DAMAGE)
def test_damaged_metadata_is_refused(metadata, key, value, error, message):
    metadata[f"tokenizer.ggml.{key}"] = value
    if value is None:
        del metadata[f"tokenizer.ggml.{key}"]
    with pytest.raises(error, match=message):
        Tokenizer.from_metadata(metadata)


def test_tokens_that_are_there_twice_are_refused(metadata):
    metadata["tokenizer.ggml.tokens"][-1] = "<unk>"
    with pytest.raises(ValueError, match="tokens: '<unk>' is there twice"):
        Tokenizer.from_metadata(metadata)


def test_adding_a_token_that_the_file_does_not_name_is_refused(metadata):
    del metadata["tokenizer.ggml.bos_token_id"]
    metadata["tokenizer.ggml.add_bos_token"] = True
    with pytest.raises(ValueError, match="bos_token_id: none found"):
        Tokenizer.from_metadata(metadata)


def test_scores_and_byte_tokens_are_checked(made):
    damaged = {**made["space prefix"]}
    damaged["tokenizer.ggml.scores"] = damaged["tokenizer.ggml.scores"] * np.nan
    with pytest.raises(ValueError, match="scores: NaN found"):
        Tokenizer.from_metadata(damaged)
    tokens = [
        "<0xQQ>" if text == "<0x41>" else text
        for text in made["space prefix"]["tokenizer.ggml.tokens"]
    ]
    with pytest.raises(ValueError, match="'<0xQQ>' found, expected <0xXX>"):
        Tokenizer.from_metadata({**made["space prefix"], "tokenizer.ggml.tokens": tokens})


def test_of_equal_merges_the_first_counts(metadata):
    text = "".join(map(chr, range(0x21, 0x7F))) * 3
    ids = Tokenizer.from_metadata(metadata).encode(text)
    metadata["tokenizer.ggml.merges"] += metadata["tokenizer.ggml.merges"][:30000]
    assert Tokenizer.from_metadata(metadata).encode(text) == ids


def test_merging_takes_the_lowest_rank_and_of_equals_the_leftmost():
    ranks = {("a", "b"): 1, ("b", "c"): 0, ("a", "bc"): 5, ("a", "a"): 2, ("aa", "a"): 3}

    def rank(left: str, right: str) -> Any:
        return ranks.get((left, right))

    assert merging.merge(list("abc"), rank) == ["abc"]
    assert merging.merge(list("aab"), rank) == ["a", "ab"]
    assert merging.merge(list("aaa"), rank) == ["aaa"]
    assert merging.merge(list("aaaa"), rank) == ["aa", "aa"]
    assert merging.merge([], rank) == []


def test_stand_ins_keep_ascii_and_length():
    text = "a1 \t" + "".join(
        map(chr, (0xE9, 0x301, 0x663, 0x3002, 0x2264, 0xA0, 0x85, 0x4E2D, 0x378))
    )
    found = unicode.collapse(text)
    assert len(found) == len(text)
    assert found[:4] == "a1 \t"
    marks = [unicode.STAND_INS[name] for name in "LMNPSZZ"]
    assert found[4:] == "".join(marks) + unicode.HAN_LETTER + unicode.STAND_INS["U"]


@pytest.mark.parametrize("name", sorted(pretokenizers.table()))
def test_words_are_the_whole_text(name):
    rng = random.Random()
    for _ in range(50):
        text = nasty_texts.scrambled(rng, escapes=False)
        assert "".join(split(text, pretokenizers.by_name(name).steps)) == text
