"""Where the user's messages come from: a terminal with line editing, or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

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


def line_reader(history: Path) -> ReadLine:
    """Lines of the terminal, with editing and a history in the file `history`; else of stdin."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return terminal_lines(history)
    return lambda: _piped_line(sys.stdin.buffer)


def terminal_lines(history: Path) -> ReadLine:
    """Lines of the terminal: Enter sends, Alt-Enter starts a new line.

    Reading raises KeyboardInterrupt on Ctrl-C and EOFError on Ctrl-D.
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
    )
    return lambda: session.prompt("> ", prompt_continuation="… ")


def _history(path: Path) -> History:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        print(f"no history is kept: {error}", file=sys.stderr)
        return InMemoryHistory()
    return FileHistory(str(path))


def _piped_line(stream: BinaryIO) -> str:
    """Raises ValueError for a line that is not UTF-8; the next call reads on after it."""
    line = stream.readline()
    if not line:
        raise EOFError
    try:
        return line.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"a line is not valid UTF-8: {error.reason} at byte {error.start}"
        ) from None
