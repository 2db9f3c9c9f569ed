// RMS norm of each head, then rotary position embedding, from (b, l, h, d) to (b, h, l, d): one simdgroup a head, which
// reads it twice, the second time from the cache, and writes it where attention wants it. Angles are exact to
// float32, so sine and cosine must be the precise ones: positions reach 10^5 radians.
#pragma once

#include "prelude.metal"

struct RopeShape {
    int length, heads, size; // l, h, d
    int pairs;               // of a head, that turn
    int offsets;             // 1 for all sequences, or one each
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

// Head `head` of b l h: x (b, l, h, d), weight (d,), frequencies (pairs,), offset (1,) or (b,) -> y (b, h, l, d).
template <bool NORM, bool INTERLEAVED, typename X, typename W, typename F, typename O, typename T>
METAL_FUNC void norm_rope(X x, W weight, F frequencies, O offset, device T* y, RopeShape s, HeadFactors f, int head,
                          uint lane) {
    int h = head % s.heads, l = head / s.heads % s.length, b = head / (s.heads * s.length);
    X in = x + size_t(head) * s.size;
    device T* out = y + (size_t(b * s.heads + h) * s.length + l) * s.size;
    float scale = NORM ? inverse_rms(in, s.size, f.eps, lane) : 1;
    float position = offset[s.offsets == 1 ? 0 : b] + l;
    for (int p = lane; p < s.pairs; p += 32) {
        int i = INTERLEAVED ? 2 * p : p, j = INTERLEAVED ? i + 1 : p + s.pairs;
        float first = float(in[i]) * scale, second = float(in[j]) * scale;
        if (NORM) {
            first *= float(weight[i]);
            second *= float(weight[j]);
        }
        float angle = position * frequencies[p];
        float c = precise::cos(angle) * f.magnitude, s = precise::sin(angle) * f.magnitude;
        out[i] = T(first * c - second * s);
        out[j] = T(first * s + second * c);
    }
    for (int i = 2 * s.pairs + lane; i < s.size; i += 32) {
        float value = float(in[i]) * scale;
        out[i] = T(NORM ? value * float(weight[i]) : value);
    }
}
