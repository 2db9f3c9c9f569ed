// Q8_0: 32 weights in 34 bytes, w = d q. Codes are q + 128.
//
// byte   0  1 | 2 ............ 33
//        d    | q, signed
#pragma once

struct Q8_0 {
    enum { WEIGHTS = 32, GROUP = 32, RUN_STRIDE = 1 };
    half d;
    uchar q[32];
};

inline uint4 codes(const device Q8_0& b, int i) { return load16<2>(b.q + 16 * i) ^ 0x80808080; }

inline float2 affine(const device Q8_0& b, int) {
    float d = to_float(b.d);
    return float2{d, -128 * d};
}
