"""What each brace of the text opens: a function, a class, a namespace, a list of values."""

from __future__ import annotations

from collections.abc import Sequence

from .tokens import Token, closing_angle, is_mark, is_name

_AFTER_PARAMETERS = ("const", "noexcept", "thread", "device", "constant", "threadgroup")


def scopes(tokens: Sequence[Token]) -> list[str]:
    """For each token the innermost scope around it: "file", "class", "function", "values" or "enum".

    A brace belongs to the scope around it, as does a function's head.
    """
    out: list[str] = []
    stack = ["file"]
    start = 0  # of the statement
    for i, t in enumerate(tokens):
        mark = t.text if t.kind == "mark" else ""
        if mark == "}" and len(stack) > 1:
            stack.pop()
            start = i + 1
        out.append(stack[-1])
        if mark == "{":
            stack.append(_opened(tokens, start, i, stack[-1]))
            start = i + 1
        elif mark == ";" or t.kind == "directive":
            start = i + 1
    return out


def _opened(tokens: Sequence[Token], start: int, brace: int, around: str) -> str:
    """What the brace opens, by the statement in front of it."""
    if is_name(tokens, brace - 1, "else", "do", "try"):
        return "function"
    if is_mark(tokens, brace - 1, "=", ",", "(", "[", "return", ">") or around == "values":
        return "values"
    head = range(after_template(tokens, start), brace)
    if any(is_name(tokens, i, "enum") for i in head):
        return "enum"
    if around in ("file", "class"):
        if any(is_name(tokens, i, "namespace", "extern") for i in head):
            return "file"
        if any(is_name(tokens, i, "struct", "class", "union") for i in head) and not any(
            is_mark(tokens, i, "(") for i in head
        ):
            return "class"
        return "function" if any(is_mark(tokens, i, ")") for i in head) else "values"
    return _opened_in_function(tokens, start, brace)


def _opened_in_function(tokens: Sequence[Token], start: int, brace: int) -> str:
    if brace == start or is_mark(tokens, brace - 1, ")", "]", ":"):
        return "function"  # a block, or one after if (...) or a lambda's [...]
    if is_name(tokens, brace - 1, *_AFTER_PARAMETERS):
        return "function"
    if is_name(tokens, start, "struct", "class", "union"):
        return "class"
    return "values"  # float4{...}


def after_template(tokens: Sequence[Token], start: int) -> int:
    """Past `template <...>`."""
    while is_name(tokens, start, "template") and is_mark(tokens, start + 1, "<"):
        end = closing_angle(tokens, start + 1, in_template=True)
        if end is None:
            raise tokens[start].error("no > for this template <")
        start = end + 1
    return start
