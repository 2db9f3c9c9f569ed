// IQ4_XS: 256 weights in 136 bytes, 8 groups of 32, w = d (s - 32) t[q], t as in IQ4_NL.
//
// byte   0  1 | 2  3     | 4 .. 7   | 8 ............ 135
//        d    | scales_h | scales_l | qs
// scales_l[i] = s[2 i + 1] & 15 << 4 | s[2 i] & 15      bits 2 g .. of scales_h = s[g] >> 4
// qs: eight runs of 16 bytes; byte i of run g = q[32 g + 16 + i] << 4 | q[32 g + i]
#pragma once

#include "iq4_nl.h"

struct IQ4_XS {
    enum { WEIGHTS = 256, GROUP = 32, RUN_STRIDE = 1 };
    half d;
    uchar scales_h[2];
    uchar scales_l[4];
    uchar qs[128];
};

// Bytes that hold the nibbles of both runs of the slice from run i.
inline uint4 packed_levels(const device IQ4_XS& b, int i) { return load16<8>(b.qs + 8 * (i & 14)); }

inline uint4 codes(const device IQ4_XS& b, int i) {
    uint4 q = (packed_levels(b, i) >> (4 * (i & 1))) & 0x0f0f0f0f;
    return look_up16(q, IQ4_LEVELS);
}

inline float2 affine(const device IQ4_XS& b, int g) {
    int low = (b.scales_l[g >> 1] >> (4 * (g & 1))) & 15;
    int high = (b.scales_h[g >> 2] >> (2 * (g & 3))) & 3;
    float scale = to_float(b.d) * ((low | (high << 4)) - 32);
    return float2{scale, -128 * scale};
}
