"""Experts that are read from the file when they are chosen, into memory of a fixed size.

A mixture of experts reads a few of its experts for each token. Those used most lately and most often stay in memory.
Everything else of the file stays mapped.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from . import amounts, budget, gguf, memory, ops, sizes
from .kernels.cpu import native
from .kernels.cpu.streams import Counts, Source, Stream
from .models.base import LanguageModel
from .models.encoder import Encoder
from .models.expert_layers import with_experts
from .nn import Experts, RMSNorm
from .tensor import QTensor

BACKENDS = ("cpu", "metal")  # that read experts when they are chosen; for others the file is mapped
AGE = 1 / 256  # of a call, where a use an age ago counts e times less; see bench/expert_cache.py


class Files:
    """The files of a model, open for reading until nothing uses them. Raises ValueError for one that was replaced."""

    def __init__(self, file: gguf.GGUF, *, direct: bool = True) -> None:
        """direct: whether reads may take whole sectors"""
        self._parts, self.numbers, self._is_direct = file.parts, list[int](), list[bool]()
        for each in file.files:
            number, is_direct = _open(each.path, direct=direct)
            self.numbers.append(number)
            self._is_direct.append(is_direct)
            each.check_same(number)

    def source(self, w: QTensor) -> Source:
        """Where the matrices of a stack lie."""
        part = next(i for i, buffer in enumerate(self._parts) if buffer is w.buffer)
        nbytes = w.nbytes // w.shape[0]
        return Source(self.numbers[part], w.offset, nbytes, self._is_direct[part], w.step)

    def __del__(self) -> None:
        for number in self.numbers:
            os.close(number)


def _open(path: Path, *, direct: bool = True) -> tuple[int, bool]:
    """A descriptor that bypasses the page cache if possible, which would keep a second copy of each expert.

    Also whether only whole sectors can be read through it, as on Linux. direct: whether that will do
    """
    flags = os.O_RDONLY | os.O_CLOEXEC
    if sys.platform == "darwin":
        number = os.open(path, flags)
        fcntl.fcntl(number, fcntl.F_NOCACHE, 1)
        return number, False
    if direct:
        with contextlib.suppress(OSError):  # a file system without it
            return os.open(path, flags | os.O_DIRECT), True
    return os.open(path, flags), False


def bypasses_cache(path: Path) -> bool:
    """Whether reads of a file leave no copies in the page cache."""
    number, is_direct = _open(path)
    os.close(number)
    return is_direct or sys.platform == "darwin"


class Layer(NamedTuple):
    """The streams of one layer. layer: its number, dense layers counted; first: of gate and up; second: of down."""

    layer: int
    first: Stream
    second: Stream

    def counts(self) -> tuple[Counts, Counts]:
        """What happened so far, of gate and up, and of down."""
        return self.first.counts(), self.second.counts()


class Streams:
    """The layers of a model whose experts are read from disk."""

    def __init__(
        self, layers: Sequence[Layer], experts: Sequence[Experts], norms: Sequence[RMSNorm]
    ) -> None:
        """experts, norms: of each layer; the norm is that before its router"""
        self.layers = tuple(layers)
        self._experts, self._norms = tuple(experts), tuple(norms)
        self._readers: list[_Reader] = []
        self.predict(True)

    def predict(self, wanted: bool) -> None:
        """Whether what a layer is likely to choose is read while the one before it computes."""
        self._readers.clear()
        for i, mlp in enumerate(self._experts):
            follows = wanted and i + 1 < len(self._experts)
            after = (self._experts[i + 1], self._norms[i + 1]) if follows else None
            mlp.reader = _Reader(mlp.gate, mlp.down, after)
            self._readers.append(mlp.reader)

    @property
    def waits(self) -> int:
        """How often the host waited for a GPU's choice of experts."""
        return sum(reader.waits for reader in self._readers)

    def counts(self) -> Counts:
        """What happened so far, in all layers."""
        every = [count for layer in self.layers for count in layer.counts()]
        return Counts(*map(sum, zip(*every, strict=True)))

    def described(self) -> str:
        """The counts in a line."""
        counts = self.counts()
        share = 1 - counts.read / max(counts.used, 1)
        read = f"{amounts.size(counts.nbytes)} read from disk"
        found = f"{share:.0%} of {counts.used} uses found in memory"
        foretold = ""
        if counts.judged:
            foretold = f", {counts.foretold / counts.judged:.0%} of choices predicted"
        waits = f", {self.waits} waits for the GPU's choice" if self.waits else ""
        return f"experts: {found}, {read}, threads waited {counts.waited:.2f} s{foretold}{waits}"


class _Reader:
    """Begins to read what a layer has chosen, and what the next one may choose.

    The layer holds its reader, so the reader must not hold the layer: a cycle would keep the slots of a model that
    nothing uses until the next garbage collection.
    gate, down: stacks of the layer; after: the next layer, and the norm before its router
    """

    def __init__(self, gate: QTensor, down: QTensor, after: tuple[Experts, RMSNorm] | None) -> None:
        self._gate, self._down, self._after = gate, down, after
        self.waits = 0  # for a GPU

    def __call__(self, x: ops.Array, ids: ops.Array) -> None:
        if isinstance(x, np.ndarray) and isinstance(ids, np.ndarray):
            self._on_cpu(x, ids)
        elif not isinstance(x, np.ndarray) and not isinstance(ids, np.ndarray):
            self._on_gpu(x, ids)

    def _on_cpu(self, x: np.ndarray, ids: np.ndarray) -> None:
        from .backends.cpu.experts import expect_experts, want_experts

        want_experts(self._gate, ids)
        if self._after is not None:
            mlp, norm = self._after
            expect_experts(x, norm.args, mlp.router, mlp.gate, mlp.routing, mlp.get("bias"))

    def _on_gpu(self, x: mx.array, ids: mx.array) -> None:
        if ops.backend_name() != "metal":
            return  # for which the file is mapped
        from .backends.metal.resident import expect_experts, want_experts

        waited = want_experts(self._gate, self._down, ids)
        self.waits += waited
        if waited and self._after is not None:
            mlp, norm = self._after
            expect_experts(x, norm.args, mlp.router, mlp.gate, mlp.routing, mlp.get("bias"))


def planned(file: gguf.GGUF, reserve: int | None = None) -> budget.Plan:
    """What `budget.plan` chooses for a file by the memory that is free now. reserve: as of `budget.plan`"""
    found, free = sizes.of_file(file), memory.available()
    if found is None or ops.backend_name() not in BACKENDS:
        what = "an encoder" if found is None else f"on the {ops.backend_name()} backend"
        return budget.Plan(0, f"the model is mapped, as always {what}")
    if free is None:
        return budget.Plan(
            0, "the model is mapped: the system does not say how much memory is free"
        )
    bypasses = all(bypasses_cache(each.path) for each in file.files)
    on_gpu = ops.backend_name() == "metal"
    plan = budget.plan(found, free, reserve=reserve, bypasses_cache=bypasses, whole_tokens=on_gpu)
    if plan.nbytes and on_gpu:
        try:
            native.library()  # reads experts
        except native.build.BuildError as error:
            return budget.Plan(
                0, f"the model is mapped, though it does not fit: {error}", is_short=True
            )
    return plan


def stream(model: LanguageModel | Encoder, file: gguf.GGUF, nbytes: int) -> Streams:
    """Read experts from the file when they are chosen; at most `nbytes` of them are in memory. For the backend in use.

    Raises ValueError for a model without experts and for too few bytes, NotImplementedError for an encoder and on
    backends that are not of `BACKENDS`.
    """
    if ops.backend_name() not in BACKENDS:
        raise NotImplementedError(
            f"experts are read from disk on the backends {' and '.join(BACKENDS)}, "
            f"the one in use is {ops.backend_name()}"
        )
    found, on_gpu = with_experts(model), ops.backend_name() == "metal"
    experts = [mlp for _, mlp in found]
    slots = _slots(experts, nbytes, experts[0].routing.used if on_gpu else 1)
    files = Files(file, direct=not on_gpu)
    layers = [
        _stream(i, mlp, n, files, apart=on_gpu) for (i, mlp), n in zip(found, slots, strict=True)
    ]
    norms = [model.body.layers[i].post_attention_layernorm for i, _ in found]
    return Streams(layers, experts, norms)


def _slots(layers: Sequence[Experts], nbytes: int, least: int) -> list[int]:
    """The experts of each layer that are in memory: as many everywhere, and one more in the first layers.

    Raises ValueError for fewer than `least`, which a token needs at a time.
    """
    sizes = [sum(w.nbytes // mlp.count for w in (mlp.gate, mlp.up, mlp.down)) for mlp in layers]
    each, rest = divmod(nbytes, sum(sizes))
    if each < least:
        raise ValueError(
            f"{amounts.size(nbytes)} for experts, expected at least {amounts.size(least * sum(sizes))}: "
            f"{least} a layer"
        )
    slots = []
    for mlp, size in zip(layers, sizes, strict=True):
        extra, rest = (1, rest - size) if size <= rest else (0, 0)
        slots.append(min(each + extra, mlp.count))
    return slots


def _stream(layer: int, mlp: Experts, slots: int, files: Files, *, apart: bool) -> Layer:
    sources = [files.source(w) for w in (mlp.gate, mlp.up, mlp.down)]
    first = Stream(mlp.count, slots, sources[:2], AGE, files, apart=apart)
    second = Stream(mlp.count, slots, sources[2:], AGE, files, apart=apart)
    first.followed_by(second)
    if apart:
        from .backends.metal.resident import Guard

        first.guard = second.guard = Guard()
    for w, place in ((mlp.gate, (first, 0)), (mlp.up, (first, 1)), (mlp.down, (second, 0))):
        w.stream = place
        w.kept.clear()
    return Layer(layer, first, second)
