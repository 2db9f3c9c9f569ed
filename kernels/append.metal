// Prepares queries, keys and values for attention: RMS norm of each head, rotary position embedding, and keys and
// values into the blocks of a pool. One simdgroup per head reads it twice, the second time from the cache; the
// simdgroup of a key head also stores the value head. Positions reach 10^5 radians, so sine and cosine must be the
// precise ones. Numbers beyond the range of halves are clamped to the largest half.
#pragma once

#include "numbers.h"

struct AppendShape {
    int rows, heads, groups; // n, h, g
    int head_dim, value_dim; // d, dv
    int pairs;               // pairs of a head that rotate
    int size;                // positions of a block
};

struct HeadFactors {
    float magnitude, eps;
};

METAL_FUNC void put(device half* out, float x) { *out = clamp_half(half(x)); }
METAL_FUNC void put(threadgroup float* out, float x) {
    const float largest = LARGEST_HALF;
    *out = x < -largest ? -largest : x > largest ? largest : x; // NaN stays NaN
}

// 1 / sqrt(mean(x²) + eps) of x (head_dim,).
template <typename X>
METAL_FUNC float inverse_rms(X x, int head_dim, float eps, uint lane) {
    float sum = 0;
    for (int i = lane; i < head_dim; i += 32) sum = fma(float(x[i]), float(x[i]), sum);
    return precise::rsqrt(simd_sum(sum) / head_dim + eps);
}

// One head: in (d,), weight (d,), frequencies (pairs,) -> out (d,).
template <bool NORM, bool INTERLEAVED, typename X, typename W, typename F, typename O>
METAL_FUNC void rotate_head(X in, W weight, F frequencies, O out, float position, AppendShape s, HeadFactors f,
                            uint lane) {
    float scale = NORM ? inverse_rms(in, s.head_dim, f.eps, lane) : 1;
    for (int p = lane; p < s.pairs; p += 32) {
        int i = INTERLEAVED ? 2 * p : p, j = INTERLEAVED ? i + 1 : p + s.pairs;
        float first = float(in[i]) * scale, second = float(in[j]) * scale;
        if (NORM) {
            first *= float(weight[i]);
            second *= float(weight[j]);
        }
        float angle = position * frequencies[p];
        float cosine = precise::cos(angle) * f.magnitude, sine = precise::sin(angle) * f.magnitude;
        put(out + i, first * cosine - second * sine);
        put(out + j, first * sine + second * cosine);
    }
    for (int i = 2 * s.pairs + lane; i < s.head_dim; i += 32) {
        float value = float(in[i]) * scale;
        put(out + i, NORM ? value * float(weight[i]) : value);
    }
}

// Stores x (d,) as whole numbers from -127 to 127 times a scale, which is NaN if a number of x is.
METAL_FUNC void narrow(threadgroup const float* x, device char* out, device float* scale, int d, uint lane) {
    float largest = 0, nan = 0;
    for (int i = lane; i < d; i += 32) {
        largest = max(largest, abs(x[i]));
        nan = x[i] == x[i] ? nan : x[i];
    }
    float step = simd_max(largest) / 127 + simd_sum(nan);
    if (lane == 0) *scale = step;
    if (!(step > 0)) step = 1;
    for (int i = lane; i < d; i += 32) {
        float steps = rint(x[i] / step);
        out[i] = steps == steps ? char(clamp(int(steps), -127, 127)) : char(0);
    }
}

// Where row `slot` of a pool (blocks, g, size, ...) has the head of group g.
METAL_FUNC size_t pool_row(long slot, int g, AppendShape s) {
    return (size_t(slot / s.size) * s.groups + g) * s.size + size_t(slot % s.size);
}

// Stores one head: k (d,) turned and v (dv,) in row `row` of keys (..., d) and values (..., dv).
template <bool NORM, bool INTERLEAVED, typename K, typename V, typename W, typename F>
METAL_FUNC void store_head(K k, V v, W weight, F frequencies, device half* keys, device half* values, size_t row,
                           float position, AppendShape s, HeadFactors f, uint lane) {
    device half* key = keys + row * s.head_dim;
    device half* value = values + row * s.value_dim;
    rotate_head<NORM, INTERLEAVED>(k, weight, frequencies, key, position, s, f, lane);
    for (int i = lane; i < s.value_dim; i += 32) put(value + i, float(v[i]));
}

// The same with 8 bits a number and scales (...). staged: room for d and for dv numbers of this simdgroup
template <bool NORM, bool INTERLEAVED, typename K, typename V, typename W, typename F>
METAL_FUNC void store_narrow_head(K k, V v, W weight, F frequencies, device char* keys, device char* values,
                                  device float* key_scales, device float* value_scales, threadgroup float* staged,
                                  size_t row, float position, AppendShape s, HeadFactors f, uint lane) {
    threadgroup float* value = staged + s.head_dim;
    rotate_head<NORM, INTERLEAVED>(k, weight, frequencies, staged, position, s, f, lane);
    for (int i = lane; i < s.value_dim; i += 32) put(value + i, float(v[i]));
    simdgroup_barrier(mem_flags::mem_threadgroup);
    narrow(staged, keys + row * s.head_dim, key_scales + row, s.head_dim, lane);
    narrow(value, values + row * s.value_dim, value_scales + row, s.value_dim, lane);
}
