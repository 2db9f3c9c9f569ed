"""Grammars of a tokenizer, compiled and kept."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from ..replies.calls import schemas
from ..replies.formats import CallFormat
from ..tokenizer import Tokenizer
from .follower import Follower, one_line
from .tokens import llguidance_tokenizer
from .tools import tool_grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher

LONGEST = 1 << 18  # characters of a grammar
_KEPT = 32  # compiled grammars
# JSON on one line, as most models spell it: keys and punctuation are forced, and no model is lost in white space.
_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_LIMITS = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 100_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}


def _inline(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a lark rule."""
    return f"%json {json.dumps({**schema, 'x-guidance': _JSON})}"


def _inline_leniently(schema: Mapping[str, Any]) -> str:
    """The same without the keywords that llguidance does not support."""
    return f"%json {json.dumps({**schema, 'x-guidance': {**_JSON, 'lenient': True}})}"


@dataclass(frozen=True)
class Reasoning:
    """Text that the model may write before what a grammar rules.

    open, close: what is around it
    is_open: the prompt has opened it
    """

    open: str
    close: str
    is_open: bool = False


@dataclass(frozen=True)
class ToolCalls:
    """Tool calls that a model may write instead of what a grammar rules, with arguments valid for the tools' schemas.

    format: how the model writes them
    is_parallel: whether there may be several
    """

    format: CallFormat
    tools: Sequence[Mapping[str, Any]]
    is_parallel: bool = True


class Grammar:
    """A compiled grammar: the `constraint` of requests."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def begin(self) -> Follower:
        """The state of a new text."""
        return Follower(self._matcher.deep_copy())


class Grammars:
    """Compiles grammars for a tokenizer; any thread may ask.

    vocab_size: columns of the logits; None: as many as tokens
    All methods raise ValueError, in one line, for a grammar that is wrong, not supported or too large.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int | None = None) -> None:
        size = tokenizer.vocab_size if vocab_size is None else vocab_size
        self._tokenizer, self._tokens = tokenizer, llguidance_tokenizer(tokenizer, size)
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = Lock()

    def json_schema(
        self,
        schema: Mapping[str, Any] | bool,
        reasoning: Reasoning | None = None,
        calls: ToolCalls | None = None,
    ) -> Grammar:
        """JSON that is valid for a schema."""
        from llguidance import LLMatcher

        if not isinstance(schema, Mapping | bool):
            raise ValueError(f"the JSON schema is {type(schema).__name__}, expected an object")
        whole = {"allOf": [{}]} if schema is True else schema
        if whole is False:
            raise ValueError("the JSON schema is false, which nothing is valid for")
        if "x-guidance" in whole:
            raise ValueError("the JSON schema has x-guidance, which is not supported")
        try:
            text = json.dumps({**whole, "x-guidance": _JSON})
            self._check_size("it", text)
            grammar = LLMatcher.grammar_from_json_schema(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"the JSON schema: {one_line(str(error))}") from None
        return self._grammar("the JSON schema", grammar, reasoning, calls)

    def json_object(self, reasoning: Reasoning | None = None) -> Grammar:
        """Any JSON object."""
        return self.json_schema({"type": "object"}, reasoning)

    def regex(
        self, pattern: str, reasoning: Reasoning | None = None, calls: ToolCalls | None = None
    ) -> Grammar:
        """Text that a regular expression matches from its start to its end."""
        from llguidance import LLMatcher

        self._check_size("the regular expression", pattern)
        grammar = LLMatcher.grammar_from_regex(pattern)
        return self._grammar("the regular expression", grammar, reasoning, calls)

    def lark(
        self, text: str, reasoning: Reasoning | None = None, calls: ToolCalls | None = None
    ) -> Grammar:
        """Text that a lark grammar makes, with the extensions of llguidance, such as `%json {…}`."""
        return self._lark("the grammar", text, reasoning, calls)

    def tool_calls(
        self,
        calls: CallFormat,
        tools: Sequence[Mapping[str, Any]],
        choice: str = "auto",
        *,
        parallel: bool = True,
        reasoning: Reasoning | None = None,
    ) -> Grammar:
        """Tool calls as `replies.call_format` says, whose arguments are valid for the tools' schemas.

        choice: "auto", text in which calls are well-formed; "required", only calls; or the name of the tool to call
        """
        known = schemas(tools)
        if choice not in ("auto", "required"):
            if choice not in known:
                raise ValueError(f"tool_choice is {choice!r}, expected one of {sorted(known)}")
            known, parallel = {choice: known[choice]}, False
        if not known:
            raise ValueError("there are no tools to call")
        text = self._call_text(calls, known, must_call=choice != "auto", parallel=parallel)
        return self._lark("the tools' schemas", text, reasoning)

    def _call_text(
        self,
        calls: CallFormat,
        tools: Mapping[str, Mapping[str, Any]],
        *,
        must_call: bool = True,
        parallel: bool,
        to_json: Callable[[Mapping[str, Any]], str] = _inline,
    ) -> str:
        try:
            return tool_grammar(
                calls,
                tools,
                must_call=must_call,
                parallel=parallel,
                literal=self.literal,
                to_json=to_json,
            )
        except RecursionError:
            raise ValueError("the tools' schemas are nested too deeply") from None

    def _lark(
        self, what: str, text: str, reasoning: Reasoning | None, calls: ToolCalls | None = None
    ) -> Grammar:
        self._check_size(what, text)
        grammar = {"grammars": [{"name": "lark", "lark_grammar": text}]}
        return self._grammar(what, json.dumps(grammar), reasoning, calls)

    def _check_size(self, what: str, text: str) -> None:
        if len(text) > LONGEST:
            raise ValueError(f"{what} has {len(text)} characters, expected at most {LONGEST}")

    def _grammar(
        self, what: str, text: str, reasoning: Reasoning | None, calls: ToolCalls | None = None
    ) -> Grammar:
        """A grammar by its text, from those that are kept."""
        if calls is not None:
            what = f"{what}, or the tools' schemas"
            text = self._or_calls(what, calls, json.loads(text))
        if reasoning is not None:
            text = self._after(reasoning, json.loads(text))
        with self._lock:
            found = self._compiled.get(text)
            if found is not None:
                self._compiled.move_to_end(text)
                return found
        found = self._compile(what, text)
        with self._lock:
            self._compiled[text] = found
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        return found

    def _compile(self, what: str, text: str) -> Grammar:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(**_LIMITS)  # type: ignore[arg-type]
        matcher = LLMatcher(self._tokens, text, log_level=0, limits=limits)
        if matcher.is_error():
            raise ValueError(f"{what}: {one_line(matcher.get_error())}")
        return Grammar(matcher)

    def _or_calls(self, what: str, calls: ToolCalls, grammar: dict[str, Any]) -> str:
        """The grammar, or calls instead of it. What llguidance does not support in the tools' schemas is left free."""
        text = self._call_text(
            calls.format,
            schemas(calls.tools),
            parallel=calls.is_parallel,
            to_json=_inline_leniently,
        )
        self._check_size(what, text)
        first, *others = grammar["grammars"]
        top = {"name": "start", "lark_grammar": "start: @calls | @form"}
        named = [{"name": "calls", "lark_grammar": text}, {**first, "name": "form"}]
        return json.dumps({"grammars": [top, *named, *others]})

    def _after(self, reasoning: Reasoning, grammar: dict[str, Any]) -> str:
        """The grammar behind reasoning, which the model may leave out if the prompt has not opened it."""
        first, *others = grammar["grammars"]
        name = "after_reasoning"
        opening = "" if reasoning.is_open else self.literal(reasoning.open)
        close = self.literal(reasoning.close)
        # no regular expression can hold a special token
        is_special = close.startswith("<")
        head, tail = ("thought", f" {close}") if is_special else (f"thought[suffix={close}]", "")
        optional = "" if reasoning.is_open else "?"
        lark = (
            f"start: (opened thought SPACE){optional} @{name}\nopened: {opening or json.dumps('')}\n"
            f"{head}: /(.|\\n)*/{tail}\nSPACE: /[ \\n]{{0,4}}/"
        )
        top = {"name": "start", "lark_grammar": lark}
        return json.dumps({"grammars": [top, {**first, "name": name}, *others]})

    def literal(self, text: str) -> str:
        """A text in a lark rule; special tokens, which are no text, by their ids."""
        return literal(self._tokenizer, text)


def literal(tokenizer: Tokenizer, text: str) -> str:
    """A text in a lark rule; a special token that it is or begins with, which is no text, by its id."""
    special = [
        token
        for token in tokenizer.encode(text, add_special=False, parse_special=True)[:1]
        if tokenizer.piece(token)[1]
    ]
    if not special:
        return json.dumps(text)
    rest = text.removeprefix(tokenizer.piece(special[0])[0].decode())
    return f"<[{special[0]}]>" + (f" {json.dumps(rest)}" if rest else "")
