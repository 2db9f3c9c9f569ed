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


@pytest.mark.parametrize("option", ["--api-key=", "--port=0", "--parallel=0", "--timeout=x"])
def test_bad_options(option: str) -> None:
    from mlx_ferrum.server.command import main

    try:
        code = main([option])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    assert code in (1, 2)
