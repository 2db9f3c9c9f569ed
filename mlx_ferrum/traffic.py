"""What reading experts from disk takes, layer by layer: uses, those that found theirs in memory, bytes, waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .streamed import Streams


class Traffic(NamedTuple):
    """Of one layer, so far or in between.

    layer: its number, dense layers counted
    slots: experts that are in memory at a time
    used, read: uses of an expert's matrices, gate and up apart from down, and reads
    nbytes: read from disk
    waited: seconds, of all threads
    judged, foretold: uses for which experts were predicted, and those that were predicted, of gate and up
    ahead, useful: reads before a choice, and those of them that were used, of gate and up
    """

    layer: int
    slots: int
    used: int
    read: int
    nbytes: int
    waited: float
    judged: int = 0
    foretold: int = 0
    ahead: int = 0
    useful: int = 0

    @property
    def hits(self) -> float:
        """The share of the uses that found their expert in memory, from 0 to 1."""
        return 1 - self.read / self.used if self.used else 0.0

    @property
    def recall(self) -> float:
        """The share of the uses that was predicted, where anything was, from 0 to 1."""
        return self.foretold / self.judged if self.judged else 0.0

    def since(self, before: Traffic) -> Traffic:
        """What came after `before`, which is of the same layer."""
        return Traffic._make(
            now if name in ("layer", "slots") else now - then
            for name, now, then in zip(self._fields, self, before, strict=True)
        )


def traffic(streams: Streams | None) -> list[Traffic]:
    """Of each layer with experts so far; nothing for a model that is mapped."""
    if streams is None:
        return []
    found = []
    for layer in streams.layers:
        first, second = layer.counts()
        sums = (a + b for a, b in zip(first[:4], second[:4], strict=True))
        found.append(Traffic(layer.layer, layer.first.slots, *sums, *first[4:]))
    return found


def as_text(layers: Sequence[Traffic]) -> list[str]:
    """A line a layer, under a head."""
    head = f"{'layer':>7} {'slots':>6} {'uses':>8} {'hits':>6} {'MB read':>9} {'s waited':>9} {'predicted':>10}"
    return [head] + [
        f"{each.layer:>7} {each.slots:>6} {each.used:>8} {each.hits:>6.1%} {each.nbytes / 1e6:>9.1f} "
        f"{each.waited:>9.3f} {each.recall:>10.1%}"
        for each in layers
    ]


def as_json(layers: Sequence[Traffic]) -> list[dict[str, Any]]:
    """The same for programs; bytes and seconds."""
    return [
        each._asdict() | {"hits": round(each.hits, 4), "recall": round(each.recall, 4)}
        for each in layers
    ]
