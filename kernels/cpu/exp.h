// exp of vectors.
#pragma once

#include "vectors.h"

// e^x to within 2 units in the last place for -87 <= x <= 88; below that 0 (Cephes' polynomial
// degree: x = n ln 2 + r, |r| <= ln 2 / 2).
inline Floats exp_floats(Floats x) {
    constexpr float SHIFT = 0x1.8p23f + 127; // in a sum with it, the last bits are n + 127, rounded
    Floats low = x < -87.0f ? Floats{} - 87.0f : x;
    Floats shifted = low * 1.44269504f + SHIFT, n = shifted - SHIFT;
    Floats r = low - n * 0.693359375f + n * 2.12194440e-4f;
    Floats p = Floats{} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Ints power;
    std::memcpy(&power, &shifted, sizeof power);
    power <<= 23;
    Floats scale;
    std::memcpy(&scale, &power, sizeof scale);
    return x < -87.0f ? Floats{} : p * scale;
}

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exp_floats(-(x < -80.0f ? Floats{} - 80.0f : x))); }

inline Floats tanh_floats(Floats x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }

// The exact GELU to 1.5e-7 |x|: x times the normal distribution's share below it. Formula 7.1.26 of Abramowitz and
// Stegun, Handbook of Mathematical Functions, for the share beyond |x|.
inline Floats gelu(Floats x) {
    Floats z = (x < 0.0f ? -x : x) * 0.70710678f;
    Floats t = 1.0f / (1.0f + 0.3275911f * z);
    Floats p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    Floats beyond = x * (p * t * exp_floats(-(z * z)) * 0.5f);
    return x > 0.0f ? x - beyond : beyond;
}

// x[i] = e^(x[i] - shift) for i < count, a multiple of LANES; every LANES-th of them summed.
inline Floats exp_sums(float* x, int count, float shift) {
    Floats sums = {};
    for (int i = 0; i < count; i += LANES) {
        Floats v = exp_floats(load_floats(x + i) - shift);
        store_floats(x + i, v);
        sums += v;
    }
    return sums;
}
