"""The prompt's token ids, and how many of them a cache holds already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from mlx_ferrum import saved
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
    """The cache of one model, so that a prompt can reuse the tokens that it holds.

    Use: `rest = held.start(ids)`, then generate from `rest` with `cache=held.cache` and `history=held.tokens`.
    """

    def __init__(self, model: LanguageModel, *, kv_bits: int = 16) -> None:
        """kv_bits: as of `make_cache`."""
        self.model, self.kv_bits = model, kv_bits
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.cache: Cache = self.model.make_cache(kv_bits=self.kv_bits)

    @property
    def tokens(self) -> list[int]:
        """The tokens that the cache holds."""
        return self.cache.tokens

    def __repr__(self) -> str:
        return f"PromptCache({len(self.tokens)} tokens, {self.cache!r})"

    def start(self, prompt: Sequence[int]) -> list[int]:
        """Go back to the tokens that `prompt` begins with; return those still to be processed.

        At least the last one is processed again, for its logits; more of them, where a sliding window has moved on.
        """
        shared = 0
        for ours, theirs in zip(self.tokens, prompt[:-1], strict=False):
            if ours != theirs:
                break
            shared += 1
        return list(prompt[self.cache.rewind(shared) :])

    def save(self, path: str | Path) -> None:
        """Write the cache and its tokens to a file, atomically."""
        saved.save(path, self.cache)

    @classmethod
    def load(cls, path: str | Path, model: LanguageModel, *, kv_bits: int = 16) -> PromptCache:
        """Read what `save` wrote, with numbers of as many bits.

        Raises:
            ValueError: the file is no prompt cache, or one of another model.
        """
        held = cls(model, kv_bits=kv_bits)
        held.cache = saved.load(path, model, kv_bits=kv_bits)
        return held
