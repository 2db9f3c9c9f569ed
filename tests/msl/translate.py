"""Metal text -> text for clang's C++ for OpenCL, which has the same address spaces and vectors.

Only what that language takes differently is rewritten; what is left over is an error of the compiler.
"""

from __future__ import annotations

from collections.abc import Sequence

from .constructors import constructors
from .scopes import scopes
from .signature import ATTRIBUTES, Buffer, Signature
from .tensors import descriptors
from .tokens import (
    Token,
    closing,
    closing_angle,
    is_mark,
    is_name,
    join,
    split,
)

ENTRY = "msl_entry"
KERNEL = "custom_kernel"
SPACES = ("device", "constant", "thread", "threadgroup")
THREADGROUP_LIMIT = 32768
BODY, END = "msl_body_begins", "msl_body_ends"


def source(signature: Signature) -> str:
    """The text to be preprocessed: header and kernel, with marks around the body."""
    parameters = [f"{b.type} {b.name}" for b in signature.buffers]
    parameters += [f"{ATTRIBUTES[a]} {a}" for a in signature.attributes]
    return (
        f'#line 1 "{signature.kernel} header"\n{signature.header}\n{signature.template_line}'
        f"void {KERNEL}({', '.join(parameters)}) {{ {BODY}\n"
        f'#line 1 "{signature.kernel} body"\n{signature.source}\n'
        f'#line 1 "generated"\n{END} }}\n'
    )


def translate(preprocessed: Sequence[Token]) -> str:
    """The text to be compiled but for the `entry`: the kernel's function, or a template of it."""
    tokens = descriptors(preprocessed)
    tokens = _threadgroup_variables(tokens)
    tokens = _methods(tokens)
    tokens = _temporaries(tokens)
    tokens = _literals(tokens)
    tokens = _braces(tokens)
    tokens = constructors(tokens)
    # one place in the code is one call, as on the GPU, where all is inlined
    inline = "#pragma clang attribute {}\n"
    push = inline.format("push(__attribute__((always_inline, convergent)), apply_to = function)")
    return push + join(tokens) + "\n" + inline.format("pop")


def entry(signature: Signature) -> str:
    """The function ENTRY(pointers, position), which calls the kernel with what the runtime hands over."""
    arguments = [_argument(b, i) for i, b in enumerate(signature.buffers)]
    arguments += [f"position->{a}" for a in signature.attributes]
    return (
        '# 1 "generated"\n'
        f'extern "C" void {ENTRY}(thread void* thread* pointers, '
        "const thread msl_position* position) {\n"
        f"    {KERNEL}{signature.arguments}({', '.join(arguments)});\n}}\n"
    )


def _argument(buffer: Buffer, index: int) -> str:
    pointer = f"({buffer.type[:-1]}*)(ulong)pointers[{index}]"
    return f"*{pointer}" if buffer.type.endswith("&") else pointer


def _threadgroup_variables(tokens: list[Token]) -> list[Token]:
    """`threadgroup T a[n];` in the kernel -> a reference into the threadgroup's memory."""
    begin = next(i for i in range(len(tokens)) if is_name(tokens, i, BODY))
    end = next(i for i in range(len(tokens)) if is_name(tokens, i, END))
    out = [*tokens[:begin], tokens[begin].becomes("")]
    count = 0
    before = ["0"]  # the threadgroup bytes so far, in each scope
    i = begin + 1
    while i < end:
        start = i
        if is_mark(tokens, i, "{"):
            before.append(before[-1])
        elif is_mark(tokens, i, "}"):
            before.pop()
        if is_name(tokens, i, "alignas") and is_mark(tokens, i + 1, "("):
            start = closing(tokens, i + 1) + 1
        if not (is_name(tokens, start, "threadgroup") and _starts_statement(tokens, i)):
            out.append(tokens[i])
            i += 1
            continue
        align = join(tokens[i + 2 : start - 1])
        stop = start
        while not is_mark(tokens, stop, ";"):
            stop = closing(tokens, stop) if is_mark(tokens, stop, "(", "[", "{") else stop
            stop += 1
        declared = _declared(tokens[start:stop])
        if declared is None:
            out += tokens[i : stop + 1]
        texts = []
        for name, kind, dimensions in declared or []:
            count += 1
            alias = f"msl_variable{count}"
            aligned = align or f"alignof({alias})"
            texts.append(
                f"typedef {kind} {alias}{dimensions}; threadgroup {alias}& {name} = "
                f"*(threadgroup {alias}*)msl_threadgroup({count}, sizeof({alias}), {aligned});"
                f"enum : ulong {{ msl_bytes{count} = ({before[-1]} + {aligned} - 1) / {aligned} * {aligned} + "
                f"sizeof({alias}) }};"
                f'static_assert(msl_bytes{count} <= {THREADGROUP_LIMIT}, "threadgroup memory over '
                f'{THREADGROUP_LIMIT} bytes");'
            )
            before[-1] = f"msl_bytes{count}"
        if texts:
            lines = sum(t.before.count("\n") for t in tokens[i + 1 : stop + 1])
            out.append(tokens[i].becomes(" ".join(texts) + "\n" * lines))
        i = stop + 1
    return [*out, tokens[end].becomes(""), *tokens[end + 1 :]]


def _starts_statement(tokens: list[Token], i: int) -> bool:
    return is_mark(tokens, i - 1, ";", "{", "}") or tokens[i - 1].kind == "directive"


def _declared(tokens: list[Token]) -> list[tuple[str, str, str]] | None:
    """(name, type, dimensions) of each variable; None if the declaration is of pointers or references.

    Braces of zeros after an array are let through and do nothing: no thread is said to write them.
    """
    parts = [_without_zeros(part) for part in split(tokens[1:])]
    # the commas of a template's arguments are none of the declaration's
    while len(parts) > 1 and _open_angles(parts[0]):
        comma = parts[1][0].becomes(",") if parts[1] else tokens[0].becomes(",")
        parts[:2] = [[*parts[0], comma, *parts[1]]]
    head = parts[0]
    at = next((i for i in range(len(head)) if is_mark(head, i, "[", "=", "(", "{")), len(head))
    if any(is_mark(head, i, "*", "&") for i in range(at)):
        return None
    if at < len(head) and not is_mark(head, at, "["):
        raise tokens[0].error("a threadgroup variable cannot have an initial value")
    if at < 2 or not is_name(head, at - 1):
        raise tokens[0].error("a threadgroup declaration that the host does not understand")
    kind = join(head[: at - 1]).strip()
    out = [(head[at - 1].text, kind, join(head[at:]))]
    for part in parts[1:]:
        if not is_name(part, 0) or (len(part) > 1 and not is_mark(part, 1, "[")):
            raise tokens[0].error("a threadgroup declaration that the host does not understand")
        out.append((part[0].text, kind, join(part[1:])))
    return out


def _without_zeros(declarator: list[Token]) -> list[Token]:
    """`t[4] = {0}` -> `t[4]`"""
    equal = next((i for i in range(len(declarator)) if is_mark(declarator, i, "=")), None)
    if equal is None or not is_mark(declarator, equal - 1, "]"):
        return declarator
    is_zero = [t.text for t in declarator[equal + 1 :]] in (["{", "}"], ["{", "0", "}"])
    return declarator[:equal] if is_zero else declarator


def _open_angles(tokens: list[Token]) -> bool:
    return sum(is_mark(tokens, i, "<") - is_mark(tokens, i, ">") for i in range(len(tokens))) > 0


def _methods(tokens: list[Token]) -> list[Token]:
    """Methods without an address space are of `thread` objects; constructors take none."""
    scope = scopes(tokens)
    names = {
        tokens[i + 1].text
        for i in range(len(tokens) - 1)
        if is_name(tokens, i, "struct", "class", "union") and is_name(tokens, i + 1)
    }
    out = list(tokens)
    initialisers = False  # of a constructor
    for i in range(len(tokens)):
        initialisers &= not is_mark(tokens, i, "{")
        if scope[i] != "class" or initialisers or not is_mark(tokens, i, "("):
            continue
        if is_mark(tokens, closing(tokens, i) + 1, "(") or is_name(tokens, i - 1, "alignas"):
            continue  # operator()(...)
        stop = closing(tokens, i) + 1
        while is_name(tokens, stop, "const", *SPACES):
            stop += 1
        qualified = [k for k in range(closing(tokens, i), stop) if is_name(tokens, k, *SPACES)]
        if is_name(tokens, i - 1, *names):
            initialisers = is_mark(tokens, stop, ":")
            for k in qualified:
                out[k] = tokens[k].becomes("")
        elif not qualified and not _is_static(tokens, scope, i) and not _is_value(tokens, scope, i):
            out[stop - 1] = tokens[stop - 1].becomes(tokens[stop - 1].text + " thread")
    return out


def _is_static(tokens: list[Token], scope: list[str], i: int) -> bool:
    """Whether the declaration around the parenthesis at i is static or a friend."""
    k = i - 1
    while k >= 0 and scope[k] == "class" and not is_mark(tokens, k, ";", "{", "}"):
        if is_name(tokens, k, "static", "friend", "static_assert", "using", "typedef"):
            return True
        k -= 1
    return False


def _is_value(tokens: list[Token], scope: list[str], i: int) -> bool:
    """Whether the parenthesis at i is in an initial value or an array's length, not after a method's name."""
    k = i - 1
    while k >= 0 and not is_mark(tokens, k, ";", "{", "}"):
        if is_mark(tokens, k, "=", "[", "(") and not is_name(tokens, k - 1, "operator"):
            return True
        k -= 1
    return False


def _temporaries(tokens: list[Token]) -> list[Token]:
    """`const thread T&` -> `const T&`, to which clang binds temporaries too."""
    out = list(tokens)
    for i in range(len(tokens)):
        first, second = ("const", "thread") if tokens[i].text == "const" else ("thread", "const")
        if not (is_name(tokens, i, first) and is_name(tokens, i + 1, second)):
            continue
        k = i + 2
        while is_name(tokens, k) or is_mark(tokens, k, "::"):
            k += 1
        if is_mark(tokens, k, "<"):
            k = (closing_angle(tokens, k) or k) + 1
        if is_mark(tokens, k, "&"):
            thread = i if tokens[i].text == "thread" else i + 1
            out[thread] = tokens[thread].becomes("")
    return out


def _braces(tokens: list[Token]) -> list[Token]:
    """f({1, 2, 3}) -> f(msl_braces(1, 2, 3)), which becomes the parameter's type, a vector or a struct"""
    out = list(tokens)
    open_brackets: list[int] = []
    for i, t in enumerate(tokens):
        if t.kind != "mark":
            continue
        if t.text == "{" and is_mark(tokens, i - 1, "(", ",") and open_brackets:
            around, end = open_brackets[-1], closing(tokens, i)
            is_call = is_mark(tokens, around, "(") and (
                is_name(tokens, around - 1) or is_mark(tokens, around - 1, ">")
            )
            if is_call and is_mark(tokens, end + 1, ",", ")") and end > i + 1:
                out[i] = tokens[i].becomes("metal::msl_braces(")
                out[end] = tokens[end].becomes(")")
        if t.text in ("(", "[", "{"):
            open_brackets.append(i)
        elif t.text in (")", "]", "}") and open_brackets:
            open_brackets.pop()
    return out


def _literals(tokens: list[Token]) -> list[Token]:
    """`1.5bf` -> bfloat(1.5)"""
    return [
        t.becomes(f"bfloat({t.text[:-2]})") if t.kind == "number" and _is_bfloat(t.text) else t
        for t in tokens
    ]


def _is_bfloat(number: str) -> bool:
    return number.lower().endswith("bf") and not number.lower().startswith("0x")
