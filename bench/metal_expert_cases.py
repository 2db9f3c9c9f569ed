"""Launches of the kernels of mixtures of experts, at the shapes of Qwen3-30B-A3B."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import mlx.core as mx
from metal_cases import Case, counting
from metal_models import Launch, empty, random_ids

from mlx_ferrum.backends import metal
from mlx_ferrum.kernels.gather_matmul import gather_matmul
from mlx_ferrum.kernels.sort_pairs import Order, sort_pairs
from mlx_ferrum.kernels.weighted_sum import weighted_sum
from mlx_ferrum.ops import Routing

SORT = "sort_pairs"  # tiles are found by what it writes
EXPERTS, USED, WIDE, DIM = 128, 8, 768, 2048  # rows of gate and up: WIDE
FULL = 4  # experts of a grouped product whose tiles are all full


def mixtures() -> Iterator[Case]:
    """Of one token pair by pair, of many by tiles."""
    logits = mx.zeros((1, EXPERTS))
    yield Case(
        f"route {USED} of {EXPERTS}, 1",
        lambda: metal.route(logits, Routing(USED)),
        ("logits",),
        logits.nbytes,
        EXPERTS,
    )
    for block in ("Q4_K", "Q6_K"):
        yield _pairs(Launch("gather_gate_up", ((block, WIDE, DIM),) * 2, EXPERTS, USED))
        yield _pairs(Launch("gather_down", ((block, DIM, WIDE),), EXPERTS, USED))
    for block in ("Q4_K", "Q6_K"):
        for size in (16, 32, 64):
            yield _tiles(block, size)
    for tokens in (64, 512):
        ids = random_ids(tokens, USED, EXPERTS).reshape(-1)
        run = partial(sort_pairs, ids, EXPERTS, size=32)
        yield Case(f"{SORT} {EXPERTS} {tokens}x{USED}", run, ("ids",), ids.nbytes, ids.size)
    x, weights = mx.zeros((64 * USED, DIM)), mx.ones((64, USED))
    sum_up = partial(weighted_sum, x, weights)
    yield Case(f"weighted_sum {USED}x{DIM} 64", sum_up, ("x",), x.nbytes, x.size)


def _pairs(launch: Launch) -> Case:
    x = mx.zeros((1, launch.k))
    products = launch.used * sum(rows * k for _, rows, k in launch.weights)
    block, rows, k = launch.weights[0]
    name = f"{launch.name} {block} {launch.used}x{rows}x{k} 1"
    return Case(name, partial(launch.run, x), ("gate", "up", "w"), launch.nbytes, products)


def _tiles(block: str, size: int) -> Case:
    w, pairs = empty(block, FULL, WIDE, DIM), size * FULL
    x = mx.zeros((pairs, DIM))
    run = partial(gather_matmul, x, w, _full_tiles(size))
    return Case(
        f"gather_matmul {block} {WIDE}x{DIM} {size}", run, ("w",), w.nbytes, w.rows * DIM * size
    )


def _full_tiles(size: int) -> Order:
    with counting():
        found = sort_pairs(mx.arange(size * FULL) // size, FULL, size=size)
        mx.eval(found.pairs, found.tiles)
    return found
