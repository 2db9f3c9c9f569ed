"""The chat in a terminal: keys, completion, the bar of a long prompt; and standard streams that are missing."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from chats import Chat, LetterModel
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

import mlx_ferrum
from mlx_ferrum import chat
from mlx_ferrum.chat.lines import read_message, terminal_lines
from mlx_ferrum.chat.session import completions
from mlx_ferrum.generate import PromptBar


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chat:
    return Chat(monkeypatch, capsys)


def typed(keys: str | bytes, history: Path) -> str:
    """What the terminal reader returns when these keys are pressed."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_bytes(keys if isinstance(keys, bytes) else keys.encode())
        return read_message(terminal_lines(history, completions()))


def test_keys_in_a_terminal(tmp_path: Path) -> None:
    history = tmp_path / "state" / "history"
    enter, up, newline, left = "\r", "\x1b[A", "\x1b\r", "\x1b[D"
    assert typed("hello" + left + left + "p" + enter, history) == "helplo"
    assert typed(f"one{newline}two" + enter, history) == "one\ntwo"
    assert typed(up + enter, history) == "one\ntwo", "the history outlives the session"
    assert history.stat().st_mode & 0o777 == 0o600
    with pytest.raises(KeyboardInterrupt):
        typed("half\x03", history)
    with pytest.raises(EOFError):
        typed("\x04", history)
    with pytest.raises(ValueError, match="a line is not valid UTF-8: invalid start byte at byte 1"):
        typed(b"a\xffb\r", history)


def test_a_history_that_cannot_be_kept_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert typed("hello\r", tmp_path / "file" / "history") == "hello"
    assert caplog.messages[0].startswith("warning: no history is kept: ")


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("/re\t", "/retry"),
        ("/set te\t0.8", "/set temp 0.8"),
        ("/set top-k\t5", "/set top-k 5"),
        ("a/re\t", "a/re"),
    ],
)
def test_tab_completes_commands(tmp_path: Path, keys: str, line: str) -> None:
    assert typed(f"{keys}\r", tmp_path / "history") == line


class Terminal(io.StringIO):
    """Says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("total", "shown"), [(9, True), (8, False)])
def test_a_bar_for_prompts_of_several_passes_vanishes(
    monkeypatch: pytest.MonkeyPatch, total: int, shown: bool
) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    bar = PromptBar(step=8)
    bar(0, total)
    bar(total, total)
    written = screen.getvalue()
    assert ("prompt" in written) == shown
    assert written.rsplit("\r", 1)[-1].strip() == ""


def test_an_interrupted_bar_vanishes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    bar = PromptBar(step=8)
    bar(0, 20)
    bar.close()
    assert "0/20" in screen.getvalue()
    assert screen.getvalue().rsplit("\r", 1)[-1].strip() == ""


@pytest.mark.parametrize("stream", [io.StringIO(), None])
def test_no_bar_without_a_terminal(monkeypatch: pytest.MonkeyPatch, stream: Any) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    bar = PromptBar(step=8)
    bar(0, 20)
    bar(20, 20)
    assert stream is None or stream.getvalue() == ""


def test_a_long_prompt_in_a_pipe_shows_nothing_and_in_a_terminal_a_bar(talk: Chat) -> None:
    talk.model = LetterModel(context=2000)
    assert talk("x" * 1200, flags=["--temp=0", "-n3"]) == 0
    assert talk.told == "(stopped after 3 tokens: /set max-tokens allows more)\n"
    screen = Terminal()
    talk.monkeypatch.setattr("sys.stderr", screen)
    assert talk("x" * 1200, flags=["--temp=0", "-n3"]) == 0
    assert "0/1205" in screen.getvalue()


def test_closed_stdin_is_the_end(talk: Chat) -> None:
    talk.monkeypatch.setattr(mlx_ferrum, "load", lambda *_, **__: (talk.model, talk.tokenizer))
    for stream in (None, io.TextIOWrapper(io.BytesIO())):
        if stream is not None:
            stream.close()
        talk.monkeypatch.setattr("sys.stdin", stream)
        assert chat.main([]) == (1 if stream is None else 0)


def test_a_person_who_types_while_stdout_is_a_pipe_is_asked(talk: Chat) -> None:
    class Typed(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    talk.monkeypatch.setattr(mlx_ferrum, "load", lambda *_, **__: (talk.model, talk.tokenizer))
    talk.monkeypatch.setattr("sys.stdin", Typed(io.BytesIO(b"hello\n")))
    assert chat.main(["--temp", "0", "-n", "5"]) == 0
    out, told = talk.capsys.readouterr()
    assert out.splitlines() == talk.expected("hello")
    assert told.startswith("smollm2-135m on ")
    assert told.count("> ") == 2
