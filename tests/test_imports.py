"""Which module imports which: imports go to lower rooms only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlx_ferrum

# A room is a line: the modules whose names start with one of its words, the longest that fits. Modules of one room may
# import each other. Commands, wherever they are, lie above all rooms.
ROOMS = """
amounts argument_types drawing entry interrupts kernel_text lazy memory notice parser progress system
replies
options profile
kernels.cpu kernels.quantize
blocks
kernels.cuda kernels.subnormals launch
tensor
batch state
shapes
kernels
backends
ops
cache nn rope
sample
template
tokenizer
structured
catalog
gguf
packed
models
budget load locked saved sizes streamed traffic
embed
engine
generate
experts
cli
chat doctor
server
convert
"""
LEVELS = {word: level for level, line in enumerate(ROOMS.split("\n")) for word in line.split()}
COMMANDS = len(ROOMS.split("\n"))


def sources() -> dict[str, Path]:
    """The files of the package by the names of their modules, without "mlx_ferrum."."""
    found: dict[str, Path] = {}
    for folder in mlx_ferrum.__path__:
        for room in {word.partition(".")[0] for word in LEVELS}:
            for path in (Path(folder) / f"{room}.py", *(Path(folder) / room).rglob("*.py")):
                parts = path.relative_to(folder).with_suffix("").parts
                name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                if path.is_file():
                    found[name] = path
    return found


SOURCES = sources()


def imported(name: str, text: str) -> Iterator[str]:
    """The modules of the package that a module's text imports, at its top or in functions."""
    package = f"mlx_ferrum.{name}".split(".")
    if SOURCES[name].stem != "__init__":
        package.pop()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package[: len(package) + 1 - node.level] if node.level else []
        start = ".".join([*base, *([node.module] if node.module else [])])
        if start.partition(".")[0] == "mlx_ferrum":
            for alias in node.names:
                if alias.name.startswith("__"):  # the folder of a package, not what it computes
                    continue
                whole = f"{start}.{alias.name}".removeprefix("mlx_ferrum.")
                yield whole if whole in SOURCES else start.removeprefix("mlx_ferrum.")


def level(name: str) -> int:
    """The line of ROOMS that a module is in, counted from the top."""
    if name.rpartition(".")[2] in ("command", "__main__") or name.startswith("convert.commands."):
        return COMMANDS
    words = name.split(".")
    starts = (".".join(words[:n]) for n in range(len(words), 0, -1))
    return next(LEVELS[start] for start in starts if start in LEVELS)


def climbs(name: str, text: str) -> list[str]:
    """What a module imports from higher rooms. A package may name what is in its own folder."""
    package = f"{name}." if SOURCES[name].stem == "__init__" else None
    return [
        target
        for target in imported(name, text)
        if target != "mlx_ferrum" and level(target) > level(name)
        if package is None or not target.startswith(package)
    ]


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_imports_go_to_lower_rooms(name: str) -> None:
    assert climbs(name, SOURCES[name].read_text()) == []


def test_every_module_is_in_a_room() -> None:
    own = {path.stem for path in Path(mlx_ferrum.__file__).parent.iterdir() if path.suffix == ".py"}
    rooms = {word.partition(".")[0] for word in LEVELS}
    assert own - rooms == {"__init__"}
    assert len(SOURCES) > 250


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("catalog.hub", "from .. import cli", ["cli"]),
        ("kernels.route", "from mlx_ferrum.ops import Routing", ["ops"]),
        ("backends.cpu.step", "def f():\n    from ...cache import KVCache", ["cache"]),
        ("catalog", "from .command import main", []),
        ("catalog.hub", "from .command import main", ["catalog.command"]),
        ("models.llama", "from .. import ops, nn, rope", []),
        ("generate.stream", "from .step import generate_step", []),
    ],
)
def test_imports_from_higher_rooms_are_found(name: str, text: str, found: list[str]) -> None:
    assert climbs(name, text) == found
