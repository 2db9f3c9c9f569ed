"""Notices to the user: what the package ignores or does otherwise than asked, in one line each."""

from __future__ import annotations

import logging

_logger = logging.getLogger("mlx_ferrum")


def warn(message: str) -> None:
    """One line on stderr; programs that configure `logging` decide otherwise."""
    _logger.warning("warning: %s", message)
