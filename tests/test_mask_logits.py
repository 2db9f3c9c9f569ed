"""Logits under a bit mask, on every backend."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from backends import METAL, Backend
from engines import packed
from msl import metal_on_cpu

from mlx_ferrum import ops
from mlx_ferrum.kernels.mask_logits import mask_logits


def masked(backend: Backend, logits: np.ndarray, bits: np.ndarray) -> np.ndarray:
    found = ops.mask_logits(backend.array(logits), backend.array(bits))
    return np.array(ops.to_mlx(found))


@pytest.mark.parametrize("vocabulary", [1, 3, 31, 32, 33, 100, 300, 4097])
@pytest.mark.parametrize("n", [1, 3])
def test_the_other_logits_are_minus_infinity(backend: Backend, n: int, vocabulary: int) -> None:
    rng = np.random.default_rng(vocabulary)
    logits = rng.normal(size=(n, vocabulary)).astype(np.float32)
    allowed = rng.random((n, vocabulary)) < rng.random((n, 1))
    allowed[0, -1] = True
    bits = packed(allowed)
    bits[:, -1] |= np.int32(-1 << (vocabulary % 32)) if vocabulary % 32 else 0  # ignored
    found = masked(backend, logits, bits)
    assert np.array_equal(found, np.where(allowed, logits, -np.inf))


def test_all_none_and_what_is_no_number(backend: Backend) -> None:
    logits = np.array([[np.nan, np.inf, -np.inf, 5]] * 2, np.float32)
    found = masked(backend, logits, np.array([[-1], [0]], np.int32))
    assert np.array_equal(found[0], logits[0], equal_nan=True)
    assert np.array_equal(found[1], [-np.inf] * 4)


def test_logits_that_are_views(backend: Backend) -> None:
    logits = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)
    bits = np.random.default_rng(2).integers(0, 64, (20, 1)).astype(np.int32)
    found = ops.mask_logits(backend.array(logits)[::2], backend.array(bits))
    allowed = (bits >> np.arange(6)) & 1 == 1
    assert np.array_equal(np.array(found), np.where(allowed, logits[::2], -np.inf))


@pytest.mark.parametrize("shape", [(2, 1), (1, 3), (2, 3)])
def test_other_shapes_are_refused(backend: Backend, shape: tuple[int, int]) -> None:
    bits = backend.array(np.zeros(shape, np.int32))
    with pytest.raises(ValueError, match=r"logits of shape \(1, 40\) do not fit bits of"):
        ops.mask_logits(backend.array(np.zeros((1, 40), np.float32)), bits)


@pytest.mark.parametrize("vocabulary", [5, 64, 131])
def test_the_kernel_is_without_fault(vocabulary: int) -> None:
    rng = np.random.default_rng(vocabulary)
    logits = mx.array(rng.normal(size=(3, vocabulary)).astype(np.float32))
    bits = mx.array(packed(rng.random((3, vocabulary)) < 0.5))
    with METAL.in_use(), metal_on_cpu(checked=True) as host:
        mx.eval(mask_logits(logits, bits))
    assert [str(finding) for finding in host.findings] == []
