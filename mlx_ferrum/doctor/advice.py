"""What the user could change for models to run, or to run faster."""

from __future__ import annotations

import platform
from collections.abc import Iterator

from .. import catalog
from ..lazy import remedy
from .choice import Choice
from .machine import Gpu, Machine

GIB = 1 << 30
_LEAST_LEFT = 4 * GIB  # that macOS keeps for itself and other programs
_WORTH = 1.05  # times as much working set, to be worth a command
_BESIDE = 300 << 20  # bytes beside a small model's weights: Python, MLX, caches
_COMMITS = 200  # operations and "megabytes", which MLX counts in elements


def advise(machine: Machine, choice: Choice, failed: bool = False) -> list[str]:
    """Sentences, the most important first; none if there is nothing to say.

    failed: whether the self-test of the backend failed
    """
    if choice.name == "none":
        return [f"Install MLX with a backend: {remedy()}."]
    return [
        *_about_failure(choice, failed),
        *_about_compiler(machine, choice),
        *_about_memory(machine),
        *(_about_gpu(machine.gpu) if machine.gpu and machine.gpu.metal else ()),
    ]


def _about_failure(choice: Choice, failed: bool) -> Iterator[str]:
    if failed:
        yield "The self-test failed: please report it with this text."
        if choice.name != "reference":
            yield "Until it is solved, --backend reference is slow but needs no kernels of ours."


def _about_compiler(machine: Machine, choice: Choice) -> Iterator[str]:
    runs = choice.name != "reference" and choice.error is None
    if machine.compiler is None and choice.name in ("cpu", "reference") and not runs:
        how = (
            "xcode-select --install"
            if platform.system() == "Darwin"
            else "apt-get install g++ or the like"
        )
        yield f"The cpu backend, which is faster, needs a C++ compiler: {how}."


def _about_memory(machine: Machine) -> Iterator[str]:
    free = machine.memory if machine.available is None else machine.available
    for model in catalog.MODELS:
        if model.nbytes + _BESIDE > free:
            yield (
                f"{model.name} needs about {(model.nbytes + _BESIDE) / 1e9:.1f} GB of memory, "
                f"{free / 1e9:.1f} GB are free."
            )


def _about_gpu(gpu: Gpu) -> Iterator[str]:
    if gpu.memory and gpu.working_set:
        limit = gpu.memory - max(_LEAST_LEFT, gpu.memory // 8)
        if limit > _WORTH * gpu.working_set:
            yield (
                f"For models over {gpu.working_set / GIB:.0f} GiB: "
                f"sudo sysctl iogpu.wired_limit_mb={limit >> 20} lets the GPU use "
                f"{limit / GIB:.0f} of {gpu.memory / GIB:.0f} GiB until it restarts."
            )
    if not gpu.commits_are_set:
        yield (
            f"MLX hands work to this GPU every {gpu.commit_operations} operations; "
            f"MLX_MAX_OPS_PER_BUFFER={_COMMITS} MLX_MAX_MB_PER_BUFFER={_COMMITS} "
            "in the environment may speed up decoding: measure both."
        )
