// Codes times activations, summed exactly. A vector of codes has four neighbouring ones, as bytes, in each
// lane; the four activations that belong to a lane are two words. With an instruction for bytes: their high
// parts, signed, and their low ones of 7 bits. Else: numbers 0 and 2, and 1 and 3, of 16 bits, as which the
// codes can be taken apart with two instructions.
#pragma once

#include "vectors.h"

namespace exact {

// Whether one instruction adds four products of bytes.
#ifdef FERRUM_DOT
constexpr bool DOT = true;
#else
constexpr bool DOT = false;
#endif

// Whether panels of activations, too, are words of bytes. Instructions for pairs of 16 bits do as much and need no
// high and low sums, where there are any.
constexpr bool BYTES = DOT && LANES == 4;

typedef std::uint16_t Shorts __attribute__((vector_size(4 * LANES)));

// The words of a vector of codes that belong to the first words of activations, or to the second ones.
FERRUM_INLINE Ints words(Ints code, int second) {
    if (BYTES) return code;
#if defined(FERRUM_AVX2) // of GCC's own vectors it makes code that needs more registers
    __m256i v = (__m256i)code;
    return (Ints)(second ? _mm256_srli_epi16(v, 8) : _mm256_and_si256(v, _mm256_set1_epi16(255)));
#else
    return second ? (Ints)((Shorts)code >> 8) : code & 0x00ff00ff;
#endif
}

#ifdef FERRUM_DOT

// sum, and in each lane four codes times four bytes.
FERRUM_INLINE Ints dot(Ints sum, Ints code, Ints x) {
#if defined(FERRUM_AVX512)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)code, (__m512i)x);
#elif defined(FERRUM_AVX2)
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)code, (__m256i)x);
#else
    return (Ints)vusdotq_s32((int32x4_t)sum, (uint8x16_t)code, (int8x16_t)x);
#endif
}

#endif

// Sums of words of codes times words of activations.
#if defined(FERRUM_NEON) && !defined(FERRUM_DOT)

struct Sum {
    int32x4_t low = {}, high = {}; // of the first two lanes, two sums each; of the last two

    FERRUM_INLINE void add(Ints code, Ints x) {
        low = vmlal_s16(low, vget_low_s16((int16x8_t)code), vget_low_s16((int16x8_t)x));
        high = vmlal_high_s16(high, (int16x8_t)code, (int16x8_t)x);
    }
    FERRUM_INLINE Ints value() const { return (Ints)vpaddq_s32(low, high); }
};

#else

struct Sum {
    Ints sum = {};

    FERRUM_INLINE void add(Ints code, Ints x) {
#if defined(FERRUM_AVX512)
        sum = (Ints)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)code, (__m512i)x);
#elif defined(FERRUM_AVX2) && defined(FERRUM_DOT)
        sum = (Ints)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)code, (__m256i)x);
#elif defined(FERRUM_AVX2)
        sum += (Ints)_mm256_madd_epi16((__m256i)code, (__m256i)x);
        asm("" : "+x"(sum)); // GCC would put additions off, until registers run out
#elif defined(FERRUM_NEON)
        sum = dot(sum, code, x);
#else
        sum += (code & 0xffff) * (x << 16 >> 16) + (code >> 16) * (x >> 16);
#endif
    }
    FERRUM_INLINE Ints value() const { return sum; }
};

#endif

// In each lane, four codes times four activations.
FERRUM_INLINE Ints product(Ints code, Ints first, Ints second) {
#if defined(FERRUM_DOT)
    return dot(dot(Ints{}, code, first) << 7, code, second);
#elif defined(FERRUM_AVX2)
    __m256i even = (__m256i)words(code, 0), odd = (__m256i)words(code, 1);
    Ints sum = {};
    sum += (Ints)_mm256_madd_epi16(even, (__m256i)first);
    sum += (Ints)_mm256_madd_epi16(odd, (__m256i)second);
    asm("" : "+x"(sum)); // as in Sum, but once
    return sum;
#else
    Sum sum;
    sum.add(words(code, 0), first);
    sum.add(words(code, 1), second);
    return sum.value();
#endif
}

// LANES whole numbers, each at most 16,256 in size, as LANES / 4 pairs of words of bytes.
FERRUM_INLINE void split_bytes(Ints v, int* first, int* second) {
    typedef signed char Bytes __attribute__((vector_size(LANES)));
    Bytes upper = __builtin_convertvector(v >> 7, Bytes), lower = __builtin_convertvector(v & 127, Bytes);
    std::memcpy(first, &upper, sizeof upper);
    std::memcpy(second, &lower, sizeof lower);
}

// The same as words of pairs.
FERRUM_INLINE void split_pairs(Ints v, int* first, int* second) {
#if defined(FERRUM_AVX512)
    const __m256i halves = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, //
                                            0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    __m256i words = _mm256_shuffle_epi8(_mm512_cvtepi32_epi16((__m512i)v), halves);
    words = _mm256_permute4x64_epi64(words, 0xd8);
    _mm_storeu_si128((__m128i*)first, _mm256_castsi256_si128(words));
    _mm_storeu_si128((__m128i*)second, _mm256_extracti128_si256(words, 1));
#elif defined(FERRUM_AVX2)
    __m256i low = _mm256_shuffle_epi32((__m256i)v, 0x0e); // numbers 2 and 3 to the places of 0 and 1
    __m256i words = _mm256_blend_epi16((__m256i)v, _mm256_slli_epi32(low, 16), 0xaa);
    words = _mm256_permutevar8x32_epi32(words, _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5));
    __m128i both = _mm256_castsi256_si128(words);
    _mm_storel_epi64((__m128i*)first, both);
    _mm_storel_epi64((__m128i*)second, _mm_unpackhi_epi64(both, both));
#else
    *first = (v[0] & 0xffff) | int(uint(v[2]) << 16);
    *second = (v[1] & 0xffff) | int(uint(v[3]) << 16);
#endif
}

// IN_PANEL: for panels; else for a row alone.
template <bool IN_PANEL>
FERRUM_INLINE void split(Ints v, int* first, int* second) {
#ifdef FERRUM_DOT
    if (!IN_PANEL || BYTES) return split_bytes(v, first, second);
#endif
    split_pairs(v, first, second);
}

#ifdef FERRUM_AVX512
// Words of four runs of 8, two of which are in a and two in b, in turn.
FERRUM_INLINE void interleave(Ints& a, Ints& b) {
    const __m512i first = _mm512_set_epi32(27, 19, 11, 3, 26, 18, 10, 2, 25, 17, 9, 1, 24, 16, 8, 0);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(4));
    Ints low = (Ints)_mm512_permutex2var_epi32((__m512i)a, first, (__m512i)b);
    b = (Ints)_mm512_permutex2var_epi32((__m512i)a, second, (__m512i)b);
    a = low;
}
#else
FERRUM_INLINE void interleave(Ints&, Ints&) {} // runs follow each other
#endif

// In each lane, the sum of four activations.
template <bool IN_PANEL>
FERRUM_INLINE Ints total(Ints first, Ints second) {
#ifdef FERRUM_DOT
    if (!IN_PANEL || BYTES) return product(Ints{} + 0x01010101, first, second);
#endif
    Sum sum;
    sum.add(Ints{} + 0x00010001, first);
    sum.add(Ints{} + 0x00010001, second);
    return sum.value();
}

} // namespace exact
