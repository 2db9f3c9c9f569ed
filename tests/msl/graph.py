"""The graph of what MLX has not evaluated yet, from its text in the DOT language."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# Primitives that only say how memory is to be seen; where one copies after all, its result is elsewhere.
VIEWS = {
    "AsStrided",
    "Broadcast",
    "BroadcastAxes",
    "Copy",
    "Depends",
    "ExpandDims",
    "Flatten",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "StopGradient",
    "Transpose",
    "Unflatten",
    "View",
}
# They write into the memory of their first input if nothing else holds it, and else into a copy.
UPDATES = {"DynamicSliceUpdate", "Scatter", "ScatterAxis", "SliceUpdate"}
_LINE = re.compile(
    r'\{ (?P<id>\d+) \[label ="(?P<label>[^"]*)"'
    r'|"(?P<input>[^"]*)" -> (?P<reader>\d+)'
    r'|(?P<writer>\d+) -> "(?P<output>[^"]*)"'
)


@dataclass
class Operation:
    """A primitive, and the names of the arrays that it takes and makes."""

    name: str
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def operations(text: str) -> list[Operation]:
    """text: of mx.export_to_dot -> its operations, each after those whose results it takes."""
    found: dict[str, Operation] = {}
    for line in _LINE.finditer(text):
        if line["id"]:
            found[line["id"]] = Operation(line["label"])
        elif line["reader"]:
            found[line["reader"]].inputs.append(line["input"])
        else:
            found[line["writer"]].outputs.append(line["output"])
    return list(found.values())
