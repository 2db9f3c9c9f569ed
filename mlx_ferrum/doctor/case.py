"""What a case of the self-test is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Operations = Any  # the module ops, or a backend
Convert = Callable[[np.ndarray], Any]  # to an activation of a backend's kind


@dataclass(frozen=True)
class Case:
    """One computation.

    op: the operation, or a variant with an exactness of its own
    type: of the weights
    shape: for people
    compute: (operations, convert) -> result; the same every time
    """

    op: str
    type: str
    shape: str
    compute: Callable[[Operations, Convert], Any]
