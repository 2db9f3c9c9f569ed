// What codes stand for, and how a weight finds its code: in lanes for the search, one after the other for the bytes.
#pragma once

#include "lanes.h"

// A weight is felt whose square, as it counts, is this share of the largest one's over the square of the levels: the
// mean square error of rounding to them is larger.
constexpr float FELT = 1.0f / 64;

// The codes of n weights, a multiple of 16 up to 256, as `code` gives those of LANES in whole numbers from 0 to 255.
template <typename Code>
FERRUM_INLINE void put_codes(int n, std::uint8_t* to, Code code) {
    int codes[256];
    for (int i = 0; i < n; i += LANES) {
        Ints found = __builtin_convertvector(code(i), Ints);
        std::memcpy(codes + i, &found, sizeof found);
    }
    for (int i = 0; i < n; i++) to[i] = std::uint8_t(codes[i]);
}

// Whole numbers from LOW to HIGH.
template <int LOW, int HIGH>
struct Whole {
    static constexpr float low = LOW, high = HIGH;

    // Of v * inverse. The sum with WHOLE, which keeps the order of what is beyond the ends, has no bits for a fraction.
    static FERRUM_INLINE Floats nearest(Floats v, Floats inverse) {
        return clamped(v * inverse + WHOLE, LOW + WHOLE, HIGH + WHOLE) - WHOLE;
    }

    // The codes of x + offset, in units of `step`, counted from 0: n of them, a multiple of 16.
    static void codes(const float* x, int n, float step, float offset, std::uint8_t* out) {
        Floats inverse = repeat(step != 0 ? 1 / step : 0);
        put_codes(n, out, [=](int i) { return nearest(load_floats(x + i) + offset, inverse) - low; });
    }
};

// The 16 levels of IQ4_NL and IQ4_XS.
struct Curve {
    static constexpr float low = -127, high = 113;
    static constexpr float LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

    static FERRUM_INLINE Floats nearest(Floats v, Floats inverse) {
        v *= inverse;
        Floats level = repeat(LEVELS[0]);
#pragma GCC unroll 16
        for (int i = 1; i < 16; i++) {
            Ints above = v > (LEVELS[i - 1] + LEVELS[i]) / 2;
            level += (Floats)(above & (Ints)repeat(LEVELS[i] - LEVELS[i - 1]));
        }
        return level;
    }

    static void codes(const float* x, int n, float step, std::uint8_t* out) {
        Floats inverse = repeat(step != 0 ? 1 / step : 0);
        put_codes(n, out, [=](int i) { return code(load_floats(x + i) * inverse); });
    }

private:
    static FERRUM_INLINE Floats code(Floats v) {
        Ints passed{};
#pragma GCC unroll 16
        for (int i = 1; i < 16; i++) passed -= v > (LEVELS[i - 1] + LEVELS[i]) / 2;
        return __builtin_convertvector(passed, Floats);
    }
};

// to[i] = low[i] | high[i] << 4
inline void nibbles(const std::uint8_t* low, const std::uint8_t* high, int n, std::uint8_t* to) {
    for (int i = 0; i < n; i++) to[i] = std::uint8_t((low[i] & 15) | high[i] << 4);
}

inline void put_half(float value, std::uint8_t* to) {
    half h = nearest_half(value);
    std::memcpy(to, &h, 2);
}
