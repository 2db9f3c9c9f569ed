"""Launches of the Metal kernels at the shapes of real models, and the figures of what was counted of one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from metal_machines import CACHE_BYTES, COMPLEX, SCHEDULERS, TOGETHER, cycles
from metal_models import Launch, empty

from mlx_ferrum.backends import metal
from mlx_ferrum.backends.metal.thresholds import METAL
from mlx_ferrum.kernels.append import Pool, append

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from msl.counting import LANES, LINE, Counts, Traffic, counting

ARITHMETIC = {"float", "integer", "select", *COMPLEX}


@dataclass(frozen=True)
class Cost:
    """The figures of one launch; metal_cost.py says what each is."""

    name: str
    groups: int
    sampled: int
    read: float
    step: float
    access: float
    x_lines: float
    x_bytes: float
    flight: float
    threadgroup_bytes: int
    body: int
    barriers: float
    simd: float
    arithmetic: float
    instructions: float
    cycles: float
    cache: float

    def line(self) -> str:
        """Of the table."""
        digits = [self.read, self.step, self.access, self.x_lines, self.x_bytes, self.flight]
        cells = [f"{n:6.2f}" for n in digits]
        cells += [
            f"{self.threadgroup_bytes / 1024:5.1f}",
            f"{self.body:5}",
            f"{self.barriers:8.0f}",
            f"{self.simd:6.0f}",
        ]
        cells += [f"{n:6.3f}" for n in (self.arithmetic, self.instructions)]
        cells += [f"{n:6.2f}" for n in (self.cycles, self.cache)]
        return f"| {self.name:36} | {self.groups:6} | " + " | ".join(cells) + " |"


HEADER = (
    """| kernel, type, shape, rows of x       | groups |   read |   step | access | x lines | x bytes | flight |\
 tg KiB |  body | barriers | simd | arith | all | cycles (estimate) | cache (estimate) |
| --- |"""
    + " ---: |" * 15
)


@dataclass(frozen=True)
class Case:
    """A launch to count.

    weights: the parameters that hold them, or what else is read once; least: their bytes that must be read
    products: weights times rows of x
    """

    name: str
    run: Callable[[], object]
    weights: tuple[str, ...]
    least: int
    products: int

    def cost(self, sample: int | None) -> Cost:
        """Run it and count. Raises ValueError if it is more than one launch."""
        with counting(sample) as host:
            self.run()
        if len(host.counts) != 1:
            raise ValueError(f"{self.name}: {len(host.counts)} launches, expected one")
        return self.of(host.counts[0])

    def of(self, counts: Counts) -> Cost:
        """The figures of its counts."""
        reads = {name: t for name, t in counts.reads.items() if t.asked}
        w = summed([t for name, t in reads.items() if name in self.weights])
        x = summed([t for name, t in reads.items() if name not in self.weights and t.size >= LINE])
        simdgroups = counts.groups * counts.threads / LANES
        each = {kind: n * LANES / self.products for kind, n in counts.issued.items()}
        simd = [
            n for kind, n in counts.issued.items() if kind in TOGETHER and "barrier" not in kind
        ]
        return Cost(
            self.name,
            counts.groups,
            counts.sampled,
            read=w.group_bytes / self.least,
            step=w.step_lines * LINE / w.step_bytes,
            access=w.lines / w.least,
            x_lines=x.lines / max(x.least, 1),
            x_bytes=x.simdgroup_bytes / self.products,
            flight=w.step_bytes / w.steps / 1024,
            threadgroup_bytes=counts.threadgroup_bytes,
            body=counts.body,
            barriers=counts.issued["barrier"] / simdgroups,
            simd=sum(simd) / simdgroups,
            arithmetic=sum(n for kind, n in each.items() if kind in ARITHMETIC),
            instructions=sum(each.values()),
            cycles=cycles(each),
            cache=cache_bytes(counts) / self.products * LANES * SCHEDULERS / CACHE_BYTES,
        )


def cache_bytes(counts: Counts) -> float:
    """What simdgroups read, each byte once a simdgroup."""
    return sum(t.simdgroup_bytes for t in counts.reads.values())


def summed(parts: list[Traffic]) -> Traffic:
    """Of several buffers."""
    zero = Traffic(0)
    return Traffic(
        *(sum(numbers) for numbers in zip(*(astuple(t) for t in (zero, *parts)), strict=True))
    )


def product(block: str, shape: tuple[int, int], batch: int) -> Case:
    """matvec or matmul, as the backend has it."""
    rows, k = shape
    w, x = empty(block, rows, k), mx.zeros((batch, k))
    kernel = "matvec" if batch <= METAL.matvec_rows else "matmul"
    name = f"{kernel} {block} {rows}x{k} {batch}"
    return Case(name, lambda: metal.matmul(x, w), ("w",), w.nbytes, rows * k * batch)


def others(batch: int) -> Iterator[Case]:
    """The other kernels, at the shapes of Qwen3-8B."""
    dim, ffn, heads, groups, d = 4096, 12288, 32, 8, 128
    for launch in (
        Launch("gate_up", (("Q4_K", ffn, dim),) * 2),
        Launch("matmuls", (("Q4_K", dim, dim), ("Q4_K", 1024, dim), ("Q6_K", 1024, dim))),
        Launch("norm_matmul", (("F32", 128, 2048),)),  # the router of Qwen3-30B-A3B
    ):
        x = mx.zeros((batch, launch.k))
        types = "+".join(block for block, _, _ in launch.weights)
        products = batch * sum(rows * k for _, rows, k in launch.weights)
        name, weights = f"{launch.name} {types} {batch}", ("gate", "up", "w", "w0", "w1", "w2")
        yield Case(name, partial(launch.run, x), weights, launch.nbytes, products)
    w, ids = empty("Q4_K", 8192, dim), mx.arange(0, 8192, 8192 // batch)
    yield Case(
        f"rows Q4_K {batch}",
        lambda: metal.rows(w, ids),
        ("w",),
        batch * w.block.row_bytes(dim),
        batch * dim,
    )
    q, k, v = (mx.zeros((batch, n, d)) for n in (heads, groups, groups))
    turns: dict[str, Any] = {
        "positions": mx.full((batch,), 7, mx.int32),
        "slots": 32 * mx.arange(batch).astype(mx.int64),
        "interleaved": False,
        "magnitude": 1.0,
        "norms": (mx.ones(d),) * 2 + (1e-6,),
    }
    keys, values = (mx.zeros((batch, groups, 32, d), mx.float16) for _ in range(2))
    yield Case(
        f"append {batch}",
        lambda: append(q, k, v, Pool(keys, values, (), None), mx.ones(d // 2), **turns)[0],
        ("q", "k", "v"),
        sum(x.nbytes for x in (q, k, v)),
        sum(x.size for x in (q, k, v)),
    )
    y = mx.zeros((batch, dim))
    yield Case(
        f"rms_norm + residual {batch}",
        lambda: metal.rms_norm(y, mx.ones(dim), 1e-6, add=y),
        ("x",),
        y.nbytes,
        y.size,
    )
