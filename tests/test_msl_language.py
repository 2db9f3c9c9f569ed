"""Metal's language on the host: what it means, and what does not compile."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from metal_call import also_on_metal, kernel, launch, needs_host, results
from msl import SourceError, metal_on_cpu

pytestmark = also_on_metal


def values(source, n, dtype=mx.float32, *arrays, header="", **how):
    """What one thread writes to y[0], y[1] …"""
    return results(source, arrays, [((n,), dtype)], header=header, grid=1, **how)[0].tolist()


VECTORS: dict[str, tuple[str, list[float]]] = {
    "from scalars": ("float4 v = float4(1, 2, 3, 4);", [1, 2, 3, 4]),
    "from one scalar": ("float4 v = float4(2.5);", [2.5] * 4),
    "from vectors": ("float2 p(1, 2); float4 v = float4(p, float2(3, 4));", [1, 2, 3, 4]),
    "from a mix": ("float4 v(float3(1, 2, 3), 4);", [1, 2, 3, 4]),
    "from another type": ("uchar4 c(255, 1, 2, 3); float4 v = float4(c);", [255, 1, 2, 3]),
    "in braces": ("float4 v = float4{1, 2, 3, 4};", [1, 2, 3, 4]),
    "assigned": ("float4 v = 3; v.y = 1;", [3, 1, 3, 3]),
    "swizzled": ("float4 a(1, 2, 3, 4), v = a.wzyx; v.xy = a.rg;", [1, 2, 2, 1]),
    "indexed": ("float4 v = 0; for (int i = 0; i < 4; i++) v[i] = i * i;", [0, 1, 4, 9]),
    "computed": ("float4 a(1, 2, 3, 4), v = a * 2 + a.x - a / 4.0f;", [2.75, 4.5, 6.25, 8]),
    "static_cast": ("half4 h(1.5h, 2, 3, 4); float4 v = static_cast<float4>(h);", [1.5, 2, 3, 4]),
    "vec": ("vec<half, 4> h = vec<half, 4>(1, 2, 3, 4); float4 v = vec<float, 4>(h);", [1, 2, 3, 4]),
    "namespace": ("metal::float4 v = metal::float4(1, 2, 3, 4);", [1, 2, 3, 4]),
    "using": ("using F = vec<float, 4>; F v = F(uint4(1, 2, 3, 4));", [1, 2, 3, 4]),
    "typedef": ("typedef float4 F; F v(half4(1, 2, 3, 4));", [1, 2, 3, 4]),
    "as_type": ("float4 v = float4(as_type<uchar4>(0x04030201u));", [1, 2, 3, 4]),
    "shifted": ("uint4 u = uint4(0x4321) >> uint4(0, 4, 8, 12) & 15; float4 v = float4(u);", [1, 2, 3, 4]),
    "selected": ("float4 a(1, 2, 3, 4), v = select(a, -a, a > 2.0f);", [1, 2, -3, -4]),
    "compared": ("float4 a(1, 2, 3, 4); float4 v = any(a > 3.0f) + 2 * all(a > 0.0f) + 4 * all(a > 1.0f);", [3] * 4),
    "bfloat": ("bfloat4 b = bfloat4(float4(1, 2, 3, 4)); float4 v = float4(b);", [1, 2, 3, 4]),
    "halves to bfloat": ("float4 v = float4(float(bfloat(1.5h)), float(half(2.5bf)), 3.5bf, 1e2bf);",
                         [1.5, 2.5, 3.5, 100]),
    "matrix": ("float2x4 m(float4(1, 2, 3, 4), float4(5)); float4 v = m[0] + m[1];", [6, 7, 8, 9]),
    "array": ("array<float4, 2> a; a[0] = 1; a[1] = float4(0, 1, 2, 3); float4 v = a[0] + a[1];", [1, 2, 3, 4]),
}  # fmt: skip


@pytest.mark.parametrize("name", VECTORS)
def test_vectors(name):
    source, expected = VECTORS[name]
    assert values(source + " for (int k = 0; k < 4; k++) y[k] = v[k];", 4) == expected


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("name", ["float", "half", "bfloat", "uchar", "short", "uint", "long"])
def test_packed_vectors_need_the_alignment_of_an_element(name, size):
    dtype = {"float": mx.float32, "half": mx.float16, "bfloat": mx.bfloat16, "uchar": mx.uint8,
             "short": mx.int16, "uint": mx.uint32, "long": mx.int64}[name]  # fmt: skip
    x = mx.arange(3 * size + 2).astype(dtype)
    source = f"""
    const device packed_{name}{size}* p = (const device packed_{name}{size}*)(a + 1);
    {name}{size} v = {name}{size}(p[2]);
    for (int k = 0; k < {size}; k++) y[k] = float(v[k]);
    ((device packed_{name}{size}*)z)[1] = packed_{name}{size}(v);
    y[{size}] = sizeof(packed_{name}{size}) / sizeof({name});
    """
    y, z = results(
        source, [x], [((size + 1,), mx.float32), ((2 * size,), dtype)], grid=1, init_value=0
    )
    expected = list(range(2 * size + 1, 3 * size + 1))
    assert y.tolist() == [*expected, size]
    assert z.tolist() == [0] * size + expected


STRUCTS = """
struct Block { half d; uchar q[6]; };
struct Scaled {
    float scale;
    Scaled(float s) : scale(s) {}
    float operator()(float x) const { return scale * x; }
    void grow(float by) { scale += by; }
    thread float& raw() { return scale; }
    static float twice(float x) { return 2 * x; }
};
template <typename T>
struct Pair {
    T first, second;
    T sum() const thread { return first + second; }
};
enum { ROWS = 3, COLUMNS };
enum class Kind : int { one = 1, two };
constant float table[4] = {1, 2, 4, 8};
constant constexpr int SIZE = 4;
template <typename B>
struct Traits;
template <>
struct Traits<Block> {
    enum { WEIGHTS = 6 };
    static constexpr constant int bytes = 8;
};
inline float value(const device Block& b, int i) { return float(b.d) * b.q[i]; }
inline float value(const threadgroup Block& b, int i) { return 10 * float(b.d) * b.q[i]; }
inline float value(const thread Block& b, int i) { return 100 * float(b.d) * b.q[i]; }
"""


def test_structs_in_every_address_space():
    block = np.frombuffer(np.float16(0.5).tobytes() + bytes(range(6)), np.uint8)
    source = """
    threadgroup Block shared[2];
    const device Block* b = (const device Block*)a;
    Block mine = b[1];
    shared[1] = mine;
    y[0] = value(b[1], 3); y[1] = value(shared[1], 3); y[2] = value(mine, 3); y[3] = sizeof(Block);
    """
    found = values(source, 4, mx.float32, mx.array(np.tile(block, 2)), header=STRUCTS)
    assert found == [1.5, 15, 150, 8]


def test_methods_constants_and_enums():
    source = """
    Scaled s(2); s.grow(1); s.raw() += 1; Pair<half> p = {1.5h, 2};
    y[0] = s(10); y[1] = p.sum(); y[2] = Scaled::twice(3); y[3] = table[SIZE - 1] + COLUMNS + int(Kind::two);
    y[4] = Traits<Block>::WEIGHTS * Traits<Block>::bytes;
    """
    assert values(source, 5, header=STRUCTS) == [40, 3.5, 6, 14, 48]


def test_templates():
    header = """
    template <typename T, int N, enable_if_t<N == 0, int> = 0> inline T sum(const device T*) { return T(0); }
    template <typename T, int N, enable_if_t<(N > 0), int> = 0>
    inline T sum(const device T* p) { return p[0] + sum<T, N - 1>(p + 1); }
    template <typename P> METAL_FUNC float first(P p) { return float(p[0]); }
    template <typename V> inline V halved(V v) { return v / V(2); }
    template <typename T> using enable_if_half = enable_if_t<is_same_v<T, half>, int>;
    template <typename T, enable_if_half<T> = 0> inline int which(T) { return 1; }
    inline int which(float) { return 2; }
    """
    source = """
    threadgroup half t[1]; t[0] = 7; simdgroup_barrier(mem_flags::mem_threadgroup);
    y[0] = sum<float, 8>(a); y[1] = first(a) + first(b) + first(t); y[2] = halved(float4(3)).z;
    y[3] = which(1.0h) + 10 * which(1.0f); y[4] = conditional_t<is_integral_v<int>, half, float>(2049);
    """
    arrays = [mx.arange(8).astype(mx.float32) + 1, mx.array([5], mx.float16)]
    assert values(source, 5, mx.float32, *arrays, header=header) == [36, 13, 1.5, 21, 2048]


def test_macros_conditions_and_comments():
    header = """
    #include <metal_stdlib>
    #define SUM(x, y) \\
        ((x) + (y))  /* of two */
    #if defined(__METAL__) && __METAL_VERSION__ >= 310
    #define UNROLL _Pragma("clang loop unroll(full)")
    #else
    #error "not Metal"
    #endif
    """
    source = """
    float s = 0; // a "comment"
    UNROLL for (int i = 0; i < 4; i++) s += SUM(i, 1);
    #pragma unroll
    for (int i = 0; i < 2; i++) s = SUM(s, 0.5f);
    y[0] = s; y[1] = 'a' + sizeof("ab") + 0x1p3f + 1e1f + 0xFFu + 1'0;
    """.replace(" + 1'0", "")
    assert values(source, 2, header=header) == [11, 97 + 3 + 8 + 10 + 255]


def test_control_flow():
    source = """
    int n = 0;
    for (int i = 0; i < 10; i++) { if (i == 3) continue; if (i == 6) break; n += i; }
    while (n % 7) n++;
    do n--; while (n > 9);
    switch (n) { case 9: n = 90; case 1: n++; break; default: n = 0; }
    y[0] = n > 90 ? n : -n; y[1] = (n, 5);
    """
    assert values(source, 2, mx.int32) == [91, 5]


def test_signed_shifts_and_overflow_are_those_of_32_bits():
    source = "int x = a[0]; uint u = b[0]; y[0] = x >> 1; y[1] = u >> 1; y[2] = u * 3u; y[3] = ushort(u) + short(x);"
    found = values(source, 4, mx.int32, mx.array([-5]), mx.array([0x80000001], mx.uint32))
    assert found == [-3, 0x40000000, -(2**31) + 3, -4]


ACCEPTED = """
struct Q { half d; uchar q[4]; };
template <typename T, int N> struct Tile { T v[N]; thread T& at(int i) { return v[i]; } };
template <typename T>
inline float walk(const device T* p, device const Q& q, threadgroup T* t, const constant int* c, thread float& out) {
    const device T *one = p + 1, *two = p + 2;
    int n = sizeof(T) * 2, m = n * c[0] & 3;
    bool both = n * m && m & n;
    auto last = two;
    vec<float, 4> v = vec<float, 4>(float(*one) * float(*last));
    thread vec<float, 4>* pv = &v;
    out = (*pv).x * n + m * both + float(q.d) * q.q[0];
    return a_times_b(out, n);
}
"""


def test_what_does_compile():
    """Products, masks and addresses are no pointers; qualifiers may stand on either side."""
    source = """
    threadgroup float t[4]; float out; Tile<int, 3> tile; tile.at(2) = 5;
    y[0] = walk(a, *(const device Q*)b, t, c, out) + tile.v[2];
    """
    arrays = [mx.arange(8).astype(mx.float32), mx.zeros(16, mx.uint8), mx.array([1])]
    header = "inline float a_times_b(float a, int b) { return a * b; }" + ACCEPTED
    assert values(source, 1, mx.float32, *arrays, header=header) == [2 * 8 * 8 + 5]


@needs_host
def test_a_constant_struct_is_read_by_reference():
    """Clang does not copy a struct out of constant memory, as Metal does: an error, not another meaning."""
    header = "struct P { float x, y; };"
    copy = kernel("P p = *(const constant P*)a; y[0] = p.y;", 1, 1, header)
    with metal_on_cpu(), pytest.raises(SourceError, match="body:1"):
        launch(copy, [mx.array([1.0, 2])], [((1,), mx.float32)], grid=1)
    reference = "const constant P& p = *(const constant P*)a; y[0] = p.y;"
    assert values(reference, 1, mx.float32, mx.array([1.0, 2]), header=header) == [2]
