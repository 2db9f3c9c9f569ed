"""A backend that computes with other tensors than a model has, and otherwise as the one it stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..batch import Batch
from ..tensor import QTensor

T = TypeVar("T")


class Substituted:
    """See `ops.substituted`."""

    def __init__(self, backend: Any, tensors: Mapping[str, QTensor]) -> None:
        self._backend, self._tensors = backend, tensors

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        if not callable(found):
            return found

        def call(*args: Any, **named: Any) -> Any:
            if not self._concerns(args):
                return found(*args, **named)
            return found(*map(self._replaced, args), **named)

        return call

    def repeated(self, run: Callable[[Batch], T]) -> Callable[[Batch], T]:
        """Repeats nothing: a recorded step would hold the model's own tensors."""
        return run

    def _concerns(self, value: Any) -> bool:
        if isinstance(value, QTensor):
            return value.name in self._tensors
        return isinstance(value, list | tuple) and any(map(self._concerns, value))

    def _replaced(self, value: Any) -> Any:
        """`value` with other tensors; those that stay are new objects too, as backends keep things with tensors."""
        if isinstance(value, QTensor):
            return value.substitute(self._tensors.get(value.name))
        if isinstance(value, list | tuple):
            return type(value)(map(self._replaced, value))
        return value
