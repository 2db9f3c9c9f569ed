// Q2_K: 256 weights in 84 bytes, 16 groups of 16, w = d s q - dmin m.
//
// byte   0 ........ 15 | 16 ........ 79 | 80 81 | 82 83
//        scales        | qs             | d     | dmin
// scales[g] = m << 4 | s
// qs: two halves of 32 bytes; bits 2 j .. 2 j + 1 of byte i in half h hold weight 128 h + 32 j + i
#pragma once

struct Q2_K {
    enum { WEIGHTS = 256, GROUP = 16, RUN_STRIDE = 2 };
    uchar scales[16];
    uchar qs[64];
    half d, dmin;
};

inline uint4 codes(const device Q2_K& b, int i) {
    return (load16<4>(b.qs + 4 * (i & 8) + 16 * (i & 1)) >> (i & 6)) & 0x03030303;
}

inline float2 affine(const device Q2_K& b, int g) {
    return float2{to_float(b.d) * (b.scales[g] & 15), -(to_float(b.dmin) * (b.scales[g] >> 4))};
}

// Bytes that hold the codes of both runs of the slice from run i, and the mask of those of run i.
inline uint4 packed_codes(const device Q2_K& b, int i, int) { return load16<4>(b.qs + 4 * (i & 8) + 16 * (i & 1)); }

inline uint code_mask(const device Q2_K&, int i) { return 0x03030303u << (i & 6); }
