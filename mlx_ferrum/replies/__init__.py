"""Replies as models write them, taken apart while they come: text, reasoning and tool calls.

    parser = make_parser(template_text, prompt, tools)
    for text in parts_of_the_reply: pieces = parser.feed(text)
    pieces = parser.end()

Each `Piece` is text, reasoning, the beginning of a call (index, id, name), more of its arguments, or word that a call
was malformed: "failed", whose `text` is what the model wrote, to be shown as text; a call that is malformed before its
arguments begin is text from the start. Special tokens in `parser.markers` must be fed as text, so
`tokenizer.detokenizer(skip_special=True, shown=parser.markers)`; tokens that end the reply must not.

A template's text tells the family (formats.py): Hermes and Qwen3, Qwen3-Coder, Llama 3, Mistral, Gemma.
It knows no engine, no tokenizer and no HTTP.
"""

from .calls import schemas
from .formats import CallFormat, Tags, call_format, reasoning_tags
from .parser import ReplyParser, make_parser
from .pieces import Piece, joined

__all__ = [
    "CallFormat",
    "Piece",
    "ReplyParser",
    "Tags",
    "call_format",
    "joined",
    "make_parser",
    "reasoning_tags",
    "schemas",
]
