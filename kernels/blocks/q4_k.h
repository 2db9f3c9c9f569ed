// Q4_K: 256 weights in 144 bytes, 8 groups of 32, w = d s q - dmin m.
//
// byte   0  1 | 2  3 | 4 ..... 15 | 16 ............ 143
//        d    | dmin | scales     | qs
// qs: four runs of 32 bytes; byte i of run r = q[64 r + 32 + i] << 4 | q[64 r + i]
// scales, 6 bits each: byte i     = s[i + 4] top bits << 6 | s[i]      (i = 0..3)
//                      byte i + 4 = m[i + 4] top bits << 6 | m[i]
//                      byte i + 8 = m[i + 4] low nibble << 4 | s[i + 4] low nibble

struct Q4_K {
    enum { WEIGHTS = 256, GROUP = 32 };
    half d, dmin;
    uchar scales[12];
    uchar qs[128];
};

inline uint4 codes(const device Q4_K& b, int i) {
    return (load16(b.qs + 32 * (i >> 2) + 16 * (i & 1)) >> (2 * (i & 2))) & 0x0f0f0f0f;
}

// d s and -dmin m of group g; Q5_K packs its scales in the same way.
template <typename B>
inline float2 packed_affine(const device B& b, int g) {
    const device uchar* p = b.scales;
    int s = g < 4 ? p[g] & 63 : (p[g + 4] & 15) | (p[g - 4] >> 6 << 4);
    int m = g < 4 ? p[g + 4] & 63 : (p[g + 4] >> 4) | (p[g] >> 6 << 4);
    return float2{float(b.d) * s, -(float(b.dmin) * m)};
}

inline float2 affine(const device Q4_K& b, int g) { return packed_affine(b, g); }
