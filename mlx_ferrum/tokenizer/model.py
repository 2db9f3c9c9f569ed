"""Tokenizer: text to token ids and back, and chat templates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..template import ChatTemplates
from . import kinds
from .detokenizer import StreamingDetokenizer
from .special import SpecialTokens


class Tokenizer:
    """Text to ids, equal to llama.cpp's for every text, and back.

    Attributes: tokens (the vocabulary's texts), vocab_size, bos_token_id and eos_token_id (None if there
    is none), eos_token_ids (all that end generation), has_chat_template.
    """

    def __init__(self, kind: kinds.Kind, templates: ChatTemplates) -> None:
        """See from_metadata."""
        self._kind, self._templates = kind, templates
        self._special = SpecialTokens(kind.vocabulary)
        self.tokens: Sequence[str] = kind.vocabulary.tokens
        self.vocab_size = len(self.tokens)
        self.bos_token_id = kind.vocabulary.special_ids["bos_token_id"]
        self.eos_token_id = kind.vocabulary.special_ids["eos_token_id"]
        self.eos_token_ids = kind.vocabulary.end_ids
        self.has_chat_template = bool(templates)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer that the `tokenizer.*` keys of a GGUF file describe.

        Raises ValueError naming the key for damaged metadata, NotImplementedError for a kind of tokenizer
        or pre-tokenizer that is not known.
        """
        return cls(kinds.from_metadata(metadata), ChatTemplates.from_metadata(metadata))

    def encode(
        self, text: str | bytes, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Ids of a text. Bytes need not be UTF-8; in a str the surrogates of surrogateescape are bytes.

        add_special: add the ids that the model expects before and after a text. parse_special: read
        `<|im_end|>` and the like as the tokens they name; without, only user-defined tokens are.
        """
        if isinstance(text, bytes):
            text = text.decode("utf-8", "surrogateescape")
        ids = list(self._kind.before) if add_special else []
        for piece in self._special.partition(text, parse_special):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self._kind.encoder.encode(piece)
        return [*ids, *self._kind.after] if add_special else ids

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Text of some ids; bytes that are not UTF-8 become U+FFFD. ValueError for an id out of range.

        skip_special: leave out control tokens and the unknown token.
        """
        return StreamingDetokenizer(self._kind.pieces, skip_special).decode(ids)

    def detokenizer(self, skip_special: bool = False) -> StreamingDetokenizer:
        """A detokenizer for ids that come one by one; all it says together is what decode says."""
        return StreamingDetokenizer(self._kind.pieces, skip_special)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt that the file's template makes of messages; encode it with parse_special=True.

        messages: dicts with a `role` and usually `content`; all their keys go to the template. tools:
        JSON schemas of functions. add_generation_prompt: end with the beginning of the reply. variables:
        what else the template knows, such as `enable_thinking`. Raises ValueError if there is no template
        or it refuses or cannot be rendered.
        """
        return self._templates.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            bos_token=self._text(self.bos_token_id),
            eos_token=self._text(self.eos_token_id),
            **variables,
        )

    def _text(self, token: int | None) -> str:
        return "" if token is None else self.tokens[token]
