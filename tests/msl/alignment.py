"""Casts to pointers whose type needs more alignment than the address that they are made of has.

Only what the text itself says is known: an array's element type, and offsets that are numbers or multiples of
numbers. Where an address comes from elsewhere, checked mode looks at it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from .tokens import SourceError, Token, closing, closing_angle, is_mark, is_name, split
from .translate import SPACES

_SIZES = {
    **dict.fromkeys("bool char uchar int8_t uint8_t".split(), 1),
    **dict.fromkeys("short ushort half bfloat int16_t uint16_t float16_t bfloat16_t".split(), 2),
    **dict.fromkeys("int uint float int32_t uint32_t".split(), 4),
    **dict.fromkeys("long ulong size_t int64_t uint64_t".split(), 8),
}
_ALIGNMENTS = _SIZES | {
    f"{kind}{n}": size * (4 if n == 3 else n) for kind, size in _SIZES.items() for n in (2, 3, 4)
}


def misaligned(tokens: Sequence[Token]) -> Iterator[SourceError]:
    """An error for each cast to a pointer that cannot be aligned."""
    for i in range(len(tokens)):
        cast = _cast(tokens, i)
        if cast is None:
            continue
        kind, operand = cast
        need, name, terms = _ALIGNMENTS[kind], _base(operand), _terms(operand)
        if name is None or terms is None:
            continue
        declared = _declared(tokens, i, name)
        if declared is None:
            continue
        element, is_array = declared
        size = _ALIGNMENTS[element]
        if is_array and size < need:
            yield tokens[i].error(
                f"{kind} needs {need} bytes of alignment, {name} is an array of {element} without alignas"
            )
        elif terms * size % need:
            yield tokens[i].error(
                f"{kind} needs {need} bytes of alignment, the offset from {name} is of {size * terms}"
            )


def _cast(tokens: Sequence[Token], i: int) -> tuple[str, Sequence[Token]] | None:
    """(the type pointed to, the tokens of the operand) of the cast that starts at i, if it is one."""
    if is_name(tokens, i, "reinterpret_cast") and is_mark(tokens, i + 1, "<"):
        stop = closing_angle(tokens, i + 1)
    elif is_mark(tokens, i, "(") and is_name(tokens, i + 1, "const", *SPACES):
        stop = closing(tokens, i)
    else:
        return None
    if stop is None or not is_mark(tokens, stop - 1, "*"):
        return None
    start = i + 1 + is_name(tokens, i)
    names = [t.text for t in tokens[start : stop - 1] if t.text not in ("const", *SPACES)]
    if len(names) != 1 or names[0] not in _ALIGNMENTS:
        return None
    k = stop + 1
    if is_mark(tokens, k, "("):
        return names[0], tokens[k + 1 : closing(tokens, k)]
    end = k + 1
    if is_mark(tokens, k, "&") and is_name(tokens, k + 1) and is_mark(tokens, k + 2, "["):
        end = closing(tokens, k + 2) + 1
    # a name that a member, a call or an index follows is another address
    return None if is_mark(tokens, end, ".", "->", "(", "[", "::") else (names[0], tokens[k:end])


def _base(operand: Sequence[Token]) -> str | None:
    """The one variable that the address starts from."""
    first = 1 if is_mark(operand, 0, "&") else 0
    if not is_name(operand, first):
        return None
    after = first + 1
    if first and not (is_mark(operand, after, "[") and closing(operand, after) == len(operand) - 1):
        return None
    is_whole = after == len(operand) or first or is_mark(operand, after, "+")
    return operand[first].text if is_whole else None


def _terms(operand: Sequence[Token]) -> int | None:
    """What every offset from the base is a multiple of, 0 for the base itself; None if that is not known."""
    operand = operand[3:-1] if is_mark(operand, 0, "&") else operand[2:]
    if not operand:
        return 0
    known = [_factor(term) for term in split(operand, "+")]
    if None in known:
        return None
    return math.gcd(*(k for k in known if k is not None))


def _factor(term: Sequence[Token]) -> int | None:
    """The product of the numbers in a product; None if it has none, or is something else."""
    factors = list(split(term, "*"))
    numbers = [f[0].text for f in factors if len(f) == 1 and f[0].kind == "number"]
    plain = all(len(f) == 1 for f in factors)
    if not plain or not numbers or not all(n.rstrip("uUlL").isdigit() for n in numbers):
        return None
    return math.prod(int(n.rstrip("uUlL")) for n in numbers)


def _declared(tokens: Sequence[Token], before: int, name: str) -> tuple[str, bool] | None:
    """(element type, whether it is an array without alignas) of the nearest declaration of a name."""
    for i in range(before - 1, 0, -1):
        if not is_name(tokens, i, name):
            continue
        if is_mark(tokens, i - 1, "*") and is_name(tokens, i - 2, *_ALIGNMENTS):
            return tokens[i - 2].text, False
        if is_name(tokens, i - 1, *_ALIGNMENTS) and is_mark(tokens, i + 1, "["):
            return tokens[i - 1].text, not _has_alignas(tokens, i)
        if is_name(tokens, i - 1) and is_mark(tokens, i + 1, "[", "=", ";", ",", ")"):
            return None  # of another type
    return None


def _has_alignas(tokens: Sequence[Token], i: int) -> bool:
    while i > 0 and not is_mark(tokens, i, ";", "{", "}"):
        if is_name(tokens, i, "alignas"):
            return True
        i -= 1
    return False
