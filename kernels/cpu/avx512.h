// Chunks in registers, for processors with AVX-512 and VNNI: a chunk is four vectors of 64 codes, a
// vector of 16 scales and one of 16 biases. The decoders of blocks/ serve any type; those below do
// the same with fewer instructions for the types that most files are made of.
#pragma once

#include <algorithm>

#include "unpack.h"
#include "vectors.h"

#ifdef FERRUM_VNNI

struct Registers {
    __m512i code[4];
    __m512 scale, bias;
};

namespace avx512 {

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
FERRUM_INLINE __m512 halves(const B* b) {
    __m128i v = _mm_setzero_si128();
    v = _mm_insert_epi16(v, b[0].d.bits, 0);
    v = _mm_insert_epi16(v, b[1].d.bits, 1);
    if constexpr (J > 1) v = _mm_insert_epi16(_mm_insert_epi16(v, b[2].d.bits, 2), b[3].d.bits, 3);
    if constexpr (J > 2) v = _mm_insert_epi16(_mm_insert_epi16(v, b[4].d.bits, 4), b[5].d.bits, 5);
    if constexpr (J > 3) v = _mm_insert_epi16(_mm_insert_epi16(v, b[6].d.bits, 6), b[7].d.bits, 7);
    return _mm512_permutexvar_ps(twice(), _mm512_castps256_ps512(_mm256_cvtph_ps(v)));
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
FERRUM_INLINE void half_pairs(const B* b, Registers& out) {
    __m128i low = pairs<2 * J>(b), high = pairs<2 * J - 4>(b + 4);
    __m512 pairs = _mm512_cvtph_ps(_mm256_set_m128i(high, low));
    out.scale = _mm512_moveldup_ps(pairs);
    out.bias = _mm512_movehdup_ps(pairs);
}

FERRUM_INLINE __m512 times(__m512 v, float factor) { return _mm512_mul_ps(v, _mm512_set1_ps(factor)); }

// The fifth bits of two blocks, at their place.
FERRUM_INLINE __m512i fifth_bits(const uchar* a, const uchar* b) {
    __mmask64 bits = load4(a) | (unsigned long long)load4(b) << 32;
    return _mm512_maskz_set1_epi8(bits, 16);
}

// The packed scales of Q4_K and Q5_K, as floats: scales and minimums of 8 groups, each twice.
template <typename B>
FERRUM_INLINE void packed_scales(const B& b, Registers& out) {
    uint s = load4(b.scales), m = load4(b.scales + 4), low = load4(b.scales + 8);
    uint4 bytes = {s & 0x3f3f3f3f, (low & 0x0f0f0f0f) | (s >> 6 & 0x03030303) << 4, m & 0x3f3f3f3f,
                   (low >> 4 & 0x0f0f0f0f) | (m >> 6 & 0x03030303) << 4};
    __m512 all = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32((__m128i)bytes));
    __m512i minimums = _mm512_add_epi32(twice(), _mm512_set1_epi32(8));
    out.scale = times(_mm512_permutexvar_ps(twice(), all), float(b.d));
    out.bias = times(_mm512_permutexvar_ps(minimums, all), -float(b.dmin));
}

// The first J vectors of a chunk; K types know only whole ones.
template <int J>
FERRUM_INLINE void unpack(const Q4_0* b, Registers& out) {
    for (int j = 0; j < J; j++) out.code[j] = nibbles(b[2 * j].qs, b[2 * j + 1].qs);
    out.scale = halves<J>(b);
    out.bias = times(out.scale, -8);
}

template <int J>
FERRUM_INLINE void unpack(const Q4_1* b, Registers& out) {
    for (int j = 0; j < J; j++) out.code[j] = nibbles(b[2 * j].qs, b[2 * j + 1].qs);
    half_pairs<J>(b, out);
}

template <int J>
FERRUM_INLINE void unpack(const Q5_0* b, Registers& out) {
    for (int j = 0; j < J; j++)
        out.code[j] = _mm512_or_si512(nibbles(b[2 * j].qs, b[2 * j + 1].qs), fifth_bits(b[2 * j].qh, b[2 * j + 1].qh));
    out.scale = halves<J>(b);
    out.bias = times(out.scale, -16);
}

template <int J>
FERRUM_INLINE void unpack(const Q5_1* b, Registers& out) {
    for (int j = 0; j < J; j++)
        out.code[j] = _mm512_or_si512(nibbles(b[2 * j].qs, b[2 * j + 1].qs), fifth_bits(b[2 * j].qh, b[2 * j + 1].qh));
    half_pairs<J>(b, out);
}

template <int J>
FERRUM_INLINE void unpack(const Q8_0* b, Registers& out) {
    for (int j = 0; j < J; j++) {
        __m512i q = _mm512_castsi256_si512(load256(b[2 * j].q));
        q = _mm512_inserti64x4(q, load256(b[2 * j + 1].q), 1);
        out.code[j] = _mm512_xor_si512(q, _mm512_set1_epi8(-128));
    }
    out.scale = halves<J>(b);
    out.bias = times(out.scale, -128);
}

template <int J>
FERRUM_INLINE void unpack(const Q4_K* b, Registers& out) {
    for (int j = 0; j < 4; j++) out.code[j] = nibbles32(b->qs + 32 * j);
    packed_scales(*b, out);
}

template <int J>
FERRUM_INLINE void unpack(const Q5_K* b, Registers& out) {
    __m512i high = _mm512_broadcast_i64x4(load256(b->qh));
    for (int j = 0; j < 4; j++) {
        // bits 2 j and 2 j + 1, moved to bit 4
        __m512i shifts = _mm512_set_epi64(1, 1, 1, 1, 0, 0, 0, 0) + _mm512_set1_epi64(2 * j);
        __m512i bit = _mm512_and_si512(_mm512_srlv_epi64(high, shifts), _mm512_set1_epi8(1));
        out.code[j] = _mm512_or_si512(nibbles32(b->qs + 32 * j), _mm512_slli_epi64(bit, 4));
    }
    packed_scales(*b, out);
}

template <int J>
FERRUM_INLINE void unpack(const Q6_K* b, Registers& out) {
    const __m512i low_bits = _mm512_set1_epi8(15), high_bits = _mm512_set1_epi8(48);
    const __m512i near = _mm512_set_epi64(2, 2, 2, 2, 4, 4, 4, 4);
    const __m512i far = _mm512_set_epi64(2, 2, 2, 2, 0, 0, 0, 0);
    for (int h = 0; h < 2; h++) {
        __m512i low = _mm512_loadu_si512(b->ql + 64 * h);
        __m512i high = _mm512_broadcast_i64x4(load256(b->qh + 32 * h));
        __m512i first = _mm512_and_si512(_mm512_sllv_epi64(high, near), high_bits);
        __m512i second = _mm512_and_si512(_mm512_srlv_epi64(high, far), high_bits);
        out.code[2 * h] = _mm512_or_si512(_mm512_and_si512(low, low_bits), first);
        low = _mm512_and_si512(_mm512_srli_epi64(low, 4), low_bits);
        out.code[2 * h + 1] = _mm512_or_si512(low, second);
    }
    out.scale = times(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load128(b->scales))), float(b->d));
    out.bias = times(out.scale, -32);
}

// Any other type, through memory.
template <int J, typename B>
FERRUM_INLINE void unpack(const B* b, Registers& out) {
    Chunk chunk;
    ::unpack(b, J * 64 / B::WEIGHTS, chunk);
    for (int j = 0; j < J; j++) out.code[j] = _mm512_load_si512(chunk.code + 64 * j);
    out.scale = _mm512_load_ps(chunk.scale);
    out.bias = _mm512_load_ps(chunk.bias);
}

// Chunk c of a row of k weights; one that the row does not fill is padded with zeros.
template <typename B>
FERRUM_INLINE void unpack_chunk(const B* row, int k, int c, Registers& out) {
    constexpr int per_chunk = CHUNK / B::WEIGHTS;
    int left = k / B::WEIGHTS - c * per_chunk;
    if (left >= per_chunk) return unpack<4>(row + c * per_chunk, out);
    B padded[per_chunk] = {};
    std::memcpy(padded, row + c * per_chunk, sizeof(B) * left);
    unpack<4>(padded, out);
}

// Sums of each four of 64 signed bytes.
FERRUM_INLINE __m512i add_fours(const signed char* p) {
    return _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), _mm512_loadu_si512(p));
}

// Sums of neighbours: of a, then of b.
FERRUM_INLINE __m512i add_pairs(__m512i a, __m512i b) {
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_permutex2var_epi32(a, even, b), _mm512_permutex2var_epi32(a, odd, b));
}

// 16 rows of 16 numbers become columns.
FERRUM_INLINE void transpose(__m512* rows) {
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    for (int round = 0; round < 4; round++) {
        __m512 mixed[16];
        for (int i = 0; i < 8; i++) {
            mixed[2 * i] = _mm512_permutex2var_ps(rows[i], low, rows[i + 8]);
            mixed[2 * i + 1] = _mm512_permutex2var_ps(rows[i], high, rows[i + 8]);
        }
        std::copy_n(mixed, 16, rows);
    }
}

// A block of 32 codes in half a vector.
template <typename B>
FERRUM_INLINE __m256i codes32(const B& b) {
    return _mm256_set_m128i((__m128i)codes(b, 1), (__m128i)codes(b, 0));
}

} // namespace avx512

#endif
