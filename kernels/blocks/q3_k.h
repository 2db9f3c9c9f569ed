// Q3_K: 256 weights in 110 bytes, 16 groups of 16, w = d (s - 32) (q - 4).
//
// byte   0 ...... 31 | 32 ...... 95 | 96 .... 107 | 108 109
//        hmask       | qs           | scales      | d
// qs: two halves of 32 bytes; bits 2 j .. 2 j + 1 of byte i in half h: the low bits of weight
//     128 h + 32 j + i; hmask: bit 4 h + j of byte i: the third bit of the same weight
// scales, 6 bits each: the low nibble of s[g] is nibble g / 8 of byte g % 8; its top bits are bits
//     2 (g / 4) .. of byte 8 + g % 4
#pragma once

struct Q3_K {
    enum { WEIGHTS = 256, GROUP = 16, RUN_STRIDE = 2 };
    uchar hmask[32];
    uchar qs[64];
    uchar scales[12];
    half d;
};

// The codes of run i | RUN_STRIDE h, where i is the first run of a slice; both runs load the same bytes.
inline uint4 packed_codes(const device Q3_K& b, int i, int h) {
    uint4 low = (load16<2>(b.qs + 4 * (i & 8) + 16 * (i & 1)) >> ((i & 4) + 2 * h)) & 0x03030303;
    uint4 high = (load16<2>(b.hmask + 16 * (i & 1)) >> ((i >> 1) + h)) & 0x01010101;
    return low | (high << 2);
}

inline uint4 codes(const device Q3_K& b, int i) { return packed_codes(b, i & ~2, (i >> 1) & 1); }

inline float2 affine(const device Q3_K& b, int g) {
    int low = (b.scales[g & 7] >> (4 * (g >> 3))) & 15;
    int top = (b.scales[8 + (g & 3)] >> (2 * (g >> 2))) & 3;
    float scale = to_float(b.d) * ((low | (top << 4)) - 32);
    return float2{scale, -4 * scale};
}
