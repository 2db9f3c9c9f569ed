"""A picture of what serving.py measured: `python bench/serving_plot.py serving.json`. One row a model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from plot import COLORS, sheet

TITLES = {"prompt": "prompts", "generate": "generation"}


def draw(results: dict[str, Any], path: Path) -> None:
    """Write a PNG. results: what serving.py saves."""
    models, hardware = results["models"], results["hardware"]
    title = (
        f"Tokens per second of all sequences together, {results['prompt']} + {results['tokens']} tokens each, "
        f"on {hardware['cpu']}, {hardware['cores']} cores"
    )
    figure, rows = sheet(title, len(models), 9)
    for part, model in zip(rows, models, strict=True):
        part.suptitle(model["name"], x=0.01, ha="left")
        for axes, kind in zip(part.subplots(1, 2), TITLES, strict=True):
            _lines(axes, [row for row in model["rows"] if row["kind"] == kind], TITLES[kind])
    figure.savefig(path)


def _lines(axes: Axes, rows: list[dict[str, Any]], title: str) -> None:
    """A line a program, with the lowest and highest run."""
    counts = [row["sequences"] for row in rows]
    for name, color in COLORS.items():
        rates = [row["rates"][name] for row in rows if name in row["rates"]]
        if not rates:
            continue
        medians = [rate["median"] for rate in rates]
        low, high = ([rate[end] for rate in rates] for end in ("low", "high"))
        axes.plot(counts, medians, marker="o", color=color, label=name)
        axes.fill_between(counts, low, high, color=color, alpha=0.15, linewidth=0)
        axes.annotate(
            f"{medians[-1]:,.0f}",
            (counts[-1], medians[-1]),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=color,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set(title=title, xlabel="sequences at once", ylabel="tok/s", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(json.loads(source.read_text()), source.with_suffix(".png"))
