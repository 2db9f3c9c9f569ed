// Q5_0: 32 weights in 22 bytes, w = d (q - 16).
//
// byte   0  1 | 2 .. 5 | 6 ............ 21
//        d    | qh     | qs
// qs[i] = q[i + 16] & 15 << 4 | q[i] & 15      bit i of qh = q[i] >> 4
#pragma once

struct Q5_0 {
    enum { WEIGHTS = 32, GROUP = 32, RUN_STRIDE = 1 };
    half d;
    uchar qh[4];
    uchar qs[16];
};

inline uint4 codes(const device Q5_0& b, int i) {
    return ((load16<2>(b.qs) >> (4 * i)) & 0x0f0f0f0f) | spread16(load4<2>(b.qh) >> (16 * i), 4);
}

inline float2 affine(const device Q5_0& b, int) {
    float d = to_float(b.d);
    return float2{d, -16 * d};
}
