"""A reply's text, as it comes, into text, reasoning and tool calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .calls import Calls, schemas
from .formats import CallFormat, Tags, call_format, reasoning_tags
from .pieces import Piece, joined
from .source import MalformedError, Reading, Source, held


class ReplyParser:
    """Reads one reply. However its text is cut, the pieces are the same once neighbours are joined.

    calls: how the model writes tool calls; None: there are none
    tags: what is around reasoning; None: there is none
    is_open: the prompt has opened the reasoning
    tools: what can be called; without any, no call is looked for
    new_id: names calls; None: as the format does
    in_reasoning: whether what was fed so far ends within reasoning
    Raises ValueError for a tool without a name.
    """

    def __init__(
        self,
        calls: CallFormat | None,
        tags: Tags | None,
        *,
        is_open: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
        new_id: Callable[[], str] | None = None,
    ) -> None:
        self._format = calls if tools else None
        self._tags, self._is_open = tags, is_open and tags is not None
        self.in_reasoning = self._is_open
        self._source = Source()
        names = new_id or (calls.new_id if calls else str)
        self._calls = Calls(self._source, schemas(tools), names)
        self._is_first = True  # nothing but white space since the start, reasoning or a call
        self._skips_space = False
        self._run = self._read()

    @property
    def markers(self) -> frozenset[str]:
        """Texts that the parser must be given even where they are special tokens."""
        tags, calls = self._tags, self._format
        reasoning = (tags.token or tags.open, tags.close) if tags else ()
        return frozenset((*reasoning, *(calls.markers + calls.texts if calls else ())))

    def feed(self, text: str) -> list[Piece]:
        """What is certain with this text."""
        self._source.text += text
        return self._drain()

    def end(self) -> list[Piece]:
        """The rest; nothing may be fed after it."""
        self._source.is_over = True
        return self._drain()

    def _drain(self) -> list[Piece]:
        found: list[Piece] = []
        for piece in self._run:
            if piece is None:
                break
            found.append(piece)
        return joined(found)

    def _read(self) -> Reading[None]:
        """The whole reply."""
        if self._tags is not None and (self._is_open or (yield from self._opens(self._tags.open))):
            yield from self._reasoning(self._tags)
        while self._source.at < len(self._source.text) or not self._source.is_over:
            yield from self._text()

    def _opens(self, tag: str) -> Reading[bool]:
        """Take white space and the tag if they come next."""
        source = self._source
        yield from source.space()
        is_there = yield from source.skips(tag)
        if not is_there:
            source.at = 0
        return is_there

    def _reasoning(self, tags: Tags) -> Reading[None]:
        """Reasoning behind its tag, without the white space around it."""
        source, self.in_reasoning = self._source, True
        yield from source.space()
        if self._is_open and (yield from source.skips(tags.open)):  # some models open it again
            yield from source.space()
        space = ""
        try:
            for piece in source.stream(tags.close, lambda part: Piece("reasoning", part)):
                if piece is None:
                    yield None
                    continue
                text = space + piece.text
                space = text[len(text.rstrip()) :]
                yield Piece("reasoning", text.rstrip())
        except MalformedError:  # it ends in the midst of it
            return
        self.in_reasoning, self._skips_space = False, True
        source.forget()

    def _text(self) -> Reading[None]:
        """Text up to a marker, and the calls behind it, or up to what is certain."""
        source = self._source
        if self._skips_space:
            yield from source.space()
            self._skips_space = False
        found = self._marker()
        if found is None:
            stop = len(source.text) - (0 if source.is_over else self._held())
            yield from self._plain(stop)
            source.forget()
            if not source.is_over:
                yield None
            return
        start, marker = found
        before = source.text[source.at : start]
        yield from self._plain(source.at + len(before.rstrip()))
        yield from self._call(start, marker)
        source.forget()

    def _plain(self, stop: int) -> Reading[None]:
        text, self._source.at = self._source.text[self._source.at : stop], stop
        self._is_first = self._is_first and not text.strip()
        if text:
            yield Piece("text", text)

    def _marker(self) -> tuple[int, str] | None:
        """Where the next marker is, and which."""
        if self._format is None:
            return None
        source = self._source
        found = [(source.text.find(marker, source.at), marker) for marker in self._format.markers]
        if self._is_first:
            rest = source.text[source.at :].lstrip()
            at = len(source.text) - len(rest)
            found += [(at, each) for each in self._format.first_markers if rest.startswith(each)]
        return min((each for each in found if each[0] >= 0), default=None)

    def _held(self) -> int:
        """Characters at the end that may belong to a call: the beginning of a marker, white space before it."""
        if self._format is None:
            return 0
        source = self._source
        stop = len(source.text) - held(source.text, source.at, list(self._format.markers))
        return len(source.text) - source.at - len(source.text[source.at : stop].rstrip())

    def _call(self, start: int, marker: str) -> Reading[None]:
        """Calls behind a marker, or the marker as text if they are malformed before the first one begins."""
        assert self._format is not None
        source, before = self._source, self._source.at
        source.mark, source.at = start, start + len(marker)
        try:
            yield from self._format.read(source, self._calls, marker)
        except MalformedError:
            if self._calls.is_open:
                yield self._calls.fail()
            elif source.mark == start:
                source.at = before
                yield from self._plain(start + len(marker))
            else:  # behind the last call
                source.at = source.mark
            return
        self._is_first = self._skips_space = True


def make_parser(
    template: str,
    prompt: str = "",
    tools: Sequence[Mapping[str, Any]] = (),
    new_id: Callable[[], str] | None = None,
) -> ReplyParser:
    """The parser for replies to a prompt that a chat template made.

    template: its text
    prompt: what it made; the reply begins within reasoning if that ends with the tag that opens it
    tools: as the template was given them; without any, no call is looked for
    """
    tags = reasoning_tags(template)
    is_open = tags is not None and prompt.rstrip().endswith(tags.open.rstrip())
    return ReplyParser(call_format(template), tags, is_open=is_open, tools=tools, new_id=new_id)
