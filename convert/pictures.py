"""Pictures of a comparison. They need matplotlib, which is an extra; a notebook shows the figures that they return.

Colours are those of Okabe and Ito, and cividis: colour-blind people can tell them apart, as can prints in grey.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_ferrum import drawing

from .comparison import Comparison, Divergence, Model, TensorErrors
from .comparison_report import labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
SIZE = (7.0, 4.5)  # inches
LAYER = re.compile(r"blk\.(\d+)\.(.+?)(?:\.weight)?$")
EXACT = "#cbd5e1"
KINDS = (
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_gate_inp",
    "ffn_gate",
    "ffn_up",
    "ffn_gate_up",
    "ffn_down",
)
TICKS = 5  # of the colour bar
MOST_NUMBERS = 48  # layers; cells of more have no numbers in them


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Write all pictures that the comparison has numbers for, as PNG files; returns their paths.

    Raises OSError if the folder cannot be written to.
    """
    written = []
    for name, figure in _figures(comparison):
        written.append(folder / f"{name}.png")
        drawing.save(figure, written[-1])
    return written


def _figures(comparison: Comparison) -> Iterator[tuple[str, Figure]]:
    if comparison.text is not None:
        yield "kl-size", kl_over_size(comparison)
        yield "kl-tokens", kl_over_tokens(comparison)
    names = labels([o.model for o in comparison.others])
    for i, (name, other) in enumerate(zip(names, comparison.others, strict=True)):
        if other.tensors is not None:
            short = Path(name).name.removesuffix(".gguf")
            yield f"error-{i + 1}-{short}", error_by_layer(comparison, i)


def _figure(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=150)
    return figure, figure.add_subplot()


def _divergences(comparison: Comparison) -> list[tuple[str, Model, Divergence]]:
    """Name, model and divergence of each other model. Raises ValueError if no text was read."""
    names = labels([o.model for o in comparison.others])
    found = [
        (name.removesuffix(".gguf"), o.model, o.divergence)
        for name, o in zip(names, comparison.others, strict=True)
        if o.divergence is not None
    ]
    if not found:
        raise ValueError("the comparison has no text, so there are no KL divergences to draw")
    return found


def kl_over_size(comparison: Comparison) -> Figure:
    """The mean KL with its standard error over the size of the tensors, one point per model.

    Raises ValueError if the comparison has no text.
    """
    found = _divergences(comparison)
    figure, axes = _figure()
    floor = min((d.kl.value for *_, d in found if d.kl.value > 0), default=1e-6) / 10
    for i, (name, model, d) in enumerate(found):
        error = d.kl.error if math.isfinite(d.kl.error) else 0.0
        y, color = max(d.kl.value, floor), COLORS[i % len(COLORS)]
        axes.errorbar(model.nbytes / 1e6, y, error, fmt="o", color=color, capsize=3)
        label = f"{name}\n{d.kl.value:.2g}" if d.kl.value > 0 else f"{name}\n0"
        axes.annotate(
            label,
            (model.nbytes / 1e6, y),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            size=8,
            parse_math=False,
        )
    axes.set_yscale("log")
    axes.margins(x=0.2, y=0.15)
    axes.set(xlabel="size of the tensors in MB", ylabel="mean KL divergence in nats")
    _bits_above(axes, comparison.base)
    _finish(axes, f"Distance from {_short(comparison)} over size")
    return figure


def _bits_above(axes: Axes, base: Model) -> None:
    """A second axis, in bits per weight of the base."""
    scale = 8e6 / base.weights

    def bits(megabytes: Any) -> Any:
        return megabytes * scale

    def size(bits: Any) -> Any:
        return bits / scale

    above = axes.secondary_xaxis("top", functions=(bits, size))
    above.set_xlabel("bits per weight", size=8)
    above.tick_params(labelsize=8)


def kl_over_tokens(comparison: Comparison) -> Figure:
    """The share of the tokens with at least a KL, over that KL, one line per model.

    Raises ValueError if the comparison has no text.
    """
    found = _divergences(comparison)
    figure, axes = _figure()
    low = high = 0.0
    for i, (name, _, d) in enumerate(found):
        kls = np.sort(d.kls)
        more = np.arange(kls.size, 0, -1) / kls.size  # at or above each
        style = STYLES[i % len(STYLES)]
        axes.plot(
            kls, more, style, color=COLORS[i % len(COLORS)], label=name, drawstyle="steps-pre"
        )
        positive = kls[kls > 0]
        if positive.size:
            first = float(np.quantile(positive, 0.02))
            low, high = min(low or first, first), max(high, float(positive[-1]))
    axes.set_yscale("log")
    if high > 0:
        axes.set_xscale("log")
        axes.set_xlim(low, high * 1.3)
    axes.set_yticks(
        [1, 0.5, 0.1, 0.05, 0.01, 0.001], ["all", "50 %", "10 %", "5 %", "1 %", "0.1 %"]
    )
    axes.set_ylim(0.7 / max(d.tokens for *_, d in found), 1.2)
    axes.minorticks_off()
    axes.set(xlabel="KL divergence in nats", ylabel="share of tokens with at least this KL")
    axes.legend(fontsize=8, loc="lower left")
    _finish(axes, f"Distance from {_short(comparison)}, token by token")
    return figure


def error_by_layer(comparison: Comparison, other: int = 0) -> Figure:
    """A heat map of the relative errors: one row per layer, one column per kind of tensor.

    other: index in `others`. Kinds that are exact in every layer have no column.
    Raises ValueError if the tensors were not compared.
    """
    from matplotlib.colors import LogNorm

    tensors = comparison.others[other].tensors
    if tensors is None:
        raise ValueError("the comparison has no tensors")
    kinds, table, rest = _by_layer(tensors)
    size = (max(4.5, 0.75 * len(kinds)) + 2.2, min(max(2.0, 0.27 * len(table)), 14.0) + 1.8)
    figure, axes = _figure(size)
    known = table[np.isfinite(table) & (table > 0)]
    if known.size:
        low, high = known.min() * 0.999, known.max() * 1.001
        norm = LogNorm(low, high)
        image = axes.imshow(
            np.ma.masked_where(~(table > 0), table), cmap="cividis", norm=norm, aspect="auto"
        )
        bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.04)
        ticks = np.geomspace(known.min(), known.max(), TICKS).tolist()
        bar.set_ticks(ticks, labels=[f"{100 * tick:.2g} %" for tick in ticks])
        bar.ax.minorticks_off()
        bar.ax.tick_params(labelsize=7)
        bar.set_label("rms(b - a) / rms(a)", size=8)
        if len(table) <= MOST_NUMBERS:
            _numbers(axes, table, math.sqrt(low * high))
    axes.set_facecolor(EXACT)
    axes.set_xticks(range(len(kinds)), kinds, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(0, len(table), 1 if len(table) <= MOST_NUMBERS else 4))
    axes.tick_params(labelsize=8)
    axes.set_ylabel("layer")
    name = Path(comparison.others[other].model.name).name
    title = f"Error of the tensors of {name}, against {_short(comparison)}"
    axes.set_title("\n".join([title, *rest]), size=9, parse_math=False)
    return figure


def _by_layer(tensors: TensorErrors) -> tuple[list[str], np.ndarray, list[str]]:
    """Kinds, errors (layers, kinds) with NaN where there is no tensor, and a line about those outside the layers."""
    cells: dict[tuple[int, str], float] = {}
    outside = []
    for e in tensors.errors:
        value = math.nan if e.relative is None else e.relative
        match = LAYER.match(e.name)
        if match is not None:
            cells[int(match[1]), match[2]] = value
        elif value != 0:
            outside.append(f"{e.name.removesuffix('.weight')} {value:.2%} ({e.type})")
    kinds = sorted({kind for (_, kind), value in cells.items() if value != 0}, key=_order)
    table = np.full((1 + max((layer for layer, _ in cells), default=0), len(kinds)), math.nan)
    for (layer, kind), value in cells.items():
        if kind in kinds:
            table[layer, kinds.index(kind)] = value
    return kinds, table, ["outside the layers: " + ", ".join(outside)] if outside else []


def _order(kind: str) -> tuple[int, str]:
    """As the data flow: attention, then the MLP or the experts, then what else there is."""
    stem = kind.removesuffix("_exps").removesuffix("_shexp")
    return KINDS.index(stem) if stem in KINDS else len(KINDS), kind


def _numbers(axes: Axes, table: np.ndarray, middle: float) -> None:
    """The errors in percent, in their cells; middle: where the colours turn from dark to light."""
    for (row, column), value in np.ndenumerate(table):
        if math.isfinite(value):
            color = "white" if 0 < value < middle else "black"
            text = f"{100 * value:.2g}" if value else "0"
            axes.text(column, row, text, ha="center", va="center", size=7, color=color)


def _short(comparison: Comparison) -> str:
    return Path(comparison.base.name).name


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, size=10, parse_math=False)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
