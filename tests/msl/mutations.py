"""Kernels with one barrier less: checked mode must find fault with each, or the barrier is not needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from mlx_ferrum import launch
from mlx_ferrum.launch import Kernel

from .host import Host
from .limits import place

# A barrier of a simdgroup for no memory only tells the compiler what to keep together.
_BARRIER = re.compile(
    r"\b(?:threadgroup_barrier\s*\(|simdgroup_barrier\s*\((?!\s*mem_flags::mem_none\s*\)))[^()]*\)\s*;"
)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


def mutations(kernel: Kernel) -> Iterator[tuple[str, Kernel]]:
    """(file:line, the kernel without the barrier there) for each barrier in header and body."""
    header, source = (_COMMENT.sub(_blank, t) for t in (kernel.text(), kernel.source))
    for found in _BARRIER.finditer(header):
        changed = replace(kernel, header=_without(header, found))
        yield place(header, found.start(), f"{kernel.name} header"), changed
    for found in _BARRIER.finditer(source):
        changed = replace(kernel, source=_without(source, found))
        yield place(source, found.start(), f"{kernel.name} body"), changed


def survivors(run: Callable[[], object], seeds: Sequence[int] = (0,)) -> list[str]:
    """The barriers of the kernels that `run` launches, without which checked mode finds nothing.

    run: evaluates what it launches
    """
    host = Host()
    with launch.use_runner(host):
        run()
    changed = {place: (k, m) for k in host.kernels for place, m in mutations(k)}
    return [
        place
        for place, (kernel, mutant) in changed.items()
        if not any(_is_found(run, kernel, mutant, seed) for seed in seeds)
    ]


def _is_found(run: Callable[[], object], kernel: Kernel, mutant: Kernel, seed: int) -> bool:
    host = Host(checked=True, seed=seed, edit=lambda k: mutant if k == kernel else k)
    with launch.use_runner(host):
        run()
    return bool(host.findings)


def _without(text: str, found: re.Match[str]) -> str:
    return text[: found.start()] + _blank(found) + ";" + text[found.end() :]


def _blank(found: re.Match[str]) -> str:
    """Nothing, of as many lines."""
    return "\n" * found[0].count("\n")
