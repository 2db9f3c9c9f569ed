"""Streams that wait for their model: comments until it is loaded, then the same as ever, or an error as an event."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from servers import POOL, Served, served, write

import mlx_ferrum
from mlx_ferrum.engine import Engine
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.server.http import KEEP_ALIVE
from mlx_ferrum.server.service import Limits, Loaded

TURNS = [{"role": "user", "content": "hi"}]
COMMON = {"model": "tiny", "temperature": 0}
CASES: dict[str, tuple[dict[str, Any], Callable[[Any], str]]] = {
    "/v1/chat/completions": (
        {"messages": TURNS, "max_tokens": 9},
        lambda found: found["choices"][0]["delta"].get("content", ""),
    ),
    "/v1/completions": (
        {"prompt": "hi", "max_tokens": 9},
        lambda found: str(found["choices"][0]["text"]),
    ),
    "/v1/responses": (
        {"input": "hi", "max_output_tokens": 9},
        lambda found: found.get("delta", ""),
    ),
    "/v1/messages": (
        {"messages": TURNS, "max_tokens": 9},
        lambda found: found.get("delta", {}).get("text", ""),
    ),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("m") / "m.gguf")


@contextmanager
def slow(file: Path, error: str = "") -> Iterator[tuple[Served, threading.Event]]:
    """A server whose model is there, or cannot be loaded, once an event is set."""
    may_load = threading.Event()

    def load() -> Loaded:
        may_load.wait()
        if error:
            raise ValueError(error)
        model, tokenizer = mlx_ferrum.load(file)
        assert isinstance(model, LanguageModel)
        return Loaded(model, tokenizer, Engine(model, blocks=POOL, most=8))

    with served(file, load=load, limits=Limits(idle=0.01)) as server:
        try:
            yield server, may_load
        finally:
            may_load.set()


def stream(
    server: Served, path: str, begun: Callable[[], None], **fields: Any
) -> tuple[httpx.Response, str]:
    """A response and all that came. begun: called once there are three comments, if there are any."""
    text = ""
    body = {**COMMON, **CASES[path][0], "stream": True, **fields}
    with server.http.stream("POST", path, json=body) as response:
        for part in response.iter_text():
            text += part
            if text.startswith(KEEP_ALIVE.decode() * 3):
                begun()
    return response, text


def data(text: str) -> list[Any]:
    """The data of events, those at the end of a stream left out."""
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize("path", CASES)
def test_comments_come_until_the_model_is_there(file: Path, path: str) -> None:
    with slow(file) as (server, may_load):
        response, late = stream(server, path, may_load.set)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert late.startswith(KEEP_ALIVE.decode() * 3)
        _, soon = stream(server, path, may_load.set)
        said, expected = (
            "".join(CASES[path][1](each) for each in data(text)) for text in (late, soon)
        )
        assert said == expected != ""
        assert (late.endswith("data: [DONE]\n\n")) is soon.endswith("data: [DONE]\n\n")
        server.wait_until_free()


@pytest.mark.parametrize("path", CASES)
def test_an_error_comes_as_an_event(file: Path, path: str) -> None:
    with slow(file, "no\nluck") as (server, may_load):
        response, text = stream(server, path, may_load.set)
        assert response.status_code == 200
        [found] = data(text)
        error = found if path == "/v1/responses" else found["error"]
        assert error["message"] == "tiny cannot be loaded: no luck"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_what_fails_before_a_token_comes_as_an_event(file: Path, path: str) -> None:
    with slow(file) as (server, may_load):
        response, text = stream(server, path, may_load.set, logit_bias={"1000000": 1})
        assert response.status_code == 200
        assert "1000000" in data(text)[-1]["error"]["message"]
        response, _ = stream(server, path, may_load.set, logit_bias={"1000000": 1})
        assert response.status_code == 400  # the model is there now


def test_clients_see_the_error(file: Path) -> None:
    with slow(file, "no luck") as (server, may_load):
        create: list[Callable[[], Any]] = [
            lambda: server.openai.chat.completions.create(
                model="tiny", messages=TURNS, stream=True
            ),
            lambda: server.openai.responses.create(model="tiny", input="x", stream=True),
        ]
        found = [each() for each in create]  # streams that have begun
        may_load.set()
        with pytest.raises(openai.APIError, match="tiny cannot be loaded: no luck"):
            list(found[0])
        *_, last = found[1]
        assert (last.type, last.message) == ("error", "tiny cannot be loaded: no luck")


def test_what_is_no_stream_gets_a_status(file: Path) -> None:
    with slow(file, "no luck") as (server, may_load), ThreadPoolExecutor(1) as client:
        asked = {**COMMON, "prompt": "hi"}
        found = client.submit(server.http.post, "/v1/completions", json=asked)
        stream(server, "/v1/completions", may_load.set)
        assert found.result().status_code == 503


def test_a_client_that_leaves_before_the_model_is_there(file: Path) -> None:
    with slow(file) as (server, may_load):
        body = {**COMMON, **CASES["/v1/completions"][0], "stream": True}
        with server.http.stream("POST", "/v1/completions", json=body) as response:
            next(response.iter_bytes())
            assert server.models.waiting > 0
        end = time.monotonic() + 10
        while server.models.waiting > 1:  # the server itself waits for its model
            assert time.monotonic() < end
            time.sleep(0.002)
        may_load.set()
        stream(server, "/v1/completions", may_load.set)
        server.wait_until_free()
