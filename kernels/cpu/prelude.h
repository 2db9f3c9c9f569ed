// What the block decoders in ../blocks need, in C++: Metal's names, and 16 bytes as one vector.
#pragma once

#include <cstdint>
#include <cstring>

// The instruction set that is written for; with none of them, or FERRUM_PORTABLE, plain C++.
#ifndef FERRUM_PORTABLE
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define FERRUM_AVX512 1
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define FERRUM_AVX2 1
#elif defined(__aarch64__)
#define FERRUM_NEON 1
#endif
// One instruction adds four products of an unsigned and a signed byte each.
#if defined(FERRUM_AVX512) || (defined(FERRUM_AVX2) && defined(__AVXVNNI__)) ||                                        \
    (defined(FERRUM_NEON) && defined(__ARM_FEATURE_MATMUL_INT8))
#define FERRUM_DOT 1
#endif
#endif

#if defined(FERRUM_AVX512) || defined(FERRUM_AVX2)
#include <immintrin.h>
#elif defined(FERRUM_NEON)
#include <arm_neon.h>
#endif

#define device
#define constant static const

using uchar = std::uint8_t;
using uint = std::uint32_t;
typedef uint uint4 __attribute__((vector_size(16)));

struct float2 {
    float x, y;
};

struct float4 {
    float x, y, z, w;
};

inline float as_float(uint bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint as_uint(float value) {
    uint bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

// IEEE half precision.
struct half {
    std::uint16_t bits;

    operator float() const {
#if defined(FERRUM_AVX512) || defined(FERRUM_AVX2)
        return _cvtsh_ss(bits);
#elif defined(FERRUM_NEON)
        __fp16 value;
        std::memcpy(&value, &bits, 2);
        return value;
#else
        uint sign = uint(bits & 0x8000) << 16, rest = bits & 0x7fff;
        if (rest >= 0x7c00) return as_float(sign | 0x7f800000 | rest << 13);
        // the exponent of a float is 112 larger; the product makes subnormal numbers normal
        return as_float(sign | as_uint(as_float(rest << 13) * 0x1p112f));
#endif
    }
};

// The half whose bits are the low 16.
inline float to_float(half x) { return x; }
inline float half_float(uint bits) { return half{std::uint16_t(bits)}; }

// The upper or else the lower 16 bits of x, below those of y.
inline uint select_halves(uint x, uint y, bool upper) {
    return upper ? x >> 16 | (y & 0xffff0000) : (x & 0xffff) | y << 16;
}

// The nearest half of a float, ties to even; too large ones become infinite.
inline half nearest_half(float value) {
    uint sign = as_uint(value) >> 16 & 0x8000, bits = as_uint(value) & 0x7fffffff;
    if (bits > 0x7f800000) return {std::uint16_t(sign | 0x7e00)};
    if (bits >= 0x477ff000) return {std::uint16_t(sign | 0x7c00)};
    // adding 2^(e + 13), or 2^-1 for subnormal halves, makes the float's own rounding cut where a half ends
    uint exponent = bits >> 23, least = exponent > 112 ? exponent : 113;
    float anchor = as_float((least + 13) << 23);
    uint rounded = as_uint(as_float(bits) + anchor) - as_uint(anchor);
    return {std::uint16_t(sign | (((least - 113) << 10) + rounded))};
}

// The upper half of a float.
struct bfloat {
    std::uint16_t bits;

    operator float() const { return as_float(uint(bits) << 16); }
};

// ALIGNED: what the address is a multiple of, for processors that care.
template <int ALIGNED = 1>
inline uint4 load16(const uchar* p) {
    uint4 v;
    std::memcpy(&v, p, 16);
    return v;
}

template <int ALIGNED = 1>
inline uint load4(const uchar* p) {
    uint v;
    std::memcpy(&v, p, 4);
    return v;
}

// The low 16 bits of `bits` as 16 bytes, each bit at position `shift` of its byte.
inline uint4 spread16(uint bits, int shift) {
    uint4 nibbles = uint4{bits, bits >> 4, bits >> 8, bits >> 12} & 15;
    // the four products do not overlap: bit j of a nibble lands in bit 8 j
    return ((nibbles * 0x00204081) & 0x01010101) << shift;
}

// table[b] for each byte b < 16 of `index`.
inline uint4 look_up16(uint4 index, const uchar* table) {
#if defined(FERRUM_AVX512) || defined(FERRUM_AVX2)
    return (uint4)_mm_shuffle_epi8((__m128i)load16(table), (__m128i)index);
#elif defined(FERRUM_NEON)
    return (uint4)vqtbl1q_u8(vld1q_u8(table), (uint8x16_t)index);
#else
    uchar bytes[16];
    std::memcpy(bytes, &index, 16);
    for (uchar& b : bytes) b = table[b];
    return load16(bytes);
#endif
}
