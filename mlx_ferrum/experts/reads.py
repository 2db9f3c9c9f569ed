"""What a text took to read from disk, layer by layer, as text, as JSON and as a picture, which needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import amounts, drawing, traffic
from ..traffic import Traffic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAR, LEAST = 0.17, 2.4  # inches: height of a bar, and of all
MARGIN = 1.5  # inches above and below the bars
COLORS = ("#3b7a57", "#33658a", "#b5651d")
TICKS = 24  # more layers than this are not all numbered


@dataclass(frozen=True)
class Reads:
    """Of a text.

    layers: that have experts
    count: of experts in each of them
    tokens: of the text
    seconds: that it took
    """

    layers: Sequence[Traffic]
    count: int
    tokens: int
    seconds: float

    @property
    def nbytes(self) -> int:
        """Read from disk."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def hits(self) -> float:
        """The share of all uses that found their expert in memory."""
        used = sum(layer.used for layer in self.layers)
        return 1 - sum(layer.read for layer in self.layers) / max(used, 1)

    @property
    def bandwidth(self) -> float:
        """Bytes read a second, over the whole time."""
        return self.nbytes / self.seconds

    @property
    def waiting(self) -> float:
        """Threads that waited for reads, on average over the whole time."""
        return sum(layer.waited for layer in self.layers) / self.seconds


def as_text(reads: Reads) -> list[str]:
    """A line a layer, and a summary."""
    head = f"{'layer':>5} {'in memory':>10} {'hits':>6} {'predicted':>9} {'MB/token':>9} {'waited, ms/token':>17}"
    lines = [head]
    for layer in reads.layers:
        slots, read = f"{layer.slots}/{reads.count}", layer.nbytes / 1e6 / reads.tokens
        waited = 1e3 * layer.waited / reads.tokens
        foretold = f"{layer.recall:.1%}" if layer.judged else "-"
        lines.append(
            f"{layer.layer:>5} {slots:>10} {layer.hits:>6.1%} {foretold:>9} {read:>9.2f} {waited:>17.2f}"
        )
    return [*lines, "", summary(reads)]


def summary(reads: Reads) -> str:
    """All layers in a line."""
    return (
        f"{reads.hits:.1%} of the uses found their expert in memory; {amounts.size(reads.nbytes / reads.tokens)} a "
        f"token were read, {amounts.size(reads.bandwidth)}/s; {reads.waiting:.2f} threads waited on average"
    )


def as_json(reads: Reads) -> dict[str, Any]:
    """nbytes: read from disk; waiting_threads: on average"""
    return {
        "tokens": reads.tokens,
        "seconds": round(reads.seconds, 3),
        "hits": round(reads.hits, 4),
        "nbytes": reads.nbytes,
        "bytes_a_second": round(reads.bandwidth),
        "waiting_threads": round(reads.waiting, 3),
        "layers": traffic.as_json(reads.layers),
    }


def draw(reads: Reads, title: str, path: Path) -> None:
    """Write `bars` as a PNG, whole or not at all."""
    drawing.save(bars(reads, title), path)


def bars(reads: Reads, title: str = "") -> Figure:
    """Three bars a layer: hits, bytes and waits. Raises RuntimeError if there is no matplotlib."""
    drawing.check_installed()
    from matplotlib.figure import Figure

    layers = reads.layers
    height = max(LEAST, BAR * len(layers)) + MARGIN
    figure = Figure(figsize=(11, height), layout="constrained", dpi=150)
    first, second, third = figure.subplots(1, 3, sharey=True)
    hits = [100 * layer.hits for layer in layers]
    label = "uses that found their expert in memory, %\n(dot: experts that are in memory, hits of even use)"
    _bars(first, 0, hits, label)
    shares = [100 * layer.slots / reads.count for layer in layers]
    first.plot(shares, range(len(layers)), "o", color="black", markersize=3)
    first.set_xlim(0, 100)
    _bars(
        second,
        1,
        [layer.nbytes / 1e6 / reads.tokens for layer in layers],
        "read from disk, MB a token",
    )
    waits = [1e3 * layer.waited / reads.tokens for layer in layers]
    _bars(third, 2, waits, "threads waited, ms a token")
    first.set_ylabel("layer")
    at = range(0, len(layers), -(-len(layers) // TICKS))
    first.set_yticks(at, [str(layers[i].layer) for i in at])
    first.set_ylim(len(layers) - 0.4, -0.6)
    figure.suptitle(f"{title}\n{summary(reads)}", fontsize=9, parse_math=False)
    return figure


def _bars(axes: Axes, color: int, values: Sequence[float], label: str) -> None:
    axes.barh(np.arange(len(values)), values, color=COLORS[color], height=0.8)
    axes.set_xlabel(label, fontsize=8)
    axes.set_xlim(left=0)
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", alpha=0.3)
