"""Metal 4's tensor operations for the host: include/tensor.h says what they mean, and from which sources."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .tokens import Token, closing, is_mark, is_name

# The headers that include/tensor.h stands for, and those of Metal's library
HEADERS = re.compile(
    r"(?m)^[ \t]*#[ \t]*include[ \t]*<(?:metal_\w+|MetalPerformancePrimitives/\w+\.h)>"
)


def descriptors(tokens: Sequence[Token]) -> list[Token]:
    """`matmul2d<matmul2d_descriptor(m, n, ...), ...>` -> a type, as C++17 has no template arguments of class type."""
    out = list(tokens)
    for i in range(len(tokens)):
        if not is_name(tokens, i, "matmul2d_descriptor") or not is_mark(tokens, i + 1, "("):
            continue
        end = closing(tokens, i + 1)
        out[i] = tokens[i].becomes("msl_descriptor")
        out[i + 1], out[end] = tokens[i + 1].becomes("<("), tokens[end].becomes(")>")
        depth = 0
        for k in range(i + 2, end):
            depth += is_mark(tokens, k, "(", "[", "{") - is_mark(tokens, k, ")", "]", "}")
            if not depth and is_mark(tokens, k, ","):
                out[k] = tokens[k].becomes("),(")
    return out
