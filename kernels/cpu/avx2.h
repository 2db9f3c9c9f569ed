// Decoders for processors with AVX2, a part of registers.h.
#pragma once

#include <cstddef>

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

template <int EACH>
FERRUM_INLINE void biases(Registers<EACH>& out, float origin) {
    for (int i = 0; i < Registers<EACH>::SPANS / LANES; i++) out.bias[i] = out.scale[i] * -origin;
}

// The scales of 8 blocks.
template <typename B>
FERRUM_INLINE void halves(const B* b, Registers<RUN>& out) {
    __m128i v = _mm_setzero_si128();
    v = _mm_insert_epi16(v, b[0].d.bits, 0);
    v = _mm_insert_epi16(v, b[1].d.bits, 1);
    v = _mm_insert_epi16(v, b[2].d.bits, 2);
    v = _mm_insert_epi16(v, b[3].d.bits, 3);
    v = _mm_insert_epi16(v, b[4].d.bits, 4);
    v = _mm_insert_epi16(v, b[5].d.bits, 5);
    v = _mm_insert_epi16(v, b[6].d.bits, 6);
    v = _mm_insert_epi16(v, b[7].d.bits, 7);
    out.scale[0] = (Floats)_mm256_cvtph_ps(v);
}

// The pairs of halves (d, m) of 8 blocks.
template <typename B>
FERRUM_INLINE void half_pairs(const B* b, Registers<RUN>& out) {
    __m256 pairs[2];
    for (int i = 0; i < 2; i++) { // blocks 0, 1, 4 and 5, then the others: so that those of a half stay in it
        __m128i v = _mm_cvtsi32_si128(int(load4((const uchar*)&b[2 * i])));
        v = _mm_insert_epi32(v, int(load4((const uchar*)&b[2 * i + 1])), 1);
        v = _mm_insert_epi32(v, int(load4((const uchar*)&b[2 * i + 4])), 2);
        v = _mm_insert_epi32(v, int(load4((const uchar*)&b[2 * i + 5])), 3);
        pairs[i] = _mm256_cvtph_ps(v);
    }
    out.scale[0] = (Floats)_mm256_shuffle_ps(pairs[0], pairs[1], 0x88);
    out.bias[0] = (Floats)_mm256_shuffle_ps(pairs[0], pairs[1], 0xdd);
}

// 16 signed bytes times a factor, at their lanes.
FERRUM_INLINE void signed_bytes(__m128i v, float factor, Floats* out) {
    v = _mm_shuffle_epi8(v, _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)); // see lane_of
    out[0] = (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)) * factor;
    out[1] = (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))) * factor;
}

// The packed scales of Q4_K and Q5_K, as floats: scales and minimums of 8 groups. Of the second four of each, the
// lower bits come from one byte of both, the upper ones from what the first four leave free.
template <typename B>
FERRUM_INLINE void packed_scales(const B& b, Registers<RUN>& out) {
    static_assert(offsetof(B, scales) == 4);
    const __m128i bytes = _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m128i above = _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11);
    const __m128i kept = _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f);
    __m128i v = load128(&b); // d, dmin, scales
    __m128i low = _mm_and_si128(_mm_srlv_epi32(_mm_shuffle_epi8(v, bytes), _mm_setr_epi32(0, 0, 0, 4)), kept);
    __m128i high = _mm_and_si128(_mm_srli_epi16(_mm_shuffle_epi8(v, above), 2), _mm_set1_epi8(0x30));
    __m128i all = _mm_or_si128(low, high);
    __m128 factors = _mm_cvtph_ps(v);
    __m256 d = _mm256_broadcastss_ps(factors), dmin = _mm256_broadcastss_ps(_mm_movehdup_ps(factors));
    __m256 scales = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(all));
    __m256 minimums = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(all, 8)));
    out.scale[0] = (Floats)_mm256_mul_ps(scales, d);
    out.bias[0] = -(Floats)_mm256_mul_ps(minimums, dmin);
}

// Vector j of the codes of a chunk, which begins at b, and all of its scales and biases, type by type.

FERRUM_INLINE Ints codes(const Q4_0* b, int j) { return (Ints)nibbles(b[j].qs); }

FERRUM_INLINE void scales(const Q4_0* b, Registers<RUN>& out) {
    halves(b, out);
    biases(out, 8);
}

FERRUM_INLINE Ints codes(const Q4_1* b, int j) { return (Ints)nibbles(b[j].qs); }

FERRUM_INLINE void scales(const Q4_1* b, Registers<RUN>& out) { half_pairs(b, out); }

FERRUM_INLINE Ints codes(const Q5_0* b, int j) { return (Ints)_mm256_or_si256(nibbles(b[j].qs), fifth_bits(b[j].qh)); }

FERRUM_INLINE void scales(const Q5_0* b, Registers<RUN>& out) {
    halves(b, out);
    biases(out, 16);
}

FERRUM_INLINE Ints codes(const Q5_1* b, int j) { return (Ints)_mm256_or_si256(nibbles(b[j].qs), fifth_bits(b[j].qh)); }

FERRUM_INLINE void scales(const Q5_1* b, Registers<RUN>& out) { half_pairs(b, out); }

FERRUM_INLINE Ints codes(const Q8_0* b, int j) {
    return (Ints)_mm256_xor_si256(load256(b[j].q), _mm256_set1_epi8(-128));
}

FERRUM_INLINE void scales(const Q8_0* b, Registers<RUN>& out) {
    halves(b, out);
    biases(out, 128);
}

// Every other vector is 16 times the codes: nothing has to be shifted, and their scales make up for it.
FERRUM_INLINE Ints codes(const Q4_K* b, int j) {
    return (Ints)masked(load256(b->qs + 32 * (j / 2)), j % 2 ? 15 << 4 : 15);
}

FERRUM_INLINE void scales(const Q4_K* b, Registers<RUN>& out) {
    packed_scales(*b, out);
    out.scale[0] *= Floats{1, 1 / 16.0f, 1, 1 / 16.0f, 1, 1 / 16.0f, 1, 1 / 16.0f};
}

FERRUM_INLINE Ints codes(const Q5_K* b, int j) {
    __m256i low = load256(b->qs + 32 * (j / 2)), high = load256(b->qh);
    __m256i bit = j < 4 ? _mm256_slli_epi16(high, 4 - j) : _mm256_srli_epi16(high, j - 4);
    return (Ints)_mm256_or_si256(masked(_mm256_srli_epi16(low, j % 2 * 4), 15), masked(bit, 16));
}

FERRUM_INLINE void scales(const Q5_K* b, Registers<RUN>& out) { packed_scales(*b, out); }

FERRUM_INLINE Ints codes(const Q6_K* b, int j) {
    __m256i low = load256(b->ql + 64 * (j / 4) + 32 * (j % 2)), high = load256(b->qh + 32 * (j / 4));
    __m256i bits = j % 4 < 2 ? _mm256_slli_epi16(high, 4 - j % 4 * 2) : _mm256_srli_epi16(high, j % 4 * 2 - 4);
    return (Ints)_mm256_or_si256(masked(_mm256_srli_epi16(low, j % 4 / 2 * 4), 15), masked(bits, 48));
}

FERRUM_INLINE void scales(const Q6_K* b, Registers<GROUP>& out) {
    signed_bytes(load128(b->scales), float(b->d), out.scale);
    biases(out, 32);
}

FERRUM_INLINE Ints codes(const Q8_K* b, int j) {
    return (Ints)_mm256_xor_si256(load256(b->q + 32 * j), _mm256_set1_epi8(-128));
}

FERRUM_INLINE void scales(const Q8_K* b, Registers<RUN>& out) {
    out.scale[0] = repeat(b->d);
    biases(out, 128);
}

FERRUM_INLINE Ints codes(const Q2_K* b, int j) {
    return (Ints)masked(_mm256_srli_epi16(load256(b->qs + 32 * (j / 4)), j % 4 * 2), 3);
}

FERRUM_INLINE void scales(const Q2_K* b, Registers<GROUP>& out) {
    __m256i scales = nibbles(b->scales);
    signed_bytes(_mm256_castsi256_si128(scales), float(b->d), out.scale);
    signed_bytes(_mm256_extracti128_si256(scales, 1), -float(b->dmin), out.bias);
}

FERRUM_INLINE Ints codes(const Q3_K* b, int j) {
    __m256i low = load256(b->qs + 32 * (j / 4)), high = load256(b->hmask);
    __m256i bit = j < 2 ? _mm256_slli_epi16(high, 2 - j) : _mm256_srli_epi16(high, j - 2);
    return (Ints)_mm256_or_si256(masked(_mm256_srli_epi16(low, j % 4 * 2), 3), masked(bit, 4));
}

FERRUM_INLINE void scales(const Q3_K* b, Registers<GROUP>& out) {
    uint a = load4(b->scales), c = load4(b->scales + 4), top = load4(b->scales + 8);
    uint4 low = uint4{a, c, a >> 4, c >> 4} & 0x0f0f0f0f, bits = uint4{top, top >> 2, top >> 4, top >> 6} & 0x03030303;
    signed_bytes(_mm_sub_epi8((__m128i)(low | bits << 4), _mm_set1_epi8(32)), float(b->d), out.scale);
    biases(out, 4);
}

// Levels of a table for the nibbles of 16 bytes.
FERRUM_INLINE Ints look_up(const uchar* p, const uchar* table) {
    return (Ints)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load128(table)), nibbles(p));
}

FERRUM_INLINE Ints codes(const IQ4_NL* b, int j) { return look_up(b[j].qs, IQ4_LEVELS); }

FERRUM_INLINE void scales(const IQ4_NL* b, Registers<RUN>& out) {
    halves(b, out);
    biases(out, 128);
}

FERRUM_INLINE Ints codes(const IQ4_XS* b, int j) { return look_up(b->qs + 16 * j, IQ4_LEVELS); }

FERRUM_INLINE void scales(const IQ4_XS* b, Registers<RUN>& out) {
    const Ints group = {0, 1, 2, 3, 4, 5, 6, 7};
    Ints low = (Ints{} + int(load4(b->scales_l))) >> (4 * group) & 15;
    Ints high = (Ints{} + (b->scales_h[0] | b->scales_h[1] << 8)) >> (2 * group) & 3;
    out.scale[0] = __builtin_convertvector((low | high << 4) - 32, Floats) * float(b->d);
    biases(out, 128);
}

FERRUM_INLINE Ints codes(const MXFP4* b, int j) { return look_up(b[j].qs, E2M1_LEVELS); }

FERRUM_INLINE void scales(const MXFP4* b, Registers<RUN>& out) {
    Ints e = {b[0].e, b[1].e, b[2].e, b[3].e, b[4].e, b[5].e, b[6].e, b[7].e};
    Ints bits = e < 2 ? (Ints{} + 0x00200000) << e : (e - 1) << 23; // the two smallest are subnormal
    out.scale[0] = (Floats)bits;
    biases(out, 12);
}

template <int J, typename B>
FERRUM_INLINE void unpack(const B* b, RegistersOf<B>& out) {
#pragma GCC unroll 8
    for (int j = 0; j < J; j++) out.code[j] = codes(b, j);
    scales(b, out);
}

} // namespace registers
