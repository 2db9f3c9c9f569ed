"""Metadata of tokenizers that no real file at hand has, some made from those of the two real models."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlx_ferrum.tokenizer.bpe import byte_letters
from mlx_ferrum.tokenizer.pretokenizers import table

TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
Metadata = dict[str, Any]
RAW_LETTERS = f"\t\r{SPACE}\u0301\u3000\xa0éÉñßжЯΑω中文あ한١٢½Ⅷ、。“”…😀👍"
WORDS = (
    "the",
    " the",
    "Hello",
    "123",
    "中文",
    "\n\n",
    "\n\n\n",
    "    ",
    " 's",
    "'ll",
    "fooBar",
    "...",
)


def tokenizer_keys(metadata: Mapping[str, Any]) -> Metadata:
    """What a tokenizer needs, with arrays as lists and NumPy arrays that can be changed."""
    kept = {k: v for k, v in metadata.items() if k.startswith("tokenizer.")}
    kept["tokenizer.ggml.tokens"] = list(kept[TOKENS])
    kept["tokenizer.ggml.token_type"] = np.array(kept[TYPES])
    return kept


def pairs(name: str) -> Metadata:
    """A vocabulary that shows every cut of a pre-tokenizer: any two letters merge, in random order.

    Some words are tokens that no merge makes, and there are a few special tokens.
    """
    raw = table()[name].raw
    letters = [*map(chr, range(0x21, 0x7F)), *RAW_LETTERS] if raw else byte_letters()
    merges = [f"{left} {right}" for left in letters for right in letters]  # raw: none across lines
    random.Random(0).shuffle(merges)
    special = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
    by_byte = [f"<0x{byte:02X}>" for byte in range(256)] if raw else []
    words = [spelled(word, raw) for word in WORDS]
    plain = dict.fromkeys([*letters, "\n", *words, *(merge.replace(" ", "") for merge in merges)])
    types = [CONTROL] * len(special) + [BYTE] * len(by_byte) + [NORMAL] * len(plain)
    types[special.index("<unk>")] = UNKNOWN
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        TOKENS: [*special, *by_byte, *plain],
        TYPES: np.array(types, np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def spelled(word: str, raw: bool) -> str:
    """A word in a vocabulary's letters."""
    if raw:
        return word.replace(" ", SPACE)
    return "".join(byte_letters()[byte] for byte in word.encode())


def user_defined(smollm2: Mapping[str, Any]) -> Metadata:
    """SmolLM2's with overlapping user-defined tokens, and special ones that take space on their right.

    That of spaces is as long as no other: between equals the order in which llama.cpp looks is its compiler's.
    """
    metadata = tokenizer_keys(smollm2)
    tokens, types = metadata[TOKENS], metadata[TYPES]
    tokens[9:15] = ["a b", "</s>", " \t \t\t ", "<unk>", "<s>", "<|end|>"]
    types[3:17] = USER_DEFINED
    types[[tokens.index(text) for text in ("ab", "abc", "bc", "the", "The", "ing")]] = USER_DEFINED
    types[0] = UNKNOWN
    flags = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    return {**metadata, **flags, "general.name": "Some Phi-3 model"}


def left_strip(smollm2: Mapping[str, Any]) -> Metadata:
    """SmolLM2's with a mask token that takes space on its left."""
    metadata = tokenizer_keys(smollm2)
    metadata[TOKENS][10] = "<mask>"
    return {**metadata, "tokenizer.ggml.pre": "jina-v2-code"}


def space_prefix(gemma3: Mapping[str, Any]) -> Metadata:
    """A seventh of Gemma's vocabulary, with many equal scores and a space before text, as in Llama 2's."""
    metadata = tokenizer_keys(gemma3)
    kept = [i for i, t in enumerate(metadata[TOKENS]) if i < 520 or i % 7 == 0 or len(t) <= 2]
    scores = np.round(np.random.default_rng(0).normal(size=len(kept)) * 3).astype(np.float32)
    scores[:600] = metadata["tokenizer.ggml.scores"][kept[:600]]
    metadata |= {TOKENS: [metadata[TOKENS][i] for i in kept], TYPES: metadata[TYPES][kept]}
    metadata |= {"tokenizer.ggml.scores": scores, "tokenizer.ggml.add_eos_token": True}
    del metadata["tokenizer.ggml.add_space_prefix"]
    return metadata


def word_piece(gemma3: Mapping[str, Any]) -> Metadata:
    """Words and characters of Gemma's vocabulary, in lower case, as WordPiece."""
    names = [f"[unused{i}]" for i in range(99)]
    texts = dict.fromkeys(["[PAD]", *names, "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    special = len(texts)
    vocabulary = list(gemma3[TOKENS])
    words = (text.lower() for text in vocabulary[500:60000])
    texts |= dict.fromkeys(w for w in words if "\n" not in w and SPACE not in w[1:] and w != SPACE)
    characters = [text for text in vocabulary[200000:] if len(text) == 1 and text != SPACE]
    texts |= dict.fromkeys([*characters, *(SPACE + character for character in characters)])
    types = np.full(len(texts), NORMAL, np.int32)
    types[:special] = CONTROL
    types[100] = UNKNOWN
    return {"tokenizer.ggml.model": "bert", TOKENS: list(texts), TYPES: types}


def variants(smollm2: Mapping[str, Any], gemma3: Mapping[str, Any]) -> dict[str, Metadata]:
    """Every kind of tokenizer by a name."""
    bert = word_piece(gemma3)
    return {
        **{name: pairs(name) for name in table()},
        "user defined": user_defined(smollm2),
        "left strip": left_strip(smollm2),
        "space prefix": space_prefix(gemma3),
        "bert": bert,
        "bert, cased": {**bert, "tokenizer.ggml.normalizer.lowercase": False},
        "bert, accents": {**bert, "tokenizer.ggml.normalizer.strip_accents": False},
    }
