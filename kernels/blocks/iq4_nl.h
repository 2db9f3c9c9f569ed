// IQ4_NL: 32 weights in 18 bytes, w = d t[q] with a fixed table t. Codes are t[q] + 128.
//
// byte   0  1 | 2 ............ 17
//        d    | qs             qs[i] = q[i + 16] << 4 | q[i]
#pragma once

struct IQ4_NL {
    enum { WEIGHTS = 32, GROUP = 32, RUN_STRIDE = 1 };
    half d;
    uchar qs[16];
};

constant uchar IQ4_LEVELS[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

// Bytes that hold the nibbles of both runs of the slice from run i.
inline uint4 packed_levels(const device IQ4_NL& b, int) { return load16<2>(b.qs); }

inline uint4 codes(const device IQ4_NL& b, int i) {
    return look_up16((packed_levels(b, i) >> (4 * i)) & 0x0f0f0f0f, IQ4_LEVELS);
}

inline float2 affine(const device IQ4_NL& b, int) {
    float d = to_float(b.d);
    return float2{d, -128 * d};
}
