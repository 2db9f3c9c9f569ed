"""The self-test: the backend in use against the reference, and how far they may differ.

An error is relative: the largest difference over the largest value of a result. The reference runs on
MLX's CPU device, where float32 is float32: on some GPUs, MLX's own products round to TF32.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from .. import ops
from ..backends import reference
from ..blocks import SUPPORTED
from ..progress import bar
from .case import Case, Convert
from .cases import groups
from .privacy import one_line

_FLOAT32 = 1e-5  # sums of some hundred terms, in another order
_ANGLES = 2e-4  # float32 angles of up to 700 radians are exact to 3e-5; magnitude, norm
_HALF = 2e-3  # one side rounded to float16 or TF32, 2^-11
_INTEGER = 3e-4  # activations of 15 bits that share a scale: six deviations of the sum
_ATTENTION = 3e-5  # scores of some units, exact to 1e-6
_STEP = 1e-2  # a number of 8 bits that is rounded the other way, 1/127
_EXACT = 0.0
_LAST_BITS = 1e-6  # a compiler may fuse the multiplication and the addition of a weight

# several rows of activations are staged in float16, many in tiles of float16; the rest is as exact as float32
_GPU: Mapping[str, float] = {
    **dict.fromkeys(("matmul, 2+ rows", "matmul, 9+ rows", "matmuls"), _HALF),
    **dict.fromkeys(("gate_up, 2+ rows", "gate_up, 9+ rows"), _HALF),
    **dict.fromkeys(("gather_matmul, 9+ rows", "gather_down, 9+ rows"), _HALF),
    "gather_gate_up, 9+ rows": _HALF,
    **dict.fromkeys(("rows", "dequantize"), _LAST_BITS),
    "attend": 2 * _HALF,  # of queries and results in float16
    "attend, 8 bits": _STEP,
    "append": _HALF,
}

# what differs from _FLOAT32
_BOUNDS: Mapping[str, Mapping[str, float]] = {
    "cpu": {
        **dict.fromkeys(("matmul", "matmul, 2+ rows", "matmul, 9+ rows"), _INTEGER),
        **dict.fromkeys(("matmuls", "norm_matmul"), _INTEGER),
        **dict.fromkeys(
            ("gate_up", "gate_up, 2+ rows", "gate_up, 9+ rows"), 2 * _INTEGER
        ),  # two products
        **dict.fromkeys(("gather_matmul", "gather_matmul, 9+ rows"), _INTEGER),
        **dict.fromkeys(("gather_gate_up", "gather_gate_up, 9+ rows"), 2 * _INTEGER),
        **dict.fromkeys(("gather_down", "gather_down, 9+ rows"), _INTEGER),
        **dict.fromkeys(("rows", "dequantize"), _EXACT),
        "attend": _ATTENTION,
        "attend, 8 bits": _STEP,
        "append": _HALF,  # keys and values are stored as float16
    },
    "metal": _GPU,
    "cuda": _GPU,
    "reference": {
        **dict.fromkeys(("matmul", "matmul, 2+ rows", "matmul, 9+ rows"), _HALF),
        **dict.fromkeys(("matmuls", "norm_matmul", "attend"), _HALF),
        **dict.fromkeys(("gate_up", "gate_up, 2+ rows", "gate_up, 9+ rows"), 2 * _HALF),
        **dict.fromkeys(("gather_matmul", "gather_matmul, 9+ rows"), _HALF),
        **dict.fromkeys(("gather_gate_up", "gather_gate_up, 9+ rows"), 2 * _HALF),
        **dict.fromkeys(("gather_down", "gather_down, 9+ rows"), _HALF),
        **dict.fromkeys(("rows", "dequantize"), _LAST_BITS),
        "attend, 8 bits": _STEP,
        "append": _ANGLES,
    },
}

# whatever a backend may raise; what it fails with is the finding
_FAILURES = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, OSError),
    *(RuntimeError, TypeError, ValueError),
)


@dataclass(frozen=True)
class Failure:
    """A case that failed. error: a relative error and what was allowed, or what the backend raised."""

    op: str
    type: str
    shape: str
    error: str


@dataclass
class Result:
    """One operation. worst: the largest error, None where a case gave no number."""

    op: str
    bound: float
    cases: int = 0
    worst: float | None = 0.0
    failures: list[Failure] = field(default_factory=list)


def bound(backend: str, op: str) -> float:
    """The error that is allowed. Raises KeyError for an unknown backend."""
    return _BOUNDS[backend].get(op, _FLOAT32)


def run(progress: bool = True) -> tuple[list[Result], float]:
    """Test the backend in use: results in the order of the cases, and the seconds that it took.

    progress: show a bar, in a terminal or a notebook
    """
    start, name = time.perf_counter(), ops.backend_name()
    array = _kind()
    results: dict[str, Result] = {}
    with bar(groups(), total=len(SUPPORTED) + 1, leave=False, show=progress) as shown:
        for type_name, cases in shown:
            for case in cases:
                shown.set_description(f"{case.op}, {type_name}")
                result = results.setdefault(case.op, Result(case.op, bound(name, case.op)))
                _judge(result, case, array)
    return list(results.values()), time.perf_counter() - start


def _kind() -> Convert:
    """What makes activations of the kind that the backend in use computes with."""
    made: Any = ops.rms_norm(mx.zeros((1, 8)), mx.ones(8), 1e-6)
    return np.asarray if isinstance(made, np.ndarray) else mx.array


def _judge(result: Result, case: Case, array: Convert) -> None:
    result.cases += 1
    with mx.stream(mx.cpu):
        wanted = np.array(case.compute(reference, mx.array))
    try:
        found = _numbers(case.compute(ops, array))
    except _FAILURES as error:
        _fail(result, case, one_line(error))
        return
    if found.shape != wanted.shape:
        _fail(result, case, f"shape {found.shape}, expected {wanted.shape}")
        return
    off = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    if not np.isfinite(off):
        _fail(result, case, "not all values are finite")
        return
    if result.worst is not None:
        result.worst = max(result.worst, off)
    if off > result.bound:
        allowed = f"{result.bound:.0e}" if result.bound else "none"
        result.failures.append(_failure(case, f"{off:.1e}, allowed {allowed}"))


def _numbers(found: Any) -> np.ndarray:
    return found if isinstance(found, np.ndarray) else np.array(ops.to_mlx(found))


def _fail(result: Result, case: Case, error: str) -> None:
    result.worst = None
    result.failures.append(_failure(case, error))


def _failure(case: Case, error: str) -> Failure:
    return Failure(case.op, case.type, case.shape, error)
