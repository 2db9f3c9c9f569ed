// The part of Metal's standard library that the kernels use, for NVIDIA GPUs: a simdgroup is a warp, a threadgroup a
// block. source.py puts the text of a kernel into a namespace, so that its vector types hide CUDA's, and NVRTC compiles
// every function for the device (--device-as-default-execution-space).
//
// Arrays start at multiples of 16 bytes, as MLX and load.py allocate them. So do rows of activations of which a kernel
// reads runs of 16, so runs are loaded 16 bytes at a time.
#pragma once

#include "ptx.cuh"

// The compiler infers the address space of a pointer; source.py declares threadgroup variables __shared__.
#define device
#define thread
#define constant
#define threadgroup
#define METAL_FUNC __forceinline__
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

typedef signed char int8_t;
typedef unsigned char uint8_t, uchar;
typedef short int16_t;
typedef unsigned short uint16_t, ushort;
typedef int int32_t;
typedef unsigned int uint32_t, uint;
typedef long int64_t;
typedef unsigned long uint64_t, ulong;

constexpr uint ALL_LANES = 0xffffffff;

template <bool B, typename T = void>
struct enable_if {};
template <typename T>
struct enable_if<true, T> {
    using type = T;
};
template <bool B, typename T = void>
using enable_if_t = typename enable_if<B, T>::type;

template <typename A, typename B>
constexpr bool is_same_v = false;
template <typename A>
constexpr bool is_same_v<A, A> = true;

// Reinterprets the bits as another type of the same size.
template <typename R, typename T>
METAL_FUNC R as_type(T x) {
    static_assert(sizeof(R) == sizeof(T), "as_type: the sizes differ");
    R out;
    memcpy(&out, &x, sizeof(R));
    return out;
}

// ---- half and bfloat: stored as bits, converted to float for arithmetic

// The bits of the half that equals a positive integer.
constexpr ushort int_to_half(int x) {
    int exponent = 25;
    while (x < 1024 && exponent > 0) {
        x *= 2;
        exponent--;
    }
    while (x >= 2048) {
        x /= 2;
        exponent++;
    }
    return ushort(exponent << 10 | (x & 1023));
}

struct half {
    ushort bits;
    half() = default;
    template <typename T>
    constexpr half(T x) : bits(__builtin_is_constant_evaluated() ? int_to_half(int(x)) : float_to_half(float(x))) {}
    METAL_FUNC operator float() const { return half_to_float(bits); }
};

METAL_FUNC half operator-(half x) { return as_type<half>(ushort(x.bits ^ 0x8000)); }

struct bfloat {
    ushort bits;
    bfloat() = default;
    template <typename T>
    METAL_FUNC bfloat(T x) : bits(float_to_bfloat(float(x))) {}
    METAL_FUNC operator float() const { return __uint_as_float(uint(bits) << 16); }
};

typedef half float16_t;
typedef bfloat bfloat16_t;

// ---- vectors

template <typename T, int N>
struct vec;

template <typename T>
struct is_vector {
    static constexpr bool value = false;
};
template <typename T, int N>
struct is_vector<vec<T, N>> {
    static constexpr bool value = true;
};
template <typename T, typename R = void>
using if_scalar = typename enable_if<!is_vector<T>::value, R>::type;

template <typename T>
struct alignas(2 * sizeof(T)) vec<T, 2> {
    T x, y;
    vec() = default;
    template <typename S, typename = if_scalar<S>>
    METAL_FUNC vec(S s) : x(T(s)), y(T(s)) {}
    template <typename A, typename B>
    METAL_FUNC vec(A a, B b) : x(T(a)), y(T(b)) {}
    template <typename U>
    METAL_FUNC explicit vec(vec<U, 2> v) : x(T(v.x)), y(T(v.y)) {}
    METAL_FUNC T& operator[](int i) { return (&x)[i]; }
    METAL_FUNC const T& operator[](int i) const { return (&x)[i]; }
};

template <typename T>
struct alignas(4 * sizeof(T)) vec<T, 4> {
    T x, y, z, w;
    vec() = default;
    template <typename S, typename = if_scalar<S>>
    METAL_FUNC vec(S s) : x(T(s)), y(T(s)), z(T(s)), w(T(s)) {}
    template <typename A, typename B, typename C, typename D>
    METAL_FUNC vec(A a, B b, C c, D d) : x(T(a)), y(T(b)), z(T(c)), w(T(d)) {}
    METAL_FUNC vec(vec<T, 2> a, vec<T, 2> b) : x(a.x), y(a.y), z(b.x), w(b.y) {}
    template <typename U>
    METAL_FUNC explicit vec(vec<U, 4> v) : x(T(v.x)), y(T(v.y)), z(T(v.z)), w(T(v.w)) {}
    METAL_FUNC T& operator[](int i) { return (&x)[i]; }
    METAL_FUNC const T& operator[](int i) const { return (&x)[i]; }
};

#define OPERATOR(OP)                                                                                                   \
    template <typename T>                                                                                              \
    METAL_FUNC vec<T, 2> operator OP(vec<T, 2> a, vec<T, 2> b) {                                                       \
        return vec<T, 2>(a.x OP b.x, a.y OP b.y);                                                                      \
    }                                                                                                                  \
    template <typename T>                                                                                              \
    METAL_FUNC vec<T, 4> operator OP(vec<T, 4> a, vec<T, 4> b) {                                                       \
        return vec<T, 4>(a.x OP b.x, a.y OP b.y, a.z OP b.z, a.w OP b.w);                                              \
    }                                                                                                                  \
    template <typename T, int N, typename S, typename = if_scalar<S>>                                                  \
    METAL_FUNC vec<T, N> operator OP(vec<T, N> a, S b) {                                                               \
        return a OP vec<T, N>(b);                                                                                      \
    }                                                                                                                  \
    template <typename T, int N, typename S, typename = if_scalar<S>>                                                  \
    METAL_FUNC vec<T, N> operator OP(S a, vec<T, N> b) {                                                               \
        return vec<T, N>(a) OP b;                                                                                      \
    }                                                                                                                  \
    template <typename T, int N, typename B>                                                                           \
    METAL_FUNC vec<T, N>& operator OP## = (vec<T, N> & a, B b) {                                                       \
        return a = a OP b;                                                                                             \
    }
OPERATOR(+)
OPERATOR(-)
OPERATOR(*)
OPERATOR(/)
OPERATOR(&)
OPERATOR(|)
OPERATOR(^)
OPERATOR(<<)
OPERATOR(>>)
#undef OPERATOR

// A packed vector needs only the alignment of its elements.
template <typename T>
struct packed2 {
    T x, y;
    METAL_FUNC operator vec<T, 2>() const { return vec<T, 2>(x, y); }
};
template <typename T>
struct packed4 {
    T x, y, z, w;
    METAL_FUNC operator vec<T, 4>() const { return vec<T, 4>(x, y, z, w); }
};

#define VECTORS(T)                                                                                                     \
    typedef vec<T, 2> T##2;                                                                                            \
    typedef vec<T, 4> T##4;                                                                                            \
    typedef packed2<T> packed_##T##2;                                                                                  \
    typedef packed4<T> packed_##T##4;
VECTORS(char)
VECTORS(uchar)
VECTORS(short)
VECTORS(ushort)
VECTORS(int)
VECTORS(uint)
VECTORS(long)
VECTORS(ulong)
VECTORS(half)
VECTORS(bfloat)
VECTORS(float)
#undef VECTORS

struct uint3 {
    uint x, y, z;
};

// ---- math

METAL_FUNC float abs(float x) { return fabsf(x); }
METAL_FUNC int abs(int x) { return x < 0 ? -x : x; }
METAL_FUNC half abs(half x) { return as_type<half>(ushort(x.bits & 0x7fff)); }
METAL_FUNC float fma(float a, float b, float c) { return fmaf(a, b, c); }
METAL_FUNC float exp(float x) { return expf(x); }
METAL_FUNC float log(float x) { return logf(x); }
METAL_FUNC float rint(float x) { return rintf(x); }

METAL_FUNC int min(int a, int b) { return a < b ? a : b; }
METAL_FUNC int max(int a, int b) { return a < b ? b : a; }
METAL_FUNC int clamp(int x, int low, int high) { return min(max(x, low), high); }
METAL_FUNC float min(float a, float b) { return fminf(a, b); }
METAL_FUNC float max(float a, float b) { return fmaxf(a, b); }

// If one is NaN, the other.
METAL_FUNC half max(half a, half b) { return as_type<half>(max_half(a.bits, b.bits)); }

METAL_FUNC int ctz(uint x) { return __ffs(int(x)) - 1; }
METAL_FUNC int popcount(uint x) { return __popc(x); }

METAL_FUNC float4 fma(float4 a, float4 b, float4 c) {
    return float4(fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y), fmaf(a.z, b.z, c.z), fmaf(a.w, b.w, c.w));
}
METAL_FUNC float dot(float4 a, float4 b) { return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, a.w * b.w))); }
METAL_FUNC half4 abs(half4 a) { return half4(abs(a.x), abs(a.y), abs(a.z), abs(a.w)); }
METAL_FUNC half4 max(half4 a, half4 b) { return half4(max(a.x, b.x), max(a.y, b.y), max(a.z, b.z), max(a.w, b.w)); }

namespace precise {
METAL_FUNC float rsqrt(float x) { return 1 / sqrtf(x); }
METAL_FUNC float sin(float x) { return sinf(x); }
METAL_FUNC float cos(float x) { return cosf(x); }
METAL_FUNC float tanh(float x) { return tanhf(x); }
} // namespace precise

// ---- simdgroups and threadgroups

enum class mem_flags { mem_none, mem_device, mem_threadgroup };

METAL_FUNC void threadgroup_barrier(mem_flags) { __syncthreads(); }
METAL_FUNC void simdgroup_barrier(mem_flags) { __syncwarp(); }

METAL_FUNC float simd_shuffle_xor(float x, ushort mask) { return __shfl_xor_sync(ALL_LANES, x, mask); }

METAL_FUNC float simd_sum(float x) {
    UNROLL for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(ALL_LANES, x, i);
    return x;
}
METAL_FUNC float simd_shuffle_xor(float x, int mask) { return __shfl_xor_sync(ALL_LANES, x, mask); }
METAL_FUNC float simd_max(float x) {
    UNROLL for (int i = 16; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, i));
    return x;
}
METAL_FUNC int simd_sum(int x) { return __reduce_add_sync(ALL_LANES, x); }
METAL_FUNC int simd_max(int x) { return __reduce_max_sync(ALL_LANES, x); }
METAL_FUNC int simd_min(int x) { return __reduce_min_sync(ALL_LANES, x); }
METAL_FUNC ulong simd_ballot(bool x) { return __ballot_sync(ALL_LANES, x); }

// ---- loads

// Loads 16 bytes from an address that is a multiple of ALIGNED; below 4, funnel shifts combine the aligned words around
// them.
template <int ALIGNED>
METAL_FUNC uint4 load16(const uchar* p) {
    if constexpr (ALIGNED >= 16)
        return *(const uint4*)p;
    else if constexpr (ALIGNED >= 8)
        return uint4(((const uint2*)p)[0], ((const uint2*)p)[1]);
    else if constexpr (ALIGNED >= 4)
        return *(const packed_uint4*)p;
    else {
        int before = int((ulong)p & 3);
        uint shift = 8 * before;
        const uint* words = (const uint*)(p - before);
        uint last = words[(before + 15) / 4]; // never reads a word outside the 16 bytes
        uint4 w = uint4(words[0], words[1], words[2], words[3]);
        return uint4(__funnelshift_r(w.x, w.y, shift), __funnelshift_r(w.y, w.z, shift),
                     __funnelshift_r(w.z, w.w, shift), __funnelshift_r(w.w, last, shift));
    }
}

template <int ALIGNED>
METAL_FUNC uint load4(const uchar* p) {
    if constexpr (ALIGNED >= 4)
        return *(const uint*)p;
    else
        return ((const ushort*)p)[0] | uint(((const ushort*)p)[1]) << 16;
}

// Load four numbers as floats; the address must be aligned to one of them, or to all four for load_aligned_floats.
template <typename T>
METAL_FUNC float4 load_floats(const T* p) {
    return float4(p[0], p[1], p[2], p[3]);
}
template <typename T>
METAL_FUNC float4 load_aligned_floats(const T* p) {
    return float4(*(const vec<T, 4>*)p);
}

// Stores four numbers; the address need only be aligned to one of them.
METAL_FUNC void store_floats(float* p, float4 x) { UNROLL for (int i = 0; i < 4; i++) p[i] = x[i]; }

// ---- tables of 16 bytes: lookups permute bytes in registers

// Packs four bytes below 16 into four nibbles.
METAL_FUNC uint pack_nibbles(uint bytes) {
    bytes = (bytes | bytes >> 4) & 0x00ff00ff;
    return (bytes | bytes >> 8) & 0xffff;
}

// table[b] for each byte b < 16 of `index`.
METAL_FUNC uint4 look_up16(uint4 index, const uchar* table) {
    uint words[4];
    UNROLL for (int i = 0; i < 4; i++) words[i] =
        table[4 * i] | table[4 * i + 1] << 8 | table[4 * i + 2] << 16 | uint(table[4 * i + 3]) << 24;
    uint4 out;
    UNROLL for (int i = 0; i < 4; i++) {
        uint selector = pack_nibbles(index[i]);
        uint low = __byte_perm(words[0], words[1], selector & 0x7777),
             high = __byte_perm(words[2], words[3], selector & 0x7777);
        out[i] = __byte_perm(low, high, 0x3210 | (selector & 0x8888) >> 1);
    }
    return out;
}
