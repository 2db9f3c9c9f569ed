"""llama.cpp's server as a program that is compared: a client that streams many requests at a time."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arrivals import Ask, Load, Trace

HOST = "127.0.0.1"
PATIENCE = 120  # seconds to load a model


class Client:
    """Asks one server. busy: seconds that the asking took, of all threads."""

    def __init__(self, port: int) -> None:
        self.port, self.busy = port, 0.0
        self._lock = threading.Lock()

    def run(self, load: Load) -> list[Trace]:
        """All requests of a load. Raises ValueError if one does not get its tokens."""
        queue, traces, failures = deque(load.asks), list[Trace](), list[str]()
        start = time.perf_counter()

        def work() -> None:
            while True:
                with self._lock:
                    if not queue:
                        break
                    ask = queue.popleft()
                    traces.append(Trace(0.0))
                    trace = traces[-1]
                if not load.clients:
                    time.sleep(max(0.0, ask.due - (time.perf_counter() - start)))
                trace.start = ask.due if not load.clients else time.perf_counter() - start
                try:
                    self._stream(ask, trace, start)
                except (OSError, ValueError, http.client.HTTPException) as error:
                    failures.append(str(error))
            with self._lock:
                self.busy += time.thread_time()

        threads = [threading.Thread(target=work) for _ in range(load.most)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise ValueError(f"llama-server: {failures[0]}")
        return traces

    def _stream(self, ask: Ask, trace: Trace, start: float) -> None:
        body = {
            "prompt": ask.prompt,
            "n_predict": ask.tokens,
            "stream": True,
            "ignore_eos": True,
            "temperature": 0,
            "cache_prompt": False,
        }
        connection = http.client.HTTPConnection(HOST, self.port, timeout=600)
        connection.request("POST", "/completion", json.dumps(body))
        with connection.getresponse() as response:
            for line in response:
                if line.startswith(b"data: "):
                    now = time.perf_counter() - start
                    count = json.loads(line[6:])["tokens_predicted"]
                    # characters of several tokens come together, and some only at the end
                    trace.tokens += [now] * (count - len(trace.tokens))
        connection.close()
        if len(trace.tokens) != ask.tokens:
            raise ValueError(f"{len(trace.tokens)} tokens came, expected {ask.tokens}")


@contextmanager
def serving(
    program: Path, model: Path, *, slots: int, context: int, threads: int
) -> Iterator[Client]:
    """A server that is ready. Raises ValueError if it is not within two minutes."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    options = {"-m": model, "-np": slots, "-c": slots * context, "-t": threads, "--port": port}
    command = [str(program), *(str(part) for option in options.items() for part in option)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(process, port)
        yield Client(port)
    finally:
        process.terminate()
        process.wait()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if process.poll() is not None:
            raise ValueError(f"llama-server ended with {process.returncode}")
        try:
            connection = http.client.HTTPConnection(HOST, port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise ValueError("llama-server is not ready after two minutes")
