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
