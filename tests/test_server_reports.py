"""Counts of reasoning, grammars of vLLM's clients, and errors in each client's form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from servers import TEMPLATE, Served, served, write

HI = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100}
THOUGHT = "<think>\nFirst\nthis.\n</think>"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Served]:
    path = write(tmp_path_factory.mktemp("server") / "m.gguf", "{# <think> </think> #}" + TEMPLATE)
    with served(path) as found:
        yield found


@pytest.mark.parametrize("thought", [THOUGHT, ""])
def test_tokens_of_reasoning_are_counted(server: Served, monkeypatch, thought: str) -> None:
    grammars = server.service.grammars
    fixed = grammars.regex(re.escape(f"{thought}So it is."))
    monkeypatch.setattr(grammars, "regex", lambda *_: fixed)
    body = {**HI, "structured_outputs": {"regex": "x"}}
    whole = server.http.post("/v1/chat/completions", json=body).json()["usage"]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    lines = server.http.post("/v1/chat/completions", json={**body, **options}).text.split("\n\n")
    streamed = json.loads(lines[-3].removeprefix("data: "))["usage"]
    for usage in (whole, streamed):
        count = usage["completion_tokens_details"]["reasoning_tokens"]
        inner = len(server.tokenizer.encode_within("\nFirst\nthis.\n"))
        assert inner <= count < usage["completion_tokens"] if thought else count == 0


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        ({"regex": "[ab]{3}"}, "[ab]{3}"),
        ({"choice": ["yes", 'n"o']}, 'yes|n"o'),
        ({"grammar": 'start: "(" "x" ")"'}, r"\(x\)"),
        ({"json": {"enum": [1, "a"]}}, '1|"a"'),
        ({"json": '{"enum": [1]}'}, "1"),
    ],
)
def test_grammars_of_completions(server: Served, given: dict[str, Any], pattern: str) -> None:
    body = {"prompt": "a", "max_tokens": 60, "structured_outputs": given}
    [choice] = server.http.post("/v1/completions", json=body).json()["choices"]
    assert re.fullmatch(pattern, choice["text"])


@pytest.mark.parametrize(
    "given", [{}, {"regex": "a", "choice": ["b"]}, {"regex": "("}, {"choice": []}, {"json": "{"}, 3]
)
def test_wrong_grammars_are_refused(server: Served, given: Any) -> None:
    for path, body in (("/v1/chat/completions", HI), ("/v1/completions", {"prompt": "a"})):
        found = server.http.post(path, json={**body, "structured_outputs": given})
        assert found.status_code == 400
        assert "\n" not in found.json()["error"]["message"]


def test_unexpected_errors_have_the_clients_form(server: Served, monkeypatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(server.service, "submit", broken)
    for path in ("/v1/chat/completions", "/v1/messages", "/api/chat"):
        found = server.http.post(path, json={"model": "tiny", **HI})
        assert found.status_code == 500
        assert "secret" not in found.text
        error = found.json()["error"]
        said = error if path == "/api/chat" else error["message"]
        assert said == "the server failed; its log says how"


@pytest.mark.parametrize("think", ["much", 1, [], {}])
def test_a_wrong_think_is_refused(server: Served, think: Any) -> None:
    found = server.http.post("/api/chat", json={**HI, "think": think})
    assert found.status_code == 400
    assert "think" in found.json()["error"]


def test_a_malformed_origin_is_refused(server: Served) -> None:
    found = server.http.get("/health", headers={"origin": "http://[1"})
    assert found.status_code == 403


def test_responses_count_reasoning(server: Served, monkeypatch) -> None:
    grammars = server.service.grammars
    fixed = grammars.regex(re.escape(f"{THOUGHT}So it is."))
    monkeypatch.setattr(grammars, "json_schema", lambda *_: fixed)
    format = {"type": "json_schema", "name": "x", "schema": {}}
    options = {"model": "tiny", "input": "hi", "text": {"format": format}}
    whole = server.openai.responses.create(**options)
    *_, last = server.openai.responses.create(**options, stream=True)
    inner = len(server.tokenizer.encode_within("\nFirst\nthis.\n"))
    for usage in (whole.usage, last.response.usage):
        assert inner <= usage.output_tokens_details.reasoning_tokens < usage.output_tokens
