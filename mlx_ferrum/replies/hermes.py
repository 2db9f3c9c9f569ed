"""Hermes and Qwen3: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""

from __future__ import annotations

from .calls import Calls
from .json_text import read_call
from .source import Reading, Source

START, END = "<tool_call>", "</tool_call>"


def read(source: Source, calls: Calls, _: str) -> Reading[None]:
    """A call, behind its marker. The end may be missing at the end of the reply."""
    yield from source.space()
    yield from read_call(source, calls)
    yield from end(source)


def end(source: Source) -> Reading[None]:
    """White space and the closing tag, if it comes."""
    start = source.at
    yield from source.space()
    if (yield from source.skips(END)):
        source.mark = source.at
    else:
        source.at = start
