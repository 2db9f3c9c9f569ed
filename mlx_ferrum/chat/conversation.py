"""A conversation with a model: its messages, the cache they live in, and files of them."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from mlx_ferrum.generate import GenerationResponse, PromptCache, encode_prompt, stream_generate
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")
Message = dict[str, str]


class Conversation:
    """Messages with one model. What two turns have in common is processed once.

    Attributes:
        messages: the system message, if any, then user and assistant in turn.
        last: the figures of the last reply, None before the first.
        context_used: tokens of the conversation as it was last processed.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        template_arguments: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """`template_arguments` go to the chat template and `options` to `stream_generate` at every turn."""
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.template_arguments = dict(template_arguments or {})
        self.messages: list[Message] = []
        self.last: GenerationResponse | None = None
        self.context_used = 0
        self._held = PromptCache(model)

    @property
    def context_full(self) -> bool:
        """Whether the last reply ended because nothing more fits."""
        return self.context_used >= self.model.args.context_length

    def reply(self, text: str) -> Generator[str, None, None]:
        """Say `text` as the user; yield the reply's text as it comes.

        Closed early, or interrupted, the turn stays in the conversation with the text so far; if
        there is none, or the turn fails, the conversation is as it was.

        Raises:
            ValueError: the conversation does not fit the context, or the template refuses it.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        prompt = self.tokenizer.apply_chat_template(asked, **self.template_arguments)
        ids = encode_prompt(self.tokenizer, prompt)
        rest = self._held.start(ids)
        tokens: list[int] = []
        pieces: list[str] = []
        try:
            responses = stream_generate(
                self.model,
                self.tokenizer,
                rest,
                cache=self._held.caches,
                history=self._held.tokens,
                **self.options,
            )
            with closing(responses):
                for response in responses:
                    tokens.append(response.token)
                    pieces.append(response.text)
                    self.last = response
                    yield response.text
        finally:
            self._held.hold([*ids, *tokens])
            if tokens:
                self.context_used = len(ids) + len(tokens)
                self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]

    @property
    def system(self) -> str | None:
        """The system message."""
        first = self.messages[0] if self.messages else {"role": ""}
        return first["content"] if first["role"] == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        turns = [message for message in self.messages if message["role"] != "system"]
        self.messages = turns if text is None else [{"role": "system", "content": text}, *turns]

    def clear(self) -> None:
        """Forget all but the system message."""
        self.messages = [message for message in self.messages if message["role"] == "system"]
        self.context_used = 0

    def save(self, path: Path) -> None:
        """Write the messages to a JSON file, which is replaced once the new one is complete."""
        text = json.dumps({"messages": self.messages}, ensure_ascii=False, indent=1)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            partial.write_text(text + "\n", encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def load(self, path: Path) -> None:
        """Take over the messages of a file; on failure the conversation is as it was.

        Raises:
            ValueError: the file is no saved conversation.
            OSError: it cannot be read.
        """
        self.messages = _checked(path)
        self.context_used = 0


def _checked(path: Path) -> list[Message]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None
    messages = found.get("messages") if isinstance(found, dict) else None
    if not isinstance(messages, list):
        raise ValueError(f'{path} is not a saved conversation: expected an object with "messages"')
    for index, message in enumerate(messages):
        good = isinstance(message, dict) and message.get("role") in ROLES
        if not good or not isinstance(message.get("content"), str):
            raise ValueError(
                f"{path}: message {index} is not a role ({', '.join(ROLES)}) with a text as content"
            )
    return [{"role": message["role"], "content": message["content"]} for message in messages]
