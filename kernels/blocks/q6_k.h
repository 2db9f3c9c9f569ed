// Q6_K: 256 weights in 210 bytes, 16 groups of 16, w = d s (q - 32).
//
// byte   0 ...... 127 | 128 ... 191 | 192 ... 207  | 208 209
//        ql           | qh          | scales, i8   | d
// ql: two halves of 64 bytes; byte i of half h = q[128 h + 64 + i] & 15 << 4 | q[128 h + i] & 15
// qh: two halves of 32 bytes; bits 2 j .. 2 j + 1 of byte i in half h = q[128 h + 32 j + i] >> 4
#pragma once

struct Q6_K {
    enum { WEIGHTS = 256, GROUP = 16, RUN_STRIDE = 4 };
    uchar ql[128];
    uchar qh[64];
    char scales[16];
    half d;
};

// What is loaded of a run before any arithmetic.
struct RawQ6_K {
    uint4 low, high;
    half d;
    char scale;
};

inline RawQ6_K load_raw(const device Q6_K& b, int i, int h) {
    return RawQ6_K{load16<2>(b.ql + 8 * (i & 8) + 16 * (i & 3)), load16<2>(b.qh + 4 * (i & 8) + 16 * (i & 1)), b.d,
                   b.scales[i | (4 * h)]};
}

inline uint4 raw_codes(RawQ6_K raw, int i, int h) {
    uint4 high = h ? raw.high >> (i & 2) : raw.high << (4 - (i & 2)); // to bits 4 and 5
    return ((raw.low >> (4 * h)) & 0x0f0f0f0f) | (high & 0x30303030);
}

inline float2 raw_affine(RawQ6_K raw, int) {
    float scale = float(raw.d) * (signed char)raw.scale;
    return float2{scale, -32 * scale};
}

// The codes of run i | RUN_STRIDE h, where i is the first run of a slice; both runs load the same bytes.
inline uint4 packed_codes(const device Q6_K& b, int i, int h) { return raw_codes(load_raw(b, i, h), i, h); }

inline uint4 codes(const device Q6_K& b, int i) { return packed_codes(b, i & ~4, (i >> 2) & 1); }

inline float2 affine(const device Q6_K& b, int g) {
    float scale = to_float(b.d) * (signed char)b.scales[g];
    return float2{scale, -32 * scale};
}
