"""A server of a folder of models: each is loaded when it is asked for, and closed for others."""

from __future__ import annotations

import gc
import json
import logging
import random
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hf_bert
import httpx
import pytest
import random_models
from servers import SIZES, TEMPLATE, Served, served, served_folder

from mlx_ferrum.server import entries
from mlx_ferrum.server.service import Service

NAMES = ("a", "b", "c")
PROMPTS = ("one", "two three", "abc " * 20)
LONG = {"prompt": "abc", "max_tokens": 400, "ignore_eos": True, "stream": True, "temperature": 0}


@pytest.fixture(scope="module", autouse=True)
def frozen() -> Iterator[None]:
    """What tests and their packages hold is not searched for garbage whenever a model is closed."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(NAMES):
        random_models.write(
            folder / f"{name}.gguf", "llama", seed, sizes=SIZES, types=["Q8_0"], template=TEMPLATE
        )
    return folder


@pytest.fixture(scope="module")
def wanted(made: Path) -> dict[tuple[str, str], str]:
    """What a server of one model writes, by model and prompt."""
    found: dict[tuple[str, str], str] = {}
    for name in NAMES:
        texts = alone(made / f"{name}.gguf")
        found |= {(name, prompt): text for prompt, text in zip(PROMPTS, texts, strict=True)}
    assert len(set(found.values())) == len(found)
    gc.collect()
    return found


def alone(path: Path) -> list[str]:
    with served(path) as server:
        return [ask(server, "tiny", prompt) for prompt in PROMPTS]


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch) -> Path:
    """A copy, which is listed again at each request."""
    monkeypatch.setattr(entries, "SECONDS", 0.0)
    return Path(shutil.copytree(made, tmp_path / "models"))


@contextmanager
def serving(folder: Path, *options: str, count: float = 1.5) -> Iterator[Served]:
    """With memory for so many of the models, whose pools are smaller than their files."""
    memory = int(count * (folder / "a.gguf").stat().st_size * 1.1)
    pool = ("--pool", "512", "--parallel", "8")
    with served_folder(folder, "--model-memory", str(memory), *pool, *options) as server:
        yield server


def ask(server: Served, model: str, prompt: str = "one", *, stream: bool = False) -> str:
    asked = {"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0, "stream": stream}
    response = server.http.post("/v1/completions", json=asked)
    assert response.status_code == 200, response.text
    if not stream:
        return str(response.json()["choices"][0]["text"])
    *lines, end = (line for line in response.text.splitlines() if line)
    assert end == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert {chunk["model"] for chunk in chunks} == {model}
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


def mapped(folder: Path) -> set[str]:
    """The files of a folder that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.rpartition("/")[2] for line in lines if str(folder) in line}


def engines() -> int:
    return sum(thread.name == "engine" for thread in threading.enumerate())


def loaded(server: Served) -> list[str]:
    listed = server.http.get("/v1/models").json()["data"]
    return [model["id"] for model in listed if model["loaded"]]


def figure(server: Served, name: str, model: str) -> float:
    lines = server.http.get("/metrics").text.splitlines()
    start, label = f"mlx_ferrum_{name}{{", f'model="{model}"'
    found = [line for line in lines if line.startswith(start) and label in line]
    return sum(float(line.split()[-1]) for line in found)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_one_lives_at_a_time_and_nothing_is_left_of_others(made: Path, wanted) -> None:
    assert mapped(made) == set()
    before = engines()
    with serving(made) as server:
        assert loaded(server) == []
        assert mapped(made) == set()
        for stream in (False, True):
            for name in (*NAMES, "a"):
                assert ask(server, name, stream=stream) == wanted[name, "one"]
                assert loaded(server) == [name]
                assert mapped(made) == {f"{name}.gguf"}
                assert engines() == before + 1
                assert figure(server, "loaded", name) == 1
        assert figure(server, "loads_total", "b") == 2
        assert figure(server, "blocks", "b") == 0
        assert figure(server, "blocks", "a") >= 16
    assert engines() == before
    assert mapped(made) == set()
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("prompts")])


def test_a_collection_in_another_thread_keeps_no_model(made: Path) -> None:
    has_begun, may_end = threading.Event(), threading.Event()

    class Slow:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            has_begun.set()
            may_end.wait()

    with serving(made) as server, ThreadPoolExecutor(1) as clients:
        ask(server, "a")
        Slow()
        collecting = threading.Thread(target=gc.collect)
        collecting.start()
        has_begun.wait()
        other = clients.submit(ask, server, "b")
        threading.Timer(0.2, may_end.set).start()
        other.result()
        collecting.join()
        assert mapped(made) == {"b.gguf"}


def test_models_that_fit_live_together(made: Path, wanted) -> None:
    with serving(made, count=2.5) as server:
        for name in ("a", "b", "a", "c"):
            assert ask(server, name) == wanted[name, "one"]
        assert loaded(server) == ["a", "c"]  # b was used longest ago
        assert figure(server, "loads_total", "a") == 1
        running = server.http.get("/api/ps").json()["models"]
        assert [model["name"] for model in running] == ["a", "c"]


def test_many_ask_for_all_at_the_same_time(made: Path, wanted) -> None:
    rng = random.Random(3)
    asked = [(rng.choice(NAMES), rng.choice(PROMPTS), rng.random() < 0.5) for _ in range(40)]
    with serving(made) as server, ThreadPoolExecutor(8) as clients:
        found = list(clients.map(lambda one: ask(server, one[0], one[1], stream=one[2]), asked))
    assert found == [wanted[name, prompt] for name, prompt, _ in asked]


@contextmanager
def streaming(server: Served, name: str) -> Iterator[Iterator[str]]:
    """The lines of a long text that has begun."""
    with server.http.stream("POST", "/v1/completions", json={**LONG, "model": name}) as response:
        lines = (line for line in response.iter_lines() if line)
        next(lines)
        yield lines


def test_a_model_in_use_is_not_closed_and_nobody_overtakes(made: Path, wanted) -> None:
    with serving(made) as server, ThreadPoolExecutor(2) as clients:
        with streaming(server, "a") as lines:
            other = clients.submit(ask, server, "b")
            until(lambda: server.models.waiting == 1)
            later = clients.submit(ask, server, "a")
            until(lambda: server.models.waiting == 2)
            assert loaded(server) == ["a"]
            *rest, end = lines
        assert end == "data: [DONE]"
        assert json.loads(rest[-1][6:])["choices"][0]["finish_reason"] == "length"
        assert (other.result(), later.result()) == (wanted["b", "one"], wanted["a", "one"])
        assert figure(server, "loads_total", "a") == 2  # it made room for b, which came first


def test_a_slow_reader_of_a_text_that_has_ended_keeps_no_model(made: Path, wanted) -> None:
    with serving(made) as server, streaming(server, "a"):
        assert ask(server, "b") == wanted["b", "one"]


def send(server: Served, body: dict[str, Any]) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    connection = socket.create_connection((host, int(port)))
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    connection.sendall(head % len(content) + content)
    return connection


def test_a_client_that_leaves_while_it_waits(made: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    with serving(made) as server:
        with streaming(server, "a") as lines:
            with send(server, {"model": "b", "prompt": "x"}):
                until(lambda: server.models.waiting == 1)
            until(lambda: server.models.waiting == 0)
            assert list(lines)[-1] == "data: [DONE]"
        server.wait_until_free()
        assert loaded(server) == ["a"]
        assert figure(server, "loads_total", "b") == 0
    told = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("POST /v1/completions 499 ") for line in told)


def test_those_that_wait_are_limited_in_number_and_time(made: Path) -> None:
    with serving(made, "--parallel", "1", "--queue", "1") as server:
        body = {"model": "b", "prompt": "x"}
        with streaming(server, "a") as lines:
            with send(server, body), send(server, body):
                until(lambda: server.models.waiting == 2)
                found = server.http.post("/v1/completions", json=body)
                assert (found.status_code, found.headers["retry-after"]) == (429, "1")
            until(lambda: server.models.waiting == 0)
            server.models.limits.seconds = 0.02
            found = server.http.post("/v1/completions", json=body)
            assert (found.status_code, found.json()["error"]["code"]) == (504, "timeout")
            assert list(lines)[-1] == "data: [DONE]"


def test_a_file_that_cannot_be_loaded_hurts_no_other(folder: Path, wanted, caplog) -> None:
    whole = (folder / "b.gguf").read_bytes()
    (folder / "b.gguf").write_bytes(whole[:5000])
    chat = {"model": "b", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    with serving(folder) as server:
        assert ask(server, "a") == wanted["a", "one"]
        for path in ("/v1/chat/completions", "/v1/messages", "/api/chat"):
            found = server.http.post(path, json=chat)
            assert found.status_code == 503
            error = found.json()["error"]
            text = error if isinstance(error, str) else error["message"]
            assert text.startswith("b cannot be loaded: ")
            assert "\n" not in text
        assert server.http.get("/health").json() == {"status": "ready"}
        assert ask(server, "a") == wanted["a", "one"]
        assert mapped(folder) == {"a.gguf"}
        (folder / "b.gguf").write_bytes(whole)
        assert ask(server, "b") == wanted["b", "one"]
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_files_that_go_and_change_while_they_are_used(folder: Path, wanted) -> None:
    with serving(folder) as server:
        with streaming(server, "a") as lines:
            (folder / "a.gguf").unlink()
            found = server.http.post("/v1/completions", json={"model": "a", "prompt": "x"})
            assert found.status_code == 404
            assert list(lines)[-1] == "data: [DONE]"
        until(lambda: mapped(folder) == set())
        assert loaded(server) == []
        with streaming(server, "b") as lines, ThreadPoolExecutor(1) as client:
            shutil.copy(folder / "c.gguf", folder / "new")
            (folder / "new").replace(folder / "b.gguf")
            new = client.submit(ask, server, "b")  # waits for the old one to end
            assert list(lines)[-1] == "data: [DONE]"
            assert new.result() == wanted["c", "one"]
        assert [model["id"] for model in server.http.get("/v1/models").json()["data"]] == ["b", "c"]


def test_a_request_that_names_no_model(made: Path, wanted) -> None:
    body = {"prompt": "one", "max_tokens": 8, "temperature": 0}
    with serving(made) as server:
        found = server.http.post("/v1/completions", json=body)
        assert found.status_code == 404
        assert "expected 'a', 'b', 'c'" in found.json()["error"]["message"]
    with serving(made, "-m", str(made / "b.gguf"), "--alias", "gpt-*", "--alias", "x*") as server:
        until(lambda: loaded(server) == ["gpt-*", "b"])
        for name in ({}, {"model": "b"}, {"model": "xyz"}):
            found = server.http.post("/v1/completions", json={**body, **name}).json()
            assert found["choices"][0]["text"] == wanted["b", "one"]
            assert found["model"] == "gpt-*"


def test_a_model_that_is_too_large(made: Path) -> None:
    with serving(made, count=0.5) as server:
        found = server.http.post("/v1/completions", json={"model": "a", "prompt": "x"})
        assert (found.status_code, found.json()["error"]["code"]) == (503, "model_too_large")
        assert "--model-memory" in found.json()["error"]["message"]


def test_an_encoder_of_the_folder(folder: Path, wanted) -> None:
    hf_bert.write(folder / "bert")
    shutil.move(hf_bert.converted(folder / "bert"), folder / "enc.gguf")
    with serving(folder) as server:
        made = server.openai.embeddings.create(model="enc", input=["x y"])
        assert (made.model, loaded(server)) == ("enc", ["enc"])
        assert server.http.post("/v1/embeddings", json={"input": "x"}).status_code == 404
        found = server.http.post("/v1/embeddings", json={"input": "x", "model": "a"})
        assert found.status_code == 404
        found = server.http.post("/v1/completions", json={"prompt": "x", "model": "enc"})
        assert found.status_code == 400
        assert "encoder" in found.json()["error"]["message"]
        assert figure(server, "running", "enc") == 0
        assert ask(server, "a") == wanted["a", "one"]
    with serving(folder, "--embedding-model", "enc", "-m", "a") as server:
        assert server.http.post("/v1/embeddings", json={"input": "x"}).json()["model"] == "enc"
        assert server.http.post("/api/embed", json={"input": "x", "model": "a"}).status_code == 200


def test_a_server_that_ends_while_it_loads(made: Path, monkeypatch) -> None:
    """The request that waits for the model gets its text; then nothing is left."""
    may_load, is_loading = threading.Event(), threading.Event()
    load = Service._make

    def slowly(service: Service) -> Any:
        is_loading.set()
        may_load.wait()
        return load(service)

    monkeypatch.setattr(Service, "_make", slowly)
    before = engines()
    with ThreadPoolExecutor(1) as client:
        with serving(made) as server:
            url = server.url
            asked = {"model": "a", "prompt": "one", "max_tokens": 2}
            waiting = client.submit(httpx.post, f"{url}/v1/completions", json=asked, timeout=20)
            is_loading.wait()
            threading.Timer(0.05, may_load.set).start()
        assert waiting.result().status_code == 200
    assert engines() == before
    assert mapped(made) == set()


def visit(server: Served, seed: int, wanted: dict[tuple[str, str], str]) -> None:
    """One request of a client that may leave at any time."""
    rng = random.Random(seed)
    name, prompt = rng.choice(NAMES), rng.choice(PROMPTS)
    if rng.random() < 0.3:
        kind = {"stream": rng.random() < 0.5, "max_tokens": rng.randint(1, 60)}
        with send(server, {"model": name, "prompt": prompt, **kind}) as connection:
            if rng.random() < 0.5:
                connection.recv(rng.choice([1, 300]))
    else:
        assert ask(server, name, prompt, stream=rng.random() < 0.5) == wanted[name, prompt]


@pytest.mark.parametrize("count", [1.5, 2.5])
def test_nothing_leaks_under_stress(made: Path, wanted, count: float) -> None:
    before = engines()
    with serving(made, count=count) as server:
        with ThreadPoolExecutor(10) as clients:
            list(clients.map(lambda seed: visit(server, seed, wanted), range(200)))
        server.wait_until_free()
        alive = loaded(server)
        assert len(alive) <= count
        until(lambda: mapped(made) == {f"{name}.gguf" for name in loaded(server)})
        assert engines() == before + len(alive)
    assert (engines(), mapped(made)) == (before, set())
