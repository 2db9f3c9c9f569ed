// MXFP4: 32 weights in 17 bytes, w = 2^(e - 127) v[q]: E2M1 values under a shared E8M0 exponent
// (OCP Microscaling Formats v1.0). Codes are 2 v[q] + 12.
//
// byte   0 | 1 ............ 16
//        e | qs             qs[i] = q[i + 16] << 4 | q[i]
#pragma once

struct MXFP4 {
    enum { WEIGHTS = 32, GROUP = 32, RUN_STRIDE = 1 };
    uchar e;
    uchar qs[16];
};

constant uchar E2M1_LEVELS[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

inline uint4 codes(const device MXFP4& b, int i) {
    return look_up16((load16<1>(b.qs) >> (4 * i)) & 0x0f0f0f0f, E2M1_LEVELS);
}

inline float2 affine(const device MXFP4& b, int) {
    // the bits of 2^(e - 128); the two smallest are subnormal
    float scale = as_float(b.e < 2 ? 0x00200000u << b.e : uint(b.e - 1) << 23);
    return float2{scale, -12 * scale};
}

// Bytes that hold the nibbles of both runs; runs.metal takes the values from them.
inline uint4 packed_codes(const device MXFP4& b, int, int) { return load16<1>(b.qs); }
