// Q8_K: 256 weights in 292 bytes, w = d q. Codes are q + 128.
//
// byte   0 .. 3 | 4 ........ 259 | 260 ........ 291
//        d, f32 | q, signed      | sums of 16 q each: redundant, not read
#pragma once

struct Q8_K {
    enum { WEIGHTS = 256, GROUP = 256, RUN_STRIDE = 1 };
    float d;
    uchar q[256];
    uchar sums[32];
};

inline uint4 codes(const device Q8_K& b, int i) { return load16<4>(b.q + 16 * i) ^ 0x80808080; }

inline float2 affine(const device Q8_K& b, int) { return float2{b.d, -128 * b.d}; }
