"""Launches as MLX's encoder sees them: what each binds, what it registers as an output, and what it writes.

Memory is known by its address. A recording holds every array that it has seen, so no address is used twice; MLX,
too, holds the buffers of a command buffer in flight, and then donates none of them.

MLX's own operations are seen in the graph that is pending when a launch or an evaluation asks for it. What is
evaluated otherwise (`item`, NumPy) counts as there from the start, and the memory of what only MLX holds is unknown:
hand such arrays to `Recorder.hold`.
"""

from __future__ import annotations

import ctypes
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_ferrum import launch
from mlx_ferrum.launch import Kernel, Launch

from .graph import UPDATES, VIEWS, Operation, operations
from .host import Host
from .recording import COMMIT, WAIT, Bound, Computed, Copied, Extent, Launched, Recording, Work
from .signature import signature

_evaluate, _evaluate_later = mx.eval, mx.async_eval
_VIRTUAL = 1 << 60  # addresses from here on are of memory that no array here has


@dataclass
class Recorder:
    """A runner for launch.use_runner: the host makes each launch at once, and it is recorded."""

    host: Host
    recording: Recording = field(default_factory=Recording)
    _held: list[mx.array] = field(default_factory=list)
    _known: dict[Extent, None] = field(default_factory=dict)
    _virtual: int = _VIRTUAL

    def __call__(self, kernel: Kernel, call: Launch) -> list[mx.array]:
        """Raises ValueError for an input that is written but not contiguous: MLX would hand over a copy of it."""
        arrays = [x if isinstance(x, mx.array) else mx.array(x) for x in call.arrays]
        call = replace(call, arrays=arrays)
        self._settle(arrays)
        inputs = [
            self._bind(kernel, name, x) for name, x in zip(kernel.inputs, arrays, strict=True)
        ]
        outputs = self.host(kernel, call)
        _evaluate(outputs)
        self._held += outputs
        self._note_launch(kernel, call, inputs, outputs)
        return outputs

    def _note_launch(
        self, kernel: Kernel, call: Launch, inputs: Sequence[Bound], outputs: Sequence[mx.array]
    ) -> None:
        made = signature(kernel, call)
        fresh = tuple(_bound(y) for y in outputs)
        places = tuple(y.extent for y in fresh)
        self._add(places)
        bound = dict(zip(kernel.inputs, inputs, strict=True))
        written = tuple(bound[name].extent for name in kernel.writes)
        results = tuple(_bytes(extent).copy() for extent in (*places, *written))
        if call.init_value is not None:
            self._note(*(Work("fill", (), (place,), ends=False) for place in places))
        self._note(
            Work(
                kernel.name,
                tuple(x.extent for x in inputs),
                places,
                written,
                tuple(x.size for x in [*call.arrays, *outputs]),
                library=made.name,
                text=len(made.text()),
                action=Launched(kernel, replace(call, arrays=()), tuple(inputs), fresh, results),
            )
        )

    def hold(self, *arrays: mx.array) -> None:
        """Know the memory of these arrays when operations of MLX read it."""
        self._settle(arrays)

    def evaluate(self, *trees: Any) -> None:
        """In the place of mx.eval: everything after it waits."""
        self._settle(_arrays(trees))
        self.recording.events.append(WAIT)

    def evaluate_later(self, *trees: Any) -> None:
        """In the place of mx.async_eval."""
        self._settle(_arrays(trees))
        self.recording.events.append(COMMIT)

    def _note(self, *works: Work) -> None:
        nowhere = Extent(0, 0)  # arrays of no elements
        for work in works:
            outputs = tuple(x for x in work.outputs if x != nowhere)
            self.recording.events.append(replace(work, outputs=outputs))

    def _add(self, extents: Sequence[Extent]) -> None:
        self._known.update(dict.fromkeys(extents))

    def _is_known(self, extent: Extent) -> bool:
        return any(extent.within(known) for known in self._known)

    def _hold(self, x: mx.array) -> None:
        self._held.append(x.astype(x.dtype))  # an update through Python changes x, but not this

    def _place(self, x: mx.array) -> Extent:
        """Where x is; what was not seen before counts as given."""
        return self._give(_extent(_numbers(x)))

    def _give(self, extent: Extent) -> Extent:
        if not self._is_known(extent):
            self._add([extent])
            self.recording.given.append((extent, _bytes(extent).copy()))
        return extent

    def _new(self, nbytes: int = 1) -> Extent:
        """Memory that no array here has."""
        self._virtual += nbytes + 64
        return Extent(self._virtual - nbytes, self._virtual)

    def _bind(self, kernel: Kernel, name: str, x: mx.array) -> Bound:
        """x as the launch sees it, which MLX copies unless it is contiguous."""
        source, numbers = self._place(x), _numbers(x)
        if numbers.flags.c_contiguous:
            return Bound(source, x.shape, x.dtype)
        target = self._new(x.nbytes)
        first = numbers.ctypes.data
        copied = Copied(source, target, first, x.shape, numbers.strides, numbers.itemsize)
        self._note(
            Work("copy", (source,), (target,), elements=(x.size,) * 2, ends=False, action=copied)
        )
        return Bound(target, x.shape, x.dtype)

    def _settle(self, arrays: Sequence[mx.array]) -> None:
        """Record the operations of MLX that are pending for these arrays, and evaluate them."""
        text = io.StringIO()
        asked = {f"asked_{i}": x for i, x in enumerate(arrays)}
        held = {f"held_{i}": x for i, x in enumerate(self._held)}
        mx.export_to_dot(text, *arrays, **held, **asked)
        _evaluate(list(arrays))
        named, pending = held | asked, operations(text.getvalue())
        shown = _shown(pending, {name: _extent(_numbers(x)) for name, x in asked.items()})
        places: dict[str, tuple[Extent, ...]] = {}
        for operation in pending:
            for name in operation.inputs:
                if name not in places:
                    places[name] = (self._place(named[name]),) if name in named else ()
            self._operation(operation, shown, places)
        for x in arrays:
            self._place(x)
            self._hold(x)

    def _operation(
        self,
        operation: Operation,
        shown: dict[str, tuple[Extent, ...]],
        places: dict[str, tuple[Extent, ...]],
    ) -> None:
        """Record it, unless its results are where its inputs are."""
        reads = tuple(dict.fromkeys(extent for x in operation.inputs for extent in places[x]))
        found = [extent for y in operation.outputs for extent in shown.get(y, ())]
        fresh = [extent for extent in found if not self._is_known(extent)]
        moved = fresh and reads  # a view that copies after all
        if (operation.name in VIEWS and not moved) or (found and not fresh):
            places.update({y: shown.get(y, reads) for y in operation.outputs})
            for extent in fresh:
                self._give(extent)
            return
        made = {y: shown[y] if y in shown else (self._new(),) for y in operation.outputs}
        places.update(made)
        outputs = tuple(dict.fromkeys(extent for extents in made.values() for extent in extents))
        self._add(outputs)
        results = tuple((extent, _bytes(extent).copy()) for extent in fresh)
        base = places[operation.inputs[0]] if operation.name in UPDATES else ()
        updates = base[0] if base else None
        self._note(Work(operation.name, reads, outputs, updates=updates, action=Computed(results)))


@contextmanager
def recording(host: Host | None = None) -> Iterator[Recorder]:
    """Within, launches run on the host and are recorded, with the evaluations between them."""
    recorder = Recorder(host or Host())
    later = mock.patch("mlx.core.async_eval", recorder.evaluate_later)
    with launch.use_runner(recorder), later, mock.patch("mlx.core.eval", recorder.evaluate):
        yield recorder


def _shown(pending: Sequence[Operation], asked: dict[str, Extent]) -> dict[str, tuple[Extent, ...]]:
    """Where results are: of what is asked for, and of what that is a view of."""
    shown: dict[str, tuple[Extent, ...]] = {name: (extent,) for name, extent in asked.items()}
    for operation in reversed(pending):
        if operation.name in VIEWS and len(operation.inputs) == 1:
            source = operation.inputs[0]
            seen = [extent for y in operation.outputs for extent in shown.get(y, ())]
            if seen and source not in asked:
                shown[source] = tuple(dict.fromkeys([*shown.get(source, ()), *seen]))
    return shown


def _arrays(trees: Any) -> list[mx.array]:
    leaves: Any = tree_flatten(trees)
    return [x for _, x in leaves if isinstance(x, mx.array)]


def _numbers(x: mx.array) -> np.ndarray:
    """The memory of an evaluated array; bfloat16 as its bits."""
    return np.asarray(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x)


def _extent(x: np.ndarray) -> Extent:
    return Extent(*np.lib.array_utils.byte_bounds(x)) if x.size else Extent(0, 0)


def _bound(x: mx.array) -> Bound:
    return Bound(_extent(_numbers(x)), x.shape, x.dtype)


def _bytes(extent: Extent) -> np.ndarray:
    """What is there now."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * extent.nbytes).from_address(extent.start))
