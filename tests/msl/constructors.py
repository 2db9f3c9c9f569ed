"""Constructors and casts of vectors, which clang has not: the host's headers have a function for them."""

from __future__ import annotations

from .casts import is_cast, is_comparison, is_declarator, operand_end, truth_names
from .scopes import scopes
from .tokens import Token, closing, closing_angle, is_mark, is_name, join, split

_ELEMENTS = "bool char uchar short ushort int uint long ulong half float bfloat".split()
VECTORS = frozenset(f"{t}{n}" for t in _ELEMENTS for n in "234")


def constructors(tokens: list[Token]) -> list[Token]:
    """T4(...), (T4)v and static_cast<T4>(v) -> msl_make<T4>(...) for vector types and template parameters.

    T4 v(...) -> T4 v = msl_make<T4>(...)
    """
    names = VECTORS | {"half", "float16_t", "bfloat", "bfloat16_t"} | _aliases(tokens)
    names |= _parameters(tokens)
    scope, truths = scopes(tokens), truth_names(tokens)
    out = list(tokens)
    for i in range(len(tokens)):
        stop = _vector_type(tokens, i, names)
        if stop is None or _is_qualified(tokens, i):
            continue
        first = i - 2 if is_mark(tokens, i - 1, "::") and is_name(tokens, i - 2, "metal") else i
        kind = join(tokens[first:stop]).strip()
        if is_mark(tokens, stop, "(") and is_declarator(tokens, stop):
            continue
        if is_mark(tokens, stop, "(") and not is_name(tokens, first - 1, "operator"):
            out[first] = tokens[first].becomes("metal::msl_make<" + tokens[first].text)
            out[stop - 1] = out[stop - 1].becomes(out[stop - 1].text + ">")
            _mark_truths(out, tokens, stop, truths)
        elif is_name(tokens, stop) and is_mark(tokens, stop + 1, "(") and scope[i] == "function":
            out[stop] = tokens[stop].becomes(f"{tokens[stop].text} = metal::msl_make<{kind}>")
            _mark_truths(out, tokens, stop + 1, truths)
        elif _is_static_cast(tokens, first, stop):
            out[first - 2] = tokens[first - 2].becomes("metal::msl_make")
            _mark_truths(out, tokens, stop + 1, truths)
        elif is_cast(tokens, first, stop):
            _cast(out, tokens, (first, stop), truths)
    return out


def _cast(
    out: list[Token], tokens: list[Token], kind: tuple[int, int], truths: frozenset[str]
) -> None:
    """(T4)v -> (msl_make<T4>(v))"""
    first, stop = kind
    end = operand_end(tokens, stop + 1)
    assert end is not None
    out[first - 1] = out[first - 1].becomes(out[first - 1].text + "metal::msl_make<")
    out[stop] = tokens[stop].becomes(">(")
    if is_comparison(tokens[stop + 1 : end], truths):
        out[stop] = tokens[stop].becomes(">(metal::msl_truth(")
        out[end - 1] = out[end - 1].becomes(out[end - 1].text + ")")
    out[end - 1] = out[end - 1].becomes(out[end - 1].text + "))")


def _mark_truths(
    out: list[Token], tokens: list[Token], parenthesis: int, truths: frozenset[str]
) -> None:
    """Comparisons among the arguments become 1 where they are true."""
    start, end = parenthesis + 1, closing(tokens, parenthesis)
    for argument in split(tokens[start:end]):
        stop = start + len(argument)
        if is_comparison(argument, truths):
            out[start - 1] = out[start - 1].becomes(out[start - 1].text + "metal::msl_truth(")
            out[stop - 1] = out[stop - 1].becomes(out[stop - 1].text + ")")
        start = stop + 1


def _is_static_cast(tokens: list[Token], first: int, stop: int) -> bool:
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
    if tokens[i].kind != "name":
        return None
    if tokens[i].text == "vec" and is_mark(tokens, i + 1, "<"):
        end = closing_angle(tokens, i + 1)
        return None if end is None else end + 1
    return i + 1 if tokens[i].text in names else None


def _parameters(tokens: list[Token]) -> set[str]:
    """Types that templates are parametrized by, which may be vectors."""
    return {
        tokens[i + 1].text
        for i in range(1, len(tokens) - 1)
        if is_name(tokens, i, "typename", "class")
        and is_mark(tokens, i - 1, "<", ",")
        and is_name(tokens, i + 1)
        and is_mark(tokens, i + 2, ",", ">", "=")
    }


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
