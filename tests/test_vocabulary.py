"""What damaged vocabularies still give: as in llama.cpp, with a line that says what was ignored."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from mlx_ferrum.tokenizer import Tokenizer
from mlx_ferrum.tokenizer.bpe import byte_letters

PREFIX = "tokenizer.ggml."


def metadata(tokens: list[str], merges: list[str], **more: Any) -> dict[str, Any]:
    """Byte-level BPE over all bytes, in their order, then `tokens`; the last one ends text."""
    texts = [*byte_letters(), *tokens, "<|eos|>"]
    types = np.ones(len(texts), np.int32)
    types[-1] = 3
    values: dict[str, Any] = {"model": "gpt2", "pre": "gpt-2", "tokens": texts, "token_type": types}
    values |= {"merges": merges, "eos_token_id": len(texts) - 1}
    return {PREFIX + key: value for key, value in {**values, **more}.items()}


SPECIAL = ("bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask", "fim_pre")


@pytest.mark.parametrize("value", [257, 4294967295, -1])
@pytest.mark.parametrize("name", SPECIAL)
def test_special_ids_that_are_no_tokens(
    name: str, value: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    key = f"{name}_token_id"
    found = Tokenizer.from_metadata(metadata([], [], **{key: value}))
    without = Tokenizer.from_metadata(metadata([], [], **{key: None}))
    assert found.bos_token_id == without.bos_token_id is None
    assert found.eos_token_id == without.eos_token_id
    assert found.eos_token_ids == without.eos_token_ids
    (record,) = caplog.records
    assert record.getMessage() == (
        f"warning: {PREFIX}{key}: {value} is ignored, there are 257 tokens"
    )


def test_a_sentencepiece_vocabulary_keeps_its_default_ids(caplog: pytest.LogCaptureFixture) -> None:
    """llama.cpp: bad special token, using the default id 1."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = np.array([2, 3, 3] + [6] * 256)
    values: dict[str, Any] = {"model": "llama", "tokens": tokens, "token_type": types}
    values |= {"bos_token_id": 70_000, "padding_token_id": 4294967295}
    found = Tokenizer.from_metadata({PREFIX + key: value for key, value in values.items()})
    assert (found.bos_token_id, found.eos_token_id) == (1, 2)
    assert found.encode("a") == [1, 3 + 0xE2, 3 + 0x96, 3 + 0x81, 3 + ord("a")]
    assert len(caplog.records) == 2


def test_a_special_id_that_text_needs_is_still_an_error() -> None:
    with pytest.raises(ValueError, match="bos_token_id: none found, expected the id"):
        Tokenizer.from_metadata(metadata([], [], bos_token_id=300, add_bos_token=True))


# Merges of which some make no token, and the ids that llama.cpp gives.
MERGES = [
    (
        ["he", "hel"],
        ["h e", "e l", "he l", "Ġ x", "l o"],
        {
            "hello hel x lo": [257, 108, 111, 32, 257, 120, 32, 108, 111],
            "hxhel xx": [104, 120, 257, 120, 120],
        },
    ),
    (
        ["he", "ll"],
        ["u p", "h e", "e l", "l l", "Ġ a"],
        {"he hel": [256, 32, 256, 108], "up hello": [117, 112, 32, 256, 257, 111]},
    ),
]


@pytest.mark.parametrize(("tokens", "merges", "expected"), MERGES)
def test_merges_that_make_no_token(
    tokens: list[str],
    merges: list[str],
    expected: dict[str, list[int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = Tokenizer.from_metadata(metadata(tokens, merges))
    assert {text: tokenizer.encode(text) for text in expected} == expected
    (record,) = caplog.records
    assert "merges make no token, the first is" in record.getMessage()


@pytest.mark.parametrize("merge", ["ab", "", " ", "h e l", "zz q", " h"])
def test_merges_that_are_no_merges_change_nothing(
    merge: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain = Tokenizer.from_metadata(metadata(["he"], ["h e"]))
    assert not caplog.records
    odd = Tokenizer.from_metadata(metadata(["he"], [merge, "h e"]))
    text = "he hello h el zz q ab"
    assert odd.encode(text) == plain.encode(text)
    assert f"1 of 2 merges make no token, the first is {merge!r}" in caplog.text


@pytest.mark.parametrize("name", ["scores", "token_type"])
def test_longer_arrays_are_cut(name: str) -> None:
    values = metadata(["he"], ["h e"])
    longer = {PREFIX + name: np.append(values[f"{PREFIX}token_type"], [1, 1]).astype(np.int32)}
    found = Tokenizer.from_metadata({**values, **longer})
    assert found.encode("he") == [256] and found.vocab_size == 258
