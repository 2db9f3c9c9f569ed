"""A tiny model and tokenizer with the real interfaces, whose every output is easily worked out."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ferrum import ops
from mlx_ferrum.batch import Batch
from mlx_ferrum.cache import Cache
from mlx_ferrum.sample.recommended import Recommended
from mlx_ferrum.state.kinds import KV

DECAY = 0.97  # slow, so that every token counts


class FixedCache(Cache):
    """Cannot go back, as a sliding window whose blocks are gone."""

    def rewind(self, position: int) -> int:
        return super().rewind(position if position == self.offset else 0)


class FakeBody:
    """batch -> (n, hidden), by the model's `run`."""

    def __init__(self, model: FakeModel) -> None:
        self.layers, self._model = [None], model

    def __call__(self, batch: Batch) -> Any:
        return self._model.run(batch)


class FakeModel:
    """Logits depend on all tokens so far: a decaying sum of their embeddings, times a matrix.

    The keys that its layer keeps are the token ids.
    `fed` and `headed` record how many rows each call of `body` and of `scores` got.
    """

    def __init__(
        self, vocab_size: int = 40, context: int = 64, seed: int = 0, fixed_cache: bool = False
    ) -> None:
        self.args: Any = SimpleNamespace(vocab_size=vocab_size, context_length=context)
        self.fingerprint = f"fake-{seed}"
        self.nbytes = 0
        self.streams = None
        self.recommended = Recommended()
        self.check_file = None
        self.fixed_cache = fixed_cache
        self.body = FakeBody(self)
        rng = np.random.default_rng(seed)
        self.embedding = rng.normal(size=(vocab_size, 16)).astype(np.float32)
        self.output = rng.normal(scale=0.1, size=(16, vocab_size)).astype(np.float32)
        self.fed: list[int] = []
        self.headed: list[int] = []
        self._kept: list[Any] = []

    def make_cache(self, *, kv_bits: int = 16) -> Cache:
        kind = FixedCache if self.fixed_cache else Cache
        return kind([KV(1, 1, 1, bits=kv_bits)], self.fingerprint)

    def run(self, batch: Batch) -> Any:
        self.fed.append(len(batch.positions))
        return array(np.concatenate([self.hidden(past, n) for past, n in pasts(batch)]))

    def hidden(self, past: np.ndarray, count: int) -> np.ndarray:
        """Of the last `count` of the tokens `past`: (count, hidden)."""
        age = np.arange(len(past))[-count:, None] - np.arange(len(past))
        weights = np.where(age >= 0, DECAY ** np.maximum(age, 0), 0)
        return (weights @ self.embedding[past]).astype(np.float32)

    def scores(self, hidden: Any) -> Any:
        self.headed.append(len(hidden))
        return self.made(np.asarray(hidden) @ self.output)

    def made(self, logits: np.ndarray) -> Any:
        """Logits at another address than the ones before, so that no backend takes the step for one to repeat."""
        self._kept = [*self._kept[-1:], array(logits.astype(np.float32))]
        return self._kept[-1]

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

    def hidden(self, past: np.ndarray, count: int) -> np.ndarray:
        said = np.array(self.script)[len(past) - count : len(past)]
        logits = np.zeros((count, self.args.vocab_size), np.float32)
        logits[np.arange(count), said] = 50.0
        return logits

    def scores(self, hidden: Any) -> Any:
        return self.made(np.asarray(hidden))


def array(x: np.ndarray) -> Any:
    """As the backend in use has it."""
    return x if ops.backend_name() == "cpu" else mx.array(x)


def pasts(batch: Batch) -> Iterator[tuple[np.ndarray, int]]:
    """Put the batch's tokens where keys belong; the tokens of each sequence, and how many of them are new."""
    at = batch.layer(0)
    held, size = at.storage, at.storage.size
    block, offset = at.paging.slots // size, at.paging.slots % size
    ids = np.asarray(batch.tokens)
    if isinstance(held.keys, np.ndarray):
        held.keys[block, 0, offset, 0] = ids
    else:
        held.keys[mx.array(block), 0, mx.array(offset), 0] = mx.array(ids).astype(held.keys.dtype)
    keys = np.array(held.keys).astype(int)
    for i, length in enumerate(batch.lengths.tolist()):
        table = at.paging.table[i, : -(-length // size)]
        start, stop = batch.starts[i : i + 2].tolist()
        yield keys[table].reshape(-1)[:length], stop - start


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

    def detokenizer(
        self, skip_special: bool = False, before: Sequence[int] = (), shown: Sequence[str] = ()
    ) -> FakeDetokenizer:
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
