// Queries and keys as attention takes them: RMS norm of each head, rotary position embedding, and positions inside
// heads; keys and values in one array, as a cache holds them. One simdgroup a head, which it reads twice, the second
// time from the cache; that of a key brings the value with it. Angles are exact to float32, so sine and cosine must be
// the precise ones: positions reach 10^5 radians. Results beyond the range of halves become the largest half.
#pragma once

#include "numbers.h"

struct HeadShape {
    int batch, length, heads, groups; // b, l, h, g
    int size, values;                 // d, dv
    int pairs;                        // of a head, that turn
    int offsets;                      // 1 for all sequences, or one each
};

struct HeadFactors {
    float magnitude, eps;
};

// What a head is multiplied by for a mean square of 1; eps is added to the mean.
template <typename X>
METAL_FUNC float inverse_rms(X x, int size, float eps, uint lane) {
    float sum = 0;
    for (int i = lane; i < size; i += 32) sum = fma(float(x[i]), float(x[i]), sum);
    return precise::rsqrt(simd_sum(sum) / size + eps);
}

// One head: in (d,), weight (d,), frequencies (pairs,) -> out (d,).
template <bool NORM, bool INTERLEAVED, typename X, typename W, typename F>
METAL_FUNC void rotate_head(X in, W weight, F frequencies, device half* out, float position, HeadShape s, HeadFactors f,
                            uint lane) {
    float scale = NORM ? inverse_rms(in, s.size, f.eps, lane) : 1;
    for (int p = lane; p < s.pairs; p += 32) {
        int i = INTERLEAVED ? 2 * p : p, j = INTERLEAVED ? i + 1 : p + s.pairs;
        float first = float(in[i]) * scale, second = float(in[j]) * scale;
        if (NORM) {
            first *= float(weight[i]);
            second *= float(weight[j]);
        }
        float angle = position * frequencies[p];
        float cosine = precise::cos(angle) * f.magnitude, sine = precise::sin(angle) * f.magnitude;
        out[i] = finite(half(first * cosine - second * sine));
        out[j] = finite(half(first * sine + second * cosine));
    }
    for (int i = 2 * s.pairs + lane; i < s.size; i += 32) {
        float value = float(in[i]) * scale;
        out[i] = finite(half(NORM ? value * float(weight[i]) : value));
    }
}

// One of the b l (h + g) heads: q (b, l, h, d) -> turned (b, h, l, d); k (b, l, g, d), v (b, l, g, dv)
// -> added (2, b, g, l, width), zeros past the shorter of them. Weights (d,), frequencies (pairs,), offset (1,) or
// (b,).
template <bool NORM, bool INTERLEAVED, typename Q, typename K, typename V, typename W, typename F, typename O>
METAL_FUNC void rotate(Q q, K k, V v, W q_weight, W k_weight, F frequencies, O offset, device half* turned,
                       device half* added, HeadShape s, HeadFactors f, int head, uint lane) {
    int at = head / (s.heads + s.groups), h = head % (s.heads + s.groups), l = at % s.length, b = at / s.length;
    float position = offset[s.offsets == 1 ? 0 : b] + l;
    if (h < s.heads) {
        device half* out = turned + (size_t(b * s.heads + h) * s.length + l) * s.size;
        Q in = q + (size_t(at) * s.heads + h) * s.size;
        return rotate_head<NORM, INTERLEAVED>(in, q_weight, frequencies, out, position, s, f, lane);
    }
    int g = h - s.heads, width = max(s.size, s.values);
    device half* key = added + (size_t(b * s.groups + g) * s.length + l) * width;
    device half* value = key + size_t(s.batch) * s.groups * s.length * width;
    size_t row = size_t(at) * s.groups + g;
    rotate_head<NORM, INTERLEAVED>(k + row * s.size, k_weight, frequencies, key, position, s, f, lane);
    for (int i = s.size + lane; i < width; i += 32) key[i] = 0;
    for (int i = lane; i < width; i += 32) value[i] = i < s.values ? finite(half(v[row * s.values + i])) : half(0);
}
