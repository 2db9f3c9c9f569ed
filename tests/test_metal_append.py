"""append on the metal backend in checked mode, and what a launch may write in place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal_call import kernel, launch, needs_host
from msl import metal_on_cpu
from test_metal_kernels import activations

from mlx_ferrum.kernels.append import Pool, append
from mlx_ferrum.launch import Kernel

SEEDS = (1, 2, 3)
EPS = 1e-5


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("interleaved", [True, False])
def test_no_finding(interleaved: bool, normed: bool, bits: int) -> None:
    """Of odd heads; the pool keeps what it held beside the new rows."""
    (n, heads, groups), (d, dv) = (5, 5, 3), (11, 7)
    q, k, v = (
        activations(n * h, size).reshape(n, h, size)
        for h, size in ((heads, d), (groups, d), (groups, dv))
    )
    norms = (activations(1, d)[0], activations(1, d)[0], EPS) if normed else None
    options: dict[str, Any] = {"interleaved": interleaved, "magnitude": 1.1, "norms": norms}
    slots = np.array([13, 2, 7, 0, 14])
    others = np.setdiff1d(np.arange(15), slots)
    for seed in SEEDS:
        dtype = mx.int8 if bits == 8 else mx.float16
        pool = Pool(
            *(mx.full((5, groups, 3, size), 9, dtype) for size in (d, dv)),
            (mx.full((5, groups, 3), 9.0), mx.full((5, groups, 3), 9.0)) if bits == 8 else None,
            None,
        )
        with metal_on_cpu(checked=True, seed=seed) as host:
            made = append(
                q,
                k,
                v,
                pool,
                activations(1, 4)[0],
                positions=mx.arange(n, dtype=mx.int32),
                slots=mx.array(slots),
                **options,
            )
            mx.eval(made)
        assert not host.findings, "\n".join(map(str, host.findings))
        for x in (pool.keys, pool.values, *(pool.scales or ())):
            rows = np.array(x).swapaxes(1, 2).reshape(15, groups, -1)
            assert (rows[others] == 9).all()
            assert (rows[slots] != 9).any(axis=-1).all()


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("bits", [16, 8])
def test_queries_beside_gates(bits: int, normed: bool) -> None:
    """The second half of a head is not read, and nothing else changes."""
    (n, heads, groups), (d, dv) = (3, 5, 2), (11, 7)
    pairs = activations(n * heads, 2 * d).reshape(n, heads, 2 * d)
    k, v = (activations(n * groups, x).reshape(n, groups, x) for x in (d, dv))
    norms = (activations(1, d)[0], activations(1, d)[0], EPS) if normed else None
    found = []
    for q in (pairs, pairs[..., :d]):
        dtype = mx.int8 if bits == 8 else mx.float16
        scales = (mx.zeros((2, groups, 4)), mx.zeros((2, groups, 4))) if bits == 8 else None
        pool = Pool(*(mx.zeros((2, groups, 4, x), dtype) for x in (d, dv)), scales, None)
        with metal_on_cpu(checked=True) as host:
            rows: dict[str, Any] = {"positions": mx.array([3, 9, 0]), "slots": mx.array([1, 7, 4])}
            options: dict[str, Any] = {"interleaved": False, "magnitude": 1.0, "norms": norms}
            turned, _ = append(q, k, v, pool, activations(1, 4)[0], **rows, **options)
            mx.eval(turned)
        assert not host.findings
        found.append([turned, pool.keys, pool.values, *(pool.scales or ())])
    assert found[0][0].shape == (n, heads, d)
    for x, y in zip(*found, strict=True):
        assert np.array_equal(np.array(x), np.array(y))


SHAPES = [
    ((4, 3, 8), (4, 2, 8), (4, 2, 6), r"blocks of .* for k \(4, 2, 8\)"),
    ((4, 3, 8), (4, 1, 6), (4, 1, 6), r"q \(4, 3, 8\), k \(4, 1, 6\)"),
    ((4, 3, 8), (3, 1, 8), (3, 1, 6), "do not fit together"),
    ((4, 3, 12), (4, 1, 8), (4, 1, 6), "do not fit together"),
]


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_what_does_not_fit_is_refused(case: Any) -> None:
    *shapes, said = case
    pool = Pool(mx.zeros((2, 1, 4, 8), mx.float16), mx.zeros((2, 1, 4, 6), mx.float16), None, None)
    rows: dict[str, Any] = {"positions": mx.arange(4), "slots": mx.arange(4)}
    with pytest.raises(ValueError, match=said):
        append(
            *map(mx.zeros, shapes),
            pool,
            mx.ones(2),
            **rows,
            interleaved=False,
            magnitude=1.0,
            norms=None,
        )


COUNTED = "uint i = thread_position_in_grid.x; ((device float*)a)[i] = i + 1; y[i] = a[i];"


def writing(*writes: str, source: str = COUNTED) -> Kernel:
    """A kernel that writes its input a and declares that it writes `writes`."""
    return replace(kernel(source, 1, 1), writes=writes)


@pytest.mark.parametrize("checked", [False, True])
def test_a_declared_write_is_kept(checked: bool) -> None:
    with metal_on_cpu(checked=checked) as host:
        x = mx.zeros((4, 4))
        mx.eval(x)
        view = x[1:3]  # of the same memory
        mx.eval(view)
        (y,) = launch(writing("a"), [view], [((8,), mx.float32)], grid=8)
        mx.eval(y)
    wanted = np.zeros(16)
    wanted[4:12] = np.arange(1, 9)
    assert np.array_equal(np.array(x).reshape(-1), wanted)
    assert np.array_equal(np.array(y), wanted[4:12])
    assert not host.findings


@needs_host
def test_an_undeclared_write_is_found() -> None:
    with metal_on_cpu(checked=True) as host:
        x = mx.zeros(8)
        launch(writing(), [x], [((8,), mx.float32)], grid=8)
    assert [f.kind for f in host.findings] == ["write to an input"]
    assert not np.array(x).any()


@needs_host
def test_races_and_bounds_of_a_declared_write_are_found() -> None:
    for write, kind in (
        ("((device float*)a)[0] = thread_position_in_grid.x;", "race"),
        ("((device float*)a)[8] = 0;", "out of bounds"),
    ):
        text = writing("a", source=f"{write} y[thread_position_in_grid.x] = 0;")
        with metal_on_cpu(checked=True) as host:
            launch(text, [mx.zeros(8)], [((8,), mx.float32)], grid=8)
        assert kind in {f.kind for f in host.findings}


@pytest.mark.parametrize("x", [mx.zeros((3, 4)).T, mx.zeros(7), mx.zeros((4, 8))[:, 1:]], ids=str)
def test_what_mlx_would_copy_is_refused(x: mx.array) -> None:
    with metal_on_cpu(), pytest.raises(ValueError, match="is written in place, expected a contig"):
        launch(writing("a"), [x], [((8,), mx.float32)], grid=8)
