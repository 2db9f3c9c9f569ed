// Q4_K: 256 weights in 144 bytes, 8 groups of 32, w = d s q - dmin m.
//
// byte   0  1 | 2  3 | 4 ..... 15 | 16 ............ 143
//        d    | dmin | scales     | qs
// qs: four runs of 32 bytes; byte i of run r = q[64 r + 32 + i] << 4 | q[64 r + i]
// scales, 6 bits each: byte i     = s[i + 4] top bits << 6 | s[i]      (i = 0..3)
//                      byte i + 4 = m[i + 4] top bits << 6 | m[i]
//                      byte i + 8 = m[i + 4] low nibble << 4 | s[i + 4] low nibble
#pragma once

struct Q4_K {
    enum { WEIGHTS = 256, GROUP = 32, RUN_STRIDE = 2 };
    half d, dmin;
    uchar scales[12];
    uchar qs[128];
};

inline uint4 codes(const device Q4_K& b, int i) {
    return (load16<16>(b.qs + 8 * (i & 12) + 16 * (i & 1)) >> (2 * (i & 2))) & 0x0f0f0f0f;
}

// Unpacks the scales and minima of groups g and g + 1, g even; from the low byte on: s[g], s[g + 1], m[g], m[g + 1].
// No branches, and shifts by constants only: another amount takes an Apple GPU twice as long.
inline uint unpack_pair(uint4 head, int g) {
    bool early = g < 4, upper = g & 2;
    uint six = select_halves(head[1], head[2], upper), four = select_halves(head[3], head[3] >> 4, upper);
    uint mask = early ? 0x3f3f3f3f : 0x0f0f0f0f, top = early ? 0 : 0x30303030;
    return ((early ? six : four) & mask) | ((six >> 2) & top);
}

// Unpacks (scale, bias) of group g, which are (d s, -dmin m), from the first 16 bytes, which Q5_K has, too. Codes stay
// in their byte, and d and dmin are divided by its value, which is exact.
inline float2 unpack_affine(uint4 head, int g) {
    uint pair = unpack_pair(head, g & 6) & (g & 1 ? 0xff00ff00 : 0x00ff00ff);
    float unit = g & 1 ? 1.0f / 256 : 1;
    float d = half_float(head[0]) * unit, dmin = half_float(head[0] >> 16) * (unit / 65536);
    return float2{d * float(pair & 0xffff), -(dmin * float(pair & 0xffff0000))};
}

// Unpacks (scale, bias) of the groups of runs i and i + RUN_STRIDE, which are g and g + 1 with g even.
inline float4 unpack_affines(uint4 head, int i) {
    uint pair = unpack_pair(head, i >> 1);
    float d = half_float(head[0]), dmin = half_float(head[0] >> 16);
    return float4{d * float(pair & 255), -(dmin * float((pair >> 16) & 255)), d * float((pair >> 8) & 255),
                  -(dmin * float(pair >> 24))};
}

template <typename B>
inline uint4 load_head(const device B& b) {
    return load16<16>((const device uchar*)&b);
}

inline float2 affine(const device Q4_K& b, int g) { return unpack_affine(load_head(b), g); }

inline float4 slice_affines(const device Q4_K& b, int i) { return unpack_affines(load_head(b), i); }

// Bytes that hold the codes of both runs of the slice from run i, and the mask of those of run i.
inline uint4 packed_codes(const device Q4_K& b, int i, int) { return load16<16>(b.qs + 8 * (i & 12) + 16 * (i & 1)); }

inline uint code_mask(const device Q4_K&, int i) { return 0x0f0f0f0fu << (2 * (i & 2)); }

// What is loaded of a run before any arithmetic.
struct RawQ4_K {
    uint4 head, packed;
};

inline RawQ4_K load_raw(const device Q4_K& b, int i, int h) { return RawQ4_K{load_head(b), packed_codes(b, i, h)}; }

inline uint4 raw_codes(RawQ4_K raw, int, int) { return raw.packed; }

inline float2 raw_affine(RawQ4_K raw, int g) { return unpack_affine(raw.head, g); }
