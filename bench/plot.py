"""A picture of what speed.py measured: `python bench/plot.py speed.json`. One row a model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = {"mlx_ferrum": "#c2410c", "llama.cpp": "#64748b"}
FAINTEST = 0.4  # the opacity of the fewest threads; the most have 1
LABELS = 16  # more bars than this have no figures on them


def sheet(title: str, models: int, width: float) -> tuple[Figure, list[Any]]:
    """A figure with a title, and a part of it for each model."""
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure = Figure(figsize=(width, 0.9 + 2.9 * models), layout="constrained", dpi=150)
    figure.suptitle(title, fontweight="bold")
    return figure, list(figure.subfigures(models, 1, squeeze=False)[:, 0])


def draw(results: dict[str, Any], path: Path) -> None:
    """Write a PNG. results: what speed.py saves."""
    models, hardware = results["models"], results["hardware"]
    title = f"Tokens per second on {hardware['cpu']}, {hardware['cores']} cores"
    figure, rows = sheet(title, len(models), 10)
    for part, model in zip(rows, models, strict=True):
        part.suptitle(f"{model['name']}  ({model['file_bytes'] / 1e6:.0f} MB)", x=0.01, ha="left")
        prompt, decode = part.subplots(1, 2, width_ratios=[3, 2])
        kinds = [
            [r for r in model["rows"] if r["test"].startswith(k)] for k in ("prompt", "decode")
        ]
        _bars(prompt, kinds[0], "prompt: tokens read in one go")
        _bars(decode, kinds[1], "generation: tokens one by one")
        _limits(decode, model, results["bandwidth"])
    _legend(figure, rows[0].axes[1])
    figure.savefig(path)


def _legend(figure: Figure, axes: Axes) -> None:
    """One for all panels, the limit last."""
    handles, labels = axes.get_legend_handles_labels()
    limit, *bars = zip(handles, labels, strict=True)
    entries = [*bars, limit]
    figure.legend(
        *zip(*entries, strict=True),
        loc="outside lower center",
        ncols=min(5, len(entries)),
        frameon=False,
        fontsize=8,
        columnspacing=1.5,
    )


def _bars(axes: Axes, rows: list[dict[str, Any]], title: str) -> None:
    """One group a length; in it, for each number of threads, one bar a program."""
    lengths = list(dict.fromkeys(row["test"].partition(" ")[2] for row in rows))
    threads = sorted({row["threads"] for row in rows})
    series = [(t, program) for t in threads for program in COLORS if program in rows[0]["rates"]]
    width = 0.84 / len(series)
    for i, (count, program) in enumerate(series):
        rates = [row["rates"][program] for row in rows if row["threads"] == count]
        at = [j + (i - (len(series) - 1) / 2) * width for j in range(len(lengths))]
        opacity = FAINTEST + (1 - FAINTEST) * (threads.index(count) + 1) / len(threads)
        label = f"{program}, {count} thread{'s' * (count > 1)}"
        style: dict[str, Any] = {"color": COLORS[program], "alpha": opacity, "label": label}
        bars = axes.bar(at, [rate["median"] for rate in rates], width * 0.92, **style)
        _ranges(axes, at, rates)
        if len(series) * len(lengths) <= LABELS:
            _figures(axes, bars, rates)
    axes.set_xticks(range(len(lengths)), [_tokens(length) for length in lengths])
    axes.set_title(title, fontsize=9)
    axes.set_ylabel("tokens / s")
    axes.margins(y=0.14)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#e2e8f0")


def _tokens(length: str) -> str:
    """For "64 after 8000": "64 tokens after 8000"."""
    count, _, after = length.partition(" ")
    return f"{count} tokens {after}".strip()


def _ranges(axes: Axes, at: list[float], rates: list[dict[str, float]]) -> None:
    below = [rate["median"] - rate["low"] for rate in rates]
    above = [rate["high"] - rate["median"] for rate in rates]
    medians = [rate["median"] for rate in rates]
    style: dict[str, Any] = {"ecolor": "#0f172a", "elinewidth": 0.8, "capsize": 2, "capthick": 0.8}
    axes.errorbar(at, medians, [below, above], fmt="none", **style)


def _figures(axes: Axes, bars: Any, rates: list[dict[str, float]]) -> None:
    """The median above each bar, clear of the line that shows the range."""
    for bar, rate in zip(bars, rates, strict=True):
        place = (bar.get_x() + bar.get_width() / 2, rate["high"])
        text = f"{rate['median']:.0f}"
        axes.annotate(text, place, (0, 2), textcoords="offset points", ha="center", fontsize=7.5)


def _limits(axes: Axes, model: dict[str, Any], bandwidth: dict[str, dict[str, float]]) -> None:
    """What the memory bandwidth with all threads would allow."""
    most = max(bandwidth, key=int)
    limit = bandwidth[most]["median"] * 1e9 / model["token_bytes"]
    label = f"memory bandwidth, {most} threads"
    axes.axhline(limit, color="#0f172a", linestyle="--", linewidth=1, label=label)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(json.loads(source.read_text()), source.with_suffix(".png"))
