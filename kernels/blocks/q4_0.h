// Q4_0: 32 weights in 18 bytes, w = d (q - 8).
//
// byte   0  1 | 2 ............ 17
//        d    | qs             qs[i] = q[i + 16] << 4 | q[i]
#pragma once

struct Q4_0 {
    enum { WEIGHTS = 32, GROUP = 32, RUN_STRIDE = 1 };
    half d;
    uchar qs[16];
};

// The codes of run i, weights 16 i to 16 i + 15, one per byte.
inline uint4 codes(const device Q4_0& b, int i) { return (load16<2>(b.qs) >> (4 * i)) & 0x0f0f0f0f; }

// (scale, bias) of group g: w = scale * code + bias.
inline float2 affine(const device Q4_0& b, int) {
    float d = to_float(b.d);
    return float2{d, -8 * d};
}

// Bytes that hold the codes of both runs of the slice from run i, and the mask of those of run i.
inline uint4 packed_codes(const device Q4_0& b, int, int) { return load16<2>(b.qs); }

inline uint code_mask(const device Q4_0&, int i) { return 0x0f0f0f0fu << (4 * i); }
