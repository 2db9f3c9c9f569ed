"""The report as text, a screen of it, and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .advice import GIB
from .choice import Choice
from .machine import Gpu, Machine

if TYPE_CHECKING:
    from .metal import Check
    from .model import ModelReport
    from .selftest import Result

_SHOWN_FAILURES = 5
_WIDTH = 100
_WHOLE: Any = {"break_long_words": False, "break_on_hyphens": False}  # commands stay whole


@dataclass(frozen=True)
class Report:
    """All that was found.

    results: of the self-test, None where it did not run; seconds: that it took
    metal: what was tried of Metal, None where it was not
    model: what was found of a model, None where none was named
    """

    machine: Machine
    choice: Choice
    results: Sequence[Result] | None
    seconds: float
    advice: Sequence[str]
    metal: Sequence[Check] | None = None
    model: ModelReport | None = None


def as_json(report: Report) -> dict[str, Any]:
    """The report for programs; sizes are in bytes."""
    about = None
    if report.model is not None:
        from . import model

        about = model.as_json(report.model)
    return {
        "machine": asdict(report.machine),
        "backend": asdict(report.choice),
        "model": about,
        "selftest": None if report.results is None else [asdict(r) for r in report.results],
        "seconds": round(report.seconds, 3),
        "metal": None if report.metal is None else [asdict(c) for c in report.metal],
        "advice": list(report.advice),
    }


def as_text(report: Report) -> Iterator[str]:
    """The report for people, line by line."""
    rows = [*_machine(report.machine), *_choice(report.choice)]
    yield from (f"{name:<11} {value}" for name, value in rows)
    if report.model is not None:
        from . import model

        yield ""
        for name, value in model.as_rows(report.model):
            yield from textwrap.wrap(
                f"{name:<11} {value}", _WIDTH, subsequent_indent=" " * 12, **_WHOLE
            )
    if report.results is not None:
        yield ""
        yield from _selftest(report.choice.name, report.results, report.seconds)
        yield from _metal(report.metal)
    if report.advice:
        yield from ("", "advice")
        for sentence in report.advice:
            yield from textwrap.wrap(f"- {sentence}", _WIDTH, subsequent_indent="  ", **_WHOLE)


def _machine(machine: Machine) -> Iterator[tuple[str, str]]:
    yield "versions", f"mlx_ferrum {machine.version}, MLX {machine.mlx}, {machine.python}"
    yield "system", machine.system
    yield "processor", ", ".join((machine.processor, *machine.features))
    kinds = zip(machine.core_kinds, ("performance", "efficiency"), strict=False)
    split = ", ".join(f"{n} {kind}" for n, kind in kinds)
    yield "cores", f"{machine.cores}" + (f" ({split})" if split else "")
    free = "" if machine.available is None else f", {_gib(machine.available)} free"
    yield "memory", f"{_gib(machine.memory)}{free}"
    yield from [("GPU", "none that MLX can use")] if machine.gpu is None else _gpu(machine.gpu)
    yield "compiler", machine.compiler or "none"


def _gpu(gpu: Gpu) -> Iterator[tuple[str, str]]:
    cores = f"{gpu.cores} cores" if gpu.cores else None
    memory = None if gpu.metal or gpu.memory is None else _gib(gpu.memory)
    yield "GPU", ", ".join(filter(None, (gpu.name, cores, gpu.architecture, memory)))
    if gpu.working_set and gpu.memory:
        limit = f"; iogpu.wired_limit_mb {gpu.wired_limit >> 20}" if gpu.wired_limit else ""
        largest = f", a buffer up to {_gib(gpu.largest_buffer)}" if gpu.largest_buffer else ""
        share = f"working set {_gib(gpu.working_set)} of {_gib(gpu.memory)}"
        yield "GPU memory", f"{share}{largest}{limit}"
    if gpu.metal:
        how = "set by the user" if gpu.commits_are_set else "MLX's default"
        commits = f"{gpu.commit_operations} operations or {gpu.commit_megabytes} MB"
        yield "GPU commits", f"after {commits} ({how})"


def _choice(choice: Choice) -> Iterator[tuple[str, str]]:
    yield "backend", f"{choice.name}: {choice.reason}"
    if choice.kernels is not None:
        yield "kernels", choice.kernels
    if choice.wired_limit is not None:
        yield "wired", f"up to {_gib(choice.wired_limit)} while a model generates, the working set"
    if choice.error is not None:
        yield "error", choice.error


def _selftest(backend: str, results: Sequence[Result], seconds: float) -> Iterator[str]:
    cases = sum(result.cases for result in results)
    yield f"self-test   {backend} against the reference: {cases} cases in {seconds:.1f} s"
    yield "            error: the largest difference, over the largest value of the result"
    width = max((len(result.op) for result in results), default=0)
    for result in results:
        worst = "no number" if result.worst is None else f"{result.worst:.1e}"
        allowed = f"{result.bound:.0e}" if result.bound else "exact"
        outcome = f"{len(result.failures)} of {result.cases} FAILED" if result.failures else "ok"
        yield f"{result.op:<{width}} error {worst:>9}, allowed {allowed:<6} {outcome}"
    # the first one of every operation, then the second ones
    ranked = [(rank, f) for result in results for rank, f in enumerate(result.failures)]
    failures = [failure for _, failure in sorted(ranked, key=lambda pair: pair[0])]
    for failure in failures[:_SHOWN_FAILURES]:
        yield f"FAILED {failure.op} of {failure.type}, {failure.shape}: {failure.error}"
    if len(failures) > _SHOWN_FAILURES:
        yield f"and {len(failures) - _SHOWN_FAILURES} more; --json has them all"


def _metal(checks: Sequence[Check] | None) -> Iterator[str]:
    if checks is None:
        yield "metal       checks of Metal were not run: the backend is another one"
        return
    for check in checks:
        yield f"{'FAILED ' * check.failed}metal, {check.name}: {check.outcome}"


def _gib(nbytes: int) -> str:
    return f"{nbytes / GIB:.1f} GiB"
