"""Constructors of vectors, which clang has not: the host's headers have a function for them."""

from __future__ import annotations

from .scopes import scopes
from .tokens import Token, closing_angle, is_mark, is_name, join

_ELEMENTS = "bool char uchar short ushort int uint long ulong half float bfloat".split()
VECTORS = frozenset(f"{t}{n}" for t in _ELEMENTS for n in "234")


def constructors(tokens: list[Token]) -> list[Token]:
    """T4(...) and static_cast<T4>(...) -> msl_make<T4>(...) for vector types; T4 v(...) -> T4 v = msl_make<T4>(...)"""
    names = VECTORS | {"half", "float16_t", "bfloat", "bfloat16_t"} | _aliases(tokens)
    scope = scopes(tokens)
    out = list(tokens)
    for i in range(len(tokens)):
        stop = _vector_type(tokens, i, names)
        if stop is None or _is_qualified(tokens, i):
            continue
        first = i - 2 if is_mark(tokens, i - 1, "::") and is_name(tokens, i - 2, "metal") else i
        kind = join(tokens[first:stop]).strip()
        if is_mark(tokens, stop, "(") and not is_name(tokens, first - 1, "operator"):
            out[first] = tokens[first].becomes("metal::msl_make<" + tokens[first].text)
            out[stop - 1] = out[stop - 1].becomes(out[stop - 1].text + ">")
        elif is_name(tokens, stop) and is_mark(tokens, stop + 1, "(") and scope[i] == "function":
            out[stop] = tokens[stop].becomes(f"{tokens[stop].text} = metal::msl_make<{kind}>")
        elif _is_cast(tokens, first, stop):
            out[first - 2] = tokens[first - 2].becomes("metal::msl_make")
    return out


def _is_cast(tokens: list[Token], first: int, stop: int) -> bool:
    return (
        is_mark(tokens, stop, ">")
        and is_mark(tokens, first - 1, "<")
        and is_name(tokens, first - 2, "static_cast")
    )


def _is_qualified(tokens: list[Token], i: int) -> bool:
    """Whether the name at i belongs to something else than namespace metal."""
    if is_mark(tokens, i - 1, ".", "->"):
        return True
    return is_mark(tokens, i - 1, "::") and not is_name(tokens, i - 2, "metal")


def _vector_type(tokens: list[Token], i: int, names: frozenset[str] | set[str]) -> int | None:
    """Where the vector type that starts at i ends; None if there is none."""
    if is_name(tokens, i, "vec") and is_mark(tokens, i + 1, "<"):
        end = closing_angle(tokens, i + 1)
        return None if end is None else end + 1
    return i + 1 if is_name(tokens, i, *names) else None


def _aliases(tokens: list[Token]) -> set[str]:
    """Names that `using` and `typedef` give to vector types."""
    found: set[str] = set()
    for i in range(len(tokens)):
        if is_name(tokens, i, "using") and is_mark(tokens, i + 2, "="):
            name, start = tokens[i + 1].text, i + 3
        elif is_name(tokens, i, "typedef"):
            name, start = "", i + 1
        else:
            continue
        while is_name(tokens, start, "typename", "metal") or is_mark(tokens, start, "::"):
            start += 1
        stop = _vector_type(tokens, start, VECTORS | found)
        if stop is not None and name and is_mark(tokens, stop, ";"):
            found.add(name)
        elif stop is not None and is_name(tokens, stop) and is_mark(tokens, stop + 1, ";"):
            found.add(tokens[stop].text)
    return found
