"""The bytes of tokens, and ids of text amid other text, as grammars need them."""

from __future__ import annotations

import random
from typing import Any

import nasty_texts
import pytest

from mlx_ferrum import gguf
from mlx_ferrum.structured import Grammars
from mlx_ferrum.tokenizer import Tokenizer


def sentence_pieces() -> dict[str, Any]:
    """Metadata of a small vocabulary whose encoding puts a space before text."""
    words = ["\u2581", "H", "e", "l", "o", "He", "ll", "llo", "Hello", "\u2581Hello", "\u2581H"]
    tokens = ["<unk>", "<bos>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(words)],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(words))],
    }


# the sign of a space in SentencePiece; SmolLM2's vocabulary has no tokens for the other characters, which are left out
UNKNOWN = dict.fromkeys(map(ord, "\u2581\x04\x06\x13\x14\x16\x1d"))


@pytest.fixture(scope="module")
def tokenizers(smollm2_path: Any) -> dict[str, Tokenizer]:
    metadata = {
        "byte-level": gguf.read(smollm2_path).metadata,
        "SentencePiece": sentence_pieces(),
    }
    return {name: Tokenizer.from_metadata(each) for name, each in metadata.items()}


@pytest.mark.parametrize("name", ["byte-level", "SentencePiece"])
def test_pieces_are_the_bytes_of_the_text(tokenizers: dict[str, Tokenizer], name: str) -> None:
    tokenizer, rng = tokenizers[name], random.Random()
    for _ in range(200):
        text = nasty_texts.scrambled(rng, escapes=False).translate(UNKNOWN)
        ids = tokenizer.encode_within(text)
        assert b"".join(tokenizer.piece(token)[0] for token in ids) == text.encode(), text
        assert ids == tokenizer.encode_within(text.encode())
        assert not any(tokenizer.piece(token)[1] for token in ids)
    assert tokenizer.decode(tokenizer.encode("abc", add_special=False)) == "abc"


def test_no_space_comes_before_text_amid_text(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["SentencePiece"]
    [inside] = tokenizer.encode_within("Hello")
    assert tokenizer.encode("Hello", add_special=False) != [inside]
    assert tokenizer.piece(inside) == (b"Hello", False)
    assert tokenizer.bos_token_id is not None
    assert tokenizer.piece(tokenizer.bos_token_id) == (b"<bos>", True)


def test_special_tokens_can_be_shown(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte-level"]
    ids = tokenizer.encode("a<|im_start|>b<|im_end|>c", parse_special=True)
    stream = tokenizer.detokenizer(skip_special=True, shown=["<|im_end|>"])
    assert "".join(map(stream.add, ids)) == "ab<|im_end|>c"


def test_a_grammar_over_sentence_pieces(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["SentencePiece"]
    follower = Grammars(tokenizer, tokenizer.vocab_size + 5).regex("Hello [0-9]é!").begin()
    forced = follower.forced()
    assert b"Hello".startswith(b"".join(tokenizer.piece(token)[0] for token in forced)[:5])
    for token in tokenizer.encode_within("Hello 7é!"):
        follower.accept(token)
    assert follower.must_end


def test_logits_must_be_as_many_as_tokens(tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(ValueError, match="5 logits for 49152 tokens"):
        Grammars(tokenizers["byte-level"], 5)
