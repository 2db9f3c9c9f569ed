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
    enum { WEIGHTS = 256, GROUP = 32, APART = 2 };
    half d, dmin;
    uchar scales[12];
    uchar qs[128];
};

inline uint4 codes(const device Q4_K& b, int i) {
    return (load16<16>(b.qs + 8 * (i & 12) + 16 * (i & 1)) >> (2 * (i & 2))) & 0x0f0f0f0f;
}

// d s and -dmin m of group g; Q5_K begins in the same way. One load, no branch, and much that depends on g alone.
template <typename B>
inline float2 packed_affine(const device B& b, int g) {
    uint4 head = load16<16>((const device uchar*)&b);
    uint s = head[1], m = head[2], low = head[3];
    int at = 8 * (g & 3);
    uint mask = g < 4 ? 63 : 15, top = g < 4 ? 0 : 48;
    uint scale = (((g < 4 ? s : low) >> at) & mask) | ((s >> (at + 2)) & top);
    uint minimum = (((g < 4 ? m : low >> 4) >> at) & mask) | ((m >> (at + 2)) & top);
    return float2{half_float(head[0]) * float(scale), -(half_float(head[0] >> 16) * float(minimum))};
}

inline float2 affine(const device Q4_K& b, int g) { return packed_affine(b, g); }

// (scale, bias) of the groups of runs i and i + APART, which are neighbours: g and g + 1, g even.
template <typename B>
inline float4 packed_affines(const device B& b, int i) {
    uint4 head = load16<16>((const device uchar*)&b);
    uint s = head[1], m = head[2], low = head[3];
    int g = i >> 1, at = 8 * (g & 2);
    uint mask = g < 4 ? 0x3f3f : 0x0f0f, top = g < 4 ? 0 : 0x3030;
    uint scale = (((g < 4 ? s : low) >> at) & mask) | ((s >> (at + 2)) & top);
    uint minimum = (((g < 4 ? m : low >> 4) >> at) & mask) | ((m >> (at + 2)) & top);
    float d = half_float(head[0]), dmin = half_float(head[0] >> 16);
    return float4{d * float(scale & 255), -(dmin * float(minimum & 255)), d * float(scale >> 8),
                  -(dmin * float(minimum >> 8))};
}

inline float4 affines(const device Q4_K& b, int i) { return packed_affines(b, i); }

// Bytes with the codes of both runs of the slice from run i, and the bits where those of run i lie.
inline uint4 words(const device Q4_K& b, int i, int) { return load16<16>(b.qs + 8 * (i & 12) + 16 * (i & 1)); }

inline uint mask(const device Q4_K&, int i) { return 0x0f0f0f0fu << (2 * (i & 2)); }
