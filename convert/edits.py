"""Changes to metadata: set, delete, rename; each checked, and none that makes a file unloadable unless forced."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_ferrum.gguf.listing import shown

from .output import ALIGNMENT, Value
from .values import Kind, as_list, kind_name, pack, parse, parse_kind

GUARDED = ("general.architecture", ALIGNMENT, "split.")
TEMPLATE = "tokenizer.chat_template"
MAX_ALIGNMENT = 1 << 24


@dataclass(frozen=True)
class Set:
    """--set KEY=VALUE or KEY:TYPE=VALUE; kind: None keeps the type that is there."""

    key: str
    text: str
    kind: tuple[Kind, Kind | None] | None = None


@dataclass(frozen=True)
class Delete:
    """--delete KEY"""

    key: str


@dataclass(frozen=True)
class Rename:
    """--rename OLD=NEW"""

    key: str
    new: str


Edit = Set | Delete | Rename


def parse_set(text: str) -> Set:
    """The type of --set. A colon belongs to the key unless a type follows it."""
    left, equals, value = text.partition("=")
    if not equals or not left:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE or KEY:TYPE=VALUE, found {text!r}")
    key, colon, kind = left.rpartition(":")
    if colon and not key:
        raise argparse.ArgumentTypeError(f"expected a key before the type, found {text!r}")
    if not colon:
        return Set(left, value)
    try:
        return Set(key, value, parse_kind(kind))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{left}: {error}") from None


def parse_rename(text: str) -> Rename:
    """The type of --rename."""
    old, _, new = text.partition("=")
    if not old or not new:
        raise argparse.ArgumentTypeError(f"expected OLD=NEW, found {text!r}")
    return Rename(old, new)


def template(path: Path) -> Set:
    """--chat-template FILE. Raises ValueError for a file that is not UTF-8."""
    try:
        return Set(TEMPLATE, path.read_text(encoding="utf-8"), (Kind.STRING, None))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None


def apply(metadata: Mapping[str, Value], edits: Sequence[Edit], *, force: bool) -> dict[str, Value]:
    """The metadata after the edits, one after the other; keys keep their places.

    Raises ValueError for a key that is not there, a value that its type does not hold, a name that is taken, and,
    unless `force`, for a key that the file cannot be loaded without.
    """
    found = dict(metadata)
    for edit in edits:
        names = [edit.key, edit.new] if isinstance(edit, Rename) else [edit.key]
        for key in names:
            if key.startswith(GUARDED) and not force:
                raise ValueError(f"{key}: a change can make the file unloadable; --force does it")
        if isinstance(edit, Set):
            found[edit.key] = _value(found, edit)
        elif edit.key not in found:
            raise ValueError(f"{edit.key}: no such metadata key{_near(edit.key, found)}")
        elif isinstance(edit, Delete):
            del found[edit.key]
        elif edit.new in found:
            raise ValueError(f"{edit.new}: is there already, so {edit.key} cannot be renamed to it")
        else:
            found = {edit.new if k == edit.key else k: v for k, v in found.items()}
    _check_alignment(found)
    return found


def changes(before: Mapping[str, Value], after: Mapping[str, Value]) -> Iterator[str]:
    """What differs, a line for each key."""
    for key in [*before, *(key for key in after if key not in before)]:
        old, new = before.get(key), after.get(key)
        if new is None:
            assert old is not None
            yield f"- {key} = {_shown(old)}"
        elif old is None:
            yield f"+ {key} = {_shown(new)}"
        elif old.packed != new.packed:
            yield f"  {key} = {_shown(old)} -> {_shown(new)}"


def _shown(value: Value) -> str:
    return f"{kind_name(value.kind, value.element)} {shown(value.value)}"


def _value(metadata: Mapping[str, Value], edit: Set) -> Value:
    there = metadata.get(edit.key)
    if edit.kind is not None:
        kind, element = edit.kind
    elif there is None:
        hint = _near(edit.key, metadata)
        raise ValueError(f"{edit.key}: a new key needs a type: --set {edit.key}:TYPE=VALUE{hint}")
    else:
        kind, element = there.kind, there.element
    try:
        value = parse(edit.text, kind, element)
        return Value(value, kind, element, raw=pack(value, kind, element))
    except ValueError as error:
        raise ValueError(f"{edit.key}: {error}") from error


def _near(key: str, keys: Mapping[str, Value]) -> str:
    """A key that was meant, perhaps."""
    import difflib

    near = difflib.get_close_matches(key, list(keys), 1)
    return f"; did you mean {near[0]}?" if near else ""


def _check_alignment(metadata: Mapping[str, Value]) -> None:
    if ALIGNMENT not in metadata:
        return
    value = as_list(metadata[ALIGNMENT].value)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not is_number or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        raise ValueError(
            f"{ALIGNMENT}: expected a power of two up to {MAX_ALIGNMENT}, found {value}"
        )
