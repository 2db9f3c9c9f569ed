"""The bar that shows how much of a long prompt has been read."""

from __future__ import annotations

import sys

from tqdm import tqdm

STEP = 512  # prompt tokens per pass, the default of `generate_step`


class PromptBar:
    """A progress callback for one prompt: a bar on stderr that vanishes when the prompt is read.

    Shown only in a terminal, and only for prompts of more than one pass.
    """

    def __init__(self, step: int = STEP) -> None:
        """step: prompt tokens per pass"""
        self._step = step
        self._bar: tqdm | None = None

    def __call__(self, done: int, total: int) -> None:
        """Show `done` of `total` tokens."""
        if self._bar is None and done < total and total > self._step and _has_terminal():
            self._bar = tqdm(total=total, desc="prompt", unit="tok", leave=False)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            if done == total:
                self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _has_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
