"""Kernels run to be counted: instructions, accesses to memory by line, what a threadgroup asks for.

What is counted is LLVM's text of the kernel after its optimisations, which is then run as it was counted, with a
call in each basic block and before each access (llvm.py): so all counts are exact for that text. A simdgroup
issues a block as often as the lane that runs it most, whatever its other lanes do. It differs from what a GPU's
own compiler makes of the text as compilers do, and the same for every kernel.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mlx_ferrum import launch
from mlx_ferrum.launch import Launch

from . import compiler, native
from .findings import located
from .host import Host
from .llvm import Program, instrument
from .native import Memory
from .signature import Signature

LANES = 32
LINE = 128  # bytes, as in counting.cpp


class _Site(ctypes.Structure):
    _fields_ = [("block", ctypes.c_uint32), ("writes", ctypes.c_uint32)]


class _Range(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("bytes", ctypes.c_uint64)]


def _numbers(*names: str) -> list[tuple[str, type[ctypes.c_uint64]]]:
    return [(name, ctypes.c_uint64) for name in names]


class _BlockCount(ctypes.Structure):
    _fields_ = _numbers("issued", "run")


class _SiteCount(ctypes.Structure):
    _fields_ = _numbers("accesses", "lines", "least", "bytes", "buffer")


class _BufferCount(ctypes.Structure):
    _fields_ = _numbers("steps", "lines", "bytes", "group_bytes", "simdgroup_bytes")


class _Counting(ctypes.Structure):
    _fields_ = [
        ("wanted", ctypes.POINTER(ctypes.c_uint8)),
        ("sites", ctypes.POINTER(_Site)),
        ("ranges", ctypes.POINTER(_Range)),
        ("blocks", ctypes.POINTER(_BlockCount)),
        ("site_counts", ctypes.POINTER(_SiteCount)),
        ("buffers", ctypes.POINTER(_BufferCount)),
        ("block_count", ctypes.c_uint32),
        ("site_count", ctypes.c_uint32),
        ("range_count", ctypes.c_uint32),
    ]


@dataclass(frozen=True)
class Traffic:
    """Reads or writes of a buffer by a launch.

    size: bytes of the buffer
    asked: bytes that threads ask for, each for itself
    accesses: of simdgroups; lines: of 128 bytes that each touches; least: that its different bytes would fill
    steps: runs of a basic block by a simdgroup; step_lines, step_bytes: the different ones that each touches
    group_bytes: different ones of a threadgroup; simdgroup_bytes: of a simdgroup
    """

    size: int
    asked: float = 0
    accesses: float = 0
    lines: float = 0
    least: float = 0
    steps: float = 0
    step_lines: float = 0
    step_bytes: float = 0
    group_bytes: float = 0
    simdgroup_bytes: float = 0


@dataclass(frozen=True)
class Counts:
    """Of one launch: those of the threadgroups that ran, times groups / sampled.

    issued: instructions of all simdgroups, by the kinds of llvm.py
    reads, writes: by the parameter's name
    threads: of a threadgroup; threadgroup_bytes: of its memory
    body: instructions of the longest basic block that ran
    """

    kernel: str
    groups: int
    sampled: int
    threads: int
    threadgroup_bytes: int
    body: int
    issued: Counter[str]
    reads: dict[str, Traffic]
    writes: dict[str, Traffic]


@dataclass
class Counted(Host):
    """A host whose `counts` are those of the launches so far.

    sample: threadgroups that run, spread evenly over the launch; the outputs of the others stay unwritten
    whole: names of kernels that run whole, as others find their way by what they write
    """

    sample: int | None = None
    whole: Sequence[str] = ()
    counts: list[Counts] = field(default_factory=list)

    def _execute(self, made: Signature, call: Launch, memory: list[Memory]) -> None:
        program, library = _counting_library(made)
        groups = math.prod(
            -(-n // min(g, n)) for n, g in zip(call.grid, call.threadgroup, strict=True)
        )
        sample = None if made.kernel in self.whole else self.sample
        tally = _Tally(program, memory, _wanted(groups, sample))
        with tally.counting():
            raw = native.run(
                library,
                memory,
                grid=call.grid,
                group=call.threadgroup,
                seed=0,
                checked=False,
                threads=1,
            )
        self._note([located(made, library, r) for r in raw])
        self.counts.append(tally.counts(made, call))


@contextmanager
def counting(sample: int | None = None, whole: Sequence[str] = ()) -> Iterator[Counted]:
    """Within, launches run on this CPU and are counted, wherever there is Metal or not.

    sample, whole: see `Counted`
    """
    host = Counted(sample=sample, whole=whole)
    with launch.use_runner(host):
        yield host


@functools.cache
def _counting_library(made: Signature) -> tuple[Program, Path]:
    program = instrument(compiler.llvm_ir(made))
    return program, compiler.library_of(program.text)


def _wanted(groups: int, sample: int | None) -> np.ndarray:
    """Which threadgroups run, the middle ones of equal parts: (groups,) bytes."""
    count = min(sample or groups, groups)
    out = np.zeros(groups, np.uint8)
    out[((np.arange(count) + 0.5) * groups / count).astype(int)] = 1
    return out


class _Tally:
    """What the runtime counts into."""

    def __init__(self, program: Program, memory: Sequence[Memory], wanted: np.ndarray) -> None:
        self.program, self.wanted, n = program, wanted, len(memory)
        self.sites = (_Site * len(program.sites))(
            *(_Site(s.block, s.writes) for s in program.sites)
        )
        self.ranges = (_Range * n)(*(_Range(m.data.ctypes.data, m.data.nbytes) for m in memory))
        self.blocks = (_BlockCount * len(program.costs))()
        self.site_counts = (_SiteCount * len(program.sites))()
        self.buffers = (_BufferCount * (2 * n))()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what runs within."""
        runtime = ctypes.CDLL(str(compiler.runtime()))
        wanted = self.wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        parts = (self.sites, self.ranges, self.blocks, self.site_counts, self.buffers)
        lengths = (len(self.blocks), len(self.sites), len(self.ranges))
        counting = _Counting(wanted, *parts, *lengths)  # which the runtime keeps a pointer to
        runtime.msl_count_start(ctypes.byref(counting))
        yield
        runtime.msl_count_finish()

    def counts(self, made: Signature, call: Launch) -> Counts:
        """The launch's counts."""
        sampled = int(self.wanted.sum())
        scale = self.wanted.size / sampled
        issued: Counter[str] = Counter()
        body = 0
        for costs, count in zip(self.program.costs, self.blocks, strict=True):
            body = max(body, costs.total() if count.issued else 0)
            for kind, n in costs.items():
                issued[kind] += n * count.issued * scale
        names = [b.name for b in made.buffers]
        return Counts(
            made.kernel,
            self.wanted.size,
            sampled,
            math.prod(call.threadgroup),
            self.program.threadgroup_bytes,
            body,
            issued,
            {name: self._traffic(i, False, scale) for i, name in enumerate(names)},
            {name: self._traffic(i, True, scale) for i, name in enumerate(names)},
        )

    def _traffic(self, buffer: int, writes: bool, scale: float) -> Traffic:
        sites = [
            count
            for site, count in zip(self.program.sites, self.site_counts, strict=True)
            if site.writes == writes and count.buffer == buffer + 1
        ]
        own = self.buffers[buffer + len(self.ranges) * writes]
        total = {
            name: sum(getattr(s, name) for s in sites) for name in ("accesses", "lines", "least")
        }
        return Traffic(
            self.ranges[buffer].bytes,
            asked=scale * sum(s.bytes for s in sites),
            **{name: scale * n for name, n in total.items()},
            steps=scale * own.steps,
            step_lines=scale * own.lines,
            step_bytes=scale * own.bytes,
            group_bytes=scale * own.group_bytes,
            simdgroup_bytes=scale * own.simdgroup_bytes,
        )
