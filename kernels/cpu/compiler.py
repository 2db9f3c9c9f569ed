"""The C++ compiler: finding it, and running it on several files at once."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

COMPILERS = ("c++", "g++", "clang++")
POLL_SECONDS = 0.02


class BuildError(OSError):
    """The library cannot be built here; the message says what is missing."""


def find_compiler() -> tuple[str, ...]:
    """The command of the C++ compiler: $CXX, which may have arguments, or the system's.

    Raises BuildError, which says what to install, if there is none.
    """
    chosen = os.environ.get("CXX", "")
    try:
        words = shlex.split(chosen)
    except ValueError as error:
        raise BuildError(f"no C++ compiler: CXX is {chosen!r}: {error}") from error
    if words:
        found = shutil.which(words[0])
        if found is None:
            raise BuildError(f"no C++ compiler: CXX is {words[0]!r}, which is not found")
        return (found, *words[1:])
    for name in COMPILERS:
        if found := shutil.which(name):
            return (found,)
    how = (
        "xcode-select --install" if sys.platform == "darwin" else "apt-get install g++, or the like"
    )
    raise BuildError(f"no C++ compiler (looked for {', '.join(COMPILERS)}); {how} brings one")


def run_all(
    commands: Sequence[Sequence[str]], folder: Path, done: Callable[[], object], *, at_once: int
) -> None:
    """Run compiler commands, at_once of them at a time, in their order.

    folder: of temporary files, the compiler's own included
    done: called after each
    Raises BuildError if one fails. However this ends, none of them runs on.
    """
    waiting, running = list(commands), list[_Running]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                number = len(commands) - len(waiting)
                running.append(_Running(waiting.pop(0), folder / f"{number}.log", folder))
            for command in [c for c in running if c.has_ended()]:
                running.remove(command)
                command.check()
                done()
            time.sleep(POLL_SECONDS)
    finally:
        for command in running:
            command.kill()


class _Running:
    """A command that runs as a process group: a compiler starts programs of its own."""

    def __init__(self, command: Sequence[str], log: Path, temporary: Path) -> None:
        self._name, self._log = Path(command[0]).name, log
        try:
            with log.open("wb") as out:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "TMPDIR": str(temporary)},
                    start_new_session=True,
                )
        except OSError as error:
            raise BuildError(f"{self._name} cannot be run: {error}") from error

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def check(self) -> None:
        """Raises BuildError if the command failed, with the first error that it printed."""
        if self._process.returncode:
            lines = self._log.read_text(errors="replace").strip().splitlines() or ["no message"]
            message = next((line for line in lines if "error" in line), lines[0])
            raise BuildError(f"{self._name} failed: {message}")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has just ended
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
