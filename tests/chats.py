"""Runs the chat over lines through a pipe, with a model whose replies are known."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fakes import FakeModel, byte_tokenizer

import mlx_ferrum
from mlx_ferrum import chat

LETTERS = [3 + byte for byte in b"abcdefgh"]


class LetterModel(FakeModel):
    """Can say only letters; of several runs of the same chat the replies are equal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(vocab_size=259, seed=27, **options)  # its replies to most messages differ
        allowed = np.isin(np.arange(259), LETTERS)
        self.mask = np.where(allowed, 0, -1e9).astype(np.float32)

    def scores(self, hidden: Any) -> Any:
        return self.made(np.asarray(super().scores(hidden)) + self.mask)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        return super().logits(tokens) + self.mask


class Chat:
    """Runs the chat's main over given lines; `replies` are what it printed on stdout."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.model = LetterModel(context=400)
        self.tokenizer = byte_tokenizer()

    def __call__(
        self, *lines: str | bytes, flags: Sequence[str] = ("--temp", "0", "-n", "5")
    ) -> int:
        raw = b"".join(line if isinstance(line, bytes) else line.encode() + b"\n" for line in lines)
        self.monkeypatch.setattr(mlx_ferrum, "load", lambda *_, **__: (self.model, self.tokenizer))
        self.monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
        code = chat.main(list(flags))
        out, self.told = self.capsys.readouterr()
        self.replies = out.splitlines()
        return code

    def expected(self, *said: str, system: str | None = None, count: int = 5) -> list[str]:
        """The replies to `said`, from the model's definition."""
        messages = [] if system is None else [{"role": "system", "content": system}]
        replies = []
        for text in said:
            messages.append({"role": "user", "content": text})
            ids = self.tokenizer.encode(
                self.tokenizer.apply_chat_template(messages), parse_special=True
            )
            replies.append(self.tokenizer.decode(self.model.greedy(ids, count)))
            messages.append({"role": "assistant", "content": replies[-1]})
        return replies
