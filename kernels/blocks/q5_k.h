// Q5_K: 256 weights in 176 bytes, 8 groups of 32, w = d s q - dmin m.
//
// byte   0  1 | 2  3 | 4 ..... 15 | 16 ..... 47 | 48 ............ 175
//        d    | dmin | scales     | qh          | qs
// qs and scales as in Q4_K; bit g of qh[i] = q[32 g + i] >> 4
#pragma once

#include "q4_k.h"

struct Q5_K {
    enum { WEIGHTS = 256, GROUP = 32, RUN_STRIDE = 2 };
    half d, dmin;
    uchar scales[12];
    uchar qh[32];
    uchar qs[128];
};

// What is loaded of a run before any arithmetic.
struct RawQ5_K {
    uint4 head, low, high;
};

inline RawQ5_K load_raw(const device Q5_K& b, int i, int) {
    return RawQ5_K{load_head(b), load16<16>(b.qs + 8 * (i & 12) + 16 * (i & 1)), load16<16>(b.qh + 16 * (i & 1))};
}

inline uint4 raw_codes(RawQ5_K raw, int i, int h) {
    uint4 high = raw.high >> (i >> 1); // the same for both runs
    return ((raw.low >> (4 * h)) & 0x0f0f0f0f) | ((high << (4 - h)) & 0x10101010);
}

inline float2 raw_affine(RawQ5_K raw, int g) { return unpack_affine(raw.head, g); }

// The codes of run i | RUN_STRIDE h, where i is the first run of a slice; both runs load the same bytes.
inline uint4 packed_codes(const device Q5_K& b, int i, int h) { return raw_codes(load_raw(b, i, h), i, h); }

inline uint4 codes(const device Q5_K& b, int i) { return packed_codes(b, i & ~2, (i >> 1) & 1); }

inline float2 affine(const device Q5_K& b, int g) { return unpack_affine(load_head(b), g); }

inline float4 slice_affines(const device Q5_K& b, int i) { return unpack_affines(load_head(b), i); }
