"""The bar that shows how much of a long prompt has been read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlx_ferrum.progress import bar, is_shown

if TYPE_CHECKING:
    from tqdm import tqdm

STEP = 512  # prompt tokens per pass, the default of `generate_step`


class PromptBar:
    """A progress callback for one prompt: a bar that vanishes when the prompt is read.

    Shown in a terminal or a notebook, and only for prompts of more than one pass.
    """

    def __init__(self, step: int = STEP) -> None:
        """step: prompt tokens per pass"""
        self._step = step
        self._bar: tqdm[Any] | None = None

    def __call__(self, done: int, total: int) -> None:
        """Show `done` of `total` tokens."""
        if self._bar is None and done < total and total > self._step and is_shown():
            self._bar = bar(total=total, desc="prompt", unit="tok", leave=False)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            if done == total:
                self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
