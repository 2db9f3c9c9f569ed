"""The chat through a pipe, with a model whose replies are known."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chats import Chat, LetterModel
from fakes import FakeTokenizer, byte_tokenizer

from mlx_ferrum.batch import Batch
from mlx_ferrum.chat.lines import read_message


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chat:
    return Chat(monkeypatch, capsys)


def test_replies_are_the_models_and_turns_are_processed_once(talk: Chat) -> None:
    assert talk("hello", "how are you", "/exit", "never read") == 0
    assert talk.replies == talk.expected("hello", "how are you")
    first = len(b"u:hello") + 1 + len(b"a:")
    # The cache lacks only the last token of the first turn, which no step came after.
    second = 1 + 1 + len(b"u:how are you") + 1 + len(b"a:")
    assert talk.model.fed == [first, 1, 1, 1, 1, second, 1, 1, 1, 1]


def test_a_cache_that_cannot_go_back_gives_the_same_replies(talk: Chat) -> None:
    talk("one", "/clear", "two")
    expected = talk.replies
    talk.model = LetterModel(context=400, fixed_cache=True)
    talk("one", "/clear", "two")
    assert talk.replies == expected == talk.expected("one") + talk.expected("two")


def test_system_and_clear(talk: Chat) -> None:
    talk(
        "/system be kind",
        "hi",
        "/clear",
        "hi",
        "/system",
        "/clear",
        "hi",
        flags=["--temp=0", "-n5"],
    )
    kind = talk.expected("hi", system="be kind")
    assert talk.replies == [*kind, *kind, *talk.expected("hi")]
    talk("hi", flags=["--temp=0", "-n5", "--system", "be kind"])
    assert talk.replies == kind


def test_save_and_load_go_on_with_the_conversation(talk: Chat, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text("an older file")
    talk("/system x", "hello", f"/save {path}", "bye")
    both = talk.expected("hello", "bye", system="x")
    assert talk.replies == both
    assert json.loads(path.read_text())["messages"] == [
        {"role": "system", "content": "x"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": both[0]},
    ]
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["talk.json"]
    talk(f"/load {path}", "bye")
    assert talk.replies == both[1:]
    talk("bye", flags=["--temp=0", "-n5", "--load", str(path)])
    assert talk.replies == both[1:]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"messages": 3}',
        b'{"messages": [{"role": "robot", "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": 5}]}',
        b'{"messages": ["x"]}',
        b"[" * 100_000,
    ],
)
def test_a_bad_file_is_told_and_the_session_goes_on(
    talk: Chat, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    assert talk("hello", f"/load {path}", "bye") == 0
    assert talk.replies == talk.expected("hello", "bye")
    assert f"error: {path}" in talk.told


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/load nowhere.json", "error: nowhere.json: No such file or directory"),
        ("/save nowhere/file.json", "No such file or directory"),
        ("/save", "error: /save needs a file name"),
        ("/wrong", "error: unknown command /wrong"),
        ("/help", "/system [TEXT]"),
        ("/stats", "no reply yet"),
        (b"\xff\xfe\n", "error: a line is not valid UTF-8"),
    ],
)
def test_what_is_told(talk: Chat, line: str | bytes, told: str) -> None:
    assert talk(line, "hello") == 0
    assert told in talk.told
    assert talk.replies == talk.expected("hello")


def test_stats_and_the_length(talk: Chat) -> None:
    talk("hello", "/stats")
    assert "generation: 5 tokens" in talk.told
    assert "context: 15 of 400 tokens" in talk.told
    assert "stopped after 5 tokens" in talk.told


def test_penalties_reach_back_over_the_turns(talk: Chat) -> None:
    talk("xy", "xy", flags=["--temp=0", "-n3", "--presence-penalty=1e5", "--penalty-window=1000"])
    assert len(set("".join(talk.replies))) == 6


def test_long_messages_and_slashes(talk: Chat) -> None:
    talk('"""one', "two", 'three"""', "//etc/passwd", '"""alone"""', "", "  ")
    assert talk.replies == talk.expected("one\ntwo\nthree", "/etc/passwd", "alone")


def test_an_unfinished_message_ends_the_session() -> None:
    lines = iter(['"""one', "two"])

    def read_line() -> str:
        for line in lines:
            return line
        raise EOFError

    with pytest.raises(EOFError):
        read_message(read_line)


@pytest.mark.parametrize("at", [1, 2, 4])
def test_ctrl_c_stops_the_reply_and_keeps_the_session(
    talk: Chat, lazy: bool, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes while the model works on its `at`-th call: that is what Ctrl-C does."""
    run: Callable[[Batch], Any] = talk.model.run
    calls = iter(range(1, 1000))

    def interrupted(batch: Batch) -> Any:
        if next(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return run(batch)

    monkeypatch.setattr(talk.model, "run", interrupted)
    assert talk("hello", "bye") == 0
    # a token is handed out when the model is done with it, or when the next one is under way
    said = max(at - 1 - lazy, 0)
    whole = talk.expected("hello")[0]
    assert talk.replies[0] == whole[:said]
    if said == 0:
        assert "(stopped: the conversation is as it was)" in talk.told
        assert talk.replies[1:] == talk.expected("bye"), "nothing was said: the turn is forgotten"
    else:
        assert "(stopped)" in talk.told
        asked = f"u:hello<|end|>a:{whole[:said]}<|end|>u:bye<|end|>a:"
        ids = talk.tokenizer.encode(asked, parse_special=True)
        assert talk.replies[1] == talk.tokenizer.decode(talk.model.greedy(ids, 5))


def test_template_arguments_go_to_every_turn(talk: Chat) -> None:
    assert talk("hi", flags=["--temp", "0", "-n", "5", "--template-arg", "x=false"]) == 0
    ids = talk.tokenizer.encode("u:hi<|end|>x=False;a:", parse_special=True)
    assert talk.replies == [talk.tokenizer.decode(talk.model.greedy(ids, 5))]


def test_a_template_that_refuses_is_told(talk: Chat) -> None:
    class Strict(FakeTokenizer):
        def apply_chat_template(
            self, messages: list[dict[str, str]], *options: Any, **arguments: Any
        ) -> str:
            if messages[0]["role"] == "system":
                raise ValueError("no system messages here")
            return super().apply_chat_template(messages, *options, **arguments)

    talk.tokenizer = Strict(talk.tokenizer.pieces[3:])
    talk("/system x", "hi", "/system", "hi")
    assert talk.told.count("error: no system messages here") == 2, "at once, and at each message"
    assert talk.replies == talk.expected("hi")
    assert talk("hi", flags=["--system", "x"]) == 1
    assert (talk.told, talk.replies) == ("error: no system messages here\n", [])


def test_a_model_without_template_is_refused(talk: Chat) -> None:
    talk.tokenizer = byte_tokenizer(chat=False)
    assert talk("hello") == 1
    assert talk.told.startswith("error: smollm2-135m has no chat template")
    assert talk.told.count("\n") == 1
