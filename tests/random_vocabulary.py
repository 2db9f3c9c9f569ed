"""Vocabularies of random files: byte-level BPE (`gpt2`) with a few merges."""

from __future__ import annotations

import itertools
import string
from collections.abc import Mapping, Sequence

import gguf

END = "<|endoftext|>"


def add(
    writer: gguf.GGUFWriter,
    size: int,
    named: Mapping[int, str] = {},
    kind: gguf.TokenType = gguf.TokenType.UNUSED,
) -> None:
    """Byte-level BPE: 256 bytes, some merges of two, unused tokens if need be, one end-of-text token.

    named: texts of unused tokens, by their number
    kind: what these are instead
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    bytes_ = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(rest))]
    merges = [f"{a} {b}" for a in "\u0120etaoins" for b in "etaoinshr"][: size - len(bytes_) - 1]
    tokens = bytes_ + [merge.replace(" ", "") for merge in merges]
    unused = [named.get(i, f"<unused{i}>") for i in range(size - len(tokens) - 1)]
    kinds = [kind if i in named else gguf.TokenType.UNUSED for i in range(len(unused))]
    kinds = [gguf.TokenType.NORMAL] * len(tokens) + kinds
    _write(writer, [*tokens, *unused], kinds, merges)


def add_ascii(writer: gguf.GGUFWriter, size: int) -> None:
    """Printable ASCII, and pairs of letters: no token is a part of a character."""
    letters = string.ascii_lowercase
    merges = [f"{a} {b}" for a, b in itertools.product(letters, letters)]
    tokens = [chr(code) for code in range(0x21, 0x7F)]
    merges = merges[: size - len(tokens) - 1]
    tokens += [merge.replace(" ", "") for merge in merges]
    _write(writer, tokens, [gguf.TokenType.NORMAL] * len(tokens), merges)


def _write(
    writer: gguf.GGUFWriter, tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[str]
) -> None:
    """The tokens, and one that ends texts."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, END])
    writer.add_token_types([*kinds, gguf.TokenType.CONTROL])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(tokens))
    writer.add_eos_token_id(len(tokens))
    writer.add_add_bos_token(False)
