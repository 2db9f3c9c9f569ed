"""Vectors converted in the C way, and comparisons of vectors as numbers: clang means something else by both.

(float4)v keeps v's bits in clang and converts in Metal. A comparison is -1 in clang where Metal has true, which
converts to 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from .tokens import Token, closing, closing_angle, is_mark, is_name

_BEFORE_OPERAND = ("return", "case", "else", "do")
_COMPARISONS = ("==", "!=", "<", ">", "<=", ">=", "!")


def operand_end(tokens: Sequence[Token], i: int) -> int | None:
    """Where the operand of a cast that starts at i ends; None if none starts there."""
    while is_mark(tokens, i, "-", "+", "!", "~", "*", "&", "++", "--"):
        i += 1
    if is_mark(tokens, i, "("):
        i = closing(tokens, i) + 1
        inner = None if is_mark(tokens, i, "-", "+", "*", "&", "[", "(") else operand_end(tokens, i)
        if inner is not None:
            return inner  # it was a cast too
    elif is_name(tokens, i) or (i < len(tokens) and tokens[i].kind == "number"):
        i += 1
    else:
        return None
    while True:
        angle = closing_angle(tokens, i) if is_mark(tokens, i, "<") else None
        if is_mark(tokens, i, "(", "[", "{"):
            i = closing(tokens, i) + 1
        elif is_mark(tokens, i, ".", "->", "::"):
            i += 2
        elif is_mark(tokens, i, "++", "--"):
            i += 1
        elif angle is not None and is_mark(tokens, angle + 1, "(", "::"):
            i = angle + 1
        else:
            return i


def is_cast(tokens: Sequence[Token], first: int, stop: int) -> bool:
    """Whether the type in first … stop is in the parentheses of a cast."""
    if not (is_mark(tokens, first - 1, "(") and is_mark(tokens, stop, ")")):
        return False
    if is_name(tokens, first - 2) and not is_name(tokens, first - 2, *_BEFORE_OPERAND):
        return False  # sizeof, or a parameter
    return not is_mark(tokens, first - 2, ">") and operand_end(tokens, stop + 1) is not None


def is_declarator(tokens: Sequence[Token], i: int) -> bool:
    """Whether the parenthesis after a type is that of (&name)[n] or (*name)(...)."""
    k = i + 1
    while is_name(tokens, k, "const", "thread", "device", "constant", "threadgroup"):
        k += 1
    end = closing(tokens, i)
    return is_mark(tokens, k, "&", "*") and end <= k + 2 and is_mark(tokens, end + 1, "[", "(")


def truth_names(tokens: Sequence[Token]) -> frozenset[str]:
    """Variables of type bool2, bool3 and bool4, which are comparisons in clang."""
    return frozenset(
        tokens[i + 1].text
        for i in range(len(tokens) - 1)
        if is_name(tokens, i, "bool2", "bool3", "bool4") and is_name(tokens, i + 1)
    )


def is_comparison(argument: Sequence[Token], names: frozenset[str]) -> bool:
    """Whether an argument is what a comparison gives: of vectors or of scalars."""
    while is_mark(argument, 0, "(") and closing(argument, 0) == len(argument) - 1:
        argument = argument[1:-1]
    if len(argument) == 1:
        return is_name(argument, 0, *names) if names else False
    i, found = 0, is_mark(argument, 0, "!")
    while i < len(argument):
        if is_mark(argument, i, "(", "[", "{"):
            i = closing(argument, i)
        elif is_mark(argument, i, "<") and (end := closing_angle(argument, i)) is not None:
            i = end  # of template arguments
        elif is_mark(argument, i, "?", ","):
            return False
        elif is_mark(argument, i, "<", ">") and is_mark(argument, i + 1, argument[i].text):
            i += 1  # a shift
        else:
            found |= is_mark(argument, i, *_COMPARISONS[:-1])
        i += 1
    return found
