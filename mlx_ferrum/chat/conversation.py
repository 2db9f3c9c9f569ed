"""A conversation with a model: its messages, and the cache they live in."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_ferrum.generate import (
    GenerationResponse,
    Progress,
    PromptCache,
    encode_prompt,
    stream_generate,
)
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.tokenizer import Tokenizer

from . import saved
from .context import Message, fit, last_user, turn_starts, visible


@dataclass
class Reply:
    """A reply under way.

    Attributes:
        dropped: turns that the model no longer sees from this reply on.
        pieces: the text as it comes. Closed early, or interrupted, the turn stays in the conversation
            with the text so far; if there is none, or the turn fails, the conversation is as it was.
    """

    dropped: int
    pieces: Generator[str, None, None]


class Conversation:
    """Messages with one model. What two turns have in common is processed once.

    When the context is full, the oldest turns are hidden from the model (`context.fit`). They stay in
    `messages` and are saved; after a load they are shown again as far as they fit.

    Attributes:
        messages: the system message, if any, then user and assistant in turn.
        hidden: turns at the beginning that the model does not see.
        context: tokens that the model sees at most.
        options: what `stream_generate` gets at every turn.
        last: the figures of the last reply, None before the first.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        template_arguments: Mapping[str, Any] | None = None,
        context: int | None = None,
        max_tokens: int = -1,
        kv_bits: int = 16,
        **options: Any,
    ) -> None:
        """Start without messages.

        template_arguments: passed to `apply_chat_template` at every turn
        context: the model's by default
        max_tokens: of a reply, -1 for as many as fit
        kv_bits: of each number in keys and values, 16 or 8

        Raises:
            ValueError: `context` is more than the model has.
        """
        most = model.args.context_length
        if context is not None and context > most:
            raise ValueError(f"a context of {context} tokens: the model has {most}")
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.template_arguments = dict(template_arguments or {})
        self.context, self.max_tokens = context or most, max_tokens
        self.messages: list[Message] = []
        self.hidden = 0
        self.last: GenerationResponse | None = None
        self._used = 0  # as last processed; 0 if the messages have changed since
        self._held = PromptCache(model, kv_bits=kv_bits)

    def __repr__(self) -> str:
        hidden = f", {self.hidden} of them hidden from the model" if self.hidden else ""
        used = f"{self._used} of {self.context} tokens" if self._used else f"{self.context} tokens"
        turns = f"{self.turns} turn{'s' if self.turns != 1 else ''}"
        return f"Conversation({turns}{hidden}, a context of {used})"

    @property
    def context_full(self) -> bool:
        """Whether the last reply ended because nothing more fits."""
        return self._used >= self.context

    def context_used(self) -> int:
        """Tokens of the messages that the model sees. Raises ValueError if the template refuses them."""
        if self._used or not self.messages:
            return self._used
        return len(self._encode(visible(self.messages, self.hidden)))

    @property
    def turns(self) -> int:
        """How many turns there are, the hidden ones included."""
        return len(turn_starts(self.messages))

    def reply(self, text: str, progress: Progress | None = None) -> Reply:
        """Say `text` as the user. `progress` hears how much of the prompt is read.

        Raises:
            ValueError: the message alone does not fit the context, or the template refuses it.
        """
        return self._answer([*self.messages, {"role": "user", "content": text}], progress)

    def retry(self, progress: Progress | None = None) -> Reply:
        """Answer the last message of the user again, in place of the last reply.

        A reply that was cut off by the end of the context gets more room: a turn is dropped.

        Raises:
            ValueError: there is no message, or as for `reply`.
        """
        at = last_user(self.messages)
        if at is None:
            raise ValueError("there is no message to answer again")
        return self._answer(self.messages[: at + 1], progress, drop=self.context_full)

    def undo(self) -> list[Message]:
        """Take back the last message of the user and the reply to it; return both.

        Raises:
            ValueError: there is no message.
        """
        at = last_user(self.messages)
        if at is None:
            raise ValueError("there is no message to take back")
        taken = self.messages[at:]
        self._change(self.messages[:at])
        return taken

    def _answer(
        self, asked: list[Message], progress: Progress | None, *, drop: bool = False
    ) -> Reply:
        """The reply to the last of the messages `asked`."""
        reply = self.context if self.max_tokens == -1 else self.max_tokens
        ids, hidden = fit(
            asked, self.hidden, self._encode, context=self.context, reply=reply, drop=drop
        )
        pieces = self._run(asked, ids, hidden, reply=reply, progress=progress)
        return Reply(hidden - self.hidden, pieces)

    def _run(
        self,
        asked: list[Message],
        ids: list[int],
        hidden: int,
        *,
        reply: int,
        progress: Progress | None,
    ) -> Generator[str, None, None]:
        """Text of at most `reply` tokens after the prompt `ids`; at the end the turn is noted."""
        tokens: list[int] = []
        pieces: list[str] = []
        try:
            responses = stream_generate(
                self.model,
                self.tokenizer,
                self._held.start(ids),
                min(reply, self.context - len(ids)),
                cache=self._held.cache,
                history=self._held.tokens,
                progress=progress,
                **self.options,
            )
            with closing(responses):
                for response in responses:
                    tokens.append(response.token)
                    pieces.append(response.text)
                    self.last = response
                    yield response.text
        finally:
            if tokens:
                self._used = len(ids) + len(tokens)
                self.hidden = hidden
                self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]

    def _encode(self, messages: list[Message]) -> list[int]:
        return encode_prompt(self.tokenizer, self._text(messages))

    def _text(self, messages: list[Message]) -> str:
        return self.tokenizer.apply_chat_template(messages, **self.template_arguments)

    def _change(self, messages: list[Message], *, forget: bool = False) -> None:
        """Replace the messages. All turns are shown again with `forget`, or if only hidden ones are left."""
        self.messages, self._used = messages, 0
        if forget or self.hidden >= self.turns:
            self.hidden = 0

    @property
    def system(self) -> str | None:
        """The system message."""
        first = self.messages[0] if self.messages else {"role": ""}
        return first["content"] if first["role"] == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        turns = [message for message in self.messages if message["role"] != "system"]
        self._change(turns if text is None else [{"role": "system", "content": text}, *turns])

    def hears_system(self) -> bool:
        """Whether the template puts the system message into the prompt; true if there is none.

        Raises:
            ValueError: the template refuses it.
        """
        if self.system is None:
            return True
        asked = [self.messages[0], {"role": "user", "content": "?"}]
        return self.system.strip() in self._text(asked)

    def clear(self) -> None:
        """Forget all but the system message."""
        self._change([m for m in self.messages if m["role"] == "system"], forget=True)

    def save(self, path: Path) -> None:
        """Write all messages to a JSON file. Raises OSError as `saved.write`."""
        saved.write(path, self.messages)

    def load(self, path: Path) -> None:
        """Take over the messages of a file; on failure, as of `saved.read`, nothing changes."""
        self._change(saved.read(path), forget=True)
