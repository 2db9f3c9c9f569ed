"""Apple's GPUs in figures that others published, and what counts of a kernel would take on them: an estimate.

Arithmetic: a core has four schedulers, each of which issues an instruction of a simdgroup a cycle. Additions,
products, bitwise operations and selections take one cycle. Shifts, extractions of bits, conversions and integer
products take four of a second pipeline, beside which the first goes on: the mixtures that were measured take
max(simple + 2 complex, 4 complex). A shift to the right by an amount not known to the compiler is a sequence of two.
All figures are those of an M1 (github.com/philipturner/metal-benchmarks), and are used for later chips as they are,
at their clocks.

Look-ups: a core is taken to serve one line of 128 bytes a cycle from its first-level cache, and one word of each of 32
banks from threadgroup memory, as GPUs of others do; the same source has no figures of Apple's, and says that its
threadgroup memory has less bandwidth than theirs. So lanes that look up numbers of one line take a cycle of the core;
lanes that look up words of a larger table in threadgroup memory meet in banks (`conflicts`).

Cache: a core reads 32 bytes a cycle from the second-level cache (the same source). What a simdgroup reads is taken to
come from there each time, as the first level has 8 KB, less than a row of x; simdgroups that happen to be at the same
place of x find it in the first level, so this is the most that it can take.

Memory: the share of the bandwidth that whole models get from other systems, launches and waiting included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SCHEDULERS = 4  # of a core
CACHE_BYTES = 32  # a core's from the second-level cache, in a cycle

LOOK_UPS = ("constant load", "threadgroup load")  # a cycle of the core each, at least
LANES, BANKS = 32, 32

# Cycles of the second pipeline.
COMPLEX = {
    **dict.fromkeys(("shift", "convert", "multiply", "exponential"), 4.0),
    "runtime shift": 7.89,  # to the right, by an amount that the compiler does not know
    "reciprocal": 6.0,
    "root": 8.0,
    "sine": 24.4,  # the precise one
    "division": 32.0,  # of integers; not in the source: a sequence of the others
}
# Cycles of a scheduler for what a simdgroup does together.
TOGETHER = {
    "reduction": 14.5,
    "shuffle": 2.0,
    "matrix": 20.1,  # 8 x 8 x 8
    "barrier": 0.0,  # waiting, which depends on the others
    "simdgroup barrier": 0.0,
}

# Of the bandwidth: llama.cpp with Llama-3.1-8B Q4_K_M on an M1 Max, 46.2 tokens a second
# (github.com/brand-o/normiebench, issue 40); the most that is known of any system with a dense model.
SHARES = (0.57, 0.78)


@dataclass(frozen=True)
class Chip:
    """bandwidth: bytes a second; clock: of the GPU, cycles a second"""

    name: str
    cores: int
    clock: float
    bandwidth: float

    def arithmetic_seconds(self, cycles: float) -> float:
        """Of `cycles` of schedulers, shared evenly among all."""
        return cycles / (self.cores * SCHEDULERS * self.clock)

    def cache_seconds(self, nbytes: float) -> float:
        """Of `nbytes` from the second-level cache, shared evenly among all cores."""
        return nbytes / (self.cores * CACHE_BYTES * self.clock)

    def memory_seconds(self, nbytes: float, share: float) -> float:
        """Of `nbytes` at a share of the bandwidth."""
        return nbytes / (self.bandwidth * share)


# The same of mixtures of experts: llama.cpp with Qwen3-30B-A3B Q8_0 on an M2 Ultra, 76.3 tokens a second of 3.27 GB
# (github.com/ggml-org/llama.cpp, pull request 15616); the most that is known of any system.
MIXTURE_SHARES = (0.31, 0.55)

# Cores and bandwidth: Apple's announcements (68.25 GB/s: the M1's memory, LPDDR4X-4266 on 128 bits).
# Clocks: M1 and M1 Max as above; M3 Max and M4 Max from hmc-tech.com, which has 1578 and 1678 MHz for M4. That of the
# M5 Max is not published: it is taken for the M4 Max's, and its tensor hardware is left out.
CHIPS = (
    Chip("M1", 8, 1.278e9, 68.25e9),
    Chip("M1 Max", 32, 1.296e9, 400e9),
    Chip("M3 Max", 40, 1.398e9, 400e9),
    Chip("M4 Max", 40, 1.578e9, 546e9),
    Chip("M5 Max", 40, 1.578e9, 614e9),
)


def cycles(issued: Mapping[str, float]) -> float:
    """Of schedulers, for instructions by the kinds of tests/msl/instructions.py: an estimate."""
    second = {kind: n for kind, n in issued.items() if kind in COMPLEX}
    complex_ = sum(second.values()) + second.get("runtime shift", 0)
    long = sum(COMPLEX[kind] * n for kind, n in second.items())
    together = sum(TOGETHER[kind] * n for kind, n in issued.items() if kind in TOGETHER)
    simple = sum(n for kind, n in issued.items() if kind not in COMPLEX and kind not in TOGETHER)
    served = SCHEDULERS * sum(issued.get(kind, 0) for kind in LOOK_UPS)
    return max(simple + 2 * complex_ + together, long + together, served)


def conflicts(words: int) -> float:
    """Cycles of a core in which threadgroup memory serves a simdgroup that looks up random words of a table.

    That is how many different words one bank is asked for, at most, on average. words: of the table
    """
    asked = np.random.default_rng(0).integers(0, words, (2048, LANES))
    banks = (np.bincount(np.unique(lanes) % BANKS) for lanes in asked)
    return float(np.mean([n.max() for n in banks]))
