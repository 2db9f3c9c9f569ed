"""How every command starts and ends: closed streams, Ctrl-C, and failures in one line.

Imports next to nothing, so that it is in charge before anything else is imported.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from importlib import import_module

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol, TextIO

    class Main(Protocol):
        """Takes the arguments, by default those of the process; returns the exit code."""

        def __call__(self, argv: Sequence[str] | None = None) -> int:
            """Run the command."""


INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
BROKEN_PIPE = 141  # 128 + SIGPIPE
FAILURES = (ValueError, RuntimeError, OSError, ImportError, MemoryError)  # MLX raises RuntimeError


def run(module: str) -> int:
    """Import `module` and run its `main`; returns the exit code.

    Until `main` calls `begin`, Ctrl-C ends the process at once: an exception in the middle of an
    import can be lost in a callback, or come out as another one.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    try:
        return guarded(lambda: import_module(module).main())
    finally:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own end stays quiet too


def begin() -> None:
    """Imports are done and the work begins: from now on Ctrl-C raises KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(*_: object) -> None:
    os._exit(INTERRUPTED)


def command(main: Callable[[Sequence[str] | None], int]) -> Main:
    """Make `main` the main function of a command: it runs `guarded`."""

    def run_guarded(argv: Sequence[str] | None = None) -> int:
        return guarded(lambda: main(argv))

    run_guarded.__doc__ = main.__doc__
    return run_guarded


def guarded(body: Callable[[], int]) -> int:
    """Run `body`; returns its exit code, or that of its failure.

    A failure is one line on stderr and 1, Ctrl-C is 130, and a reader of stdout that leaves is 141.
    SystemExit, with which argparse ends, passes through.
    """
    open_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # not every terminal has every character
    told, stop = "", None
    try:
        code = body()
    except SystemExit as error:
        code, stop = 0, error
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        code = BROKEN_PIPE
    except FAILURES as error:
        code, told = 1, describe(error)
    lost = _flush()
    if isinstance(lost, BrokenPipeError):
        code, told, stop = BROKEN_PIPE, "", None
    elif lost is not None and code != INTERRUPTED:
        code, told, stop = 1, f"stdout: {lost.strerror}", None
    if told:
        _tell(f"error: {told}")
    if stop is not None:
        raise stop
    return code


def describe(error: Exception) -> str:
    """An error in one line, for people."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    if isinstance(error, ImportError):
        from .lazy import explain

        error = explain(error)
    if isinstance(error, MemoryError):
        return "not enough memory"
    return " ".join(str(error).split()) or type(error).__name__


def open_streams() -> None:
    """Open /dev/null where stdin, stdout or stderr is closed, as under cron: no other file may take its number.

    sys.stdout and sys.stderr are then files; sys.stdin stays None, and `stdin` says so.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(
                os.open(os.devnull, os.O_RDWR), True
            )  # the lowest number that is free
    if sys.stdout is None:
        sys.stdout = _nowhere()
    if sys.stderr is None:
        sys.stderr = _nowhere()


def stdin() -> TextIO:
    """Standard input. Raises OSError if it is closed."""
    if sys.stdin is None:
        raise OSError("stdin is closed")
    return sys.stdin


def _nowhere() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


def _flush() -> OSError | None:
    """Write what stdout and stderr still hold; returns the first failure.

    A stream that fails goes to /dev/null from then on: Python would try it once more at its end.
    """
    first = None
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            first = first or error
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return first


def _tell(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # nobody reads stderr, or its disk is full
        _flush()
