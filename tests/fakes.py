"""A tiny model and tokenizer with the real interfaces, whose every output is easily worked out."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ferrum.sample.recommended import Recommended

DECAY = 0.97  # slow, so that every token counts


class FakeCache:
    """Holds the tokens themselves; with `fixed` it cannot go back, as a sliding window."""

    def __init__(self, fixed: bool = False) -> None:
        self.fixed = fixed
        self.tokens = mx.zeros((1, 0), mx.uint32)

    @property
    def offset(self) -> int:
        return int(self.tokens.shape[1])

    @property
    def state(self) -> list[mx.array]:
        return [self.tokens]

    def trim(self, n: int) -> bool:
        if n and (self.fixed or n > self.offset):
            return False
        self.tokens = self.tokens[:, : self.offset - n]
        return True


class FakeModel:
    """Logits depend on all tokens so far: a decaying sum of their embeddings, times a matrix.

    `fed` and `headed` record how many positions each call of `body` and of `head` got.
    """

    def __init__(
        self, vocab_size: int = 40, context: int = 64, seed: int = 0, fixed_cache: bool = False
    ) -> None:
        self.args: Any = SimpleNamespace(vocab_size=vocab_size, context_length=context)
        self.fingerprint = f"fake-{seed}"
        self.nbytes = 0
        self.recommended = Recommended()
        self.check_file = None
        self.fixed_cache = fixed_cache
        rng = np.random.default_rng(seed)
        self.embedding = rng.normal(size=(vocab_size, 16)).astype(np.float32)
        self.output = rng.normal(scale=0.1, size=(16, vocab_size)).astype(np.float32)
        self.fed: list[int] = []
        self.headed: list[int] = []

    def make_cache(self) -> list[FakeCache]:
        return [FakeCache(self.fixed_cache)]

    def body(self, tokens: mx.array, cache: list[FakeCache]) -> mx.array:
        held = mx.concatenate([cache[0].tokens, tokens.astype(mx.uint32)], axis=1)
        cache[0].tokens = held
        self.fed.append(tokens.shape[1])
        age = mx.arange(held.shape[1])[:, None] - mx.arange(held.shape[1])[None]
        weights = mx.where(age >= 0, mx.power(DECAY, age), 0)
        return (weights @ mx.array(self.embedding)[held[0]])[None, -tokens.shape[1] :]

    def head(self, hidden: mx.array) -> mx.array:
        self.headed.append(hidden.size // hidden.shape[-1])
        return hidden @ mx.array(self.output)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """What must come after `tokens`, in NumPy: (vocab,)."""
        weights = DECAY ** np.arange(len(tokens) - 1, -1, -1)
        return np.asarray(weights @ self.embedding[list(tokens)] @ self.output)

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The most likely tokens after `prompt`, one by one."""
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.logits(tokens).argmax()))
        return tokens[len(prompt) :]


class ScriptedModel(FakeModel):
    """Says `script`, whatever the prompt of `prompt_length` tokens is."""

    def __init__(self, script: Sequence[int], vocab_size: int, prompt_length: int = 1) -> None:
        super().__init__(vocab_size, context=4096)
        self.script = [0] * (prompt_length - 1) + list(script) + [0]

    def body(self, tokens: mx.array, cache: list[FakeCache]) -> mx.array:
        start = cache[0].offset
        super().body(tokens, cache)
        said = mx.array(self.script)[start : start + tokens.shape[1]]
        return 50.0 * (said[:, None] == mx.arange(self.args.vocab_size))[None].astype(mx.float32)

    def head(self, hidden: mx.array) -> mx.array:
        return hidden


class FakeTokenizer:
    """Pieces of bytes, matched longest first; ids below `len(SPECIAL)` are special tokens."""

    SPECIAL = (b"<s>", b"</s>", b"<|end|>")

    def __init__(self, pieces: Sequence[bytes] = (), bos: bool = False, chat: bool = True) -> None:
        self.pieces = [*self.SPECIAL, *pieces]
        self.vocab_size = len(self.pieces)
        self.bos_token_id = 0 if bos else None
        self.prefix_ids = [0] if bos else []
        self.eos_token_ids = frozenset({1, 2})
        self.has_chat_template = chat

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        left, ids = text.encode(), [0] if self.bos_token_id == 0 and add_special else []
        first = 0 if parse_special else len(self.SPECIAL)
        by_length = sorted(range(first, len(self.pieces)), key=lambda i: -len(self.pieces[i]))
        while left:
            ids.append(next(i for i in by_length if left.startswith(self.pieces[i])))
            left = left[len(self.pieces[ids[-1]]) :]
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")

    def apply_chat_template(
        self, messages: list[dict[str, str]], continue_final_message: bool = False, **arguments: Any
    ) -> str:
        *messages, last = [*messages, *([] if continue_final_message else [{"content": ""}])]
        turns = "".join(f"{m['role'][0]}:{m['content']}<|end|>" for m in messages)
        return turns + "".join(f"{k}={v};" for k, v in arguments.items()) + f"a:{last['content']}"

    def detokenizer(self, before: Sequence[int] = ()) -> FakeDetokenizer:
        return FakeDetokenizer(self.pieces)


class FakeDetokenizer:
    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        return self.decoder.decode(self.pieces[token])

    def finish(self) -> str:
        return self.decoder.decode(b"", final=True)


def byte_tokenizer(**options: Any) -> FakeTokenizer:
    """One token a byte, after the special ones."""
    return FakeTokenizer([bytes([b]) for b in range(256)], **options)
