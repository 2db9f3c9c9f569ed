"""Jinja for templates of unknown origin: the immutable sandbox, with limits on steps, text and time.

No rendering runs long or takes much memory, because no single operation does and operations are counted
(counting.py): whatever a template makes is measured before it can be used again, and it has only methods
and filters whose result is no larger than their arguments, or that are refused beforehand if it would be.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from .budget import Budget, Limits
from .counting import JOINED, MEASURED, STEP, Counters, Generation

_METHODS = frozenset(
    """capitalize casefold center copy count endswith find format get index isalnum isalpha isascii
    isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper items join keys
    ljust lower lstrip partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit
    rstrip split splitlines startswith strip swapcase title upper values zfill""".split()
)
_ITERATING = frozenset(
    """batch dictsort first groupby join last list map max min reject rejectattr reverse select
    selectattr slice sort sum unique""".split()
)
_FILTERS = _ITERATING | frozenset(
    """abs attr capitalize center count d default e escape float forceescape format indent int items
    length lower replace round safe string title trim truncate upper urlencode wordcount""".split()
)
_BUILT_IN = (str, bytes, int, float, list, tuple, dict)
_LARGEST_INT = 1 << 20  # as an argument: a width, a count
_LONGEST_LOOP = 1 << 17  # over the characters of a string, inside a filter
_MOST_BITS = 1 << 12
_MOST_PLACES = 32


class Sandbox(ImmutableSandboxedEnvironment):
    """Not for two renderings at a time: `budget` is the present one's."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, limits: Limits) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[loopcontrols, Generation],
            finalize=_write,
            cache_size=0,
        )
        self.budget = Budget(limits)
        kept = {name: self.globals[name] for name in ("range", "dict", "cycler", "joiner")}
        own = {"namespace": _Namespace, "raise_exception": _raise, "strftime_now": _now}
        self.globals = {**kept, **own}
        filters = {name: self.filters[name] for name in _FILTERS} | {
            "join": _join,
            "tojson": _tojson,
        }
        self.filters = {name: self._guarded(name, filters[name]) for name in filters}
        self.filters |= {STEP: self._step, MEASURED: self._measured, JOINED: self._joined}

    def prepare(self, source: str) -> jinja2.Template:
        """Parse and compile a template."""
        if len(source) > self.budget.limits.source:
            raise ValueError(
                f"{len(source)} characters found, expected at most {self.budget.limits.source}"
            )
        tree = Counters().visit(self.parse(source))
        tree.set_environment(self)
        return jinja2.Template.from_code(self, self.compile(tree), self.make_globals(None))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Of built-in types only known methods are safe."""
        if callable(value) and isinstance(obj, _BUILT_IN) and attr not in _METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method, macro or global; the result is measured."""
        self.budget.step()
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, _BUILT_IN):
            args = tuple(list(arg) if isinstance(arg, Iterator) else arg for arg in args)
            self._foresee(method.__name__, owner, (*args, *kwargs.values()))
        return self._measured(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator whose result could be large, unless it would be too large."""
        self.budget.step()
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "**" or (operator == "*" and numbers):
            self._foresee_number(operator, left, right)
        elif operator == "*":
            value, count = (right, left) if isinstance(left, int) else (left, right)
            size = len(value) if isinstance(value, str) else self.budget.measure(value)
            self.budget.check(size * max(count, 1))
        elif operator == "%" and isinstance(left, str):
            self._foresee("format", left, (right,))
        else:
            self.budget.measure(left, right)
        return super().call_binop(context, operator, left, right)

    def _foresee_number(self, operator: str, left: Any, right: Any) -> None:
        """Refuse a product or power of integers that would be too large."""
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length()
            bits = bits * abs(right) if operator == "**" else bits + right.bit_length()
            if bits > _MOST_BITS:
                raise ValueError(f"an integer of more than {_MOST_BITS} bits")

    def _foresee(self, name: str, value: Any, args: tuple[Any, ...]) -> None:
        """Refuse a method or filter whose result would be too large."""
        if any(isinstance(arg, int) and abs(arg) > _LARGEST_INT for arg in args):
            raise ValueError(f"{name}: an argument above {_LARGEST_INT}")
        if (
            name in _ITERATING
            and isinstance(value, str)
            and len(value) > _LONGEST_LOOP
            and name != "join"
        ):
            raise ValueError(f"{name}: a string of more than {_LONGEST_LOOP} characters")
        check, measure = self.budget.check, self.budget.measure
        if name == "join" and isinstance(value, str) and args:
            check(measure(args[0]) + len(value) * _length(args[0]))
        elif name == "replace" and len(args) >= 2:
            text, new = str(value), str(args[1])
            check(len(text) + text.count(str(args[0])) * len(new))
        elif name == "indent" and args:
            width = len(args[0]) if isinstance(args[0], str) else args[0]
            check(len(str(value)) + (len(str(value).splitlines()) + 1) * width)
        elif name in ("format", "format_map"):
            self._foresee_format(str(value), args)
        elif name == "round" and any(
            isinstance(arg, int) and abs(arg) > _MOST_PLACES for arg in args
        ):
            raise ValueError(f"round: more than {_MOST_PLACES} places")
        elif name == "sum" and not all(isinstance(arg, (int, float, str)) for arg in args):
            raise ValueError("sum: only numbers can be added up")

    def _foresee_format(self, form: str, args: tuple[Any, ...]) -> None:
        """Refuse a format that would give too much: each field may show all arguments."""
        if "*" in form or re.search(r"\{[^{}:!]*[.\[]", form):
            raise ValueError("format: widths and parts taken from arguments are not supported")
        widths = sum(min(int(digits[:9]), 10**9) for digits in re.findall("[0-9]+", form))
        fields = form.count("%") + form.count("{")
        self.budget.check(len(form) + widths + fields * self.budget.measure(*args))

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that counts a step and whose result is foreseen and measured."""
        skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.budget.step()
            value, *rest = args[skipped:]
            self._foresee(name if name != "join" else "", value, (*rest, *kwargs.values()))
            return self._measured(function(*args, **kwargs))

        return guarded

    def _step(self, count: int) -> bool:
        self.budget.step(count)
        return True

    def _measured(self, value: Any) -> Any:
        """The value, if it is not too large; views of a dict as lists, for those can be measured."""
        if isinstance(value, (KeysView, ValuesView, ItemsView)):
            value = list(value)
        self.budget.measure(value)
        return value

    def _joined(self, values: list[Any]) -> str:
        self.budget.step()
        self.budget.measure(values)
        return "".join(map(str, values))


class _Namespace(Namespace):
    """Jinja's namespace, which does not write out what it holds, for that is not measured."""

    def __repr__(self) -> str:
        return "<namespace>"


@jinja2.pass_context
def _write(context: Context, value: Any) -> str:
    """Text of an expression's value."""
    assert isinstance(context.environment, Sandbox)
    return context.environment.budget.write(str(value))


@jinja2.pass_environment
def _join(environment: Sandbox, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    """Jinja's join, over values that are measured first."""
    items = list(value)
    if attribute is not None:
        items = list(map(make_attrgetter(environment, attribute), items))
    environment.budget.check(environment.budget.measure(items) + len(d) * len(items))
    return d.join(map(str, items))


@jinja2.pass_environment
def _tojson(
    environment: Sandbox,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates expect it: text as it is, nothing escaped for HTML."""
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    environment.budget.measure(value)
    parts, size = [], 0
    for part in encoder.iterencode(value):
        parts.append(part)
        size += len(part)
        environment.budget.check(size)
    return "".join(parts)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 0
