"""The fields of a request's body: each is checked when it is read, and those that nobody reads are named once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mlx_ferrum.notice import warn

from .errors import RequestError


class Fields:
    """A JSON object. A field that is null counts as absent. All methods raise RequestError that names the field.

    place: where the object is, for messages
    """

    def __init__(self, values: Any, place: str = "") -> None:
        self.place = place
        if not isinstance(values, Mapping):
            what = place or "the body"
            text = f"{what}: {_kind(values)} found, expected an object"
            raise RequestError(text, param=place or None)
        self._values, self._read = values, set[str]()

    def error(self, name: str, found: Any, expected: str) -> RequestError:
        """The error that a field is not what is expected."""
        shown = repr(found) if isinstance(found, (int, float, str)) else _kind(found)
        if not found and self._values.get(name) is None:  # it is the default
            shown = "null" if name in self._values else "nothing"
        text = f"{self._name(name)}: {shown[:80]} found, expected {expected}"
        return RequestError(text, param=self._name(name))

    def _name(self, name: str) -> str:
        return f"{self.place}.{name}" if self.place else name

    def get(self, name: str, default: Any = None) -> Any:
        """A field of any type."""
        self._read.add(name)
        value = self._values.get(name)
        return default if value is None else value

    def text(self, name: str, default: str | None = None) -> Any:
        """A string; an error if it is absent and there is no default."""
        value = self.get(name, default)
        if not isinstance(value, str):
            raise self.error(name, value, "a string")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, value, "true or false")
        return value

    def number(self, name: str, default: Any, low: float, high: float) -> Any:
        """A finite number from `low` to `high`, or the default."""
        value = self.get(name)
        if value is None:
            return default
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:  # NaN is not in between either
            raise self.error(name, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def whole(self, name: str, default: Any, low: int, high: int) -> Any:
        """A whole number from `low` to `high`, or the default."""
        value = self.get(name)
        if value is None:
            return default
        is_whole = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_whole or not low <= value <= high or int(value) != value:
            raise self.error(name, value, f"a whole number from {low} to {high}")
        return int(value)

    def object(self, name: str) -> Fields:
        """An object; an empty one if it is absent."""
        return Fields(self.get(name, {}), self._name(name))

    def items(self, name: str) -> list[Any]:
        """A list; an empty one if it is absent."""
        value = self.get(name, [])
        if not isinstance(value, list):
            raise self.error(name, value, "a list")
        return value

    def objects(self, name: str) -> list[Fields]:
        """A list of objects; an empty one if it is absent."""
        place = self._name(name)
        return [Fields(each, f"{place}[{i}]") for i, each in enumerate(self.items(name))]

    def texts(self, name: str) -> list[str]:
        """A string or a list of strings; an empty list if it is absent."""
        value = self.get(name, [])
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise self.error(name, value, "a string or a list of strings")
        return found

    def refuse(self, name: str, allowed: Collection[Any] = ()) -> None:
        """A field that cannot be honoured, but for some values and empty ones."""
        value = self.get(name)
        if value is not None and value not in (False, "", [], {}) and value not in allowed:
            raise RequestError(
                f"{self._name(name)} is not supported", param=self._name(name), code="unsupported"
            )

    def finish(self, ignored: Collection[str] = ()) -> None:
        """Name the fields that nobody has read, but for those that may be ignored, in one line of the log."""
        rest = sorted(map(str, self._values.keys() - self._read - set(ignored)))
        if rest:
            shown = ", ".join(name[:40] for name in rest[:20])
            warn(f"fields that are ignored: {self._name(shown)}")


def _kind(value: Any) -> str:
    """The type of a JSON value."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    if value == []:
        return "an empty list"
    return "null" if value is None else names.get(type(value), "a number")
