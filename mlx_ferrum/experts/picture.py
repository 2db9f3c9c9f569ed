"""A heat map of the choices: one row per layer, one column per expert. Needs matplotlib, which is an extra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import drawing
from .choices import Choices

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = (
    14.0,
    2.5,
)  # inches: the most that a map is wide, and the height up to which cells grow
LARGEST_CELL = 0.45  # inches high or wide
MARGIN = (2.2, 1.5)  # inches beside the map, and above and below it
UNUSED = "#cbd5e1"
TICKS = 32  # more rows or columns than this are not all numbered


def draw(layers: Sequence[Choices], used: int, title: str, path: Path) -> None:
    """Write `heat_map` as a PNG, whole or not at all."""
    drawing.save(heat_map(layers, used, title), path)


def heat_map(layers: Sequence[Choices], used: int, title: str = "") -> Figure:
    """The map as a figure, which a notebook shows. used: experts that a token gets.

    Raises ValueError if there is no layer; RuntimeError, which says what to install, if there is no matplotlib.
    """
    if not layers:
        raise ValueError("layers: none found, expected the choices of one or more")
    drawing.check_installed()
    from matplotlib.figure import Figure

    shares = np.stack([layer.shares for layer in layers])  # (layers, experts)
    rows, experts = shares.shape
    wide = min(LARGEST_CELL, WIDTH / max(rows, experts))
    high = max(wide, min(LARGEST_CELL, HEIGHT / rows))
    size = (max(wide * experts, 4) + MARGIN[0], high * rows + MARGIN[1])
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    axes = figure.add_subplot()
    _map(figure, axes, shares, used / experts)
    _number(axes, [layer.layer for layer in layers], experts)
    axes.set_title(title, fontsize=10, parse_math=False)
    return figure


def _map(figure: Figure, axes: Axes, shares: np.ndarray, even: float) -> None:
    """Dark where few tokens go, grey where none; the line on the colour bar is what even use would give."""
    from matplotlib.colors import PowerNorm

    image = axes.imshow(
        np.ma.masked_equal(shares, 0),
        cmap="magma",
        norm=PowerNorm(0.5, vmin=0, vmax=shares.max()),  # most shares are small ones
        interpolation="nearest",
        aspect="auto",
    )
    axes.set_facecolor(UNUSED)
    label = f"share of the tokens\n(line: even use, {even:.1%})"
    bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.03)
    bar.set_label(label, size=8)
    bar.ax.yaxis.set_major_formatter("{x:.0%}")
    bar.ax.tick_params(labelsize=8)
    bar.ax.axhline(even, color="white", linewidth=1.5)


def _number(axes: Axes, layers: list[int], experts: int) -> None:
    axes.set_xlabel("expert (grey: no token chose it)")
    axes.set_ylabel("layer")
    axes.set_xticks(range(0, experts, _step(experts)))
    at = range(0, len(layers), _step(len(layers)))
    axes.set_yticks(at, [str(layers[i]) for i in at])
    axes.tick_params(labelsize=8)


def _step(count: int) -> int:
    """1, 2, 4, 8 …, so that there are at most `TICKS` numbers."""
    step = 1
    while count > TICKS * step:
        step *= 2
    return step
