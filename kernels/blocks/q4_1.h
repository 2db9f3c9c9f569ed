// Q4_1: 32 weights in 20 bytes, w = d q + m.
//
// byte   0  1 | 2  3 | 4 ............ 19
//        d    | m    | qs             qs[i] = q[i + 16] << 4 | q[i]
#pragma once

struct Q4_1 {
    enum { WEIGHTS = 32, GROUP = 32, RUN_STRIDE = 1 };
    half d, m;
    uchar qs[16];
};

inline uint4 codes(const device Q4_1& b, int i) { return (load16<4>(b.qs) >> (4 * i)) & 0x0f0f0f0f; }

inline float2 affine(const device Q4_1& b, int) { return float2{to_float(b.d), to_float(b.m)}; }

// Bytes that hold the codes of both runs of the slice from run i, and the mask of those of run i.
inline uint4 packed_codes(const device Q4_1& b, int, int) { return load16<4>(b.qs); }

inline uint code_mask(const device Q4_1&, int i) { return 0x0f0f0f0fu << (4 * i); }
