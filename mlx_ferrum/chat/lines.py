"""Where the user's messages come from: a terminal with line editing, or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle

from mlx_ferrum import notice

FENCE = '"""'
ReadLine = Callable[[], str]


def read_message(read_line: ReadLine) -> str:
    '''A line, or all between a line that starts with """ and one that ends with it.

    Raises:
        EOFError: there is no more, or the input ends inside a message.
    '''
    text = read_line()
    if not text.startswith(FENCE):
        return text.strip()
    text = text.removeprefix(FENCE)
    while not text.rstrip().endswith(FENCE):
        text += "\n" + read_line()
    return text.rstrip().removesuffix(FENCE).strip("\n")


def has_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream is open and a terminal."""
    return stream is not None and not stream.closed and stream.isatty()


def line_reader(history: Path, commands: Sequence[str] = ()) -> ReadLine:
    """Lines of the terminal, with editing and a history in the file `history`; else of stdin.

    commands: what Tab completes in a terminal
    """
    if has_terminal(sys.stdin) and has_terminal(sys.stdout):
        return terminal_lines(history, commands)
    return _piped_line


class Commands(Completer):
    """Completes the words of a line that starts like one of `commands`."""

    def __init__(self, commands: Sequence[str]) -> None:
        self.commands = commands

    def get_completions(self, document: Document, _: CompleteEvent) -> Iterator[Completion]:
        """The commands that go on from the text before the cursor, word by word."""
        text = document.text_before_cursor
        for command in self.commands:
            same_word = command.rstrip().count(" ") == text.count(" ")
            if text.startswith("/") and command.startswith(text) and same_word:
                yield Completion(command, start_position=-len(text))


def terminal_lines(history: Path, commands: Sequence[str] = ()) -> ReadLine:
    """Lines of the terminal: Enter sends, Alt-Enter starts a new line, Tab completes `commands`.

    Reading raises KeyboardInterrupt on Ctrl-C, EOFError on Ctrl-D, and ValueError for a line that is
    not UTF-8.
    """
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        history=_history(history),
        key_bindings=keys,
        multiline=True,
        reserve_space_for_menu=0,
        completer=Commands(commands),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
    )
    return lambda: _decoded(_typed(session))


def _history(path: Path) -> History:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        notice.warn(f"no history is kept: {error}")
        return InMemoryHistory()
    return FileHistory(str(path))


def _piped_line() -> str:
    """The next line of stdin; asks for it on stderr if a person types it.

    Raises ValueError for a line that is not UTF-8; the next call reads on after it.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise EOFError
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return _decoded(line).removesuffix("\n").removesuffix("\r")


def _typed(session: PromptSession[str]) -> bytes:
    """What the user types; bytes that are not UTF-8 come from prompt_toolkit as surrogates."""
    text = session.prompt("> ", prompt_continuation="… ")
    return text.encode(errors="surrogateescape")


def _decoded(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"a line is not valid UTF-8: {error.reason} at byte {error.start}"
        ) from None
