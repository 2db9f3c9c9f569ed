"""The server as a process."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from mlx_ferrum import catalog


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


@contextmanager
def process(*args: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    port = free_port()
    command = [sys.executable, "-m", "mlx_ferrum.server", "--port", str(port), *args]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        transport = httpx.HTTPTransport(retries=9)  # until it listens
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=transport) as client:
                yield running, client
        finally:
            running.kill()


def test_sigterm_lets_texts_end() -> None:
    with process("-m", "tiny-moe", "--alias", "moe", "--api-key", "k") as (running, client):
        client.headers["authorization"] = "Bearer k"
        while client.get("/health").status_code != 200:
            assert running.poll() is None
        asked = {"prompt": "In the", "max_tokens": 60, "stream": True, "ignore_eos": True}
        with client.stream("POST", "/v1/completions", json=asked) as response:
            lines = (line for line in response.iter_lines() if line)
            first = json.loads(next(lines).removeprefix("data: "))
            running.send_signal(signal.SIGTERM)
            *rest, end = lines
        assert first["model"] == "moe"
        assert end == "data: [DONE]"
        assert (
            json.loads(rest[-1].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        )
        assert running.wait(10) == 0
        assert running.stderr is not None
        log = running.stderr.read()
        assert "POST /v1/completions 200" in log
        assert "In the" not in log


def test_a_model_that_is_not_there_ends_the_process(tmp_path) -> None:
    command = [sys.executable, "-m", "mlx_ferrum.server", "--port", str(free_port())]
    missing = str(tmp_path / "nothing.gguf")
    done = subprocess.run(
        [*command, "-m", missing, "--host", "0.0.0.0"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "warning: everyone who can reach 0.0.0.0 may use the server" in done.stderr
    assert missing in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = [sys.executable, "-m", "mlx_ferrum.server", "-m", "tiny-moe", "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: cannot listen on 127.0.0.1:{port}: ")


def test_any_free_port() -> None:
    command = [sys.executable, "-m", "mlx_ferrum.server", "-m", "tiny-moe", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        first, second = running.stderr.readline(), running.stderr.readline()
        base = first.split()[-1]
        found = httpx.get(f"{base}/models").json()
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 0
    assert first.startswith("tiny-moe on http://127.0.0.1:")
    assert second == "tiny-moe is loaded\n"
    assert found["data"][0]["id"] == "tiny-moe"


def test_a_folder_of_models() -> None:
    """With one that is loaded at the start, and another one that a request names."""
    folder = str(catalog.resolve("tiny-moe").parent)
    options = ("--models", folder, "-m", "tiny-moe", "--model-memory", "200M", "--pool", "512")
    with process(*options) as (running, client):
        assert client.get("/health").json() == {"status": "ready"}
        for name in ({"model": "tiny-hybrid"}, {}):
            asked = {"prompt": "In the", "max_tokens": 2, **name}
            found = client.post("/v1/completions", json=asked, timeout=60).json()
            assert found["model"] == name.get("model", "tiny-moe")
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 0
        assert running.stderr is not None
        assert "Traceback" not in running.stderr.read()


def test_a_process_that_ends_while_it_loads() -> None:
    with process("-m", "tiny-hybrid") as (running, client):
        client.get("/health")
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 0
        assert running.stderr is not None
        assert "Traceback" not in running.stderr.read()


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--models", "nowhere"], 1, "nowhere: nothing found, expected a folder"),
        (["--models", ".", "-m", "no such"], 1, "unknown model 'no such'"),
        (["--cors-origin", "page.test"], 1, "'page.test', expected one such as http://"),
        (["--port", "70000"], 2, "70000 is more than 65535"),
        (["--models", ".", "--alias", "x"], 2, "--alias is for --model"),
        (["--model-memory", "1G"], 2, "--model-memory is for --models"),
        (["--models", ".", "--model-memory", "1X"], 2, "expected a size such as 500M"),
        (["--models", ".", "-m", "tiny-moe", "--model-memory", "1M"], 1, "tiny-moe: needs 39 MB"),
    ],
)
def test_folders_and_options_that_do_not_fit(
    capsys, tmp_path, monkeypatch, options: list[str], code: int, text: str
) -> None:
    from mlx_ferrum.server.command import main

    monkeypatch.chdir(tmp_path)
    try:
        found = main(options)
    except SystemExit as error:
        found = error.code if isinstance(error.code, int) else 1
    assert (found, text in capsys.readouterr().err) == (code, True)


@pytest.mark.parametrize(
    "option",
    [
        "--api-key=",
        "--port=65536",
        "--parallel=0",
        "--timeout=x",
        "--cors-origin=localhost:3000",
        "--cors-origin=http://localhost:3000/",
    ],
)
def test_bad_options(option: str) -> None:
    from mlx_ferrum.server.command import main

    try:
        code = main([option])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    assert code in (1, 2)
