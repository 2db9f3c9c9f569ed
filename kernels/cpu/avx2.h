// Decoders for processors with AVX2, a part of registers.h.
#pragma once

namespace registers {

FERRUM_INLINE __m128i load128(const void* p) { return _mm_loadu_si128((const __m128i*)p); }
FERRUM_INLINE __m256i load256(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }

// Bits `mask` of each byte of v.
FERRUM_INLINE __m256i masked(__m256i v, int mask) { return _mm256_and_si256(v, _mm256_set1_epi8(char(mask))); }

// Nibbles of 16 bytes: all low ones, then all high ones.
FERRUM_INLINE __m256i nibbles(const uchar* p) {
    __m128i v = load128(p);
    return masked(_mm256_inserti128_si256(_mm256_castsi128_si256(v), _mm_srli_epi16(v, 4), 1), 15);
}

// The fifth bits of a block, at their place.
FERRUM_INLINE __m256i fifth_bits(const uchar* p) {
    const __m256i byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x(long(0x8040201008040201));
    __m256i v = _mm256_shuffle_epi8(_mm256_set1_epi32(int(load4(p))), byte);
    return masked(_mm256_cmpeq_epi8(_mm256_and_si256(v, bit), bit), 16);
}

// A number of each of 8 groups, for both halves of a group.
FERRUM_INLINE void twice(__m256 v, Floats* out) {
    out[0] = (Floats)_mm256_permutevar8x32_ps(v, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
    out[1] = (Floats)_mm256_permutevar8x32_ps(v, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7));
}

FERRUM_INLINE void biases(Registers& out, float origin) {
    for (int i = 0; i < 2; i++) out.bias[i] = out.scale[i] * -origin;
}

// The scales of 8 blocks.
template <typename B>
FERRUM_INLINE void halves(const B* b, Registers& out) {
    __m128i v = _mm_setzero_si128();
    v = _mm_insert_epi16(v, b[0].d.bits, 0);
    v = _mm_insert_epi16(v, b[1].d.bits, 1);
    v = _mm_insert_epi16(v, b[2].d.bits, 2);
    v = _mm_insert_epi16(v, b[3].d.bits, 3);
    v = _mm_insert_epi16(v, b[4].d.bits, 4);
    v = _mm_insert_epi16(v, b[5].d.bits, 5);
    v = _mm_insert_epi16(v, b[6].d.bits, 6);
    v = _mm_insert_epi16(v, b[7].d.bits, 7);
    twice(_mm256_cvtph_ps(v), out.scale);
}

// The pairs of halves (d, m) of 8 blocks.
template <typename B>
FERRUM_INLINE void half_pairs(const B* b, Registers& out) {
    for (int i = 0; i < 2; i++, b += 4) {
        __m128i v = _mm_cvtsi32_si128(int(load4((const uchar*)&b[0])));
        v = _mm_insert_epi32(v, int(load4((const uchar*)&b[1])), 1);
        v = _mm_insert_epi32(v, int(load4((const uchar*)&b[2])), 2);
        v = _mm_insert_epi32(v, int(load4((const uchar*)&b[3])), 3);
        __m256 pairs = _mm256_cvtph_ps(v);
        out.scale[i] = (Floats)_mm256_moveldup_ps(pairs);
        out.bias[i] = (Floats)_mm256_movehdup_ps(pairs);
    }
}

// 16 signed bytes times a factor.
FERRUM_INLINE void signed_bytes(__m128i v, float factor, Floats* out) {
    out[0] = (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)) * factor;
    out[1] = (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))) * factor;
}

// The packed scales of Q4_K and Q5_K, as floats: scales and minimums of 8 groups, each twice.
template <typename B>
FERRUM_INLINE void packed_scales(const B& b, Registers& out) {
    uint s = load4(b.scales), m = load4(b.scales + 4), low = load4(b.scales + 8);
    uint4 bytes = {s & 0x3f3f3f3f, (low & 0x0f0f0f0f) | (s >> 6 & 0x03030303) << 4, m & 0x3f3f3f3f,
                   (low >> 4 & 0x0f0f0f0f) | (m >> 6 & 0x03030303) << 4};
    __m128i minimums = _mm_srli_si128((__m128i)bytes, 8);
    Floats scale = (Floats)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32((__m128i)bytes)) * float(b.d);
    Floats bias = (Floats)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(minimums)) * -float(b.dmin);
    twice((__m256)scale, out.scale);
    twice((__m256)bias, out.bias);
}

template <int J>
FERRUM_INLINE void unpack(const Q4_0* b, Registers& out) {
    for (int j = 0; j < 8; j++) out.code[j] = (Ints)nibbles(b[j].qs);
    halves(b, out);
    biases(out, 8);
}

template <int J>
FERRUM_INLINE void unpack(const Q4_1* b, Registers& out) {
    for (int j = 0; j < 8; j++) out.code[j] = (Ints)nibbles(b[j].qs);
    half_pairs(b, out);
}

template <int J>
FERRUM_INLINE void unpack(const Q5_0* b, Registers& out) {
    for (int j = 0; j < 8; j++) out.code[j] = (Ints)_mm256_or_si256(nibbles(b[j].qs), fifth_bits(b[j].qh));
    halves(b, out);
    biases(out, 16);
}

template <int J>
FERRUM_INLINE void unpack(const Q5_1* b, Registers& out) {
    for (int j = 0; j < 8; j++) out.code[j] = (Ints)_mm256_or_si256(nibbles(b[j].qs), fifth_bits(b[j].qh));
    half_pairs(b, out);
}

template <int J>
FERRUM_INLINE void unpack(const Q8_0* b, Registers& out) {
    for (int j = 0; j < 8; j++) out.code[j] = (Ints)_mm256_xor_si256(load256(b[j].q), _mm256_set1_epi8(-128));
    halves(b, out);
    biases(out, 128);
}

template <int J>
FERRUM_INLINE void unpack(const Q4_K* b, Registers& out) {
    for (int j = 0; j < 4; j++) {
        __m256i v = load256(b->qs + 32 * j);
        out.code[2 * j] = (Ints)masked(v, 15);
        out.code[2 * j + 1] = (Ints)masked(_mm256_srli_epi16(v, 4), 15);
    }
    packed_scales(*b, out);
}

template <int J>
FERRUM_INLINE void unpack(const Q5_K* b, Registers& out) {
    __m256i high = load256(b->qh);
    for (int j = 0; j < 4; j++) {
        __m256i v = load256(b->qs + 32 * j), bits = _mm256_srli_epi16(high, 2 * j);
        __m256i first = masked(_mm256_slli_epi16(bits, 4), 16), second = masked(_mm256_slli_epi16(bits, 3), 16);
        out.code[2 * j] = (Ints)_mm256_or_si256(masked(v, 15), first);
        out.code[2 * j + 1] = (Ints)_mm256_or_si256(masked(_mm256_srli_epi16(v, 4), 15), second);
    }
    packed_scales(*b, out);
}

template <int J>
FERRUM_INLINE void unpack(const Q6_K* b, Registers& out) {
    for (int h = 0; h < 2; h++) {
        __m256i high = load256(b->qh + 32 * h);
        for (int j = 0; j < 2; j++) {
            __m256i low = load256(b->ql + 64 * h + 32 * j);
            __m256i first = masked(_mm256_slli_epi16(high, 4 - 2 * j), 48);
            __m256i second = masked(_mm256_srli_epi16(high, 2 * j), 48);
            out.code[4 * h + j] = (Ints)_mm256_or_si256(masked(low, 15), first);
            out.code[4 * h + 2 + j] = (Ints)_mm256_or_si256(masked(_mm256_srli_epi16(low, 4), 15), second);
        }
    }
    signed_bytes(load128(b->scales), float(b->d), out.scale);
    biases(out, 32);
}

template <int J>
FERRUM_INLINE void unpack(const Q2_K* b, Registers& out) {
    for (int j = 0; j < 8; j++) {
        __m256i v = load256(b->qs + 32 * (j / 4));
        out.code[j] = (Ints)masked(_mm256_srli_epi16(v, 2 * (j % 4)), 3);
    }
    __m256i scales = nibbles(b->scales);
    signed_bytes(_mm256_castsi256_si128(scales), float(b->d), out.scale);
    signed_bytes(_mm256_extracti128_si256(scales, 1), -float(b->dmin), out.bias);
}

template <int J>
FERRUM_INLINE void unpack(const Q3_K* b, Registers& out) {
    __m256i high = load256(b->hmask);
    for (int j = 0; j < 8; j++) {
        __m256i v = load256(b->qs + 32 * (j / 4));
        __m256i bit = j < 2 ? _mm256_slli_epi16(high, 2 - j) : _mm256_srli_epi16(high, j - 2);
        out.code[j] = (Ints)_mm256_or_si256(masked(_mm256_srli_epi16(v, 2 * (j % 4)), 3), masked(bit, 4));
    }
    uint a = load4(b->scales), c = load4(b->scales + 4), top = load4(b->scales + 8);
    uint4 low = uint4{a, c, a >> 4, c >> 4} & 0x0f0f0f0f, bits = uint4{top, top >> 2, top >> 4, top >> 6} & 0x03030303;
    signed_bytes(_mm_sub_epi8((__m128i)(low | bits << 4), _mm_set1_epi8(32)), float(b->d), out.scale);
    biases(out, 4);
}

// Levels of a table for the nibbles of 16 bytes.
FERRUM_INLINE Ints look_up(const uchar* p, const uchar* table) {
    return (Ints)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load128(table)), nibbles(p));
}

template <int J>
FERRUM_INLINE void unpack(const IQ4_NL* b, Registers& out) {
    for (int j = 0; j < 8; j++) out.code[j] = look_up(b[j].qs, IQ4_LEVELS);
    halves(b, out);
    biases(out, 128);
}

template <int J>
FERRUM_INLINE void unpack(const IQ4_XS* b, Registers& out) {
    for (int j = 0; j < 8; j++) out.code[j] = look_up(b->qs + 16 * j, IQ4_LEVELS);
    const Ints group = {0, 1, 2, 3, 4, 5, 6, 7};
    Ints low = (Ints{} + int(load4(b->scales_l))) >> (4 * group) & 15;
    Ints high = (Ints{} + (b->scales_h[0] | b->scales_h[1] << 8)) >> (2 * group) & 3;
    Floats scale = __builtin_convertvector((low | high << 4) - 32, Floats) * float(b->d);
    twice((__m256)scale, out.scale);
    biases(out, 128);
}

template <int J>
FERRUM_INLINE void unpack(const MXFP4* b, Registers& out) {
    for (int j = 0; j < 8; j++) out.code[j] = look_up(b[j].qs, E2M1_LEVELS);
    Ints e = {b[0].e, b[1].e, b[2].e, b[3].e, b[4].e, b[5].e, b[6].e, b[7].e};
    Ints bits = e < 2 ? (Ints{} + 0x00200000) << e : (e - 1) << 23; // the two smallest are subnormal
    twice((__m256)bits, out.scale);
    biases(out, 12);
}

} // namespace registers
