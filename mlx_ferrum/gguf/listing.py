"""What a GGUF file holds, as text or as JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .file import GGUF
from .header import TensorInfo
from .values import Strings

_SHOWN_ITEMS, _SHOWN_CHARACTERS, _NAME_WIDTH = 4, 80, 60
_EXPERT = re.compile(r"(blk\.\d+\.\w+)\.\d+\.weight$")  # in packed files


def as_json(model: GGUF) -> dict[str, Any]:
    """Everything, nothing abbreviated; numbers that JSON lacks are None."""
    return {
        "path": str(model.path),
        "version": model.version,
        "alignment": model.alignment,
        "parts": [part.size for part in model.parts],
        "metadata": {key: _json_value(value) for key, value in model.metadata.items()},
        "tensors": [vars(info) for info in model.tensors.values()],
    }


def _json_value(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _json_value(value.tolist())
    if isinstance(value, (list, Strings)):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def as_text(model: GGUF, full: bool) -> Iterator[str]:
    """Lines for people. full: long strings and arrays are not abbreviated."""
    size, count = sum(part.size for part in model.parts), len(model.parts)
    files = f"{count} files, " if count > 1 else ""
    yield f"{model.path}"
    yield f"GGUF version {model.version}, {files}{size:,} bytes, alignment {model.alignment}"
    yield f"\nMetadata ({len(model.metadata)})"
    rows = [(_plain(key), shown(value, full)) for key, value in model.metadata.items()]
    yield from _table(rows, "<<")
    yield f"\nTensors ({len(model.tensors)})"
    head, tensors = ("name", "type", "shape", "bytes"), list(model.tensors.values())
    yield from _table([head, *map(_tensor_row, tensors if full else _together(tensors))], "<<>>")
    yield "\nTypes"
    yield from _table(_totals(tensors), "<>>>>")


def _together(tensors: list[TensorInfo]) -> Iterator[TensorInfo]:
    """Tensors of experts that differ only in their number as one, shaped as a stack."""
    groups: dict[tuple[str, str, tuple[int, ...]], list[TensorInfo]] = {}
    for info in tensors:
        name = _EXPERT.sub(r"\1.*.weight", info.name)
        groups.setdefault((name, info.type, info.shape), []).append(info)
    for (name, _, shape), group in groups.items():
        first, count = group[0], len(group)
        if count > 1:
            nbytes = count * first.nbytes
            yield replace(first, name=name, shape=(count, *shape), nbytes=nbytes)
        else:
            yield first


def _tensor_row(info: TensorInfo) -> tuple[str, ...]:
    return _plain(info.name), info.type, " x ".join(map(str, info.shape)), f"{info.nbytes:,}"


def _totals(tensors: list[TensorInfo]) -> list[tuple[str, ...]]:
    """Rows of type, tensors, weights, bytes and bits per weight, the largest type first."""
    groups: dict[str, list[TensorInfo]] = {}
    for info in tensors:
        groups.setdefault(info.type, []).append(info)
    rows: list[tuple[str, ...]] = [("type", "tensors", "weights", "bytes", "bits/weight")]
    largest_first = sorted(groups.items(), key=lambda item: -sum(t.nbytes for t in item[1]))
    for name, group in [*largest_first, ("total", tensors)]:
        weights, nbytes = sum(math.prod(t.shape) for t in group), sum(t.nbytes for t in group)
        bits = f"{8 * nbytes / weights:.2f}" if weights else "-"
        rows.append((name, f"{len(group):,}", f"{weights:,}", f"{nbytes:,}", bits))
    return rows


def _table(rows: Sequence[tuple[str, ...]], aligned: str) -> Iterator[str]:
    """Lines with the columns in step. `aligned`: "<" or ">" for each; an absurd name sticks out."""
    widths = [min(max(map(len, column)), _NAME_WIDTH) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{c:{a}{w}}" for c, a, w in zip(row, aligned, widths, strict=True))
        yield ("  " + "  ".join(cells)).rstrip()


def _plain(name: str) -> str:
    """A name as it is, or escaped if a terminal might act on it."""
    return name if name.isprintable() else repr(name)


def shown(value: Any, full: bool = False) -> str:
    """A metadata value for people, abbreviated unless `full`."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}[{value.size}] {_items(value, full)}"
    if isinstance(value, Strings):
        return f"str[{len(value)}] {_items(value, full)}"
    if isinstance(value, list):
        return f"array[{len(value)}] {_items(value, full)}"
    if isinstance(value, str):
        return repr(value) if full else _abbreviated(value)
    return _short(value) if isinstance(value, float) else str(value)


def _short(value: float) -> str:
    """The fewest digits: 1e-06 for a float32 that is 9.999999974752427e-07 as a double."""
    with np.errstate(over="ignore"):
        single = np.float32(value)
    return repr(float(str(single)) if single == value else value)


def _items(values: Sequence[Any] | np.ndarray, full: bool) -> str:
    some = values if full else values[:_SHOWN_ITEMS]
    items = some.tolist() if isinstance(some, np.ndarray) else some
    more = [] if len(some) == len(values) else ["…"]
    return f"[{', '.join([*(shown(item, full) for item in items), *more])}]"


def _abbreviated(text: str) -> str:
    if len(text) <= _SHOWN_CHARACTERS:
        return repr(text)
    return f"{text[:_SHOWN_CHARACTERS]!r}… ({len(text):,} characters)"
