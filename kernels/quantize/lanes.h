// LANES blocks at a time, one in each lane: a search reads like one for a single block, and no lane knows another.
#pragma once

#include <cstdint>

#include "../cpu/vectors.h"

FERRUM_INLINE Floats smaller(Floats a, Floats b) {
#if defined(FERRUM_AVX512)
    return (Floats)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(FERRUM_AVX2)
    return (Floats)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(FERRUM_NEON)
    return (Floats)vminq_f32((float32x4_t)a, (float32x4_t)b);
#else
    return a < b ? a : b;
#endif
}

FERRUM_INLINE Floats larger(Floats a, Floats b) {
#if defined(FERRUM_AVX512)
    return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(FERRUM_AVX2)
    return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(FERRUM_NEON)
    return (Floats)vmaxq_f32((float32x4_t)a, (float32x4_t)b);
#else
    return a > b ? a : b;
#endif
}

FERRUM_INLINE Floats clamped(Floats v, float low, float high) { return smaller(larger(v, repeat(low)), repeat(high)); }

// The nearest whole number of what is within 2^22 of 0: the sum has no bits for a fraction.
constexpr float WHOLE = 12582912.0f;
FERRUM_INLINE Floats whole(Floats v) { return (v + WHOLE) - WHOLE; }

FERRUM_INLINE Floats magnitude(Floats v) { return (Floats)((Ints)v & 0x7fffffff); }

FERRUM_INLINE Floats over(Floats a, Floats b) { return b == 0 ? Floats{} : a / (b == 0 ? repeat(1) : b); }

FERRUM_INLINE bool any(Ints mask) { return largest(mask & 1) != 0; }

// `to` becomes `value` in the lanes of `mask`.
FERRUM_INLINE void put(Ints mask, Floats& to, Floats value) { to = mask ? value : to; }

// N weights of each of LANES blocks, times a power of two of each block, so that no square overflows or vanishes.
template <int N>
struct Lanes {
    Floats x[N], w[N]; // weights, the largest from 1 to 2; and how much their squared errors count, 1 at most
    Floats scale;      // what x was multiplied by
    Floats unit;       // its inverse

    // x, importance: a pointer for each of `count` blocks; without importance all errors count alike.
    void load(const float* const* from, const float* const* importance, int count) {
        for (int i = 0; i < N && !importance; i++) w[i] = repeat(1);
        for (int lane = 0; lane < LANES; lane++) {
            int at = lane < count ? lane : 0;
            int exponent = exponent_of(from[at]);
            scale[lane] = power(-exponent);
            unit[lane] = power(exponent);
            spread(from[at], scale[lane], -4, (float*)x + lane);
            if (importance) weigh(importance[at], lane);
        }
    }

private:
    // Beside weights of 1, those below count for nothing; without them a group's sums could all be 0.
    static constexpr float LEAST = 0x1p-30f;

    // Of the largest magnitude, from -126 to 126.
    static int exponent_of(const float* p) {
        uint most = 0;
        for (int i = 0; i < N; i++) {
            uint bits = as_uint(p[i]) & 0x7fffffff;
            most = bits > most ? bits : most;
        }
        int exponent = int(most >> 23) - 127;
        return exponent < -126 ? -126 : exponent > 126 ? 126 : exponent;
    }

    static float power(int exponent) { return as_float(uint(127 + exponent) << 23); }

    static void spread(const float* p, float factor, float least, float* to) {
        for (int i = 0; i < N; i++) {
            float v = p[i] * factor;
            to[i * LANES] = v < least ? least : v;
        }
    }

    void weigh(const float* p, int lane) {
        uint bits = 0;
        for (int i = 0; i < N; i++) bits |= as_uint(p[i]) & 0x7fffffff;
        if (bits) return spread(p, power(-exponent_of(p) - 1), LEAST, (float*)w + lane);
        for (int i = 0; i < N; i++) w[i][lane] = 1;
    }
};

// As float16 holds it: what is not 0 stays so, and what is too large becomes the largest. unit: see Lanes.
FERRUM_INLINE Floats as_half(Floats v, Floats unit, Floats scale) {
    Floats real = clamped(v * unit, -65504.0f, 65504.0f);
    Floats least = (Floats)(((Ints)v & int(0x80000000)) | 0x33800000); // 2^-24 with the sign of v
    put((v != 0) & (magnitude(real) < 0x1p-24f), real, least);
    half halves[LANES];
    store_halves(halves, real);
    return load_floats(halves) * scale;
}

// The neighbour in float16 of a value that float16 holds, `step` away in magnitude.
FERRUM_INLINE Floats next_half(Floats v, Floats unit, Floats scale, int step) {
    half halves[LANES];
    store_halves(halves, v * unit);
    for (half& h : halves) {
        int bits = (h.bits & 0x7fff) + step;
        h.bits = std::uint16_t((h.bits & 0x8000) | (bits < 0 ? 0 : bits > 0x7bff ? 0x7bff : bits));
    }
    return load_floats(halves) * scale;
}
