"""WordPiece vocabularies of tokenizer.json in GGUF files, and how their text is normalized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf

from mlx_ferrum.tokenizer.vocabulary import TokenType
from mlx_ferrum.tokenizer.wordpiece import LONGEST_WORD, NORMALIZER

SPACE, INSIDE = "\u2581", "##"
# What must be as it is here; other values make other tokens.
_FIXED: dict[str, dict[str, Any]] = {
    "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "model": {"continuing_subword_prefix": INSIDE},
}


def marked(texts: Sequence[str], types: Sequence[int]) -> list[str]:
    """Tokens as GGUF files have them: U+2581 before the first piece of a word, no "##" before the others."""
    return [
        text
        if kind == TokenType.CONTROL
        else text[len(INSIDE) :]
        if text.startswith(INSIDE)
        else SPACE + text
        for text, kind in zip(texts, types, strict=True)
    ]


def add(w: gguf.GGUFWriter, file: Path, described: Mapping[str, Any]) -> None:
    """Add the normalizer's keys: llama.cpp's, and those by which the package makes the folder's tokens.

    llama.cpp keeps the first character of a decomposed one, which leaves a Korean syllable its first letter, and drops
    all marks, vowels of Indic scripts among them. It ignores the package's keys.
    Raises NotImplementedError for a tokenizer.json whose text is cut otherwise than BERT's.
    """
    _check(file, described)
    normalizer = described["normalizer"]
    lowercase, strip = bool(normalizer.get("lowercase", True)), normalizer.get("strip_accents")
    w.add_bool("tokenizer.ggml.normalizer.lowercase", lowercase)
    if strip is not None:
        w.add_bool("tokenizer.ggml.normalizer.strip_accents", bool(strip))
    w.add_string(NORMALIZER, normalizer["type"])
    w.add_uint32(LONGEST_WORD, int(described["model"].get("max_input_chars_per_word", 100)))


def set_special(
    special: gguf.SpecialVocab, file: Path, fast: Any, described: Mapping[str, Any]
) -> None:
    """The ids around a text, and the unknown token. Raises NotImplementedError unless two ids go around it."""
    around = fast.encode("").ids
    unknown = fast.token_to_id(described["model"].get("unk_token", "[UNK]"))
    if len(around) != 2 or unknown is None:
        raise NotImplementedError(
            f"{file}: expected an unknown token and two tokens around a text, found {unknown} and {around}"
        )
    ids = special.special_token_ids
    ids.pop("cls", None)  # GGUF files have it as bos
    ids |= {"bos": around[0], "sep": around[1], "unk": unknown}
    padding = fast.token_to_id("[PAD]")
    if padding is not None:
        ids.setdefault("pad", padding)


def _check(file: Path, described: Mapping[str, Any]) -> None:
    """Raises NotImplementedError for a tokenizer.json whose text is cut otherwise than BERT's."""
    for part, fixed in _FIXED.items():
        found = described.get(part) or {}
        for key, wanted in fixed.items():
            if found.get(key) != wanted:
                raise NotImplementedError(
                    f"{file}: {part}: {key} {found.get(key)!r} is not supported, expected {wanted!r}"
                )
