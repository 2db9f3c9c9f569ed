"""The tokenizer of a Hugging Face folder as the `tokenizer.ggml.…` keys of a GGUF file.

tokenizer.model (SentencePiece) comes first, as in llama.cpp, then tokenizer.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from mlx_ferrum.notice import warn
from mlx_ferrum.tokenizer import Tokenizer
from mlx_ferrum.tokenizer.pretokenizers import by_name
from mlx_ferrum.tokenizer.vocabulary import TokenType

from . import recognise, wordpiece
from .architecture import Architecture
from .recognise import COMMON

SPACE = "\u2581"
Encode = Callable[[str], list[int]]  # of text without special tokens
PADDING_SCORE, ADDED_SCORE = -10000.0, -1000.0
_BYTE = re.compile("<0x[0-9A-F]{2}>")
# Control tokens that some models do not mark as such.
_CONTROL = re.compile(r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.DOTALL)


@dataclass
class Tokens:
    """A vocabulary with one entry a row of the embeddings; tokens that the tokenizer does not have are [PADn]."""

    rows: int
    texts: list[str] = field(init=False)
    types: list[int] = field(init=False)
    scores: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.texts = [f"[PAD{i}]" for i in range(self.rows)]
        self.types = [int(TokenType.UNUSED)] * self.rows
        self.scores = [PADDING_SCORE] * self.rows

    def set(self, token: int, text: str, kind: TokenType, score: float = ADDED_SCORE) -> None:
        """Raises ValueError for a token without a row."""
        if not 0 <= token < self.rows:
            raise ValueError(
                f"token {token}, {text!r}: expected ids below {self.rows}, the rows of the embeddings"
            )
        self.texts[token], self.types[token], self.scores[token] = text, int(kind), score

    def set_added(self, token: int, text: str, special: bool) -> None:
        """A token that was added to the vocabulary: control, or one that is found in any text."""
        if special or _CONTROL.fullmatch(text):
            self.set(token, text, TokenType.CONTROL)
        else:
            self.set(token, text.replace(SPACE, " "), TokenType.USER_DEFINED)


def add(w: gguf.GGUFWriter, folder: Path, model: Architecture, pre: str | None = None) -> None:
    """Add the tokenizer's keys, and check that the package reads them.

    pre: the pre-tokenizer, recognised where it is None
    Raises ValueError for a missing or damaged tokenizer, NotImplementedError for an unknown kind.
    """
    config = read_json(folder / "tokenizer_config.json")
    prefix = model.space_prefix(config)
    tokens = Tokens(model.vocabulary)
    if (folder / "tokenizer.model").is_file():
        encode = _sentence_piece(folder, config, tokens)
        _add_tokens(
            w, tokens, "llama", "default", _prefix(tokens, encode) if prefix is None else prefix
        )
        special = _special(folder, model.vocabulary, merges=False)
    elif (folder / "tokenizer.json").is_file():
        special, encode = _fast(w, folder, tokens, prefix, pre)
    else:
        has_tekken = (folder / "tekken.json").is_file()
        instead = "; tekken.json alone is not supported" if has_tekken else ""
        raise ValueError(f"{folder}: no tokenizer.json and no tokenizer.model found{instead}")
    ends = _ends(folder)
    if ends and ends[0] < model.vocabulary:
        special.special_token_ids.setdefault("eos", ends[0])
    with _damaged(folder):
        special.add_to_gguf(w, quiet=True)
    tokenizer = Tokenizer.from_metadata(_metadata(w))
    _add_ends(w, ends, tokenizer)
    _compare(tokenizer, encode)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a file, empty if there is no file. Raises ValueError for anything else."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file}: expected an object, found {type(found).__name__}")
    return found


def _add_tokens(
    w: gguf.GGUFWriter, tokens: Tokens, model: str, pre: str, prefix: bool | None
) -> None:
    if prefix is not None:
        w.add_add_space_prefix(prefix)
    w.add_tokenizer_model(model)
    w.add_tokenizer_pre(pre)
    w.add_token_list(tokens.texts)
    if model == "llama":
        w.add_token_scores(tokens.scores)
    w.add_token_types(tokens.types)


def _sentence_piece(folder: Path, config: Mapping[str, Any], tokens: Tokens) -> Encode:
    """From tokenizer.model, and what was added to it later."""
    from sentencepiece import SentencePieceProcessor

    file = folder / "tokenizer.model"
    pieces = SentencePieceProcessor()
    try:
        pieces.LoadFromFile(str(file))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{file}: not a SentencePiece model: {error}") from None
    count = pieces.vocab_size()
    if count > tokens.rows:
        warn(f"{file.name}: {count - tokens.rows} tokens have no embedding and are left out")
    for i in range(min(count, tokens.rows)):
        tokens.set(i, pieces.IdToPiece(i), _piece_type(pieces, i), pieces.GetScore(i))
    added = read_json(folder / "added_tokens.json")
    with _damaged(folder):
        for text, token in added.items():
            tokens.set(token, text, TokenType.USER_DEFINED)
        for number, one in config.get("added_tokens_decoder", {}).items():
            tokens.set_added(int(number), one["content"], bool(one.get("special")))
    return lambda text: list(pieces.encode(text))


def _piece_type(pieces: Any, token: int) -> TokenType:
    if pieces.IsUnknown(token):
        return TokenType.UNKNOWN
    if pieces.IsControl(token):
        return TokenType.CONTROL
    if pieces.IsUnused(token):
        return TokenType.UNUSED
    return TokenType.BYTE if pieces.IsByte(token) else TokenType.NORMAL


def _fast(
    w: gguf.GGUFWriter, folder: Path, tokens: Tokens, prefix: bool | None, pre: str | None
) -> tuple[gguf.SpecialVocab, Encode]:
    """From tokenizer.json: WordPiece, byte-pair encoding of bytes, or SentencePiece's written as merges."""
    file = folder / "tokenizer.json"
    described, fast = _read_fast(file)
    model = described["model"]
    _set_fast(fast, tokens)

    def encode(text: str) -> list[int]:
        return list(fast.encode(text, add_special_tokens=False).ids)

    if model["type"] == "WordPiece":
        tokens.texts = wordpiece.marked(tokens.texts, tokens.types)
        wordpiece.add(w, file, described)
        _add_tokens(w, tokens, "bert", "default", None)
        special = _special(folder, tokens.rows, merges=False)
        wordpiece.set_special(special, file, fast, described)
        return special, encode
    special = _special(folder, tokens.rows, merges=not model.get("byte_fallback"))
    if model.get("byte_fallback"):
        _score(model.get("merges", []), tokens)
        _add_tokens(
            w, tokens, "llama", "default", _prefix(tokens, encode) if prefix is None else prefix
        )
        return special, encode
    whole_words = bool(model.get("ignore_merges"))
    name = recognise.pretokenizer(fast, whole_words) if pre is None else pre
    by_name(name)  # raises for an unknown name
    _add_tokens(w, tokens, "gpt2", name, prefix)
    begins = fast.encode("a").ids[:1] != fast.encode("a", add_special_tokens=False).ids[:1]
    if not begins or _has_byte_level(described):
        special.add_special_token.setdefault("bos", False)
    if _has_byte_level(described):
        special.add_special_token.setdefault("eos", False)
    return special, encode


def _read_fast(file: Path) -> tuple[dict[str, Any], Any]:
    """tokenizer.json, and the tokenizer that it describes, which neither pads nor truncates."""
    import tokenizers

    described = read_json(file)
    model = described.get("model")
    kind = model.get("type") if isinstance(model, dict) else model
    if kind not in ("BPE", "WordPiece"):
        raise NotImplementedError(
            f"{file}: a model of type {kind!r} is not supported, expected 'BPE' or 'WordPiece'"
        )
    try:
        fast = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 the library raises Exception itself
        raise ValueError(f"{file}: {error}") from None
    fast.no_padding()
    fast.no_truncation()
    return described, fast


def _set_fast(fast: Any, tokens: Tokens) -> None:
    for text, token in fast.get_vocab(with_added_tokens=False).items():
        kind = TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL
        tokens.set(token, text, kind)
    for token, added in fast.get_added_tokens_decoder().items():
        tokens.set_added(token, added.content, added.special)


def _score(merges: list[Any], tokens: Tokens) -> None:
    """Scores with which SentencePiece's algorithm merges in the order of `merges`: the earlier, the higher."""
    ids = {text: i for i, text in enumerate(tokens.texts)}
    for rank, merge in reversed(list(enumerate(merges))):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        token = ids.get(left + right)
        if token is not None and tokens.types[token] == TokenType.NORMAL:
            tokens.scores[token] = -float(rank)


def _prefix(tokens: Tokens, encode: Encode) -> bool | None:
    """False if the tokenizer puts no space before text; None if it does, which is what readers expect."""
    first = encode("a")[:1]
    return None if first and tokens.texts[first[0]].startswith(SPACE) else False


def _has_byte_level(described: Mapping[str, Any]) -> bool:
    post = described.get("post_processor") or {}
    return any(step.get("type") == "ByteLevel" for step in post.get("processors", [post]))


def _special(folder: Path, rows: int, merges: bool) -> gguf.SpecialVocab:
    """Special ids, merges and chat templates. Raises ValueError for damaged files."""
    with _damaged(folder):
        return gguf.SpecialVocab(folder, load_merges=merges, n_vocab=rows)


@contextmanager
def _damaged(folder: Path) -> Iterator[None]:
    """What the package gguf raises for values of a wrong type names the folder."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder}: damaged tokenizer files: {error}") from None


def _ends(folder: Path) -> list[int]:
    """The ids that end generation, where generation_config.json or config.json lists several."""
    for name in ("generation_config.json", "config.json"):
        found = read_json(folder / name).get("eos_token_id")
        if isinstance(found, list):
            return [token for token in found if type(token) is int]
    return []


def _metadata(w: gguf.GGUFWriter) -> dict[str, Any]:
    """The keys as the package reads them."""
    return {key: _plain(item.value) for key, item in w.kv_data[0].items()}


def _add_ends(w: gguf.GGUFWriter, ends: list[int], tokenizer: Tokenizer) -> None:
    """End tokens that readers do not know by their text become eot and eom."""
    unknown = [token for token in ends if token not in tokenizer.eos_token_ids]
    keys = w.kv_data[0]
    names = [name for name in ("eot", "eom") if f"tokenizer.ggml.{name}_token_id" not in keys]
    for name, token in zip(names, unknown, strict=False):
        getattr(w, f"add_{name}_token_id")(token)
    if len(unknown) > len(names):
        warn(f"{len(unknown) - len(names)} tokens that end generation have no key in GGUF files")


def _compare(tokenizer: Tokenizer, encode: Encode) -> None:
    """Warn if the GGUF file's tokenizer makes other tokens of common text than the folder's."""
    other = [text for text in COMMON if tokenizer.encode(text, add_special=False) != encode(text)]
    if other:
        warn(
            f"{len(other)} of {len(COMMON)} texts become other tokens than in the folder's tokenizer, "
            f"such as {other[0][:40]!r}"
        )


def _plain(value: Any) -> Any:
    """As the package's reader gives it: arrays of numbers are NumPy's."""
    if isinstance(value, list) and value and not isinstance(value[0], str):
        return np.asarray(value)
    return value
