"""Tokenizer: text to token ids and back, and chat templates."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ..template import ChatTemplate, ChatTemplates, split_final
from . import kinds
from .detokenizer import SPECIAL, StreamingDetokenizer
from .special import SpecialTokens
from .vocabulary import FILL_NAMES, FillTokens

_SHOWN = 24  # characters of a special token in a repr


class Tokenizer:
    """Text to ids, equal to llama.cpp's for every text, and back.

    One exception: a WordPiece file that the package converted keeps the ids of its tokenizer.json (wordpiece.py).

    Attributes: tokens (the vocabulary's texts), vocab_size, bos_token_id and eos_token_id (None if there
    is none), eos_token_ids (all that end generation), prefix_ids (what the model expects before a text),
    fill_tokens (for filling in the middle; None unless all three are there), has_chat_template.
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
        self.prefix_ids = list(kind.before)
        self._fill_ids = kind.vocabulary.fill_ids
        self.fill_tokens = None
        if len(self._fill_ids) == len(FILL_NAMES):
            self.fill_tokens = FillTokens(**self._fill_ids)
        self.has_chat_template = bool(templates)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer that the `tokenizer.*` keys of a GGUF file describe.

        Raises ValueError naming the key for damaged metadata, NotImplementedError for a kind of tokenizer
        or pre-tokenizer that is not known.
        """
        return cls(kinds.from_metadata(metadata), ChatTemplates.from_metadata(metadata))

    def __repr__(self) -> str:
        kind = type(self._kind.encoder).__name__.removesuffix("Encoder")
        special = [self._named("begin", self.bos_token_id), self._named("end", self.eos_token_id)]
        template = ["chat template"] if self.has_chat_template else []
        said = [kind, f"{self.vocab_size:,} tokens", *filter(None, special), *template]
        return f"Tokenizer({', '.join(said)})"

    def _named(self, what: str, token: int | None) -> str:
        """A special token for people, shortened."""
        if token is None:
            return ""
        text = repr(self.tokens[token])
        return f"{what} {text if len(text) <= _SHOWN else text[:_SHOWN] + '…'}"

    def encode(
        self, text: str | bytes, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Ids of a text. Bytes need not be UTF-8; in a str the surrogates of surrogateescape are bytes.

        add_special: add the ids that the file asks for before and after a text. Those after it belong to
        training: a prompt is encoded by `generate.encode_prompt`, which leaves them out. parse_special:
        read `<|im_end|>` and the like as the tokens they name; without, only user-defined tokens are.
        Raises ValueError if `text` is not text.
        """
        if isinstance(text, bytes):
            text = text.decode("utf-8", "surrogateescape")
        elif not isinstance(text, str):
            raise ValueError(f"text: {type(text).__name__} found, expected a string or bytes")
        ids = list(self._kind.before) if add_special else []
        for piece in self._special.partition(text, parse_special):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self._kind.encoder.encode(piece)
        return [*ids, *self._kind.after] if add_special else ids

    def encode_within(self, text: str | bytes) -> list[int]:
        """Token ids of text that continues another; no special tokens, and no space before it."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "surrogateescape")
        encoder = self._kind.within or self._kind.encoder
        ids: list[int] = []
        for piece in self._special.partition(text, False):
            ids += [piece] if isinstance(piece, int) else encoder.encode(piece)
        return ids

    def encode_fill(self, prefix: str | Sequence[int], suffix: str) -> list[int]:
        """Ids of a prompt after which the model writes what belongs between two texts.

        They are the ids that the model expects before a text, the prefix token, `prefix`, the suffix token,
        `suffix`, the middle token. This is the order prefix-suffix-middle of Qwen 2.5 Coder, StarCoder and
        CodeLlama. The other order, suffix-prefix-middle, begins with the suffix and ends with the prefix.
        Special tokens written in the texts are not parsed, and no space is put before `suffix`.

        prefix: text or token ids (n,); the ids that come before a text are not repeated
        Raises ValueError that names the tokens which the vocabulary does not have, or for an id out of range.
        """
        fill = self.fill_tokens
        if fill is None:
            lacks = ", ".join(name for name in FILL_NAMES if name not in self._fill_ids)
            raise ValueError(
                f"the model's vocabulary has no fill-in-the-middle token for: {lacks}; suffix needs all three"
            )
        if isinstance(prefix, str):
            first = self.encode(prefix, add_special=False)
        else:
            first, before = list(prefix), self.prefix_ids
            for token in first:
                self.piece(token)
            first = first[len(before) :] if first[: len(before)] == before else first
        last = self.encode_within(suffix)
        return [*self.prefix_ids, fill.prefix, *first, fill.suffix, *last, fill.middle]

    def piece(self, token: int) -> tuple[bytes, bool]:
        """The bytes that a token stands for, and whether it is a control token or the unknown one.

        Raises ValueError for an id out of range.
        """
        spelled, kind = self._kind.pieces.get(token)
        return spelled, kind in SPECIAL

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Text of ids (n,); bytes that are not UTF-8 become U+FFFD. ValueError for an id out of range.

        skip_special: leave out control tokens and the unknown token.
        """
        if isinstance(ids, (str, bytes)) or not hasattr(ids, "__iter__"):
            raise ValueError(f"token ids: {type(ids).__name__} found, expected integers (n,)")
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        return self.detokenizer(skip_special).decode(ids)

    def detokenizer(
        self,
        skip_special: bool = False,
        before: Iterable[int] = (),
        shown: Collection[str] = (),
    ) -> StreamingDetokenizer:
        """A detokenizer for ids that come one by one.

        What it gives is what `decode` gives for all ids, without the text of those in `before`.
        shown: texts of special tokens that are not left out.
        """
        return StreamingDetokenizer(self._kind.pieces, skip_special, before, shown)

    def template(self, tools: bool = False) -> ChatTemplate:
        """The chat template; the one for tools if `tools` and there is one. Raises ValueError if there is none."""
        return self._templates.chosen(tools)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **arguments: Any,
    ) -> str:
        """The prompt that the file's template makes of messages; encode it with parse_special=True.

        messages: dicts with a `role` and usually `content`, a string or a list of parts
        `{"type": "text", "text": ...}`; all their keys go to the template. tools: JSON schemas of
        functions. add_generation_prompt: end with the beginning of the reply. continue_final_message: the
        last message begins the reply, so the prompt ends with its text. arguments: what else the template
        uses, such as `enable_thinking`.

        Raises ValueError if there is no template, it refuses or cannot be rendered, or does not use one of
        the arguments.
        """
        start = ""
        if continue_final_message:
            messages, start = split_final(messages)
        prompt = self._templates.render(
            messages,
            tools=tools,
            arguments=arguments,
            add_generation_prompt=add_generation_prompt or continue_final_message,
            bos_token=self._text(self.bos_token_id),
            eos_token=self._text(self.eos_token_id),
        )
        return prompt + start

    def _text(self, token: int | None) -> str:
        return "" if token is None else self.tokens[token]
