// Prepares queries, keys and values for attention: RMS norm of each head, rotary position embedding, and the layout
// (heads, positions); keys and values are in one array, as in the KV cache. One simdgroup per head reads it twice, the
// second time from the cache; the simdgroup of a key head also copies the value head. Positions reach 10^5 radians, so
// sine and cosine must be the precise ones. Results beyond the range of halves are clamped to the largest half.
#pragma once

#include "numbers.h"

struct HeadShape {
    int batch, length, heads, kv_heads; // b, l, h, g
    int head_dim, value_dim;            // d, dv
    int pairs;                          // pairs of a head that rotate
    int offsets;                        // 1 for all sequences, or b
};

struct HeadFactors {
    float magnitude, eps;
};

// 1 / sqrt(mean(x²) + eps) of x (head_dim,).
template <typename X>
METAL_FUNC float inverse_rms(X x, int head_dim, float eps, uint lane) {
    float sum = 0;
    for (int i = lane; i < head_dim; i += 32) sum = fma(float(x[i]), float(x[i]), sum);
    return precise::rsqrt(simd_sum(sum) / head_dim + eps);
}

// One head: in (d,), weight (d,), frequencies (pairs,) -> out (d,).
template <bool NORM, bool INTERLEAVED, typename X, typename W, typename F>
METAL_FUNC void rotate_head(X in, W weight, F frequencies, device half* out, float position, HeadShape s, HeadFactors f,
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
        out[i] = clamp_half(half(first * cosine - second * sine));
        out[j] = clamp_half(half(first * sine + second * cosine));
    }
    for (int i = 2 * s.pairs + lane; i < s.head_dim; i += 32) {
        float value = float(in[i]) * scale;
        out[i] = clamp_half(half(NORM ? value * float(weight[i]) : value));
    }
}

// One of the b l (h + g) heads: q (b, l, h, d) -> rotated_q (b, h, l, d); k (b, l, g, d), v (b, l, g, dv)
// -> new_kv (2, b, g, l, max(d, dv)), the shorter padded with zeros. Weights (d,), frequencies (pairs,), offset (1,) or
// (b,).
template <bool NORM, bool INTERLEAVED, typename Q, typename K, typename V, typename W, typename F, typename O>
METAL_FUNC void rotate(Q q, K k, V v, W q_weight, W k_weight, F frequencies, O offset, device half* rotated_q,
                       device half* new_kv, HeadShape s, HeadFactors f, int head, uint lane) {
    int token = head / (s.heads + s.kv_heads), h = head % (s.heads + s.kv_heads), l = token % s.length,
        b = token / s.length;
    float position = offset[s.offsets == 1 ? 0 : b] + l;
    if (h < s.heads) {
        device half* out = rotated_q + (size_t(b * s.heads + h) * s.length + l) * s.head_dim;
        Q in = q + (size_t(token) * s.heads + h) * s.head_dim;
        return rotate_head<NORM, INTERLEAVED>(in, q_weight, frequencies, out, position, s, f, lane);
    }
    int g = h - s.heads, width = max(s.head_dim, s.value_dim);
    device half* key = new_kv + (size_t(b * s.kv_heads + g) * s.length + l) * width;
    device half* value = key + size_t(s.batch) * s.kv_heads * s.length * width;
    size_t row = size_t(token) * s.kv_heads + g;
    rotate_head<NORM, INTERLEAVED>(k + row * s.head_dim, k_weight, frequencies, key, position, s, f, lane);
    for (int i = s.head_dim + lane; i < width; i += 32) key[i] = 0;
    for (int i = lane; i < width; i += 32)
        value[i] = i < s.value_dim ? clamp_half(half(v[row * s.value_dim + i])) : half(0);
}
