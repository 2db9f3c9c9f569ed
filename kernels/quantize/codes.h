// What codes stand for, and how a weight finds its code: in lanes for the search, one after the other for the bytes.
#pragma once

#include "lanes.h"

// Whole numbers from LOW to HIGH.
template <int LOW, int HIGH>
struct Whole {
    static constexpr float low = LOW, high = HIGH;

    // Of v * inverse. The sum with WHOLE, which keeps the order of what is beyond the ends, has no bits for a fraction.
    static FERRUM_INLINE Floats nearest(Floats v, Floats inverse) {
        return clamped(v * inverse + WHOLE, LOW + WHOLE, HIGH + WHOLE) - WHOLE;
    }

    // The codes of x + offset, in units of `step`, counted from 0: n of them.
    static void codes(const float* x, int n, float step, float offset, std::uint8_t* out) {
        float inverse = step != 0 ? 1 / step : 0;
        for (int i = 0; i < n; i++) {
            float v = (x[i] + offset) * inverse;
            v = v < LOW ? LOW : v;
            v = v > HIGH ? HIGH : v;
            out[i] = std::uint8_t(int(as_uint(v + WHOLE) - as_uint(WHOLE)) - LOW);
        }
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
        float inverse = step != 0 ? 1 / step : 0;
        for (int i = 0; i < n; i++) {
            int code = 0;
            for (int j = 1; j < 16; j++) code += x[i] * inverse > (LEVELS[j - 1] + LEVELS[j]) / 2;
            out[i] = std::uint8_t(code);
        }
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
