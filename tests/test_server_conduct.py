"""How the server treats clients: those that leave, ask badly, ask too much, or may not ask."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import random_models
from servers import SIZES, Served, served, write

from mlx_ferrum.server.gate import Rules
from mlx_ferrum.server.service import Limits

LONG = {"prompt": "abc", "max_tokens": 500, "ignore_eos": True}
CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("server") / "m.gguf")


@pytest.fixture(scope="module")
def server(file) -> Iterator[Served]:
    limits = Limits(running=4, queue=4, body=20_000, prompt=300)
    rules = Rules(body=20_000, origins=["http://page.test"])
    with served(file, rules=rules, limits=limits) as found:
        yield found


def leave(server: Served, body: dict[str, Any], after: bytes) -> None:
    """Send a request, read up to some bytes, and close the connection."""
    host, port = server.url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
            % (len(content), content)
        )
        read = b""
        while after not in read:
            read += connection.recv(4096)
        while not after and not server.models.answers:
            time.sleep(0.001)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_text(server: Served, stream: bool) -> None:
    before = _figure(server, "generated_tokens_total")
    leave(server, {**LONG, "stream": stream}, b"data:" if stream else b"")
    server.wait_until_free()
    assert _figure(server, "generated_tokens_total") - before < 400


def _figure(server: Served, name: str) -> float:
    lines = server.http.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"mlx_ferrum_{name}"))


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, [], None),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": [3]}, "messages[0]"),
        (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        (CHAT, {**HI, "temperature": -1}, "temperature"),
        (CHAT, {**HI, "temperature": True}, "temperature"),
        (CHAT, {**HI, "temperature": 10**400}, "temperature"),
        (CHAT, {**HI, "top_p": "1"}, "top_p"),
        (CHAT, {**HI, "n": 0}, "n"),
        (CHAT, {**HI, "n": 9}, "n"),
        (CHAT, {**HI, "max_tokens": 1.5}, "max_tokens"),
        (CHAT, {**HI, "max_tokens": 0}, "max_tokens"),
        (CHAT, {"messages": [{"role": "user", "content": "x", "images": ["AA"]}]}, "messages[0].images"),
        ("/v1/responses", {"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        (CHAT, {**HI, "seed": 1e300}, "seed"),
        (CHAT, {**HI, "stop": [""]}, "stop"),
        (CHAT, {**HI, "stop": 4}, "stop"),
        (CHAT, {**HI, "logit_bias": {"x": 1}}, "logit_bias.x"),
        (CHAT, {**HI, "logit_bias": {"1": 1000}}, "logit_bias.1"),
        (CHAT, {**HI, "logit_bias": {"99999": 1}}, None),
        (CHAT, {**HI, "logit_bias": {"9999999999": 1}}, None),
        (CHAT, {**HI, "logit_bias": {"1" * 5000: 1}}, "logit_bias." + "1" * 5000),
        (CHAT, {**HI, "logit_bias": [1]}, "logit_bias"),
        (CHAT, {**HI, "top_logprobs": 2}, "top_logprobs"),
        (CHAT, {**HI, "stream": "yes"}, "stream"),
        (CHAT, {**HI, "stream_options": 1}, "stream_options"),
        (CHAT, {**HI, "reasoning_effort": "huge"}, "reasoning_effort"),
        (CHAT, {**HI, "modalities": ["audio"]}, "modalities"),
        (CHAT, {**HI, "chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs.messages"),
        (CHAT, {**HI, "model": 3}, "model"),
        ("/v1/completions", {}, "prompt"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": [1, "x"]}, "prompt"),
        ("/v1/completions", {"prompt": [99999]}, None),
        ("/v1/completions", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("/v1/completions", {"prompt": "x", "best_of": 3}, "best_of"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ("/v1/completions", {"prompt": "a b " * 200}, None),
        ("/detokenize", {"tokens": ["x"]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, None),
        ("/tokenize", {"content": 3}, "content"),
        ("/tokenize", {"content": [], "messages": [{"role": "user", "content": "x"}]}, "content"),
        ("/tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "messages"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(server: Served, path: str, body: Any, param: str | None) -> None:
    found = server.http.post(path, json=body)
    assert found.status_code == 400, found.text
    error = found.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["message"]
    assert not server.models.answers


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b'{"prompt": NaN}', "NaN is no JSON"),
        (b"\xff", "invalid start byte"),
        (b"[" * 9000, "nested too deeply"),
        (b'{"seed": %s}' % (b"9" * 5000), "a number has too many digits"),
    ],
)
def test_bodies_that_are_no_json_or_no_text(server: Served, body: bytes, why: str) -> None:
    found = server.http.post("/v1/completions", content=body)
    assert found.status_code == 400
    message = found.json()["error"]["message"]
    assert message.startswith("the body is not valid JSON (")
    assert why in message


@pytest.mark.parametrize(
    ("body", "shown"),
    [({}, "nothing"), ({"messages": None}, "null"), ({"messages": []}, "an empty list")],
)
def test_what_is_missing_is_told_from_what_is_empty(server: Served, body: Any, shown: str) -> None:
    message = server.http.post(CHAT, json=body).json()["error"]["message"]
    assert message == f"messages: {shown} found, expected at least one message"


def test_a_stream_that_fails_before_its_first_token_has_a_status(server: Served) -> None:
    found = server.http.post(CHAT, json={**HI, "stream": True, "logit_bias": {"99999": 1}})
    assert (found.status_code, found.headers["content-type"]) == (400, "application/json")
    assert "99999" in found.json()["error"]["message"]
    assert not server.models.answers


def test_paths_methods_and_models_that_are_not_there(server: Served) -> None:
    assert server.http.get("/v1/nothing").json()["error"]["message"].endswith("Not Found")
    found = server.http.get(CHAT)
    assert (found.status_code, found.headers["allow"]) == (405, "POST")
    assert server.http.get("/v1/models/gpt").status_code == 404
    assert server.http.get("/v1/models/").json() == server.http.get("/v1/models").json()
    found = server.http.post(CHAT, json={**HI, "model": "gpt"})
    assert (found.status_code, found.json()["error"]["code"]) == (404, "model_not_found")
    listed = server.http.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["tiny", "other"]
    assert server.http.get("/v1/models/other").json()["id"] == "other"
    assert server.http.post(CHAT, json={**HI, "model": "other"}).status_code == 200


@pytest.mark.parametrize(
    ("path", "meant"),
    [("/chat/completions", CHAT), ("/v1/v1/messages", "/v1/messages"), ("/api/v1/completions", "/v1/completions")],
)  # fmt: skip
def test_a_base_url_that_is_wrong(server: Served, path: str, meant: str) -> None:
    found = server.http.post(path, json=HI)
    assert found.status_code == 404
    assert f"POST {path}: Not Found, expected {meant}" in found.text


def test_messages_for_a_model_without_a_chat_template(tmp_path) -> None:
    with served(random_models.write(tmp_path / "m.gguf", "llama", 7, sizes=SIZES)) as server:
        for path in (CHAT, "/v1/responses", "/api/chat", "/v1/messages"):
            found = server.http.post(path, json={**HI, "input": "hi", "model": "tiny"})
            assert found.status_code == 400
            assert "no chat template" in found.text
            assert "/v1/completions" in found.text
        asked = {"prompt": "hi", "max_tokens": 2}
        assert server.http.post("/v1/completions", json=asked).status_code == 200


def test_too_long_a_body_or_prompt(server: Served) -> None:
    found = server.http.post("/v1/completions", json={"prompt": "x" * 20_000})
    assert found.status_code == 413
    parts = (b"x" * 1000 for _ in range(30))  # chunked, so its length is not said
    assert server.http.post("/v1/completions", content=parts).status_code == 413
    found = server.http.post("/v1/completions", json={"prompt": "é" * 400})
    assert (found.status_code, found.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_more_texts_than_may_wait_are_refused(server: Served) -> None:
    with server.http.stream("POST", "/v1/completions", json={**LONG, "n": 7, "stream": True}):
        found = server.http.post("/v1/completions", json={"prompt": "x", "n": 2})
        assert (found.status_code, found.headers["retry-after"]) == (429, "1")
        assert found.json()["error"]["type"] == "rate_limit_error"
        assert server.http.post("/v1/completions", json={"prompt": "x"}).status_code == 200
    server.wait_until_free()


def test_each_request_has_an_id(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mlx_ferrum.server.access")
    found = server.openai.completions.create(model="tiny", prompt="x", max_tokens=2)
    assert found._request_id is not None
    refused = server.http.post("/v1/messages", content=b"{").headers["request-id"]
    assert refused.startswith("req_") and refused != found._request_id
    wanted, end = [found._request_id, refused], time.monotonic() + 10
    while (said := [line.rpartition(" ")[2] for line in caplog.messages]) != wanted:
        assert time.monotonic() < end, said  # the log comes after the response
        time.sleep(0.002)


def test_origins(server: Served) -> None:
    def ask(origin: str, method: str = "GET", **headers: str) -> httpx.Response:
        return server.http.request(method, "/v1/models", headers={"origin": origin, **headers})

    assert ask("http://evil.test").status_code == 403
    assert ask("http://evil.test", host="evil.test").status_code == 403  # a name that points here
    assert ask(server.url).status_code == 200
    found = ask("http://page.test", "OPTIONS", **{"access-control-request-headers": "x-a"})
    assert (found.status_code, found.headers["access-control-allow-headers"]) == (204, "x-a")
    found = ask("http://page.test")
    assert found.headers["access-control-allow-origin"] == "http://page.test"
    assert "access-control-allow-credentials" not in found.headers
    assert "access-control-allow-origin" not in server.http.get("/v1/models").headers


def test_tokens_of_texts_and_back(server: Served) -> None:
    ids = server.http.post("/tokenize", json={"content": "one two"}).json()["tokens"]
    assert ids == server.tokenizer.encode("one two", add_special=False)
    assert server.http.post("/detokenize", json={"tokens": ids}).json()["content"] == "one two"
    asked = {"messages": [{"role": "user", "content": "x"}]}
    found = server.http.post("/tokenize", json=asked).json()
    assert found["tokens"] == server.tokenizer.encode("[user]x\n[assistant]")
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 512)


def test_fields_that_are_unknown_are_named_in_one_line(server: Served, caplog) -> None:
    caplog.set_level(logging.INFO)
    secret = "a secret prompt"
    asked = {"prompt": secret, "max_tokens": 1, "one": 1, "two": secret, "user": "me"}
    assert server.http.post("/v1/completions", json=asked).status_code == 200
    lines = [record.getMessage() for record in caplog.records]
    assert "warning: fields that are ignored: one, two" in lines
    assert any(line.startswith("POST /v1/completions 200 ") for line in lines)
    assert secret not in "".join(lines)


def test_keys(file: Path) -> None:
    with served(file, rules=Rules(keys=["good", "böse"])) as server:
        found = [
            server.http.get("/v1/models", headers=headers)
            for headers in [
                [],
                [(b"authorization", b"Bearer bad")],
                [(b"authorization", b"Bearer \xe9")],
                [(b"authorization", b"good")],
                [(b"authorization", b"Bearer good")],
                [(b"x-api-key", b"good")],
            ]
        ]
        assert [each.status_code for each in found] == [401, 401, 401, 401, 200, 200]
        assert found[0].json()["error"]["code"] == "invalid_api_key"
        assert server.http.get("/health").status_code == 200


def test_a_long_prompt_gets_comments_and_a_long_request_ends(file: Path) -> None:
    limits = Limits(idle=0.01)
    with served(file, limits=limits, chunk=1, chunk_beside=1) as server:
        asked = {"prompt": "é" * 200, "max_tokens": 2, "stream": True, "temperature": 0}
        text = server.http.post("/v1/completions", json=asked).text
        assert text.startswith(": keep-alive\n\n")
        assert text.endswith("data: [DONE]\n\n")
        asked = {**LONG, "prompt": "x"}
        server.models.limits.seconds = 0.05
        found = server.http.post("/v1/completions", json=asked)
        assert (found.status_code, found.json()["error"]["code"]) == (504, "timeout")
        text = server.http.post("/v1/completions", json={**asked, "stream": True}).text
        # before the first token, it is no event
        assert '"code":"timeout"' in text.replace(": ", ":").strip().splitlines()[-1]
        server.wait_until_free()


def test_a_slow_reader_holds_up_nobody(server: Served) -> None:
    with server.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as slow:
        begun = slow.iter_lines()
        next(begun)
        for _ in range(5):
            assert server.http.post("/v1/completions", json={"prompt": "x"}).status_code == 200
        lines = [line for line in begun if line]
    assert lines[-1] == "data: [DONE]"
    server.wait_until_free()


def test_loading_and_a_model_that_cannot_be_loaded(file: Path) -> None:
    may_load = threading.Event()

    def load() -> Any:
        may_load.wait()
        raise ValueError("the file is damaged")

    with served(file, load=load) as server:
        found = server.http.get("/health")
        assert (found.status_code, found.json()) == (503, {"status": "loading"})
        with ThreadPoolExecutor(1) as client:
            waiting = client.submit(server.http.post, CHAT, json=HI)
            may_load.set()
            found = waiting.result()
        assert found.status_code == 503
        assert "the file is damaged" in found.json()["error"]["message"]
        assert server.http.get("/health").json() == {"status": "failing"}
        found = server.http.post(CHAT, json=HI)
        assert found.status_code == 503
        assert "the file is damaged" in found.json()["error"]["message"]


def test_an_engine_that_fails_tells_everyone(file: Path) -> None:
    with served(file) as server:

        def check(thorough: bool) -> None:
            raise OSError("the file has changed")

        server.model.check_file = check
        text = server.http.post("/v1/completions", json={**LONG, "stream": True}).text
        assert "the file has changed" in text
        assert server.http.get("/health").json() == {"status": "failing"}
        assert not server.models.answers
        server.model.check_file = None  # the next request loads the model again
        assert server.http.post("/v1/completions", json={"prompt": "x"}).status_code == 200
        assert server.http.get("/health").status_code == 200
