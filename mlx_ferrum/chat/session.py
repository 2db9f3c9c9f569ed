"""The commands that the user gives in a chat, and what is told besides the replies."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from mlx_ferrum import cli
from mlx_ferrum.generate import Progress, PromptBar, figures

from .conversation import Conversation, Reply
from .help import COMMANDS, NOTES
from .lines import ReadLine, has_terminal, read_message
from .settings import SETTINGS, Settings

SHOWN = 40  # characters of a message that /undo shows


def completions() -> list[str]:
    """All that Tab can complete."""
    return [f"/{name}" for name in COMMANDS] + [f"/set {name} " for name in SETTINGS]


class Session:
    """Reads messages and commands and answers them until the user leaves."""

    def __init__(self, conversation: Conversation, settings: Settings, read_line: ReadLine) -> None:
        self.conversation, self.settings, self.read_line = conversation, settings, read_line

    def run(self) -> None:
        """Until the input ends or /exit; what fails is told, and the session goes on."""
        while True:
            try:
                text = read_message(self.read_line)
                if text.startswith("/") and not text.startswith("//"):
                    self.command(text[1:])
                elif text:
                    said = text.removeprefix("/") if text.startswith("//") else text
                    self.answer(partial(self.conversation.reply, said))
            except EOFError:
                return
            except BrokenPipeError:
                raise
            except (ValueError, NotImplementedError, OSError) as error:
                tell(f"error: {cli.describe(error)}")
            except KeyboardInterrupt:
                if not has_terminal(sys.stdin):
                    raise
                tell("(Ctrl-D or /exit ends)")

    def answer(self, ask: Callable[[Progress], Reply]) -> None:
        """Print the reply as it comes. Ctrl-C stops it; what was said stays."""
        before = self.conversation.messages
        try:
            with closing(PromptBar()) as bar:
                reply = ask(bar)
                if reply.dropped:
                    self._tell_dropped(reply.dropped)
                with closing(reply.pieces) as pieces:
                    for piece in pieces:
                        print(piece, end="", flush=True)
            print(flush=True)
        except KeyboardInterrupt:
            print(flush=True)
            said = self.conversation.messages is not before
            tell("(stopped)" if said else "(stopped: the conversation is as it was)")
            return
        self._tell_end()

    def _tell_dropped(self, count: int) -> None:
        size = self.conversation.context
        what = "the oldest turn is" if count == 1 else f"the {count} oldest turns are"
        tell(f"({what} dropped to make room in the context of {size} tokens)")

    def _tell_end(self) -> None:
        """Why the reply ended, if it was cut off."""
        last = self.conversation.last
        if last is None or last.finish_reason != "length":
            return
        if self.conversation.context_full:
            size = self.conversation.context
            tell(
                f"(stopped: the context of {size} tokens is full; the next message drops the oldest turns)"
            )
        else:
            tell(f"(stopped after {last.generation_tokens} tokens: /set max-tokens allows more)")

    def command(self, line: str) -> None:
        """Run one command, given without its slash."""
        name, _, rest = line.partition(" ")
        if name not in COMMANDS:
            raise ValueError(
                f"unknown command /{name}: /help lists them, // starts a message with /"
            )
        if COMMANDS[name][0] == "FILE" and not rest.strip():
            raise ValueError(f"/{name} needs a file name")
        action: Callable[[str], None] = getattr(self, name)
        action(rest.strip())

    def help(self, _: str) -> None:
        """/help"""
        for name, (usage, about) in COMMANDS.items():
            tell(f"  {f'/{name} {usage}':<18} {about}")
        tell(NOTES)

    def retry(self, _: str) -> None:
        """/retry"""
        self.answer(self.conversation.retry)

    def undo(self, _: str) -> None:
        """/undo"""
        message, *replies = self.conversation.undo()
        text = " ".join(message["content"].split())
        shown = text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
        tell(f"(taken back: {shown!r}{' and the reply' if replies else ''})")

    def clear(self, _: str) -> None:
        """/clear"""
        self.conversation.clear()
        tell("(cleared)")

    def system(self, text: str) -> None:
        """/system [TEXT]"""
        self.conversation.system = text or None
        tell("(system message set)" if text else "(no system message)")
        self.check_system()

    def check_system(self) -> None:
        """Tell the user if the model will not see the system message."""
        if not self.conversation.hears_system():
            tell("(the model's chat template leaves the system message out)")

    def set(self, text: str) -> None:
        """/set [NAME VALUE]"""
        if not text:
            tell(*self.settings.lines())
            return
        name, *value = text.replace("=", " ", 1).split(None, 1)
        if not value:
            raise ValueError(f"/set {name} needs a value; /set alone lists the present ones")
        self.settings.set(name, value[0])
        self.conversation.options = self.settings.options
        self.conversation.max_tokens = self.settings.max_tokens
        tell(f"({name} is {self.settings.value(name.replace('_', '-'))})")

    def save(self, name: str) -> None:
        """/save FILE"""
        path = Path(name).expanduser()
        self.conversation.save(path)
        tell(f"(saved {len(self.conversation.messages)} messages to {path})")

    def load(self, name: str) -> None:
        """/load FILE"""
        path = Path(name).expanduser()
        self.conversation.load(path)
        tell(f"(loaded {len(self.conversation.messages)} messages from {path})")

    def stats(self, _: str) -> None:
        """/stats"""
        chat = self.conversation
        lines = ["no reply yet"] if chat.last is None else figures(chat.last)
        lines.append(f"context: {chat.context_used()} of {chat.context} tokens")
        if chat.hidden:
            lines.append(
                f"turns: {chat.turns}, of which the model sees the last {chat.turns - chat.hidden}"
            )
        tell(*lines)

    def exit(self, _: str) -> None:
        """/exit"""
        raise EOFError


def tell(*lines: str) -> None:
    """Say something that is no reply, on stderr."""
    print(*lines, sep="\n", file=sys.stderr, flush=True)
