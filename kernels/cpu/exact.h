// Codes times activations, summed exactly. A vector of codes has four neighbouring ones, as bytes, in each
// lane; the four activations that belong to a lane are two words. With an instruction for bytes: their high
// parts, signed, and their low ones of 7 bits. Else: numbers 0 and 2, and 1 and 3, of 16 bits, as which the
// codes can be taken apart with two instructions.
#pragma once

#include "vectors.h"

namespace exact {

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

// In each lane, four codes times four activations.
FERRUM_INLINE Ints product(Ints code, Ints first, Ints second) {
    return dot(dot(Ints{}, code, first) << 7, code, second);
}

// Sums of many products that do not wait for each other.
struct Sum {
    Ints high = {}, low = {};

    FERRUM_INLINE void add(Ints code, Ints first, Ints second) {
        high = dot(high, code, first);
        low = dot(low, code, second);
    }
    FERRUM_INLINE Ints value() const { return (high << 7) + low; }
};

// LANES whole numbers, each at most 16,256 in size, as LANES / 4 pairs of words.
FERRUM_INLINE void split(Ints v, int* first, int* second) {
    typedef signed char Bytes __attribute__((vector_size(LANES)));
    Bytes upper = __builtin_convertvector(v >> 7, Bytes), lower = __builtin_convertvector(v & 127, Bytes);
    std::memcpy(first, &upper, sizeof upper);
    std::memcpy(second, &lower, sizeof lower);
}

#else

#if defined(FERRUM_AVX2)

struct Sum {
    Ints sum = {};

    FERRUM_INLINE void add(Ints code, Ints first, Ints second) {
        __m256i even = _mm256_and_si256((__m256i)code, _mm256_set1_epi16(255));
        __m256i odd = _mm256_srli_epi16((__m256i)code, 8);
        sum += (Ints)_mm256_madd_epi16(even, (__m256i)first);
        sum += (Ints)_mm256_madd_epi16(odd, (__m256i)second);
        asm("" : "+x"(sum)); // GCC would put additions off, until registers run out
    }
    FERRUM_INLINE Ints value() const { return sum; }
};

FERRUM_INLINE void split(Ints v, int* first, int* second) {
    __m256i low = _mm256_shuffle_epi32((__m256i)v, 0x0e); // numbers 2 and 3 to the places of 0 and 1
    __m256i words = _mm256_blend_epi16((__m256i)v, _mm256_slli_epi32(low, 16), 0xaa);
    words = _mm256_permutevar8x32_epi32(words, _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5));
    __m128i both = _mm256_castsi256_si128(words);
    _mm_storel_epi64((__m128i*)first, both);
    _mm_storel_epi64((__m128i*)second, _mm_unpackhi_epi64(both, both));
}

#elif defined(FERRUM_NEON)

struct Sum {
    int32x4_t low = {}, high = {}; // of the first two lanes, two sums each; of the last two

    FERRUM_INLINE void add(Ints code, Ints first, Ints second) {
        int16x8_t even = vandq_s16((int16x8_t)code, vdupq_n_s16(255));
        int16x8_t odd = (int16x8_t)vshrq_n_u16((uint16x8_t)code, 8);
        low = vmlal_s16(low, vget_low_s16(even), vget_low_s16((int16x8_t)first));
        high = vmlal_high_s16(high, even, (int16x8_t)first);
        low = vmlal_s16(low, vget_low_s16(odd), vget_low_s16((int16x8_t)second));
        high = vmlal_high_s16(high, odd, (int16x8_t)second);
    }
    FERRUM_INLINE Ints value() const { return (Ints)vpaddq_s32(low, high); }
};

#else

struct Sum {
    Ints sum = {};

    FERRUM_INLINE void add(Ints code, Ints first, Ints second) {
        sum += (code & 255) * (first << 16 >> 16) + (code >> 16 & 255) * (first >> 16);
        sum += (code >> 8 & 255) * (second << 16 >> 16) + (code >> 24 & 255) * (second >> 16);
    }
    FERRUM_INLINE Ints value() const { return sum; }
};

#endif

FERRUM_INLINE Ints product(Ints code, Ints first, Ints second) {
    Sum sum;
    sum.add(code, first, second);
    return sum.value();
}

#ifndef FERRUM_AVX2
FERRUM_INLINE void split(Ints v, int* first, int* second) {
    *first = (v[0] & 0xffff) | int(uint(v[2]) << 16);
    *second = (v[1] & 0xffff) | int(uint(v[3]) << 16);
}
#endif

#endif

} // namespace exact
