"""Every backend has every operation, with the arguments that ops.py documents."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_ferrum import ops
from mlx_ferrum.backends import cpu, cuda, metal, reference
from mlx_ferrum.backends.observed import Observed
from mlx_ferrum.backends.protocol import Backend

# mypy checks the types of arguments and results here
OF_MLX: tuple[Backend[mx.array], ...] = (reference, metal, cuda)
OF_NUMPY: Backend[np.ndarray] = cpu
BACKENDS: dict[str, Backend[Any]] = {b.__name__: b for b in (reference, metal, cuda, cpu)}
METHODS = {name: f for name, f in vars(Backend).items() if inspect.isfunction(f) and name[0] != "_"}
OPERATIONS = sorted(METHODS.keys() - {"prepare"})


def arguments(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Name, kind and default of each argument but `self`."""
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters if p.name != "self"]


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_documented_with_these_arguments(name: str) -> None:
    assert getattr(ops, name).__doc__
    assert arguments(getattr(ops, name)) == arguments(METHODS[name])
    for argument, kind in METHODS[name].__annotations__.items():
        if argument != "return":  # a function cannot return A when it takes none
            assert getattr(ops, name).__annotations__[argument] == kind


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_backend_takes_the_same_arguments(name: str, backend: str) -> None:
    assert arguments(getattr(BACKENDS[backend], name)) == arguments(METHODS[name])


@pytest.mark.parametrize("name", sorted(vars(Observed).keys() & METHODS.keys()))
def test_an_observed_backend_takes_the_same_arguments(name: str) -> None:
    assert arguments(vars(Observed)[name]) == arguments(METHODS[name])


def test_the_backends_are_those_that_can_be_chosen() -> None:
    assert sorted(name.rpartition(".")[2] for name in BACKENDS) == sorted(ops.BACKENDS)
    assert len(OPERATIONS) == 28
