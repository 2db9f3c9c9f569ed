"""What clang lets through and Apple's compiler does not.

Three things are found elsewhere: mutable globals by clang, as an extension that is turned off; implicit
conversions to bfloat and recursion by clang's remarks, which `compiler` reads.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import mlx.core as mx

from .alignment import misaligned
from .casts import is_comparison
from .constructors import VECTORS
from .scopes import after_template, scopes
from .tokens import SourceError, Token, closing, closing_angle, is_mark, is_name, split, tokenize
from .translate import BODY, END, SPACES

_FORBIDDEN = {
    "double": "Metal has no double",
    "goto": "Metal has no goto",
    **dict.fromkeys(("new", "delete"), "Metal has no heap"),
    **dict.fromkeys(("try", "catch", "throw"), "Metal has no exceptions"),
    **dict.fromkeys(("virtual", "dynamic_cast", "typeid"), "Metal has no run-time types"),
    **dict.fromkeys(("thread_local", "asm", "__asm__"), "not in Metal"),
    **dict.fromkeys(("__global", "__local", "__private", "__constant", "__generic"), "OpenCL's"),
    "std": "Metal's library is in namespace metal",
    **dict.fromkeys(
        (
            "kernel",
            "vertex",
            "fragment",
            "threadgroup_imageblock",
            "ray_data",
            "object_data",
            "coherent",
        ),
        "a word of Metal's",
    ),
}
_SCALARS = frozenset(
    """void auto bool char uchar short ushort int uint long ulong half float bfloat signed unsigned
    size_t ptrdiff_t int8_t uint8_t int16_t uint16_t int32_t uint32_t int64_t uint64_t
    float16_t bfloat16_t""".split()
)
_PACKED = frozenset(f"packed_{v}" for v in VECTORS)
_SPECIFIERS = ("const", "volatile", "constexpr", "static", "inline", "typename", "struct", *SPACES)
_RESERVED = re.compile(r"_[A-Z]|__")
_MLX_HEADERS = ("bf16.h", "complex.h", "defines.h", "utils.h")


def check(tokens: Sequence[Token]) -> None:
    """Raises SourceError with a line for each thing that Apple's compiler would refuse."""
    scope = scopes(tokens)
    found = [
        *_words(tokens),
        *_pointers(tokens),
        *_variables(tokens, scope),
        *_bfloat_constants(tokens),
        *_lists(tokens),
        *_lambdas(tokens),
        *_collisions(tokens, scope),
        *_truths(tokens),
        *misaligned(tokens),
    ]
    if found:
        raise SourceError("\n".join(dict.fromkeys(str(e) for e in found)))


def _words(tokens: Sequence[Token]) -> Iterator[SourceError]:
    for i, t in enumerate(tokens):
        if t.kind != "name":
            continue
        if t.text in _FORBIDDEN:
            yield t.error(f"{t.text}: {_FORBIDDEN[t.text]}")
        elif t.text.startswith(("__builtin", "msl_")) and t.text not in (BODY, END):
            yield t.error(f"{t.text} is not Metal's")
        elif _RESERVED.match(t.text) and t.text != "__attribute__":
            yield t.error(f"{t.text} is reserved to the compiler")
        elif t.text == "long" and is_name(tokens, i + 1, "long"):
            yield t.error("Metal has no long long")


def _pointers(tokens: Sequence[Token]) -> Iterator[SourceError]:
    """Pointers and references name the address space they point into."""
    types = _SCALARS | _PACKED | VECTORS | _declared_types(tokens)
    pointers: set[int] = set()
    for i in range(1, len(tokens)):
        if not is_mark(tokens, i, "*", "&"):
            continue
        if is_mark(tokens, i - 1, "*") and i - 1 in pointers:
            if tokens[i].text == "*":
                yield tokens[i].error("the inner pointer has no address space")
            continue
        start = _type_start(tokens, i - 1, types)
        if start is None:
            continue
        pointers.add(i)
        k = start - 1
        specifiers = {t.text for t in tokens[start:i]}
        while is_name(tokens, k, *_SPECIFIERS, "unsigned", "signed"):
            specifiers.add(tokens[k].text)
            k -= 1
        if not specifiers & set(SPACES):
            what = "pointer" if tokens[i].text == "*" else "reference"
            yield tokens[i].error(f"a {what} without device, constant, threadgroup or thread")


def _type_start(tokens: Sequence[Token], end: int, types: frozenset[str]) -> int | None:
    """Where the type that ends at `end` starts; None if that is no type."""
    while is_name(tokens, end, "const", "volatile", *SPACES):
        end -= 1
    if is_mark(tokens, end, ">"):
        for k in range(end - 1, max(end - 60, 0), -1):
            if is_mark(tokens, k, ";", "{", "}"):
                return None
            if is_mark(tokens, k, "<") and closing_angle(tokens, k) == end:
                end = k - 1
                break
        if not is_name(tokens, end, "vec", "atomic", "array", *types):
            return None
    elif not is_name(tokens, end, *types):
        return None
    while is_mark(tokens, end - 1, "::"):
        end -= 2
    return end


def _declared_types(tokens: Sequence[Token]) -> frozenset[str]:
    found = {"atomic_uint", "atomic_int", "atomic_float", "simdgroup_matrix"}
    for i, t in enumerate(tokens):
        if t.kind != "name":
            continue
        named = is_name(tokens, i, "struct", "class", "union", "enum", "typename")
        aliased = is_name(tokens, i, "using") and is_mark(tokens, i + 2, "=")
        if (named or aliased) and is_name(tokens, i + 1):
            found.add(tokens[i + 1].text)
        elif is_name(tokens, i, "typedef"):
            end = i
            while not is_mark(tokens, end, ";"):
                end = closing(tokens, end) if is_mark(tokens, end, "{") else end
                end += 1
            found.add(tokens[end - 1].text)
    return frozenset(found)


def _variables(tokens: Sequence[Token], scope: list[str]) -> Iterator[SourceError]:
    """Threadgroup variables belong to the kernel itself, constant ones to the file."""
    in_body = False
    for i, t in enumerate(tokens):
        in_body = (in_body or t.text == BODY) and t.text != END
        if scope[i] != "function" or not _starts_statement(tokens, i):
            continue
        k = i
        while is_name(tokens, k, "static", "const", "constexpr"):
            k += 1
        statement = tokens[i : _statement_end(tokens, i)]
        space = next((s.text for s in statement if s.text in SPACES), "")
        head = next(split(statement, "="))
        points = any(is_mark(head, j, "*", "&") for j in range(len(head)))
        if is_name(tokens, k, "threadgroup") and not points and not in_body:
            yield t.error("a threadgroup variable outside the kernel")
        elif is_name(tokens, k, "constant") and not points:
            yield t.error("a constant variable inside a function")
        elif t.text == "static" and space != "constant":
            yield t.error("a static variable")


def _starts_statement(tokens: Sequence[Token], i: int) -> bool:
    return tokens[i].kind == "name" and (
        is_mark(tokens, i - 1, ";", "{", "}")
        or tokens[i - 1].kind == "directive"
        or is_name(tokens, i - 1, BODY)
    )


def _statement_end(tokens: Sequence[Token], i: int) -> int:
    while i < len(tokens) and not is_mark(tokens, i, ";", "{", "}"):
        i += 1
    return i


def _bfloat_constants(tokens: Sequence[Token]) -> Iterator[SourceError]:
    """Of implicit conversions clang reports only those that lose something."""
    for i in range(len(tokens) - 3):
        if not is_name(tokens, i, "bfloat", "bfloat16_t") or not is_name(tokens, i + 1):
            continue
        k = i + 3 if is_mark(tokens, i + 3, "-") else i + 2
        value = tokens[k + 1] if k + 1 < len(tokens) else tokens[k]
        other = value.kind == "number" and not value.text.lower().endswith("bf")
        if is_mark(tokens, i + 2, "=") and other:
            yield value.error("an implicit conversion to bfloat")


def _lists(tokens: Sequence[Token]) -> Iterator[SourceError]:
    """float4{x} would set one element here and all on the GPU."""
    for i in range(len(tokens)):
        if tokens[i].text not in VECTORS or not is_mark(tokens, i + 1, "{"):
            continue
        depth, end = 0, i + 1
        while end == i + 1 or depth:
            depth += is_mark(tokens, end, "{") - is_mark(tokens, end, "}")
            end += 1
        values = [v for v in split(tokens[i + 2 : end - 1]) if v]
        if values and len(values) != int(tokens[i].text[-1]):
            yield tokens[i].error(f"{tokens[i].text}{{}} with {len(values)} values")


def _truths(tokens: Sequence[Token]) -> Iterator[SourceError]:
    """A bool4 does not become an int4 by itself; clang's comparisons are int4 already."""
    for i in range(len(tokens)):
        if not is_name(tokens, i, "int2", "int3", "int4") or not is_mark(tokens, i + 2, "="):
            continue
        value = next(split(tokens[i + 3 : _statement_end(tokens, i)]))
        if is_comparison(value, frozenset()):
            kind = tokens[i].text
            yield tokens[i].error(f"a comparison becomes an {kind} only where {kind}(...) says so")


def _lambdas(tokens: Sequence[Token]) -> Iterator[SourceError]:
    for i in range(len(tokens)):
        if not is_mark(tokens, i, "["):
            continue
        k = i + 1 + is_mark(tokens, i + 1, "&", "=")
        if is_mark(tokens, k, "]") and is_mark(tokens, k + 1, "(", "{"):
            yield tokens[i].error("Metal has no lambdas before version 3.2")


def _collisions(tokens: Sequence[Token], scope: list[str]) -> Iterator[SourceError]:
    """MLX puts its own header before every kernel."""
    for name, token in _file_names(tokens, scope).items():
        if name in mlx_names():
            yield token.error(f"{name} is declared by MLX too")


@functools.cache
def mlx_names() -> frozenset[str]:
    """What MLX declares before a kernel, by its headers."""
    folder = Path(mx.__file__).parent / "include/mlx/backend/metal/kernels"
    found: set[str] = set()
    for header in _MLX_HEADERS:
        lines = (folder / header).read_text().splitlines()
        code = "\n".join(line.partition("//")[0] for line in lines)
        tokens = [t for t in tokenize(code, header) if t.kind != "directive"]
        found |= set(_file_names(tokens, scopes(tokens)))
    return frozenset(found)


def _file_names(tokens: Sequence[Token], scope: list[str]) -> dict[str, Token]:
    """Names of types, functions and constants that are declared outside of functions and classes."""
    found: dict[str, Token] = {}
    i = 0
    while i < len(tokens):
        if is_name(tokens, i, "template"):
            i = max(i + 1, after_template(tokens, i))
            continue
        if is_mark(tokens, i, "(", "["):
            i = closing(tokens, i)
        elif scope[i] == "file" and is_name(tokens, i) and _is_declared(tokens, i):
            found.setdefault(tokens[i].text, tokens[i])
        i += 1
    return found


def _is_declared(tokens: Sequence[Token], i: int) -> bool:
    if is_name(tokens, i - 1, "struct", "class", "union", "enum", "using"):
        return is_mark(tokens, i + 1, "{", ":", "=", ";")
    after_type = is_name(tokens, i - 1) or is_mark(tokens, i - 1, ">", "*", "&")
    is_one = not tokens[i].text.startswith("__") and not is_name(tokens, i, "operator")
    return is_one and after_type and is_mark(tokens, i + 1, "(", "=", "[")
