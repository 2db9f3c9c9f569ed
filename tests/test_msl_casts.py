"""What clang reads otherwise than Metal: casts and comparisons of vectors, and declarations that look like others."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from metal_call import also_on_metal, findings, kernel, launch, needs_host, results
from msl import SourceError, metal_on_cpu

pytestmark = also_on_metal

INTS, FLOATS = "int4 i(1, -2, 3, 1000000); ", "float4 f(1, 2.5, -3, 4); "
TO = "template <typename T, typename U> inline T to(U u) { return (T)u + T(u); } "
TO += "struct P { int a, b; P(int x, int y) : a(x), b(y) {} }; "
TO += "template <typename T> inline T made(int a, int b) { return T(a, b); }"
# text that makes v -> its elements
VECTORS: dict[str, tuple[str, list[float]]] = {
    "integers to floats": (INTS + "float4 v = (float4)i;", [1, -2, 3, 1000000]),
    "before a product": (INTS + "float4 v = -(float4)i.wzyx * 2.0f;", [-2000000, -6, 4, -2]),
    "of an element": (INTS + "float4 p[2]; p[1] = 7; float4 v = (float4)p[i.x] + (float4)(int4)f_of(3);", [10] * 4),
    "floats to integers": (FLOATS + "int4 n = (int4)f; float4 v = float4(n);", [1, 2, -3, 4]),
    "floats to halves": (FLOATS + "half4 h = (half4)f; float4 v = (float4)h;", [1, 2.5, -3, 4]),
    "to a signed type of the same size": ("uchar4 c(255, 1, 2, 3); float4 v = (float4)(char4)c;", [-1, 1, 2, 3]),
    "a list with commas": ("float4 v = (float4)(1, 2, 3, 4);", [4] * 4),
    "to a template's parameter": (INTS + "float4 v = to<float4>(i) + to<float>(1);", [4, -2, 8, 2000002]),
    "a struct that is a template's parameter": ("P p = made<P>(1, 2); float4 v = p.a + made<float2>(2, 3).y;", [4] * 4),
    "a comparison": (FLOATS + "float4 v = float4(f > 2.0f) + 2.0f * (float4)(f == f.x);", [2, 1, 0, 1]),
    "a comparison to integers": (FLOATS + "int4 n = int4(f <= 1.0f) + int4(!(f > 0.0f)); float4 v = float4(n);",
                                 [1, 0, 2, 0]),
    "shifts": (INTS + "uint4 u = uint4(9u >> 1, 9u << 1, uint(8 >> 2), 1); float4 v = float4(u);", [4, 18, 2, 1]),
    "bits in template arguments": (
        "ushort4 s(1, 2, 3, 4); uint4 u = uint4(as_type<uint2>(s), as_type<uint2>(s)) >> 16; float4 v = float4(u);",
        [2, 4, 2, 4],
    ),
    "a variable of truths": (FLOATS + "bool4 b = f > 2.0f; float4 v = float4(b) + 3 * float4(!b);", [3, 1, 3, 1]),
    "of integers that are compared elsewhere": (INTS + "float4 v(i > 2 ? i : -i);", [-1, 2, 3, 1000000]),
    "of scalars that are compared": (INTS + "float4 v(i.x > 0, i.x < 0, 5, 6);", [1, 0, 5, 6]),
}  # fmt: skip
# (header, text that makes y[0]) -> its value
DECLARATIONS = {
    "a struct of a typedef": (
        "typedef struct { half d; uchar q[2]; } Block;",
        "Block b; b.d = 2; half d = b.d; float q = 3; y[0] = q * d * b.d;",
        12,
    ),
    "a reference to a pointer": (
        "template <typename T> inline void skip(const device T*& p) { p += 2; }",
        "const device float* p = a; skip(p); y[0] = p[1];",
        3,
    ),
    "a size compared in a template's list": (
        """template <typename T, enable_if_t<(sizeof(T) < 4), int> = 0> inline int bytes(T) { return 2; }
        template <typename T, enable_if_t<sizeof(T) < 4 || sizeof(T) == 8, int> = 0>
        inline int size(T) { return 3; }""",
        "y[0] = bytes(1.0h) * size(1.0h);",
        6,
    ),
    "a reference to an array of vectors": (
        """template <int N> inline float total(const thread half2 (&h)[N]) {
            float s = 0; for (int i = 0; i < N; i++) s += h[i].x * h[i].y; return s; }""",
        "half2 h[2]; h[0] = half2(2, 3); h[1] = 2; y[0] = total(h);",
        10,
    ),
    "braces as an argument": (
        """struct P { int a, b; }; inline int of(P p) { return p.a - p.b; }
        inline uint at(uint3 v, float2 w) { return v.x + 10 * v.y + 100 * v.z + uint(w.y); }""",
        "int n = 2; y[0] = at({uint(n), 3, 4}, {0.5f, 5.0f}) + of({9, n});",
        444,
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors(name):
    text, expected = VECTORS[name]
    text = f"{text} for (int k = 0; k < 4; k++) y[k] = v[k];"
    header = TO + "inline float4 f_of(float x) { return x + 0.5f; }"
    (y,) = results(text, [], [((4,), mx.float32)], header=header, grid=1)
    assert y.tolist() == expected


@pytest.mark.parametrize("name", DECLARATIONS)
def test_declarations(name):
    header, text, expected = DECLARATIONS[name]
    (y,) = results(
        text, [mx.arange(9).astype(mx.float32)], [((1,), mx.float32)], header=header, grid=1
    )
    assert y.tolist() == [expected]


def test_casts_of_random_vectors_in_every_direction():
    x = np.random.default_rng(3).integers(0, 120, (4, 33)).astype(np.float32)
    source = (
        "uint i = thread_position_in_grid.x; float4 f = ((const device float4*)a)[i]; int4 n = 0;"
    )
    for kind in ("char", "ushort", "int", "long", "half", "bfloat"):
        source += f" n += (int4)({kind}4)(f + 0.75f);"
    source += " ((device int4*)y)[i] = n;"
    (y,) = results(source, [mx.array(x)], [(x.shape, mx.int32)], grid=33)
    bfloat = np.array(mx.array(x + 0.75).astype(mx.bfloat16).astype(mx.float32))
    np.testing.assert_array_equal(y, 5 * x.astype(int) + bfloat.astype(int))


@needs_host
def test_a_comparison_is_no_vector_of_integers():
    text = kernel("float4 f = a[0];\nint4 n = f > 1.0f; y[0] = n.x;", 1, 1)
    with metal_on_cpu(), pytest.raises(SourceError, match="body:2: a comparison becomes an int4"):
        launch(text, [mx.zeros(1)], [((1,), mx.float32)], grid=1)


@needs_host
def test_zeros_in_braces_leave_threadgroup_memory_as_it_is():
    source = "threadgroup float t[4] = {0};\nt[0] = 5; y[0] = t[0] + t[int(a[0])];"
    found = findings(source, [mx.array([1])], [((1,), mx.float32)], grid=1)
    assert [str(f) for f in found] == ["test body:2: uninitialised read: threadgroup memory [test]"]
    assert findings(source, [mx.array([0])], [((1,), mx.float32)], grid=1) == []
