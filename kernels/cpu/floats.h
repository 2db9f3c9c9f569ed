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

template <>
inline void widen(const F16* row, int count, float* out) {
    int i = 0;
    for (; i + LANES <= count; i += LANES) store_floats(out + i, load_floats(&row[i].value));
    for (; i < count; i++) out[i] = row[i].value;
}

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

constexpr float HALF_MOST = 65504;

// Floats to the nearest halves, ties to even. What is beyond their range becomes the largest half; NaN stays.
inline void narrow(const float* x, int count, half* out) {
    const Floats most = Floats{} + HALF_MOST;
    int i = 0;
    for (; i + LANES <= count; i += LANES) {
        Floats part = load_floats(x + i);
        part = part > most ? most : part;
        store_halves(out + i, part < -most ? -most : part);
    }
    for (; i < count; i++) {
        float low = x[i] > HALF_MOST ? HALF_MOST : x[i];
        out[i] = nearest_half(low < -HALF_MOST ? -HALF_MOST : low);
    }
}

inline float dot(const float* a, const float* b, int count) {
    Floats sums[4] = {};
    int i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES)
        for (int j = 0; j < 4; j++) sums[j] += load_floats(a + i + LANES * j) * load_floats(b + i + LANES * j);
    for (; i + LANES <= count; i += LANES) sums[0] += load_floats(a + i) * load_floats(b + i);
    float rest = 0;
    for (; i < count; i++) rest += a[i] * b[i];
    return total((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

// out[r] = row r of a: (ROWS, count), of a type of floats, times b.
template <int ROWS, typename B>
inline void dots(const B* a, const float* b, int count, float* out) {
    Floats sums[2][ROWS] = {};
    int i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES)
        for (int j = 0; j < 2; j++) {
            Floats part = load_floats(b + i + LANES * j);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++) sums[j][r] += load_floats(&a[long(r) * count + i + LANES * j].value) * part;
        }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
        out[r] = total(sums[0][r] + sums[1][r]);
        for (int j = i; j < count; j++) out[r] += a[long(r) * count + j].value * b[j];
    }
}
