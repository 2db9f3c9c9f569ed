// Q5_1: 32 weights in 24 bytes, w = d q + m.
//
// byte   0  1 | 2  3 | 4 .. 7 | 8 ............ 23
//        d    | m    | qh     | qs
// qs[i] = q[i + 16] & 15 << 4 | q[i] & 15      bit i of qh = q[i] >> 4
#pragma once

struct Q5_1 {
    enum { WEIGHTS = 32, GROUP = 32, RUN_STRIDE = 1 };
    half d, m;
    uchar qh[4];
    uchar qs[16];
};

inline uint4 codes(const device Q5_1& b, int i) {
    return ((load16<4>(b.qs) >> (4 * i)) & 0x0f0f0f0f) | spread16(load4<4>(b.qh) >> (16 * i), 4);
}

inline float2 affine(const device Q5_1& b, int) { return float2{to_float(b.d), to_float(b.m)}; }
