"""Whether a model fits in memory, what its experts get, and how fast it can be: before it is loaded.

The speed is an estimate: the time for the weights of a token at the rate at which products read them here, and the time
for the experts that are not in memory at the rate of the disk, one after the other. Attention is left out, and in
truth reads and products overlap.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from .. import amounts, blocks, budget, catalog, gguf, locked, memory, ops, sizes, streamed
from ..sizes import Sizes
from ..tensor import QTensor
from . import disk
from .disk import Disk

MEASURED = 64 << 20  # bytes of weights that products are timed with
LARGEST = 128 << 20  # bytes of a tensor that is used for it
TIMES = 3


@dataclass(frozen=True)
class ModelReport:
    """What is said of a model. Sizes are in bytes, rates in bytes a second, speeds in tokens a second.

    name: of its file
    positions, pool: tokens of the context that is asked for, and their keys and values
    longest: the context that fits beside the weights; 0 where the weights alone do not fit
    available: free memory, None if unknown
    plan: for the experts
    locks, lock_limit: bytes that --mlock locks, and how many may be locked; None: any number
    rate: at which products read weights in memory; None where it was not measured
    hits: shares of uses that find their expert in memory, as the two models of `hit_rates` have it
    speeds: from and to, that can be expected, by what is in memory: all ("memory"), nothing yet ("cold"), or the
        experts that the plan has room for ("warm")
    """

    name: str
    sizes: Sizes
    positions: int
    pool: int
    longest: int
    available: int | None
    plan: budget.Plan
    locks: int
    lock_limit: int | None
    disk: Disk
    rate: float | None
    hits: tuple[float, float] | None
    speeds: Mapping[str, tuple[float, float]]


def examine(name: str, positions: int | None = None) -> ModelReport:
    """Look at a model's header, the free memory and the disk. positions: of the context; None: as `load` takes them.

    Raises as loading does for a file that cannot be loaded, and NotImplementedError for an encoder.
    """
    file = gguf.read(catalog.resolve(name))
    found = sizes.of_file(file)
    if found is None:
        raise NotImplementedError(f"{file.path}: is an encoder, expected a language model")
    positions = min(positions or budget.POSITIONS, found.context)
    pool, free = found.pool(positions), memory.available()
    plan = streamed.planned(file, pool)
    speed = disk.measure(file, disk.stretches(file, sizes.stacks(file, found)))
    rate = weight_rate(file) if free is None or free > 2 * LARGEST else None
    hits = hit_rates(plan.nbytes / found.experts) if plan.nbytes else None
    return ModelReport(
        name=file.path.name,
        sizes=found,
        positions=positions,
        pool=pool,
        longest=0 if free is None else longest(found, free),
        available=free,
        plan=plan,
        locks=found.nbytes - (found.experts if plan.nbytes else 0),
        lock_limit=locked.limit(),
        disk=speed,
        rate=rate,
        hits=hits,
        speeds=expected(found, speed.best, rate, hits) if rate else {},
    )


def longest(found: Sizes, free: int) -> int:
    """Tokens of the longest context that fits beside all weights, 0 if none does."""
    room = free - found.nbytes - budget.BESIDE
    return bisect_right(range(1, found.context + 1), room, key=found.pool) if room > 0 else 0


def hit_rates(share: float) -> tuple[float, float]:
    """Of experts of which such a share is in memory: if all are used as often, and as tiny-moe's routers use theirs.

    The latter is the root of the share, within 3 points of what `bench/expert_cache.py` finds for 3 to 7 of 8 experts.
    """
    return share, math.sqrt(share)


def expected(
    found: Sizes, disk_rate: float, rate: float, hits: tuple[float, float] | None
) -> dict[str, tuple[float, float]]:
    """Tokens a second, from and to: all in memory; nothing, where experts are streamed none of them; some of them."""
    weights, experts = (found.dense + found.a_token) / rate, found.a_token / disk_rate
    dense = found.dense / disk_rate if hits is None else 0.0
    cold = 1 / (weights + dense + experts)
    speeds = {"memory": (1 / weights, 1 / weights), "cold": (cold, cold)}
    if hits is not None:
        few, many = (1 / (weights + (1 - share) * experts) for share in hits)
        speeds["warm"] = few, many
    return speeds


def weight_rate(file: gguf.GGUF) -> float | None:
    """Bytes a second at which products of the backend in use read dense weights of the file; None without any."""
    infos = [
        info for info in file.tensors.values() if len(info.shape) == 2 and info.nbytes <= LARGEST
    ]
    infos.sort(key=lambda info: -info.nbytes)
    chosen, nbytes = [], 0
    for info in infos:
        if nbytes >= MEASURED:
            break
        chosen.append(
            QTensor(blocks.by_name(info.type), info.shape, file.parts[info.part], info.offset)
        )
        nbytes += info.nbytes
    rows = [mx.array(np.ones((1, w.shape[1]), np.float32)) for w in chosen]
    times = []
    for _ in range(TIMES):
        start = time.perf_counter()
        mx.eval([ops.to_mlx(ops.matmul(x, w)) for x, w in zip(rows, chosen, strict=True)])
        times.append(time.perf_counter() - start)
    return nbytes / min(times) if chosen else None


def as_json(report: ModelReport) -> dict[str, Any]:
    """The report for programs."""
    found = asdict(report)
    weights = found.pop("sizes")
    for name in ("keeps", "layers"):
        del weights[name]
    kinds = {name: getattr(report.sizes, name) for name in ("dense", "experts", "a_token")}
    return {**found, "weights": weights | kinds}


def as_rows(report: ModelReport) -> Iterator[tuple[str, str]]:
    """The report for people: names and values."""
    found, size = report.sizes, amounts.size
    what = "no experts"
    if found.experts:
        chosen = f"{found.used} of {found.count} a token in {len(found.layers)} layers"
        what = f"{size(found.experts)} of them experts: {chosen}"
    yield "model", f"{report.name}, {size(found.nbytes)} of weights, {what}"
    yield "needs", _needs(report)
    each = f" and {size(found.a_token)} of experts" if found.experts else ""
    yield "a token", f"reads {size(found.dense)} of weights{each}"
    kept = report.plan.nbytes
    share = f"{size(kept)} of experts ({kept / max(found.experts, 1):.0%}) in memory"
    best = f"--expert-memory auto keeps {share} and reads the others from disk"
    yield "best", best if kept else report.plan.reason
    yield "mlock", _locks(report)
    if report.longest:
        yield (
            "context",
            f"up to {report.longest:,} of {found.context:,} tokens fit beside all weights",
        )
    speeds = ", ".join(f"{depth}: {size(each)}/s" for depth, each in report.disk.speeds.items())
    how = "" if report.disk.bypasses_cache else "; through the page cache, so perhaps not from disk"
    yield "disk", f"reads of {size(report.disk.nbytes)}, by reads at a time: {speeds}{how}"
    if report.rate is not None:
        yield "products", f"read weights in memory at {size(report.rate)}/s"
    yield from _speeds(report)


def _needs(report: ModelReport) -> str:
    """Memory, and whether there is as much."""
    size, whole = amounts.size, report.sizes.nbytes + report.pool + budget.BESIDE
    pool = f"{size(report.pool)} for keys and values of {report.positions:,} tokens"
    parts = f"weights, {pool}, {size(budget.BESIDE)} beside them"
    if report.available is None:
        return f"{size(whole)}: {parts}"
    verdict = "it fits" if whole <= budget.MAPPED * report.available else "it does not fit"
    return f"{size(whole)}: {parts}; {size(report.available)} are free: {verdict}"


def _locks(report: ModelReport) -> str:
    """What --mlock does, and whether it may."""
    most, needed = report.lock_limit, report.locks
    is_allowed = most is None or needed <= most
    verdict = "the system allows it" if is_allowed else locked.described(most or 0, needed)
    return f"--mlock keeps {amounts.size(needed)} of weights in memory: {verdict}"


def _speeds(report: ModelReport) -> Iterator[tuple[str, str]]:
    if not report.speeds:
        return
    shown = {name: _speed(range_) for name, range_ in report.speeds.items()}
    parts = [f"{shown['memory']} with all weights in memory"]
    if report.hits is None:
        parts.append(f"{shown['cold']} while none are")
    else:
        few, many = report.hits
        parts.append(f"{shown['cold']} while no expert is")
        how = "as many as with even use, and as in tiny-moe"
        parts.append(
            f"{shown['warm']} once {few:.0%} to {many:.0%} of uses find theirs there ({how})"
        )
    yield "decode", f"estimated tok/s: {'; '.join(parts)}"


def _speed(range_: tuple[float, float]) -> str:
    low, high = (f"{each:.0f}" if each >= 9.95 else f"{each:.1f}" for each in range_)
    return low if low == high else f"{low} to {high}"
