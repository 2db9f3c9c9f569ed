// Weights that are floats already, and dot products of floats.
#pragma once

#include "dot.h"

template <typename B>
constexpr bool is_float = B::WEIGHTS == 1;

// Values [0, count) of a row as float32.
template <typename B>
inline void widen(const B* row, int count, float* out) {
    for (int i = 0; i < count; i++) out[i] = row[i].value;
}

#if defined(__AVX512F__) && !defined(FERRUM_PORTABLE)
template <>
inline void widen(const F16* row, int count, float* out) {
    int i = 0;
    for (; i + 16 <= count; i += 16)
        _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(row + i))));
    for (; i < count; i++) out[i] = row[i].value;
}
#endif

// A row of k weights as float32.
template <typename B>
inline void read_row(const B* row, int k, float* out) {
    if constexpr (is_float<B>) {
        widen(row, k, out);
    } else {
        Chunk chunk;
        for (int c = 0; c * CHUNK < k; c++) {
            unpack_chunk(row, k, c, chunk);
            int count = std::min(CHUNK, k - c * CHUNK);
            // one rounding, as in the types' definitions; zeros have their sign
            for (int i = 0; i < count; i++) {
                float scale = chunk.scale[i / GROUP], bias = origin<B> ? -0.0f : chunk.bias[i / GROUP];
                out[c * CHUNK + i] = std::fma(scale, float(chunk.code[i] - origin<B>), bias);
            }
        }
    }
}

inline Floats load_floats(const half* p) {
    Floats out;
#if defined(__AVX512F__) && !defined(FERRUM_PORTABLE)
    __m512 wide = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
    std::memcpy(&out, &wide, sizeof out);
#else
    for (int i = 0; i < 16; i++) out[i] = p[i];
#endif
    return out;
}

// Floats to the nearest halves, ties to even.
inline void narrow(const float* x, int count, half* out) {
    int i = 0;
#if defined(__AVX512F__) && !defined(FERRUM_PORTABLE)
    for (; i + 16 <= count; i += 16)
        _mm256_storeu_si256((__m256i*)(out + i), _mm512_cvtps_ph(_mm512_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < count; i++) out[i] = nearest_half(x[i]);
}

// The totals of 16 vectors as one.
inline Floats totals(const Floats* v) {
    Floats out;
#ifdef FERRUM_VNNI
    __m512 sums[16];
    std::memcpy(sums, v, sizeof sums);
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 4
    for (int apart = 8; apart; apart /= 2) {
        // lanes whose bit `apart` is set are of the second vector; each gets its other half
        __m512i bit = _mm512_set1_epi32(apart);
        __m512i second = _mm512_mask_set1_epi32(_mm512_setzero_si512(), _mm512_test_epi32_mask(lane, bit), 16);
        __m512i own = _mm512_or_si512(lane, second), other = _mm512_xor_si512(own, bit);
#pragma GCC unroll 8
        for (int j = 0; j < apart; j++) {
            __m512 a = sums[j], b = sums[j + apart];
            sums[j] = _mm512_permutex2var_ps(a, own, b) + _mm512_permutex2var_ps(a, other, b);
        }
    }
    std::memcpy(&out, sums, sizeof out);
#else
    for (int j = 0; j < 16; j++) out[j] = total(v[j]);
#endif
    return out;
}

inline float dot(const float* a, const float* b, int count) {
    Floats sums[4] = {};
    int i = 0;
    for (; i + 64 <= count; i += 64)
        for (int j = 0; j < 4; j++) sums[j] += load_floats(a + i + 16 * j) * load_floats(b + i + 16 * j);
    for (; i + 16 <= count; i += 16) sums[0] += load_floats(a + i) * load_floats(b + i);
    float rest = 0;
    for (; i < count; i++) rest += a[i] * b[i];
    return total((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}
