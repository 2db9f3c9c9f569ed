"""Notices to the user: what the package ignores or does otherwise than asked, in one line each."""

from __future__ import annotations

import logging

_logger = logging.getLogger("mlx_ferrum")
_told = logging.getLogger("mlx_ferrum.told")


def warn(message: str) -> None:
    """One line on stderr; programs that configure `logging` decide otherwise."""
    _logger.warning("warning: %s", message)


def tell(message: str) -> None:
    """What the package has chosen, in a line on stderr, unless `be_quiet` was called."""
    _told.warning("%s", message)


def be_quiet() -> None:
    """From now on nothing is told; warnings are."""
    _told.setLevel(logging.ERROR)
