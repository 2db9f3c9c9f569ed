"""The kinds of tokenizers that `tokenizer.ggml.model` names, built from a file's metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .bpe import BytePairEncoder, read_merges
from .detokenizer import Pieces
from .pretokenizers import by_name
from .spm import SentencePieceEncoder
from .vocabulary import Vocabulary, read_flag, read_name
from .wordpiece import WordPieceEncoder

_MODEL, _PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"


class Encoder(Protocol):
    """What makes ids of text that has no special tokens."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text that is not empty."""


@dataclass(frozen=True)
class Kind:
    """What differs between tokenizers.

    before, after: the ids that encode adds around a text
    within: encodes text that continues another, where that differs
    """

    vocabulary: Vocabulary
    encoder: Encoder
    pieces: Pieces
    before: tuple[int, ...]
    after: tuple[int, ...]
    within: Encoder | None = None


def from_metadata(metadata: Mapping[str, Any]) -> Kind:
    """Raises ValueError naming the key for damaged metadata, NotImplementedError for unknown kinds."""
    name = read_name(metadata, _MODEL)
    if name not in _BUILDERS:
        raise NotImplementedError(
            f"{_MODEL}: {name!r} is not supported; known: {' '.join(_BUILDERS)}"
        )
    return _BUILDERS[name](metadata)


def _sentence_piece(metadata: Mapping[str, Any]) -> Kind:
    defaults = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    vocabulary = Vocabulary.from_metadata(metadata, defaults)
    prefix = read_flag(metadata, "add_space_prefix", True)
    return Kind(
        vocabulary,
        SentencePieceEncoder(vocabulary, prefix),
        Pieces(vocabulary, byte_level=False, strip_space=prefix),
        _added(vocabulary, "bos_token_id", read_flag(metadata, "add_bos_token", True)),
        _added(vocabulary, "eos_token_id", read_flag(metadata, "add_eos_token", False)),
        SentencePieceEncoder(vocabulary, False) if prefix else None,
    )


def _word_piece(metadata: Mapping[str, Any]) -> Kind:
    defaults = {"bos_token_id": 101, "unknown_token_id": 100, "seperator_token_id": 102}
    vocabulary = Vocabulary.from_metadata(metadata, defaults)
    return Kind(
        vocabulary,
        WordPieceEncoder(vocabulary, metadata),
        Pieces(vocabulary, byte_level=False, strip_space=True),
        _added(vocabulary, "bos_token_id", True),
        _added(vocabulary, "seperator_token_id", True),
    )


def _byte_pair(metadata: Mapping[str, Any]) -> Kind:
    gemma4 = metadata[_MODEL] == "gemma4"
    name = "gemma4" if gemma4 else read_name(metadata, _PRE, "default")
    pre = by_name(name)
    # llama.cpp's default ids for these files are 11, which is <|endoftext|> in Falcon's vocabulary and
    # a comma in others, so a file has to name its own.
    vocabulary = Vocabulary.from_metadata(metadata, {})
    merges = read_merges(metadata, required=name != "kimi-k2")
    add_bos = pre.always_bos or read_flag(metadata, "add_bos_token", pre.add_bos)
    return Kind(
        vocabulary,
        BytePairEncoder(vocabulary, pre, merges),
        Pieces(vocabulary, byte_level=not pre.raw, strip_space=False),
        _added(vocabulary, "bos_token_id", add_bos),
        _added(vocabulary, "eos_token_id", read_flag(metadata, "add_eos_token", False)),
    )


def _added(vocabulary: Vocabulary, name: str, wanted: bool) -> tuple[int, ...]:
    """The special id to add, if wanted; ValueError if the file then has none."""
    token = vocabulary.special_ids[name]
    if not wanted:
        return ()
    if token is None:
        raise ValueError(
            f"tokenizer.ggml.{name}: none found, expected the id that text begins or ends with"
        )
    return (token,)


_BUILDERS: dict[str, Callable[[Mapping[str, Any]], Kind]] = {
    "gpt2": _byte_pair,
    "gemma4": _byte_pair,
    "llama": _sentence_piece,
    "bert": _word_piece,
}
