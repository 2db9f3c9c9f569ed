"""Which backend runs the operations here, and why that one."""

from __future__ import annotations

from dataclasses import dataclass

from ..kernels.cpu import build, native
from ..lazy import missing
from .privacy import one_line, without_folders

_REASONS = {
    "cpu": "MLX has no GPU here",
    "metal": "MLX has an Apple GPU here",
    "reference": "no GPU of this kind has run our kernels yet; --backend cuda tries them",
}


@dataclass(frozen=True)
class Choice:
    """The backend in use, "none" without MLX.

    kernels: what was compiled for it
    error: why it cannot run, if it cannot
    wired_limit: bytes that it has MLX keep resident while a model generates, None where it does not
    """

    name: str
    reason: str
    kernels: str | None = None
    error: str | None = None
    wired_limit: int | None = None


def choose(name: str | None = None) -> Choice:
    """Use the backend called `name`, or the one that models get by themselves."""
    if (reason := missing()) is not None:
        return Choice("none", "MLX cannot be imported", error=without_folders(reason))
    from .. import ops

    if name is None:
        problem = ops.use_default_backend()
        name = ops.backend_name()
        return _chosen(name, without_folders(problem) if problem else _REASONS[name])
    reason = "asked for by --backend"
    try:
        ops.use_backend(name)
    except OSError as error:
        return Choice(name, reason, error=one_line(error))
    return _chosen(name, reason)


def _chosen(name: str, reason: str) -> Choice:
    from .. import ops

    return Choice(name, reason, _kernels(name), wired_limit=ops.wired_limit())


def _kernels(name: str) -> str | None:
    if name != "cpu":
        return None
    simd: str = native.library().ferrum_simd().decode()
    origin = "prebuilt" if build.is_prebuilt(native.path()) else "compiled here"
    return f"{simd}, {native.cores()} threads, {origin}"
