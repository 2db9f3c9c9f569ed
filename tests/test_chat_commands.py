"""The chat's commands that take turns back, change settings and write files; and the file's own sampling."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import random_models
from chats import Chat
from fakes import FakeTokenizer

import mlx_ferrum
from mlx_ferrum.sample.recommended import Recommended, recommended

GREEDY = ("--temp=0", "-n5")
LIVELY = ("--temp=5", "--seed=1", "-n20")  # two replies of 20 letters are never equal by chance


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chat:
    return Chat(monkeypatch, capsys)


def test_retry_gives_another_reply_and_the_chat_goes_on_with_it(talk: Chat, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    talk("hello", "/retry", "/retry", f"/save {path}", flags=LIVELY)
    assert len(set(talk.replies)) == 3
    messages = json.loads(path.read_text())["messages"]
    assert [m["content"] for m in messages] == ["hello", talk.replies[2]]


def test_retry_processes_only_the_last_token_again(talk: Chat) -> None:
    talk("hello", "/retry", "bye", flags=GREEDY)
    assert talk.replies == [*talk.expected("hello"), *talk.expected("hello", "bye")]
    first, second = len(b"u:hello") + 1 + len(b"a:"), 1 + 1 + len(b"u:bye") + 1 + len(b"a:")
    assert talk.model.fed == [first, 1, 1, 1, 1, 1, 1, 1, 1, 1, second, 1, 1, 1, 1]


def test_an_interrupted_retry_keeps_the_old_reply(
    talk: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = talk.model.run

    def interrupted(batch: Any) -> Any:
        if len(talk.model.fed) == 5:  # the retry's first pass
            monkeypatch.setattr(talk.model, "run", compute)
            raise KeyboardInterrupt
        return compute(batch)

    monkeypatch.setattr(talk.model, "run", interrupted)
    talk("hello", "/retry", "bye", flags=GREEDY)
    assert "(stopped: the conversation is as it was)" in talk.told
    hello, bye = talk.expected("hello", "bye")
    assert talk.replies == [hello, "", bye]


def test_undo_takes_back_a_turn_and_says_which(talk: Chat) -> None:
    lines = ["hello", "it  is a\tlong message of more than forty characters", "/undo", "bye"]
    talk(*lines, flags=GREEDY)
    assert "(taken back: 'it is a long message of more than forty…' and the reply)" in talk.told
    assert [talk.replies[0], *talk.replies[2:]] == talk.expected("hello", "bye")
    assert talk.model.fed[-5] == len(b"bye") + 1 + len(b"a:"), "the rest is not read again"


def test_undo_and_retry_without_a_message(talk: Chat) -> None:
    talk("/retry", "/undo", "hello", "/undo", "/undo", "hello", flags=[*GREEDY, "--system=x"])
    assert talk.told.count("error: there is no message to take back") == 2
    assert talk.told.count("error: there is no message to answer again") == 1
    assert talk.replies == 2 * talk.expected("hello", system="x")


def test_a_loaded_conversation_that_ends_with_a_message_is_answered_by_retry(
    talk: Chat, tmp_path: Path
) -> None:
    path = tmp_path / "talk.json"
    path.write_text('{"messages": [{"role": "user", "content": "hello"}]}')
    talk(f"/load {path}", "/stats", "/retry", "/undo", flags=GREEDY)
    assert talk.replies == talk.expected("hello")
    assert "context: 10 of 400 tokens" in talk.told
    assert "(taken back: 'hello' and the reply)" in talk.told


def test_set_changes_the_next_replies(talk: Chat) -> None:
    lines = ["hello", "/set temp 0", "hello", "/undo", "/set max_tokens 3", "hello", "/undo"]
    lines += ["/set presence-penalty=1e5", "/set penalty-window 6", "/set max-tokens 6", "hello"]
    talk(*lines, flags=LIVELY)
    first, second, third, fourth = talk.replies
    asked = f"u:hello<|end|>a:{first}<|end|>u:hello<|end|>a:"
    ids = talk.tokenizer.encode(asked, parse_special=True)
    greedy = talk.tokenizer.decode(talk.model.greedy(ids, 20))
    assert (second, third) == (greedy, greedy[:3])
    assert len(fourth) == 6 == len(set(fourth))
    for told in ("(temp is 0)", "(max_tokens is 3)", "(presence-penalty is 100000)"):
        assert told in talk.told


def test_the_same_seed_gives_the_same_reply(talk: Chat) -> None:
    talk(*(2 * ["/set seed 5", "hello", "/undo"]), "/set seed 6", "hello", flags=LIVELY)
    assert talk.replies[0] == talk.replies[1] != talk.replies[2]


def test_set_alone_lists_what_is_in_force(talk: Chat) -> None:
    talk("/set top-k 5", "/set", "/set top-k off", "/set seed off", "/set", flags=["--seed", "3"])
    _, first, second = talk.told.split("  temp ")
    assert first.split()[:9] == "0.7 top-k 5 typical off top-p off min-p 0.05".split()
    assert "seed 3 max-tokens 1024" in " ".join(first.split())
    assert "seed off max-tokens 1024" in " ".join(second.split())
    assert "top-k off" in " ".join(second.split())


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/set colour 3", "error: unknown setting 'colour', expected one of temp, top-k,"),
        ("/set temp", "error: /set temp needs a value"),
        ("/set temp hot", "error: temp: 'hot' found, expected a number"),
        ("/set temp -1", "error: temp is -1.0, expected a number from 0 to "),
        ("/set temp nan", "error: temp is nan"),
        ("/set temp off", "error: temp: 'off' found, expected a number"),
        ("/set top-k 2.5", "error: top-k: '2.5' found, expected a whole number or off"),
        ("/set top-k -2", "error: top_k is -2"),
        ("/set top-p 1.5", "error: top_p is 1.5, expected a number from 0 to 1"),
        ("/set min-p -0.1", "error: min_p is -0.1, expected a number from 0 to 1"),
        ("/set repetition-penalty 0", "error: repetition_penalty is 0.0"),
        ("/set penalty-window -1", "error: "),
        ("/set seed -1", "error: seed is -1"),
        ("/set max-tokens 0", "error: max-tokens: 0 is not 1 or more"),
    ],
)
def test_bad_settings_change_nothing(talk: Chat, line: str, told: str) -> None:
    flags = [*GREEDY, "--presence-penalty=1e-9"]  # so that the window matters
    talk("/set", flags=flags)
    before = talk.told
    assert talk(line, "/set", "hello", flags=flags) == 0
    assert talk.told.startswith(told)
    assert talk.told.partition("\n")[2].startswith(before)
    assert talk.replies == talk.expected("hello")


@pytest.mark.parametrize("name", ["no/talk.json", "file/talk.json", "", "folder", "n" * 300])
def test_a_file_that_cannot_be_written_is_named(talk: Chat, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    talk("hello", f"/save {tmp_path / name}", "bye", flags=GREEDY)
    assert f"error: {tmp_path / name}: " in talk.told
    assert talk.replies == talk.expected("hello", "bye")
    assert sorted(tmp_path.rglob("*")) == before


def test_save_replaces_only_regular_files(talk: Chat, tmp_path: Path) -> None:
    fifo, link, file = tmp_path / "fifo", tmp_path / "link", tmp_path / "file"
    os.mkfifo(fifo)
    link.symlink_to("file")
    talk("hello", f"/save {fifo}", f"/save {link}", flags=GREEDY)
    assert fifo.is_fifo()
    assert f"error: {fifo}: not a regular file" in talk.told
    assert link.is_symlink()
    assert len(json.loads(file.read_text())["messages"]) == 2


def test_half_of_a_character_is_not_loaded(talk: Chat, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text('{"messages": [{"role": "user", "content": "\\ud83d"}]}')
    talk(f"/load {path}", "hello", flags=GREEDY)
    assert f"error: {path}: message 0 is not a role" in talk.told
    assert talk.replies == talk.expected("hello")


def test_a_template_that_leaves_the_system_message_out_is_told(talk: Chat) -> None:
    class Deaf(FakeTokenizer):
        def apply_chat_template(self, messages: list[dict[str, str]], *_: Any, **__: Any) -> str:
            return super().apply_chat_template([m for m in messages if m["role"] != "system"])

    note = "(the model's chat template leaves the system message out)"
    talk("/system be kind", "hi", flags=GREEDY)
    assert note not in talk.told
    talk.tokenizer = Deaf(talk.tokenizer.pieces[3:])
    talk("/system be kind", "hi", flags=GREEDY)
    assert note in talk.told
    talk("hi", flags=[*GREEDY, "--system", "be kind"])
    assert note in talk.told


# -- what the file recommends --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        ({}, {}),
        ({"temp": 0.6, "top_k": 20, "top_p": 0.95}, {"temp": 0.6, "top_k": 20, "top_p": 0.95}),
        ({"temp": 1, "top_k": 40.0}, {"temp": 1.0, "top_k": 40}),
        ({"top_k": -1, "min_p": 0.0}, {"top_k": 0, "min_p": 0.0}),
        ({"xtc_probability": 0.5, "xtc_threshold": 0.2, "mirostat": 0}, {"xtc_probability": 0.5, "xtc_threshold": 0.2}),
        ({"penalty_repeat": 1.1, "penalty_last_n": -1}, {"repetition_penalty": 1.1, "penalty_window": None}),
        ({"penalty_repeat": 1.1, "penalty_last_n": 32}, {"repetition_penalty": 1.1, "penalty_window": 32}),
        ({"penalty_repeat": 1.1, "penalty_last_n": 0}, {"repetition_penalty": 1.1, "penalty_window": 0}),
    ],
)  # fmt: skip
def test_recommended_values(keys: dict[str, Any], values: dict[str, Any]) -> None:
    metadata = {f"general.sampling.{key}": value for key, value in keys.items()}
    found = recommended({"general.name": "x", **metadata})
    assert dict(found.values) == values
    assert found.ignored == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temp", "0.6"),
        ("temp", -1.0),
        ("temp", math.nan),
        ("temp", math.inf),
        ("temp", True),
        ("temp", [0.6]),
        ("top_k", 1.5),
        ("top_k", math.nan),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("xtc_threshold", 0.9),
        ("penalty_repeat", 0.0),
        ("penalty_last_n", -2),
        ("mirostat", 2),
        ("sequence", "top_k;temperature"),
        ("unheard_of", 1),
    ],
)
def test_bad_recommendations_are_ignored_with_a_line(key: str, value: Any) -> None:
    found = recommended({f"general.sampling.{key}": value, "general.sampling.top_k": 7} | (
        {"general.sampling.top_k": value} if key == "top_k" else {}
    ))  # fmt: skip
    assert dict(found.values) == ({} if key == "top_k" else {"top_k": 7})
    assert len(found.ignored) == 1
    assert found.ignored[0].startswith(f"general.sampling.{key} is ignored: ")


def test_the_file_recommends_and_the_user_decides(talk: Chat) -> None:
    talk.model.recommended = Recommended({"temp": 0.25, "top_k": 9}, ("general.x is ignored: bad",))
    talk("/set", flags=["--top-k", "3", "--seed", "1"])
    listed = " ".join(talk.told.split())
    assert listed.startswith("warning: general.x is ignored: bad temp 0.25 top-k 3 typical off")
    assert "min-p off" in listed, "min-p is for files that recommend nothing"
    talk.model.recommended = Recommended({"top_p": 0.5})
    talk("/set", flags=["--temp", "0"])
    assert " ".join(talk.told.split()).startswith(
        "temp 0 top-k off typical off top-p 0.5 min-p off"
    )
    talk.model.recommended = Recommended({"temp": 0.0})
    talk("hello", flags=["-n5"])
    assert talk.replies == talk.expected("hello")


def with_keys(raw: bytes, keys: dict[str, int | float]) -> bytes:
    """A GGUF file with more metadata, in a multiple of 32 bytes so that its tensors stay aligned."""
    added = b""
    for key, value in {**keys, "test.padding": ""}.items():
        added += struct.pack("<Q", len(key)) + key.encode()
        if key == "test.padding":
            pad = -(len(added) + 12) % 32
            added += struct.pack("<IQ", 8, pad) + b" " * pad
        else:
            kind = "f" if isinstance(value, float) else "i"
            added += struct.pack(f"<I{kind}", {"i": 5, "f": 6}[kind], value)
    (count,) = struct.unpack_from("<Q", raw, 16)
    return raw[:16] + struct.pack("<Q", count + len(keys) + 1) + added + raw[24:]


def test_load_reads_what_the_file_recommends(tmp_path: Path) -> None:
    path = random_models.write_case(tmp_path / "model.gguf", "llama", seed=3)
    assert mlx_ferrum.load(path)[0].recommended == Recommended()
    keys = {"general.sampling.temp": 0.5, "general.sampling.top_k": 20}
    path.write_bytes(with_keys(path.read_bytes(), {**keys, "general.sampling.min_p": 7.0}))
    found = mlx_ferrum.load(path)[0].recommended
    assert dict(found.values) == {"temp": 0.5, "top_k": 20}
    assert found.ignored == (
        "general.sampling.min_p is ignored: min_p is 7.0, expected a number from 0 to 1",
    )
