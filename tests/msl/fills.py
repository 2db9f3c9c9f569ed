"""What depends on memory that nothing wrote: a run with each of two fills must give the same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from mlx_ferrum import launch
from mlx_ferrum.launch import Kernel, Launch

from .host import Host, bits


@dataclass
class Noting(Host):
    """Keeps the bytes of what each launch writes."""

    written: list[tuple[str, bytes]] = field(default_factory=list)

    def __call__(self, kernel: Kernel, call: Launch) -> list[mx.array]:
        out = super().__call__(kernel, call)
        given = zip(kernel.inputs, call.arrays, strict=True)
        kept = [(name, x) for name, x in given if name in kernel.writes]
        for name, x in [*zip(kernel.outputs, out, strict=True), *kept]:
            self.written.append((f"{kernel.name}: {name}", bits(x).tobytes()))
        return out


def differences(run: Callable[[], object]) -> list[str]:
    """Where two runs of `run` leave other bits: "kernel: output, first at byte n", in the order of the launches.

    Plain mode's variables start as clang's pattern and its memory as 0xFF, checked mode's as zeros.
    run: evaluates what it launches; the same launches each time
    """
    hosts = Noting(fill=0xFF), Noting(checked=True, fill=0)
    for host in hosts:
        with launch.use_runner(host):
            run()
    pairs = zip(hosts[0].written, hosts[1].written, strict=True)
    return [
        f"{name}, first at byte {_first(one, two)}" for (name, one), (_, two) in pairs if one != two
    ]


def _first(one: bytes, two: bytes) -> int:
    return int(np.flatnonzero(np.frombuffer(one, np.uint8) != np.frombuffer(two, np.uint8))[0])
