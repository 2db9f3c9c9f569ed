"""Each rule of the lint: a text that it refuses, with file and line, and one beside it that it leaves alone."""

from __future__ import annotations

import mlx.core as mx
import pytest
from metal_call import findings, kernel, launch, needs_host
from msl import SourceError, metal_on_cpu
from msl.limits import MAX_BUFFERS

from mlx_ferrum.launch import Kernel

pytestmark = needs_host

CPP17 = "C\\+\\+17, macOS 14 and 15 have C\\+\\+14"
# (header, body, what is said of it); the fault is in the third line of the body, or of the header if the body has none
REFUSED = {
    "a word of Metal's": ("", "\n\nint vertex = 1; y[0] = vertex;", "body:3: vertex: a word of Metal's"),
    "a function named so": ("\n\ninline int fragment() { return 1; }", "", "header:3: fragment: a word"),
    "an underscore and a capital": ("", "\n\nint _Count = 1;", "body:3: _Count is reserved"),
    "two underscores": ("\n\nconstant int __count = 1;", "", "header:3: __count is reserved"),
    "not ASCII in a name": ("", "\n\nint größe = 1;", "body:3: 'ö' is not ASCII"),
    "not ASCII in a text": ("", '\n\nstatic_assert(true, "größer");', "body:3: 'ö' is not ASCII"),
    "not ASCII in a header": ("// ö\n\nconstant int π = 3;", "", "header:3: 'π' is not ASCII"),
    "not ASCII where nothing is compiled": ("\n#if 0\nint ö;\n#endif", "", "header:3: 'ö' is not ASCII"),
    "if constexpr": ("", "\n\nif constexpr (sizeof(int) == 4) y[0] = 1;", f"body:3: {CPP17}"),
    "structured binding": ("struct P { int a, b; };", "\nP p = {1, 2};\nauto [u, v] = p;", f"body:3: {CPP17}"),
    "inline variable": ("\n\ninline constant int n = 1;", "", f"header:3: {CPP17}"),
    "fold expression": (
        "\ntemplate <typename... T> inline int sum(T... t) {\nreturn (t + ...); }",
        "y[0] = sum(1, 2);",
        f"header:3: {CPP17}",
    ),
    "nested namespace": ("\n\nnamespace a::b { constant int n = 1; }", "", f"header:3: {CPP17}"),
    "if with a statement": ("", "\n\nif (int n = 1; n > 0) y[0] = n;", f"body:3: {CPP17}"),
    "an assertion that says nothing": ("", "\n\nstatic_assert(sizeof(int) == 4);", f"body:3: {CPP17}"),
    "a variable narrowed": ("", "\nint n = a[0];\nuchar c{n}; y[0] = c;", "body:3: narrowing in braces"),
    "a constant narrowed": ("struct S { uchar c; };", "\n\nS s = {256}; y[0] = s.c;", "body:3: narrowing in braces"),
    "threadgroup memory": ("", "\n\nthreadgroup uchar t[32769]; t[0] = 1;", "body:3:.*threadgroup memory over 32768"),
    "threadgroup memory of two": (
        "",
        "threadgroup uchar t[1]; t[0] = 1;\nif (a[0] == 9)\n{ threadgroup int u[8192]; u[0] = 1; }",
        "body:3:.*threadgroup memory over 32768",
    ),
    "a vector of bytes off its alignment": (
        "inline uint second(const device uchar* p, int i) {\n\nreturn ((const device uint4*)(p + 16 * i + 8))->y; }",
        "y[0] = second((const device uchar*)a, 0);",
        "header:3: uint4 needs 16 bytes of alignment, the offset from p is of 8",
    ),
    "a vector of halves off its alignment": (
        "",
        "const device half* p = (const device half*)a;\n\ny[0] = (*reinterpret_cast<const device half4*>(&p[2])).x;",
        "body:3: half4 needs 8 bytes of alignment, the offset from p is of 4",
    ),
    "an array of halves as vectors": (
        "",
        "threadgroup half t[8]; t[0] = 1;\n\nthreadgroup half4* v = (threadgroup half4*)t; v[1] = 1;",
        "body:3: half4 needs 8 bytes of alignment, t is an array of half without alignas",
    ),
}  # fmt: skip
ACCEPTED = {
    "words like those": ("inline int vertices(int kernels) { return kernels; }", "y[0] = vertices(3); int count_ = 1;"),
    "not ASCII in comments": ("// größer\n/* π\n */", "// ö\ny[0] = 3; /* → */"),
    "a marker of a comment in a text": ("", 'static_assert(sizeof("//") == 3, "/* no comment"); y[0] = 3;'),
    "an if that the compiler decides": ("", "if (sizeof(int) == 4) y[0] = 3; static_assert(true, \"so\");"),
    "braces without narrowing": (
        "struct S { uchar c; float f; };",
        "S s = {255, 2.5f}; uint n{3u}; y[0] = n + s.c - 255;",
    ),
    "all of the threadgroup memory": (
        "",
        "threadgroup uchar t[32760]; threadgroup int u[2]; t[0] = 1; u[1] = 2; y[0] = t[0] + u[1];",
    ),
    "aligned vectors": (
        "",
        """const device uchar* p = (const device uchar*)a; int i = 0; alignas(8) threadgroup half t[8];
        threadgroup half4* v = (threadgroup half4*)(t + 4); v[0] = 3; uint4 u = *(const device uint4*)(p + 16 * i + 16);
        y[0] = float(v[0].x) + u.x * 0;""",
    ),
    "products and sums that are no casts": ("", "float n = (a[0]) * (a[1] + 1) + 2; y[0] = n + 1;"),
}  # fmt: skip


def launch_in(header: str, body: str) -> float:
    text = kernel(f"{body}\ny[1] = 2;", 1, 1, header)
    with metal_on_cpu():
        return launch(text, [mx.zeros(8)], [((8,), mx.float32)], grid=1)[0][0]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    header, body, message = REFUSED[name]
    with pytest.raises(SourceError, match=message):
        launch_in(header, body)


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_accepted(name):
    assert launch_in(*ACCEPTED[name]) == 3


@pytest.mark.parametrize("count", [MAX_BUFFERS - 1, MAX_BUFFERS])
def test_as_many_buffers_as_a_kernel_may_have(count):
    inputs = tuple(f"a{i}" for i in range(count))
    text = Kernel("many", "y[0] = " + " + ".join(f"{a}[0]" for a in inputs) + ";", inputs, ("y",))
    arrays = [mx.array([i]) for i in range(count)]
    with metal_on_cpu():
        if count < MAX_BUFFERS:
            (y,) = launch(text, arrays, [((1,), mx.int32)], grid=1)
            assert y.tolist() == [sum(range(count))]
        else:
            with pytest.raises(SourceError, match="many: 32 buffers"):
                launch(text, arrays, [((1,), mx.int32)], grid=1)


def test_threadgroup_memory_in_two_branches():
    """Variables of which none sees the other are added up where they are reached."""
    source = """
    if (thread_position_in_grid.x) { threadgroup uchar t[20000]; t[0] = 1; }
    else { threadgroup uchar t[20000]; t[0] = 1; }
    y[0] = 1;
    """
    found = findings(
        source.replace("y[0] = 1", "y[thread_position_in_grid.x] = 1"),
        [],
        [((2,), mx.int32)],
        grid=2,
    )
    assert [f.detail for f in found] == ["40000 bytes, 32768 is the limit"]
