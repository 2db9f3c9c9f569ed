"""The prompt's token ids, and how many of them a cache holds already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from mlx_ferrum import cache as cache_file
from mlx_ferrum.cache import Cache
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.tokenizer import Tokenizer

from .step import token_ids

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]] | mx.array


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """Token ids of a prompt: a text, the messages of a conversation, or ids, which are passed through.

    Messages go through the chat template. Text is encoded as mlx-lm and llama.cpp do it: special tokens
    written in it are parsed, so that the output of `apply_chat_template` can be given as it is, and the
    beginning-of-text token is added unless the text already starts with it. No end token is added, even
    if the file asks for one. Whoever builds a prompt from text that must not contain special tokens
    should call `tokenizer.encode` and give the ids.

    Raises:
        ValueError: the prompt has no tokens, or the template refuses the messages.
    """
    if isinstance(prompt, (list, tuple)) and any(isinstance(item, Mapping) for item in prompt):
        prompt = tokenizer.apply_chat_template(cast("Sequence[Mapping[str, Any]]", prompt))
    if isinstance(prompt, str):
        text = tokenizer.encode(prompt, add_special=False, parse_special=True)
        ids = [*tokenizer.prefix_ids, *text]
        if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
            del ids[0]
    else:
        if prompt is None or isinstance(prompt, (bytes, Mapping)):
            found = type(prompt).__name__
            raise ValueError(f"the prompt is a {found}, expected text, messages or token ids (n,)")
        ids = token_ids(cast("Sequence[int] | mx.array", prompt))
    if not ids:
        raise ValueError("the prompt is empty (0 tokens), expected at least one")
    return ids


class PromptCache:
    """The caches of one model together with the tokens they hold, so that a prompt can reuse them.

    Use: `rest = held.start(ids)`, generate from `rest` with `cache=held.caches` and
    `history=held.tokens`, then `held.hold(ids + generated)`.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.caches: list[Cache] = self.model.make_cache()
        self.tokens: list[int] = []

    def __repr__(self) -> str:
        return f"PromptCache({len(self.tokens)} tokens, {self.caches!r})"

    def start(self, prompt: Sequence[int]) -> list[int]:
        """Go back to the tokens that `prompt` begins with; return those still to be processed.

        At least the last one is processed again, for its logits. Caches that cannot go back that
        far (sliding windows) are made anew.
        """
        shared = 0
        for ours, theirs in zip(self.tokens, prompt[:-1], strict=False):
            if ours != theirs:
                break
            shared += 1
        if not self._trim(len(self.tokens) - shared):
            self.reset()
        self.tokens = self.tokens[:shared]
        return list(prompt[len(self.tokens) :])

    def hold(self, tokens: Sequence[int]) -> None:
        """Note what the caches hold: the first of `tokens`, which are all that went in or came out.

        After an interruption some may be ahead of the others, or of `tokens`; they go back to what
        all of them hold, or are made anew if one cannot.
        """
        held = min([len(tokens), *(cache.offset for cache in self.caches)])
        if all(cache.trim(cache.offset - held) for cache in self.caches):
            self.tokens = list(tokens[:held])
        else:
            self.reset()

    def save(self, path: str | Path) -> None:
        """Write caches and tokens to a file, atomically."""
        cache_file.save(path, self.caches, self.model, self.tokens)

    @classmethod
    def load(cls, path: str | Path, model: LanguageModel) -> PromptCache:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is no prompt cache, or one of another model.
        """
        held = cls(model)
        held.caches, held.tokens = cache_file.load(path, model)
        return held

    def _trim(self, count: int) -> bool:
        return count == 0 or all(cache.trim(count) for cache in self.caches)
