"""Ctrl-C while several things have to change together waits until they have."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Any


class _Handler:
    """The handler of SIGINT while something waits or may soon. Python calls it in the main thread alone.

    depth: how many `uninterrupted` are entered; at 0 the signal is passed on at once
    keep: whether it stays in place at 0
    """

    def __init__(self) -> None:
        self.depth = 0
        self.keep = False
        self._before: Callable[..., Any] | None = None
        self._noted: list[tuple[Any, ...]] = []

    def __call__(self, *came: Any) -> None:
        before = self._before
        if self.depth or before is None:
            self._noted.append(came)
            return
        if not self.keep:
            self.uninstall()
        self._noted.clear()
        before(*came)

    def install(self) -> None:
        """Take the place of Python's handler, or a program's; a signal that ends the process may do so."""
        before: Any = signal.getsignal(signal.SIGINT)  # None: not one of Python's
        if callable(before) and before is not self:
            self._before = before
            signal.signal(signal.SIGINT, self)

    def uninstall(self) -> None:
        """Give the place back, unless another handler has it."""
        present: Any = signal.getsignal(signal.SIGINT)
        if present is self:
            signal.signal(signal.SIGINT, self._before)

    def pass_on(self) -> None:
        """Tell the handler before of a signal that came."""
        if self._noted and self._before is not None:
            came = self._noted[0]
            self._noted.clear()
            self._before(*came)


_handler = _Handler()


class uninterrupted(ContextDecorator):  # noqa: N801 -- used as a function
    """While entered, SIGINT is only noted; its handler is called at the end. For a few microseconds, not more.

    Python calls handlers in the main thread alone, so other threads need nothing.
    """

    def __enter__(self) -> None:
        if _is_main():
            if not _handler.depth and not _handler.keep:
                _handler.install()
            _handler.depth += 1

    def __exit__(self, *_: object) -> None:
        if _is_main():
            _handler.depth -= 1
            if not _handler.depth:
                if not _handler.keep:
                    _handler.uninstall()
                _handler.pass_on()


class often_uninterrupted(ContextDecorator):  # noqa: N801 -- as above
    """While entered, `uninterrupted` takes a tenth of its time: handlers are not exchanged each time."""

    def __enter__(self) -> None:
        if _is_main() and not _handler.keep:
            _handler.install()
            _handler.keep = True

    def __exit__(self, *_: object) -> None:
        if _is_main():
            _handler.keep = False
            if not _handler.depth:
                _handler.uninstall()


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()
