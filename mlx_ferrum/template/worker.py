"""Renders chat templates, in a process of its own that template/process.py starts.

Reads requests from stdin and writes answers to stdout, one JSON object a line. It imports nothing of the
rest of the package, so that it starts fast.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
from datetime import datetime
from typing import Any, NoReturn

import minijinja

_TAG = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
_TEST = re.compile(r"\bis\s+(not\s+)?(iterable|sequence)\b")
_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


class Float:
    """A number that minijinja would write in another way than Python does, such as 1.0 or 1e+20."""

    def __init__(self, text: str) -> None:
        self.value = float(text)

    def __str__(self) -> str:
        return str(self.value)

    __repr__ = __str__


def main() -> None:
    """Answer requests until stdin ends.

    Arguments: seconds of CPU time for each request, bytes of memory, characters of a text.
    """
    seconds, memory, longest = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if sys.platform == "linux" and (hard == resource.RLIM_INFINITY or memory < hard):
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))  # macOS does not enforce it
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        answer = json.dumps(_answer(json.loads(line, parse_float=_parse_float), longest))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(answer, flush=True)


def _answer(request: dict[str, Any], longest: int) -> dict[str, Any]:
    """The text of a template, or the names it uses when there are no variables; or what went wrong."""
    try:
        source, variables = _adapted(request["source"]), request["variables"]
        if variables is None:
            return {"names": sorted(_environment().undeclared_variables_in_str(source))}
        text = _environment().render_str(source, **variables)
        return (
            {"text": text}
            if len(text) <= longest
            else {"error": f"text of more than {longest} characters"}
        )
    except minijinja.TemplateError as error:
        place = "" if error.line is None else f"line {error.line}: "
        message = error.message.removesuffix(f" (in <string>:{error.line})")
        return {"error": place + " ".join(message.split())}
    except (
        ArithmeticError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _environment() -> minijinja.Environment:
    """A new environment for each request: after a panic one is of no use."""
    return minijinja.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        auto_escape_callback=lambda _: False,
        filters={"tojson": _tojson},
        tests={
            "iterable": lambda value: hasattr(value, "__iter__"),
            "sequence": lambda value: hasattr(value, "__getitem__"),
            "number": lambda value: isinstance(value, (int, float, Float)),
            "float": lambda value: isinstance(value, (float, Float)),
        },
        globals={"raise_exception": _raise, "strftime_now": _now},
    )


def _adapted(source: str) -> str:
    """A template in minijinja's terms."""
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    return _TAG.sub(lambda match: _adapted_tag(match[0]), source)


def _adapted_tag(tag: str) -> str:
    """A tag: generation blocks, which mark replies, are plain ones, and what is undefined is an empty list."""
    if block := _GENERATION.fullmatch(tag):
        return f"{{%{block[1]} {'endif' if block[2] else 'if true'} {block[3]}%}}"
    # The tests below get None for what is undefined, which in Jinja is a sequence, unlike None.
    return _TEST.sub(r"| default([]) \g<0>", tag)


def _parse_float(text: str) -> float | Float:
    value = float(text)
    return Float(text) if value.is_integer() or "e" in str(value) else value


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates expect it: text as it is, nothing escaped for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_plain,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Float):
        return value.value
    return list(value)  # a view of a dict, an iterator


def _raise(message: str) -> NoReturn:
    raise minijinja.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


if __name__ == "__main__":
    main()
