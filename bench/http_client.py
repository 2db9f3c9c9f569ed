"""A client that streams many completions at a time. It costs little: answers are only read, and parsed at the end."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from typing import NamedTuple

from arrivals import Ask, Load, Trace

HOST = "127.0.0.1"
LIMIT = 1 << 20  # bytes of a line
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


class Client:
    """Asks one server over HTTP/1.1; each of its connections asks again and again.

    busy, seconds: what the asking took of a core, of how long
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.busy = self.seconds = 0.0

    def run(self, load: Load) -> list[Trace]:
        """All requests of a load. Raises ValueError if one does not get its tokens."""
        busy, start = time.process_time(), time.perf_counter()
        streams = asyncio.run(self._ask(load, start))
        self.busy += time.process_time() - busy
        self.seconds += time.perf_counter() - start
        return [stream.parse() for stream in streams]

    async def _ask(self, load: Load, start: float) -> list[Stream]:
        queue, done = deque(load.asks), list[Stream]()

        async def work() -> None:
            connection = Connection(self.port)
            while queue:
                ask = queue.popleft()
                if not load.clients:
                    await asyncio.sleep(max(0.0, ask.due - (time.perf_counter() - start)))
                done.append(await _stream(connection, ask, start))
            connection.close()

        await asyncio.gather(*(work() for _ in range(load.clients or len(load.asks))))
        return done


class Stream(NamedTuple):
    """What came of one request. lines: (seconds, line), of chunks of the body too."""

    start: float
    lines: list[tuple[float, bytes]]

    def parse(self) -> Trace:
        """Raises ValueError for an answer without usage."""
        trace = Trace(self.start)
        for at, line in self.lines:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if any(choice.get("text") for choice in event.get("choices", [])):
                trace.pieces.append(at)
            if event.get("usage"):
                trace.tokens = event["usage"]["completion_tokens"]
        if not trace.tokens:
            raise ValueError(f"no usage came, the last line is {self.lines[-1:]}")
        return trace


class Connection:
    """To a server, as long as that keeps it: llama.cpp's closes it after each stream."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, body: bytes) -> tuple[bytes, asyncio.StreamReader]:
        """The first line of an answer, and what follows."""
        for _ in range(2):
            is_kept = self._streams is not None
            self._streams = self._streams or await asyncio.open_connection(
                HOST, self._port, limit=LIMIT
            )
            reader, writer = self._streams
            try:
                writer.write(HEAD % len(body) + body)
                await writer.drain()
                line = await reader.readline()
            except ConnectionError:
                line = b""
            if line or not is_kept:
                break
            self.close()
        return line, reader

    def close(self) -> None:
        """Close it."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


async def _stream(connection: Connection, ask: Ask, start: float) -> Stream:
    body = json.dumps(
        {
            "prompt": ask.prompt,
            "max_tokens": ask.tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
            "temperature": 0,
        }
    ).encode()
    begun = time.perf_counter() - start
    status, reader = await connection.ask(body)
    if b" 200 " not in status:
        rest = (await reader.read(LIMIT)).decode("utf-8", "replace")
        raise ValueError(f"the server answered {status.decode().strip()} {rest[:500]}")
    while (await reader.readline()).strip():
        pass
    lines = []
    while size := int(await reader.readline(), 16):
        chunk = await reader.readexactly(size + 2)
        now = time.perf_counter() - start
        lines += [(now, line) for line in chunk.split(b"\n")]
    await reader.readline()
    return Stream(begun, lines)
