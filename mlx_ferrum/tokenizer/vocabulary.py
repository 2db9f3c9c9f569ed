"""The tokens of a GGUF file, checked: texts, types, special ids, end-of-generation tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from ..notice import warn

MAX_TOKENS = 1 << 24
_PREFIX = "tokenizer.ggml."
_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")


class TokenType(IntEnum):
    """Values of `tokenizer.ggml.token_type`."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# Texts by which llama.cpp knows a token that ends generation, whatever the metadata say.
_END_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<｜end▁of▁sentence｜>", "[e~[",
)  # fmt: skip
# Texts of tokens for filling in the middle: metadata keys, whether the token ends generation, texts.
_FILL_TEXTS = (
    (("fim_pre_token_id", "prefix_token_id"), False,
     ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>",
      "<|code_prefix|>", "<|prefix|>")),
    (("fim_suf_token_id", "suffix_token_id"), False,
     ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
      "<|code_suffix|>", "<|suffix|>")),
    (("fim_mid_token_id", "middle_token_id"), False,
     ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>",
      "<|code_middle|>", "<|middle|>")),
    (("fim_pad_token_id",), True, ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]")),
    (("fim_rep_token_id",), True,
     ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>")),
    (("fim_sep_token_id",), True, ("<|file_sep|>",)),
)  # fmt: skip
FILL_NAMES = ("prefix", "suffix", "middle")  # of the first entries of _FILL_TEXTS
# gpt-oss marks channels with control tokens that a reader wants to see.
_VISIBLE_TEXTS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


@dataclass(frozen=True)
class FillTokens:
    """Ids of the tokens for filling in the middle.

    prefix: stands before the text that comes first; suffix: before the text that comes last; middle: after both
    """

    prefix: int
    suffix: int
    middle: int


@dataclass
class Vocabulary:
    """Texts and ids of a file's tokens; all arrays have one entry a token.

    types: uint8, see TokenType. scores: float32, higher merges first (SentencePiece only). special_ids:
    id by metadata name (`bos_token_id` …), None where there is none. lstrip, rstrip: ids of special
    tokens that take the white space on their left or right with them. fill_ids: the token for each of
    FILL_NAMES that there is one for.
    """

    tokens: list[str]
    types: np.ndarray
    scores: np.ndarray | None
    special_ids: dict[str, int | None]
    ids: dict[str, int] = field(init=False)
    end_ids: frozenset[int] = field(init=False)
    fill_ids: dict[str, int] = field(init=False)
    lstrip: frozenset[int] = frozenset()
    rstrip: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self.ids = dict(zip(self.tokens, range(len(self.tokens)), strict=True))
        if len(self.ids) < len(self.tokens):
            twice = next(t for i, t in enumerate(self.tokens) if self.ids[t] != i)
            raise ValueError(f"{_PREFIX}tokens: {twice!r} is there twice, expected distinct tokens")
        self._check_byte_tokens()
        fill = self._find_fill_ids()
        named = zip(FILL_NAMES, fill, strict=False)
        self.fill_ids = {name: token for name, token in named if token is not None}
        self.end_ids = frozenset(self._find_end_ids(fill))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], defaults: Mapping[str, int]) -> Vocabulary:
        """Read and check the vocabulary; `defaults` are special ids for files that name none.

        Raises ValueError naming the metadata key, what was found and what was expected.
        """
        tokens = read_strings(metadata, f"{_PREFIX}tokens")
        if not tokens:
            raise ValueError(f"{_PREFIX}tokens: no token found, expected at least one")
        if "" in tokens:
            tokens = [text or f"[EMPTY_{i}]" for i, text in enumerate(tokens)]
        types = _numbers(metadata, "token_type", len(tokens), "iu")
        if types is None:
            types = np.full(len(tokens), TokenType.NORMAL)
        known = (types >= 0) & (types <= max(TokenType))
        scores = _numbers(metadata, "scores", len(tokens), "iuf")
        if scores is not None and np.isnan(scores).any():
            raise ValueError(f"{_PREFIX}scores: NaN found, expected numbers")
        vocabulary = cls(
            tokens,
            np.where(known, types, TokenType.UNDEFINED).astype(np.uint8),
            None if scores is None else scores.astype(np.float32),
            _special_ids(metadata, len(tokens), defaults),
        )
        vocabulary._set_strips(metadata)
        return vocabulary

    def _check_byte_tokens(self) -> None:
        """Tokens of type BYTE are named after their byte; ValueError for one that is not."""
        for token in np.flatnonzero(self.types == TokenType.BYTE).tolist():
            if not _BYTE_TOKEN.fullmatch(self.tokens[token]):
                found = self.tokens[token]
                raise ValueError(
                    f"{_PREFIX}tokens[{token}]: {found!r} found, expected <0xXX> for a byte"
                )

    def special_texts(self, parse_special: bool) -> list[int]:
        """Ids of the tokens that text is searched for before anything else, longest text first."""
        kinds = [TokenType.USER_DEFINED]
        if parse_special:
            kinds += [TokenType.CONTROL, TokenType.UNKNOWN]
        found = np.flatnonzero(np.isin(self.types, kinds)).tolist()
        return sorted(found, key=lambda i: -len(self.tokens[i].encode("utf-8", "surrogatepass")))

    def _find_fill_ids(self) -> list[int | None]:
        """An id or None for each of _FILL_TEXTS; tokens known by their text become control tokens."""
        found = []
        for keys, _, texts in _FILL_TEXTS:
            token = next((i for k in keys if (i := self.special_ids[k]) is not None), None)
            if token is None:
                token = next((self.ids[text] for text in texts if text in self.ids), None)
                if token is not None:
                    self.types[token] = TokenType.CONTROL
            found.append(token)
        return found

    def _find_end_ids(self, fill: Sequence[int | None]) -> set[int]:
        """Ids that end generation; tokens known by their text become control tokens on the way.

        fill: what `_find_fill_ids` found
        """
        pairs = zip(_FILL_TEXTS, fill, strict=True)
        ends = {token for (_, is_end, _), token in pairs if is_end and token is not None}
        by_text = [self.ids[text] for text in _END_TEXTS if text in self.ids]
        self.types[by_text] = TokenType.CONTROL
        visible = [self.ids[text] for text in _VISIBLE_TEXTS if text in self.ids]
        self.types[visible] = TokenType.USER_DEFINED
        named = (self.special_ids[k] for k in ("eos_token_id", "eot_token_id", "eom_token_id"))
        ends.update(by_text, (i for i in named if i is not None))
        return self._without_false_ends(ends)

    def _without_false_ends(self, ends: set[int]) -> set[int]:
        """Drop texts that end generation in most vocabularies but not in this one."""
        texts = {self.tokens[i] for i in ends}
        calls, stops = texts & {"<|call|>", "<|calls|>"}, texts & {"<|return|>", "<|flush|>"}
        if "<|end|>" in texts and calls and stops:
            ends.discard(self.ids["<|end|>"])
            self.types[self.ids["<|end|>"]] = TokenType.USER_DEFINED
        if "</s>" in texts and texts & {"<|tool_response>", "<|plamo:eos|>"}:
            ends.discard(self.ids["</s>"])
            self.types[self.ids["</s>"]] = TokenType.NORMAL
        return ends

    def _set_strips(self, metadata: Mapping[str, Any]) -> None:
        """Which special tokens take white space along; files do not say, so it goes by model name."""
        pre = str(metadata.get(f"{_PREFIX}pre", ""))
        architecture = str(metadata.get("general.architecture", ""))
        name = str(metadata.get("general.name", "")).lower()
        if any(
            part in pre for part in ("jina-v2-de", "jina-v2-es", "jina-v2-code", "mmbert")
        ) or any(part in architecture for part in ("nomic-bert-moe", "jina-bert-v3")):
            self.lstrip = self._ids_of("<mask>")
        elif "phi-3" in name or "phi3" in name:
            self.rstrip = (
                frozenset(self.special_texts(True)) | self._ids_of("</s>")
            ) - self._ids_of("<unk>", "<s>", "<|endoftext|>")
        elif "modern-bert" in name:
            self.lstrip = self._ids_of("[MASK]")

    def _ids_of(self, *texts: str) -> frozenset[int]:
        return frozenset(self.ids[text] for text in texts if text in self.ids)


def read_strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    """A string array of the metadata; ValueError if it is missing or something else."""
    value = metadata.get(key)
    if value is None:
        raise ValueError(f"{key}: missing, expected an array of strings")
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise ValueError(f"{key}: {type(value).__name__} found, expected an array of strings")
    if len(value) > MAX_TOKENS:
        raise ValueError(f"{key}: {len(value)} strings found, expected at most {MAX_TOKENS}")
    texts = list(value)
    if any(type(text) is not str for text in texts):
        raise ValueError(f"{key}: an element that is not a string found, expected strings only")
    return texts


def read_name(metadata: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """A string of the metadata; ValueError if it is something else, or missing without a default."""
    value = metadata.get(key, default)
    if not isinstance(value, str):
        found = "nothing" if value is None else type(value).__name__
        raise ValueError(f"{key}: {found} found, expected a name")
    return value


def read_flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    """A boolean `tokenizer.ggml.<name>`."""
    value = metadata.get(_PREFIX + name, default)
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{_PREFIX}{name}: {value!r} found, expected a boolean")
    return bool(value)


def _numbers(metadata: Mapping[str, Any], name: str, count: int, kinds: str) -> np.ndarray | None:
    """A numeric array with one entry a token, of the NumPy kinds given, or None if there is none."""
    key = _PREFIX + name
    value = metadata.get(key)
    if value is None:
        return None
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in kinds:
        raise ValueError(f"{key}: {type(value).__name__} found, expected an array of numbers")
    if len(array) < count:
        raise ValueError(f"{key}: {len(array)} values found, expected {count}, one a token")
    return array[:count]


def _special_ids(
    metadata: Mapping[str, Any], count: int, defaults: Mapping[str, int]
) -> dict[str, int | None]:
    """Ids of special tokens by metadata name: from the file, or the default if it is a token.

    An id that is no token is as good as none, as in llama.cpp: files write -1 or the size of a padded vocabulary.
    """
    names = ("bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask")
    keys = [f"{name}_token_id" for name in names]
    keys += [key for keys, _, _ in _FILL_TEXTS for key in keys]
    ids: dict[str, int | None] = {}
    for key in keys:
        default = defaults.get(key, count)
        ids[key] = default if default < count else None
        value = metadata.get(_PREFIX + key)
        if value is None:
            continue
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
            raise ValueError(f"{_PREFIX}{key}: {value!r} found, expected a token id")
        if 0 <= value < count:
            ids[key] = int(value)
        else:
            warn(f"{_PREFIX}{key}: {value} is ignored, there are {count} tokens")
    return ids
