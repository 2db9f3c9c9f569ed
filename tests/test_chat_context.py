"""A chat whose context is full goes on without its oldest turns."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from chats import Chat, LetterModel
from fakes import FakeTokenizer

from mlx_ferrum.chat.context import fit, turn_starts, visible
from mlx_ferrum.chat.conversation import Conversation

GREEDY = ("--temp=0", "-n5")
Message = dict[str, str]


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chat:
    return Chat(monkeypatch, capsys)


def conversation(sizes: list[int], system: bool = False) -> list[Message]:
    """Turns whose messages have these sizes; the last one has no reply."""
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": "x" * size} for i, size in enumerate(sizes)]
    return [{"role": "system", "content": "s" * 5}, *turns] if system else turns


def encode(messages: list[Message]) -> list[int]:
    """One token a character, and two a message."""
    return [0] * sum(2 + len(message["content"]) for message in messages)


@pytest.mark.parametrize("seed", range(40))
def test_what_fits(seed: int) -> None:
    """Held to the policy's words, over random conversations."""
    rng = random.Random(seed)
    context, reply = rng.randint(60, 300), rng.choice([1, 20, 1000])
    sizes = [rng.randint(0, 40) for _ in range(2 * rng.randint(0, 12) + 1)]
    messages = conversation(sizes, system=rng.random() < 0.5)
    last = len(turn_starts(messages)) - 1
    hidden = rng.randint(0, last)
    lengths = [len(encode(visible(messages, n))) for n in range(last + 1)]
    ids, now = fit(messages, hidden, encode, context=context, reply=reply)
    assert len(ids) == lengths[now] < context
    reserve = min(reply, context // 8)
    if lengths[hidden] + reserve <= context:
        assert now == hidden, "what fits is left alone"
    elif lengths[last] <= context // 2:
        assert lengths[now] <= context // 2 < lengths[now - 1], "no more than needed for half"
    shown = visible(messages, now)
    turns = [m["role"] for m in shown if m["role"] != "system"]
    assert turns == ["user", "assistant"] * (len(turns) // 2) + ["user"], "whole turns"
    assert [m for m in shown if m["role"] == "system"] == messages[: len(shown) - len(turns)]
    assert fit(messages, hidden, encode, context=context, reply=reply, drop=True)[1] >= min(
        hidden + 1, last
    )


def test_a_long_message_keeps_what_fits_beside_it() -> None:
    messages = conversation([10, 10, 10, 10, 60])  # 24 tokens a turn, 62 for the last message
    ids, hidden = fit(messages, 0, encode, context=100, reply=1000)
    assert (len(ids), hidden) == (86, 1), "half is out of reach: all but the reserve of 12"


@pytest.mark.parametrize("system", [False, True])
def test_a_message_that_does_not_fit_is_refused_with_the_numbers(system: bool) -> None:
    messages = conversation([1, 1, 98], system=system)
    size = 107 if system else 100
    with pytest.raises(ValueError, match=f"a prompt of {size} tokens.* the context of 100 tokens"):
        fit(messages, 0, encode, context=100, reply=5)


def test_what_precedes_the_first_message_goes_with_its_turn() -> None:
    roles = ["system", "assistant", "user", "assistant", "user"]
    messages = [{"role": role, "content": role} for role in roles]
    assert turn_starts(messages) == [1, 4]
    assert visible(messages, 1) == [messages[0], messages[4]]


def replies(talk: Chat, said: list[str], context: int, system: str | None) -> list[str]:
    """What the model says to each message, asked anew with the turns that the policy leaves it."""
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    hidden, made = 0, []

    def encode(messages: list[Message]) -> list[int]:
        text = talk.tokenizer.apply_chat_template(messages)
        return talk.tokenizer.encode(text, parse_special=True)

    for text in said:
        messages.append({"role": "user", "content": text})
        ids, hidden = fit(messages, hidden, encode, context=context, reply=5)
        made.append(talk.tokenizer.decode(talk.model.greedy(ids, 5)))
        messages.append({"role": "assistant", "content": made[-1]})
    return made


@pytest.mark.parametrize("system", [None, "be kind"])
@pytest.mark.parametrize("fixed", [False, True])
def test_a_chat_goes_on(talk: Chat, system: str | None, fixed: bool) -> None:
    talk.model = LetterModel(context=120, fixed_cache=fixed)
    said = [f"message {i}" for i in range(40)]
    flags = [*GREEDY, *(["--system", system] if system else [])]
    assert talk(*said, "/stats", flags=flags) == 0
    assert talk.replies == replies(talk, said, 120, system)
    drops = [line for line in talk.told.splitlines() if "dropped" in line]
    turn = len(b"u:message 10") + 1 + len(b"a:") + 5 + 1
    assert 3 < len(drops) < 40 * turn / (120 / 2 - 2 * turn), "not at every message"
    assert "turns: 40, of which the model sees the last" in talk.told
    if not fixed:
        assert sorted(talk.model.fed)[-len(drops) - 1] < 2 * turn, "between drops only what is new"
        assert max(talk.model.fed) <= 120 / 2


def test_all_messages_are_saved_and_a_long_conversation_can_be_loaded(
    talk: Chat, tmp_path: Path
) -> None:
    talk.model = LetterModel(context=120)
    path = tmp_path / "talk.json"
    said = [f"message {i}" for i in range(20)]
    talk(*said, f"/save {path}", flags=GREEDY)
    messages = json.loads(path.read_text())["messages"]
    assert [m["content"] for m in messages if m["role"] == "user"] == said
    talk("and now", "/stats", f"/save {path}", flags=[*GREEDY, "--load", str(path)])
    kept = 2
    assert f"(the {20 - kept} oldest turns are dropped" in talk.told
    shown = [*messages[-2 * kept :], {"role": "user", "content": "and now"}]
    ids = talk.tokenizer.encode(talk.tokenizer.apply_chat_template(shown), parse_special=True)
    assert talk.replies == [talk.tokenizer.decode(talk.model.greedy(ids, 5))]
    assert len(json.loads(path.read_text())["messages"]) == 42


def test_another_conversation_is_seen_whole(talk: Chat, tmp_path: Path) -> None:
    talk.model = LetterModel(context=120)
    path = tmp_path / "talk.json"
    said = list("stuvwxyz")
    talk(*said, f"/save {path}", "a longer message", f"/load {path}", "a", flags=GREEDY)
    assert talk.told.count("dropped") == 1
    assert talk.replies[-1] == talk.expected(*said, "a")[-1]


def test_a_message_too_long_changes_nothing(talk: Chat) -> None:
    talk.model = LetterModel(context=60)
    assert talk("hello", "a" * 60, "bye", flags=GREEDY) == 0
    assert "error: the message makes a prompt of 65 tokens" in talk.told
    assert "dropped" not in talk.told
    assert talk.replies == talk.expected("hello", "bye")


def test_a_reply_that_fills_the_context_is_told_and_the_chat_goes_on(talk: Chat) -> None:
    talk.model = LetterModel(context=30)
    talk("hello", "you", flags=["--temp=0", "-n-1"])
    assert talk.told.startswith("(stopped: the context of 30 tokens is full")
    assert "(the oldest turn is dropped to make room in the context of 30 tokens)" in talk.told
    first = talk.expected("hello", count=30 - len(b"u:hello") - 1 - len(b"a:"))
    assert talk.replies == first + talk.expected("you", count=30 - len(b"u:you") - 1 - len(b"a:"))


def test_retry_after_a_full_context_makes_room(talk: Chat) -> None:
    talk.model = LetterModel(context=60)
    lines = ["hello", "/set max-tokens -1", "you", "/retry", "/retry"]
    talk(*lines, flags=GREEDY)
    first = talk.expected("hello")
    whole = talk.expected("you", count=60 - len(b"u:you") - 1 - len(b"a:"))
    cut = 60 - len(b"u:hello") - 1 - len(b"a:") - 5 - 1 - len(b"u:you") - 1 - len(b"a:")
    assert [len(reply) for reply in talk.replies] == [5, cut, len(whole[0]), len(whole[0])]
    assert talk.replies[:1] + talk.replies[2:] == [*first, *whole, *whole]
    assert talk.told.count("oldest turn is dropped") == 1


def test_turns_taken_back_down_to_hidden_ones_show_these_again(talk: Chat) -> None:
    talk.model = LetterModel(context=60)
    talk("one", "a" * 40, "/undo", "two", flags=GREEDY)
    assert "(the oldest turn is dropped" in talk.told
    assert talk.replies[2:] == talk.expected("one", "two")[1:]


def test_templates_that_demand_alternation_are_satisfied(talk: Chat) -> None:
    class Strict(FakeTokenizer):
        def apply_chat_template(self, messages: list[dict[str, str]], *_: Any, **__: Any) -> str:
            roles = [m["role"] for m in messages if m["role"] != "system"]
            if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
                raise ValueError("roles must alternate")
            return super().apply_chat_template(messages)

    talk.tokenizer = Strict(talk.tokenizer.pieces[3:])
    talk.model = LetterModel(context=120)
    said = [f"message {i}" for i in range(20)]
    talk(*said, flags=[*GREEDY, "--system", "be kind"])
    assert "error" not in talk.told
    assert talk.replies == replies(talk, said, 120, "be kind")


def test_context_limits_what_is_used(talk: Chat) -> None:
    said = [f"message {i}" for i in range(12)]
    assert talk(*said, flags=[*GREEDY, "--context", "100"]) == 0
    assert talk.replies == replies(talk, said, 100, None)
    assert "in the context of 100 tokens" in talk.told
    assert talk("x", flags=["-c401"]) == 1
    assert talk.told == "error: a context of 401 tokens: the model has 400\n"


def test_smollm2_talks_past_its_context(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    chat = Conversation(model, tokenizer, context=120, max_tokens=8)
    dropped = []
    for i in range(9):
        reply = chat.reply(f"Name town number {i}.")
        assert "".join(reply.pieces) == chat.messages[-1]["content"] != ""
        dropped.append(reply.dropped)
        assert chat.context_used() <= 120
    assert len(chat.messages) == 18
    assert 0 < sum(count > 0 for count in dropped) < 5
    assert chat.hidden == sum(dropped)
