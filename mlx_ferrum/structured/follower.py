"""Where a text is in its grammar."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llguidance import LLMatcher

MEANING = {"NoExtensionBias": "no text goes on from here that it allows"}  # of llguidance's words


class Follower:
    """The state of one text in a grammar; see `engine.request.Follower`."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def may_end(self) -> bool:
        """Whether the text so far is complete."""
        return self._matcher.is_accepting()

    @property
    def must_end(self) -> bool:
        """Whether nothing can follow."""
        return self._matcher.is_stopped()

    def fill(self, bits: np.ndarray) -> None:
        """Set the bits of the tokens that may come next: int32 (ceil(vocab / 32),), the lowest bit first.

        Raises ValueError if the grammar is too complex to go on.
        """
        self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        self._check()

    def accept(self, token: int) -> None:
        """Take the next token. Raises ValueError for one that may not come."""
        self._matcher.consume_token(token)
        self._check()

    def forced(self) -> list[int]:
        """The tokens that have to come next, which are not taken yet."""
        return self._matcher.compute_ff_tokens()

    def _check(self) -> None:
        if self._matcher.is_error():
            error = one_line(self._matcher.get_error())
            raise ValueError(f"the grammar: {MEANING.get(error, error)}")


def one_line(message: str) -> str:
    """What an error message of llguidance says, without the text that it shows."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    kept = [
        line for line in lines if not (line[0].isdigit() and " | " in line) and line.strip("^ ")
    ]
    return " ".join(kept).replace("<non-verbose/>", "").strip() or "unknown error"
