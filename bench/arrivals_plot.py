"""A picture of what server.py measured: `python bench/arrivals_plot.py server.json`. One row a model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from plot import COLORS, sheet

PARTS = {"rate": "tokens per second", "first": "first token, ms", "gap": "between tokens, ms"}


def draw(results: dict[str, Any], path: Path) -> None:
    """Write a PNG. results: what server.py saves."""
    models, hardware = results["models"], results["hardware"]
    title = (
        f"Requests that come and go, prompts up to {results['prompt']} tokens, {results['tokens']} generated, "
        f"on {hardware['cpu']}, {hardware['cores']} cores"
    )
    figure, rows = sheet(title, len(models), 11)
    for part, model in zip(rows, models, strict=True):
        part.suptitle(model["name"], x=0.01, ha="left")
        for axes, kind in zip(part.subplots(1, 3), PARTS, strict=True):
            _bars(axes, model["rows"], kind)
    figure.savefig(path)


def _bars(axes: Axes, rows: list[dict[str, Any]], kind: str) -> None:
    """A bar a program and load: the rate, or the median with lines up to percentiles 95 and 99."""
    names = [name for name in COLORS if any(name in row["waits"] for row in rows)]
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        at = np.arange(len(rows)) + (i - (len(names) - 1) / 2) * width
        found = [row["waits"][name][kind] for row in rows]
        if kind == "rate":
            bars = axes.bar(at, found, width, color=COLORS[name], label=name)
            axes.bar_label(bars, fmt="{:,.0f}", fontsize=7)
            continue
        middle, most, worst = (1e3 * np.array([x[n] for x in found]) for n in range(3))
        axes.bar(at, middle, width, color=COLORS[name], label=name)
        axes.vlines(at, middle, worst, color=COLORS[name], linewidth=1)
        axes.plot(at, most, "_", color="black", markersize=8)
    axes.set_xticks(range(len(rows)), [row["load"] for row in rows])
    axes.set_title(
        PARTS[kind] if kind == "rate" else f"{PARTS[kind]}: p50, mark p95, line to p99", size=9
    )
    axes.set_ylim(0, None)
    axes.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(json.loads(source.read_text()), source.with_suffix(".png"))
