"""Many clients at once, most of which misbehave."""

from __future__ import annotations

import json
import logging
import random
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from servers import served, write

from mlx_ferrum.server.service import Limits

KINDS = ("whole", "stream", "several", "leave", "garbage", "huge", "half")
STATUSES = {
    "whole": "200",
    "stream": "200",
    "several": "200",
    "garbage": "400",
    "huge": "400",
}


def visit(address: tuple[str, int], seed: int) -> tuple[str, str]:
    """Send one request; returns its kind and the status, "" where the client does not wait for one."""
    rng = random.Random(seed)
    kind = rng.choice(KINDS)
    body = {
        "prompt": "x" * 5000 if kind == "huge" else "abc " * rng.randint(1, 30),
        "max_tokens": rng.randint(1, 12),
        "stream": kind in ("stream", "leave"),
        "n": 3 if kind == "several" else 1,
    }
    content = json.dumps(body).encode()
    if kind == "garbage":
        content = rng.randbytes(rng.randint(0, 60))
    length = len(content) + (50 if kind == "half" else 0)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(head % length + content)
        if kind == "half":
            return kind, ""
        if kind == "leave":
            connection.recv(rng.choice([10, 300]))
            return kind, ""
        found = b""
        while received := connection.recv(1 << 16):
            found += received
    assert kind != "stream" or found.count(b"data: [DONE]") == 1
    return kind, found[9:12].decode()


def test_nothing_leaks_and_nobody_is_forgotten(tmp_path, caplog) -> None:
    limits = Limits(running=8, queue=100)
    with served(write(tmp_path / "m.gguf"), limits=limits) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with ThreadPoolExecutor(12) as clients:
            found = Counter(clients.map(lambda seed: visit((host, int(port)), seed), range(300)))
        server.wait_until_free()
    assert {kind: status for kind, status in found if status} == STATUSES
    assert len(found) == len(KINDS)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
