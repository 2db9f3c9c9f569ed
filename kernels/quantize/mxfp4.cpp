// MXFP4: the E2M1 values under a power of two.
#include <cmath>

#include "codes.h"
#include "quantize.h"

namespace {

constexpr float VALUES[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};

// Of what is not below 0.
FERRUM_INLINE Floats nearest_value(Floats v) {
    Floats value{};
#pragma GCC unroll 8
    for (int i = 1; i < 8; i++) {
        Ints above = v > (VALUES[i - 1] + VALUES[i]) / 2;
        value += (Floats)(above & (Ints)repeat(VALUES[i] - VALUES[i - 1]));
    }
    return value;
}

void put_values(const float* x, int exponent, std::uint8_t* to) {
    float inverse = std::ldexp(1.0f, exponent < -126 ? 126 : -exponent), less = exponent < -126 ? 2.0f : 1.0f;
    std::uint8_t q[32];
    put_codes(32, q, [=](int i) {
        Floats v = load_floats(x + i) * inverse * less, high = magnitude(v);
        Ints passed{};
#pragma GCC unroll 8
        for (int j = 1; j < 8; j++) passed -= high > (VALUES[j - 1] + VALUES[j]) / 2;
        return __builtin_convertvector(passed | ((v < 0) & (passed != 0) & 8), Floats);
    });
    to[0] = std::uint8_t(exponent + 127);
    nibbles(q, q + 16, 16, to + 1);
}

} // namespace

void encode_mxfp4(const Blocks& blocks) {
    // The largest weight is from 1 to 2 here, so the largest value, 6, must be at least 1.5 times this, and may be
    // less.
    constexpr int FIRST = -1, LAST = -4;
    Lanes<32> in;
    in.load(blocks.x, blocks.weights(), blocks.count);
    Floats best = repeat(3e38f), exponent{};
    for (int e = FIRST; e >= LAST; e--) {
        float unit = std::ldexp(1.0f, e), inverse = std::ldexp(1.0f, -e);
        Floats error{};
        for (int i = 0; i < 32; i++) {
            Floats high = magnitude(in.x[i]), r = high - nearest_value(high * inverse) * unit;
            error += in.w[i] * r * r;
        }
        Ints better = error < best;
        put(better, best, error);
        put(better, exponent, repeat(float(e)));
    }
    for (int n = 0; n < blocks.count; n++) {
        int e = int(exponent[n]) + int(as_uint(in.unit[n]) >> 23) - 127;
        put_values(blocks.x[n], e < -127 ? -127 : e, blocks.out[n]);
    }
}
