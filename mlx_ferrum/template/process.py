"""The process that renders templates.

A chat template is a program from a file of unknown origin. minijinja counts instructions, but a single
one can take any time and memory, and deep nesting overflows its stack. So templates run in a process whose
CPU time and memory the system limits; it may die without harm, and is then started anew.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Isolated from the environment and the current folder, but with the modules that this process can import.
_START = """
import json, runpy, sys
sys.path[:] = json.loads(sys.argv.pop())
runpy.run_path(sys.argv.pop(), run_name="__main__")
"""


@dataclass(frozen=True)
class Limits:
    """source: characters of a template. text: characters of what it makes.

    seconds: CPU time of one rendering. memory: bytes of address space of the process (not on macOS).
    """

    source: int = 1 << 20
    text: int = 1 << 26
    seconds: float = 5.0
    memory: int = 1 << 30


class Renderer:
    """Renders templates, one at a time, in a process that starts at the first of them."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def render(self, source: str, variables: dict[str, Any]) -> str:
        """Text of a template. variables: plain JSON values.

        Raises ValueError for what the template raises, for passed limits, and for variables that are
        not plain values.
        """
        text: str = self._ask(source, variables)["text"]
        return text

    def names(self, source: str) -> set[str]:
        """The variables that a template uses without setting them. Raises ValueError as `render` does."""
        return set(self._ask(source, None)["names"])

    def _ask(self, source: str, variables: dict[str, Any] | None) -> dict[str, Any]:
        if len(source) > self._limits.source:
            raise ValueError(
                f"{len(source)} characters found, expected at most {self._limits.source}"
            )
        try:
            request = json.dumps(
                {"source": source, "variables": variables}, ensure_ascii=False
            ).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"messages, tools and variables must be plain values: {error}"
            ) from None
        with self._lock:
            answer = self._exchange(request)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer

    def _exchange(self, request: bytes) -> dict[str, Any]:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(request + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        except BaseException:  # the answer to come would be taken for that of the next request
            process.kill()
            self._process = None
            raise
        if line.endswith(b"\n"):
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._process = None
        raise ValueError(self._reason(_end(process)))

    def _running(self) -> subprocess.Popen[bytes]:
        """The process; a new one at first, after one died, and in a fork of the process that had it."""
        if self._process is None or self._owner != os.getpid():
            limits = (self._limits.seconds, self._limits.memory, self._limits.text)
            worker = Path(__file__).with_name("worker.py")
            paths = json.dumps([path for path in sys.path if path])
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, *map(str, limits), str(worker), paths],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is not for it
            )
            self._owner = os.getpid()
            weakref.finalize(self, _end, self._process)
        return self._process

    def _reason(self, status: int) -> str:
        if status == -signal.SIGPROF:
            return f"stopped after {self._limits.seconds} seconds"
        if status >= 0:
            return f"the process that renders templates ended with status {status}"
        return f"needs more than {self._limits.memory >> 20} MiB of memory, or nests too deeply"


def _end(process: subprocess.Popen[bytes]) -> int:
    """Let a process end at the end of its input, and wait for that."""
    assert process.stdin is not None and process.stdout is not None
    process.stdout.close()
    with suppress(BrokenPipeError):
        process.stdin.close()
    return process.wait()
