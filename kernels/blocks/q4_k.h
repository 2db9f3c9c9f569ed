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

// Unpacks (scale, bias) of group g, which are (d s, -dmin m); Q5_K begins with the same bytes. One load, no branches,
// and most of the arithmetic depends on g alone.
template <typename B>
inline float2 unpack_affine(const device B& b, int g) {
    uint4 head = load16<16>((const device uchar*)&b);
    uint s = head[1], m = head[2], low = head[3];
    int shift = 8 * (g & 3);
    uint mask = g < 4 ? 63 : 15, top = g < 4 ? 0 : 48;
    uint scale = (((g < 4 ? s : low) >> shift) & mask) | ((s >> (shift + 2)) & top);
    uint minimum = (((g < 4 ? m : low >> 4) >> shift) & mask) | ((m >> (shift + 2)) & top);
    return float2{half_float(head[0]) * float(scale), -(half_float(head[0] >> 16) * float(minimum))};
}

inline float2 affine(const device Q4_K& b, int g) { return unpack_affine(b, g); }

// Unpacks (scale, bias) of the groups of runs i and i + RUN_STRIDE, which are g and g + 1 with g even.
template <typename B>
inline float4 unpack_affines(const device B& b, int i) {
    uint4 head = load16<16>((const device uchar*)&b);
    uint s = head[1], m = head[2], low = head[3];
    int g = i >> 1, shift = 8 * (g & 2);
    uint mask = g < 4 ? 0x3f3f : 0x0f0f, top = g < 4 ? 0 : 0x3030;
    uint scale = (((g < 4 ? s : low) >> shift) & mask) | ((s >> (shift + 2)) & top);
    uint minimum = (((g < 4 ? m : low >> 4) >> shift) & mask) | ((m >> (shift + 2)) & top);
    float d = half_float(head[0]), dmin = half_float(head[0] >> 16);
    return float4{d * float(scale & 255), -(dmin * float(minimum & 255)), d * float(scale >> 8),
                  -(dmin * float(minimum >> 8))};
}

inline float4 slice_affines(const device Q4_K& b, int i) { return unpack_affines(b, i); }

// Bytes that hold the codes of both runs of the slice from run i, and the mask of those of run i.
inline uint4 packed_codes(const device Q4_K& b, int i, int) { return load16<16>(b.qs + 8 * (i & 12) + 16 * (i & 1)); }

inline uint code_mask(const device Q4_K&, int i) { return 0x0f0f0f0fu << (2 * (i & 2)); }
