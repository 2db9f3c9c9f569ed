// Decoders for processors with AVX-512 and VNNI, a part of registers.h.
#pragma once

namespace registers {

// Lanes 0 0 1 1 … 7 7: a value of 32 weights for each of its two groups.
FERRUM_INLINE __m512i twice() { return _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0); }

FERRUM_INLINE __m128i load128(const void* p) { return _mm_loadu_si128((const __m128i*)p); }
FERRUM_INLINE __m256i load256(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }

// Nibbles of a and b, 16 bytes each, in the order low a, high a, low b, high b.
FERRUM_INLINE __m512i nibbles(const uchar* a, const uchar* b) {
    __m512i v = _mm512_castsi256_si512(_mm256_broadcastsi128_si256(load128(a)));
    v = _mm512_mask_broadcast_i32x4(v, 0xff00, load128(b));
    const __m512i shifts = _mm512_set_epi64(4, 4, 0, 0, 4, 4, 0, 0);
    return _mm512_and_si512(_mm512_srlv_epi64(v, shifts), _mm512_set1_epi8(15));
}

// Nibbles of 32 bytes: all low ones, then all high ones.
FERRUM_INLINE __m512i nibbles32(const uchar* p) {
    __m512i v = _mm512_broadcast_i64x4(load256(p));
    v = _mm512_srlv_epi64(v, _mm512_set_epi64(4, 4, 4, 4, 0, 0, 0, 0));
    return _mm512_and_si512(v, _mm512_set1_epi8(15));
}

// Two halves a vector of codes, one a block, each twice.
template <int J, typename B>
FERRUM_INLINE Floats halves(const B* b) {
    __m128i v = _mm_setzero_si128();
    v = _mm_insert_epi16(v, b[0].d.bits, 0);
    v = _mm_insert_epi16(v, b[1].d.bits, 1);
    if constexpr (J > 1) v = _mm_insert_epi16(_mm_insert_epi16(v, b[2].d.bits, 2), b[3].d.bits, 3);
    if constexpr (J > 2) v = _mm_insert_epi16(_mm_insert_epi16(v, b[4].d.bits, 4), b[5].d.bits, 5);
    if constexpr (J > 3) v = _mm_insert_epi16(_mm_insert_epi16(v, b[6].d.bits, 6), b[7].d.bits, 7);
    return (Floats)_mm512_permutexvar_ps(twice(), _mm512_castps256_ps512(_mm256_cvtph_ps(v)));
}

// Pairs of halves (d, m) of up to four blocks.
template <int COUNT, typename B>
FERRUM_INLINE __m128i pairs(const B* b) {
    __m128i v = _mm_setzero_si128();
    if constexpr (COUNT > 0) {
        v = _mm_cvtsi32_si128(int(load4((const uchar*)&b[0])));
        v = _mm_insert_epi32(v, int(load4((const uchar*)&b[1])), 1);
    }
    if constexpr (COUNT > 2) {
        v = _mm_insert_epi32(v, int(load4((const uchar*)&b[2])), 2);
        v = _mm_insert_epi32(v, int(load4((const uchar*)&b[3])), 3);
    }
    return v;
}

// Two pairs of halves a vector of codes: each d twice, each m twice.
template <int J, typename B>
FERRUM_INLINE void half_pairs(const B* b, Registers<GROUP>& out) {
    __m128i low = pairs<2 * J>(b), high = pairs<2 * J - 4>(b + 4);
    __m512 pairs = _mm512_cvtph_ps(_mm256_set_m128i(high, low));
    out.scale[0] = (Floats)_mm512_moveldup_ps(pairs);
    out.bias[0] = (Floats)_mm512_movehdup_ps(pairs);
}

// The fifth bits of two blocks, at their place.
FERRUM_INLINE __m512i fifth_bits(const uchar* a, const uchar* b) {
    __mmask64 bits = load4(a) | (unsigned long long)load4(b) << 32;
    return _mm512_maskz_set1_epi8(bits, 16);
}

// The packed scales of Q4_K and Q5_K, as floats: scales and minimums of 8 groups, each twice.
template <typename B>
FERRUM_INLINE void packed_scales(const B& b, Registers<GROUP>& out) {
    uint s = load4(b.scales), m = load4(b.scales + 4), low = load4(b.scales + 8);
    uint4 bytes = {s & 0x3f3f3f3f, (low & 0x0f0f0f0f) | (s >> 6 & 0x03030303) << 4, m & 0x3f3f3f3f,
                   (low >> 4 & 0x0f0f0f0f) | (m >> 6 & 0x03030303) << 4};
    __m512 all = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32((__m128i)bytes));
    __m512i minimums = _mm512_add_epi32(twice(), _mm512_set1_epi32(8));
    out.scale[0] = (Floats)_mm512_permutexvar_ps(twice(), all) * float(b.d);
    out.bias[0] = (Floats)_mm512_permutexvar_ps(minimums, all) * -float(b.dmin);
}

// The first J vectors of a chunk; K types know only whole ones.
template <int J>
FERRUM_INLINE void unpack(const Q4_0* b, Registers<GROUP>& out) {
    for (int j = 0; j < J; j++) out.code[j] = (Ints)nibbles(b[2 * j].qs, b[2 * j + 1].qs);
    out.scale[0] = halves<J>(b);
    out.bias[0] = out.scale[0] * -8.0f;
}

template <int J>
FERRUM_INLINE void unpack(const Q4_1* b, Registers<GROUP>& out) {
    for (int j = 0; j < J; j++) out.code[j] = (Ints)nibbles(b[2 * j].qs, b[2 * j + 1].qs);
    half_pairs<J>(b, out);
}

template <int J>
FERRUM_INLINE void unpack(const Q5_0* b, Registers<GROUP>& out) {
    for (int j = 0; j < J; j++)
        out.code[j] =
            (Ints)_mm512_or_si512(nibbles(b[2 * j].qs, b[2 * j + 1].qs), fifth_bits(b[2 * j].qh, b[2 * j + 1].qh));
    out.scale[0] = halves<J>(b);
    out.bias[0] = out.scale[0] * -16.0f;
}

template <int J>
FERRUM_INLINE void unpack(const Q5_1* b, Registers<GROUP>& out) {
    for (int j = 0; j < J; j++)
        out.code[j] =
            (Ints)_mm512_or_si512(nibbles(b[2 * j].qs, b[2 * j + 1].qs), fifth_bits(b[2 * j].qh, b[2 * j + 1].qh));
    half_pairs<J>(b, out);
}

template <int J>
FERRUM_INLINE void unpack(const Q8_0* b, Registers<GROUP>& out) {
    for (int j = 0; j < J; j++) {
        __m512i q = _mm512_castsi256_si512(load256(b[2 * j].q));
        q = _mm512_inserti64x4(q, load256(b[2 * j + 1].q), 1);
        out.code[j] = (Ints)_mm512_xor_si512(q, _mm512_set1_epi8(-128));
    }
    out.scale[0] = halves<J>(b);
    out.bias[0] = out.scale[0] * -128.0f;
}

template <int J>
FERRUM_INLINE void unpack(const Q4_K* b, Registers<GROUP>& out) {
    for (int j = 0; j < 4; j++) out.code[j] = (Ints)nibbles32(b->qs + 32 * j);
    packed_scales(*b, out);
}

template <int J>
FERRUM_INLINE void unpack(const Q5_K* b, Registers<GROUP>& out) {
    __m512i high = _mm512_broadcast_i64x4(load256(b->qh));
    for (int j = 0; j < 4; j++) {
        // bits 2 j and 2 j + 1, moved to bit 4
        __m512i shifts = _mm512_set_epi64(1, 1, 1, 1, 0, 0, 0, 0) + _mm512_set1_epi64(2 * j);
        __m512i bit = _mm512_and_si512(_mm512_srlv_epi64(high, shifts), _mm512_set1_epi8(1));
        out.code[j] = (Ints)_mm512_or_si512(nibbles32(b->qs + 32 * j), _mm512_slli_epi64(bit, 4));
    }
    packed_scales(*b, out);
}

template <int J>
FERRUM_INLINE void unpack(const Q6_K* b, Registers<GROUP>& out) {
    const __m512i low_bits = _mm512_set1_epi8(15), high_bits = _mm512_set1_epi8(48);
    const __m512i near = _mm512_set_epi64(2, 2, 2, 2, 4, 4, 4, 4);
    const __m512i far = _mm512_set_epi64(2, 2, 2, 2, 0, 0, 0, 0);
    for (int h = 0; h < 2; h++) {
        __m512i low = _mm512_loadu_si512(b->ql + 64 * h);
        __m512i high = _mm512_broadcast_i64x4(load256(b->qh + 32 * h));
        __m512i first = _mm512_and_si512(_mm512_sllv_epi64(high, near), high_bits);
        __m512i second = _mm512_and_si512(_mm512_srlv_epi64(high, far), high_bits);
        out.code[2 * h] = (Ints)_mm512_or_si512(_mm512_and_si512(low, low_bits), first);
        low = _mm512_and_si512(_mm512_srli_epi64(low, 4), low_bits);
        out.code[2 * h + 1] = (Ints)_mm512_or_si512(low, second);
    }
    out.scale[0] = (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load128(b->scales))) * float(b->d);
    out.bias[0] = out.scale[0] * -32.0f;
}

} // namespace registers
