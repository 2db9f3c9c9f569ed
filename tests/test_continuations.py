"""Text that continues other text: streamed or whole, it is what decoding all ids adds to it."""

from __future__ import annotations

import random
from typing import Any

import nasty_texts
import pytest
import vocabularies
from fakes import ScriptedModel

from mlx_ferrum import gguf
from mlx_ferrum.generate import encode_prompt, generate, stream_generate
from mlx_ferrum.tokenizer import Tokenizer

NAMES = [
    "smollm2",
    "gemma3",
    "space prefix",
    "no prefix",
    "bert",
    "user defined",
    "gpt-2",
    "gemma4",
]
LOSSY = ("bert", "space prefix", "user defined")  # case, characters or white space get lost


@pytest.fixture(scope="module")
def tokenizers(smollm2_path, gemma3_path):
    smollm2, gemma3 = (gguf.read(path).metadata for path in (smollm2_path, gemma3_path))
    prefix = vocabularies.space_prefix(gemma3)
    metadata = {
        "smollm2": smollm2,
        "gemma3": gemma3,
        "space prefix": prefix,
        "no prefix": {**prefix, "tokenizer.ggml.add_space_prefix": False},
        "bert": vocabularies.word_piece(gemma3),
        "user defined": vocabularies.user_defined(smollm2),
        **{name: vocabularies.pairs(name) for name in ("gpt-2", "gemma4")},
    }
    return {name: Tokenizer.from_metadata(data) for name, data in metadata.items()}


def continued(tokenizer: Tokenizer, before: list[int], after: list[int], skip: bool) -> str:
    """What a detokenizer streams for `after`."""
    stream = tokenizer.detokenizer(skip, before)
    return "".join(map(stream.add, after)) + stream.finish()


def random_ids(tokenizer: Tokenizer, rng: random.Random) -> list[int]:
    """Some ids: of texts, of special tokens, of bytes, any."""
    text = nasty_texts.scrambled(rng)
    ids = tokenizer.encode(text, add_special=False, parse_special=rng.random() < 0.5)
    for _ in range(rng.randrange(6)):
        token = rng.randrange(rng.choice((16, 400, tokenizer.vocab_size)))
        ids.insert(rng.randrange(len(ids) + 1), token)
    return ids


@pytest.mark.parametrize("name", NAMES)
def test_any_ids_split_anywhere(tokenizers, name):
    """A character that the prompt begins is shown with the token that completes it."""
    tokenizer, rng = tokenizers[name], random.Random(name)
    for _ in range(300):
        ids = [*tokenizer.prefix_ids, *random_ids(tokenizer, rng)]
        skip, place = rng.random() < 0.5, rng.randint(0, len(ids))
        before = tokenizer.detokenizer(skip)
        shown = "".join(map(before.add, ids[:place]))
        assert shown + continued(tokenizer, ids[:place], ids[place:], skip) == tokenizer.decode(
            ids, skip
        )


@pytest.mark.parametrize("name", sorted({*NAMES} - {*LOSSY}))
def test_prompt_and_text_are_the_decoded_text(tokenizers, name):
    tokenizer, rng = tokenizers[name], random.Random(name)
    for _ in range(200):
        prompt = nasty_texts.scrambled(rng, escapes=False).replace("\u2581", "")
        ids = [*tokenizer.prefix_ids, *tokenizer.encode(prompt, add_special=False)]
        after = random_ids(tokenizer, rng)
        text = continued(tokenizer, ids, after, skip=True)
        assert prompt + text == tokenizer.decode([*ids, *after], skip_special=True)


WORDS = ["the", " cat", "Hello", "  two", " a\n", "1", ".", " ", "\n\n"]


@pytest.mark.parametrize("name", ["space prefix", "no prefix", "smollm2", "gemma3"])
def test_spaces_of_a_continuation_stay(tokenizers, name):
    """Without odd characters nothing is lost, with a space added before text or without."""
    tokenizer, rng = tokenizers[name], random.Random(name)
    for _ in range(300):
        text = "".join(rng.choices(WORDS, k=8))
        ids = [*tokenizer.prefix_ids, *tokenizer.encode(text, add_special=False)]
        place = rng.randint(len(tokenizer.prefix_ids), len(ids))
        prompt = tokenizer.decode(ids[:place], skip_special=True)
        assert prompt + continued(tokenizer, ids[:place], ids[place:], skip=True) == text


def test_a_reply_after_special_tokens_has_no_space_before_it(tokenizers):
    """Encoding adds a space after each special token, so decoding removes it there."""
    tokenizer = tokenizers["space prefix"]
    turn = tokenizer.encode("<start_of_turn>", add_special=False, parse_special=True)
    assert len(turn) == 1
    hello = tokenizer.encode("Hello there", add_special=False)
    for before in ([], turn, tokenizer.prefix_ids, [*hello, *turn]):
        assert continued(tokenizer, before, hello, skip=False) == "Hello there"
    assert continued(tokenizer, hello, hello, skip=False) == " Hello there"
    text = "a<start_of_turn>b c<start_of_turn> d"
    ids = tokenizer.encode(text, add_special=False, parse_special=True)
    assert tokenizer.decode(ids) == text


def test_a_character_that_the_prompt_began_is_completed(tokenizers):
    tokenizer = tokenizers["gemma3"]
    ids = [tokenizer.tokens.index(f"<0x{byte:02X}>") for byte in "é😀".encode()]
    for place in range(len(ids)):
        stream = tokenizer.detokenizer(before=ids[:place])
        text = "".join(map(stream.add, ids[place:])) + stream.finish()
        assert text == ("é😀" if place < 2 else "😀")


@pytest.mark.parametrize("name", ["space prefix", "no prefix", "smollm2"])
def test_generated_text_continues_the_prompt(tokenizers, name):
    tokenizer = tokenizers[name]
    word = tokenizer.encode("x the", add_special=False)[-1]  # with its space, however it is spelled
    ids = encode_prompt(tokenizer, "Hello")
    for prompt in ("Hello", ids):
        model: Any = ScriptedModel([word] * 3, tokenizer.vocab_size, len(ids))
        out = list(stream_generate(model, tokenizer, prompt, 3))
        assert "".join(r.text for r in out) == " the the the"
        assert generate(model, tokenizer, prompt, max_tokens=3, stop=" the t") == ""
        assert generate(model, tokenizer, prompt, max_tokens=3, stop="et") == " the the the"


def test_text_continues_what_a_cache_holds(tokenizers):
    tokenizer = tokenizers["space prefix"]
    word = tokenizer.encode("x the", add_special=False)[-1]
    turn = tokenizer.tokens.index("<start_of_turn>")
    for history, text in (([word], " the"), ([word, turn], " the"), ([], "the")):
        model: Any = ScriptedModel([word], tokenizer.vocab_size)
        prompt = [turn] if not history else [word]
        out = list(stream_generate(model, tokenizer, prompt, 1, history=history))
        assert out[0].text == text


@pytest.mark.parametrize("name", ["smollm2", "space prefix"])
def test_no_end_token_follows_a_prompt(tokenizers, smollm2_path, gemma3_path, name):
    """add_eos_token is for training; encode adds the token, as llama.cpp's does, encode_prompt does not."""
    path = {"smollm2": smollm2_path, "space prefix": gemma3_path}[name]
    metadata = gguf.read(path).metadata
    if name == "space prefix":
        metadata = vocabularies.space_prefix(metadata)
    flags = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    tokenizer = Tokenizer.from_metadata({**metadata, **flags})
    ids = tokenizer.encode("Hello")
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert encode_prompt(tokenizer, "Hello") == ids[:-1]
    assert encode_prompt(tokenizer, tokenizer.tokens[ids[0]] + "Hello") == ids[:-1]


def test_no_separator_follows_a_prompt(tokenizers):
    tokenizer = tokenizers["bert"]
    ids = tokenizer.encode("hello")
    assert tokenizer.tokens[ids[-1]] == "[SEP]"
    assert encode_prompt(tokenizer, "hello") == ids[:-1]
