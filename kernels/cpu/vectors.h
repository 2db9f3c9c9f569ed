// As many numbers at a time as a register of this processor holds, in GCC's and clang's portable vectors:
// in longer ones they would pass through memory.
#pragma once

#include "prelude.h"

// For what runs once a chunk: registers must not go through memory, whatever the compiler thinks of size.
#define FERRUM_INLINE inline __attribute__((always_inline))

#if defined(FERRUM_AVX512)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(FERRUM_AVX2)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(FERRUM_NEON)
constexpr int LANES = 4, REGISTERS = 32;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif

typedef int Ints __attribute__((vector_size(4 * LANES)));

typedef float Floats __attribute__((vector_size(4 * LANES)));

// x in each lane. Taking away a zero changes nothing; adding one would, for -0.
FERRUM_INLINE Floats repeat(float x) { return x - Floats{}; }

FERRUM_INLINE Floats load_floats(const float* p) {
    Floats s;
    std::memcpy(&s, p, sizeof s);
    return s;
}

FERRUM_INLINE void store_floats(float* p, Floats s) { std::memcpy(p, &s, sizeof s); }

// Past the caches, to an address that is a multiple of a vector's size. Other threads see it after `finish_streams`.
FERRUM_INLINE void stream_floats(float* p, Floats s) {
#if defined(FERRUM_AVX512)
    _mm512_stream_ps(p, (__m512)s);
#elif defined(FERRUM_AVX2)
    _mm256_stream_ps(p, (__m256)s);
#else
    store_floats(p, s);
#endif
}

FERRUM_INLINE void finish_streams() {
#if defined(FERRUM_AVX512) || defined(FERRUM_AVX2)
    _mm_sfence();
#endif
}

FERRUM_INLINE Ints load_ints(const void* p) {
    Ints s;
    std::memcpy(&s, p, sizeof s);
    return s;
}

FERRUM_INLINE void store_ints(void* p, Ints s) { std::memcpy(p, &s, sizeof s); }

FERRUM_INLINE Floats load_floats(const half* p) {
#if defined(FERRUM_AVX512)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(FERRUM_AVX2)
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#elif defined(FERRUM_NEON)
    return (Floats)vcvt_f32_f16(vld1_f16((const __fp16*)p));
#else
    Floats out;
    for (int i = 0; i < LANES; i++) out[i] = p[i];
    return out;
#endif
}

FERRUM_INLINE Floats load_floats(const bfloat* p) {
    typedef std::uint16_t Upper __attribute__((vector_size(2 * LANES)));
    Upper upper;
    std::memcpy(&upper, p, sizeof upper);
    return (Floats)(__builtin_convertvector(upper, Ints) << 16);
}

// v, in a register: GCC would load it again at each use.
FERRUM_INLINE Ints in_register(Ints v) {
#if defined(FERRUM_AVX512)
    asm("" : "+v"(v));
#elif defined(FERRUM_AVX2)
    asm("" : "+x"(v));
#endif
    return v;
}

FERRUM_INLINE Floats in_register(Floats v) { return (Floats)in_register((Ints)v); }

// COUNT neighbouring words, 1, 2 or 4, again and again.
template <int COUNT>
FERRUM_INLINE Ints repeat_words(const void* p) {
    typedef long long Longs __attribute__((vector_size(4 * LANES)));
    if constexpr (COUNT == 1) {
        int word;
        std::memcpy(&word, p, sizeof word);
        return Ints{} + word;
    } else if constexpr (COUNT == 2) {
        long long both;
        std::memcpy(&both, p, sizeof both);
        return (Ints)(Longs{} + both);
    } else {
#if defined(FERRUM_AVX512)
        return (Ints)_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p));
#elif defined(FERRUM_AVX2)
        return (Ints)_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p));
#else
        return load_ints(p);
#endif
    }
}

// As the nearest halves, ties to even.
FERRUM_INLINE void store_halves(half* p, Floats s) {
#if defined(FERRUM_AVX512)
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)s, _MM_FROUND_TO_NEAREST_INT));
#elif defined(FERRUM_AVX2)
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)s, _MM_FROUND_TO_NEAREST_INT));
#elif defined(FERRUM_NEON)
    vst1_f16((__fp16*)p, vcvt_f16_f32((float32x4_t)s));
#else
    for (int i = 0; i < LANES; i++) p[i] = nearest_half(s[i]);
#endif
}

// Sums of neighbours: of a, then of b.
FERRUM_INLINE Ints add_pairs(Ints a, Ints b) {
#if defined(FERRUM_AVX512)
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    return (Ints)_mm512_permutex2var_epi32((__m512i)a, even, (__m512i)b) +
           (Ints)_mm512_permutex2var_epi32((__m512i)a, odd, (__m512i)b);
#elif defined(FERRUM_AVX2)
    return (Ints)_mm256_permute4x64_epi64(_mm256_hadd_epi32((__m256i)a, (__m256i)b), 0xd8);
#elif defined(FERRUM_NEON)
    return (Ints)vpaddq_s32((int32x4_t)a, (int32x4_t)b);
#else
    return Ints{a[0] + a[1], a[2] + a[3], b[0] + b[1], b[2] + b[3]};
#endif
}

FERRUM_INLINE Floats add_pairs(Floats a, Floats b) {
#if defined(FERRUM_AVX2)
    __m256d sums = _mm256_castps_pd(_mm256_hadd_ps((__m256)a, (__m256)b));
    return (Floats)_mm256_permute4x64_pd(sums, 0xd8);
#elif defined(FERRUM_NEON)
    return (Floats)vpaddq_f32((float32x4_t)a, (float32x4_t)b);
#else
    Floats out;
    for (int i = 0; i < LANES; i++)
        out[i] = i < LANES / 2 ? a[2 * i] + a[2 * i + 1] : b[2 * i - LANES] + b[2 * i + 1 - LANES];
    return out;
#endif
}

// The totals of LANES vectors as one.
inline Floats totals(const Floats* v) {
    Floats sums[LANES];
    std::memcpy(sums, v, sizeof sums);
#ifdef FERRUM_AVX512
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 4
    for (int apart = 8; apart; apart /= 2) {
        // lanes whose bit `apart` is set are of the second vector; each gets its other half
        __m512i bit = _mm512_set1_epi32(apart);
        __m512i second = _mm512_mask_set1_epi32(_mm512_setzero_si512(), _mm512_test_epi32_mask(lane, bit), 16);
        __m512i own = _mm512_or_si512(lane, second), other = _mm512_xor_si512(own, bit);
#pragma GCC unroll 8
        for (int j = 0; j < apart; j++) {
            __m512 a = (__m512)sums[j], b = (__m512)sums[j + apart];
            sums[j] = (Floats)_mm512_permutex2var_ps(a, own, b) + (Floats)_mm512_permutex2var_ps(a, other, b);
        }
    }
#else
#pragma GCC unroll 4
    for (int count = LANES / 2; count; count /= 2)
#pragma GCC unroll 8
        for (int j = 0; j < count; j++) sums[j] = add_pairs(sums[2 * j], sums[2 * j + 1]);
#endif
    return sums[0];
}

FERRUM_INLINE float total(Floats s) {
#if defined(FERRUM_AVX512)
    return _mm512_reduce_add_ps((__m512)s);
#elif defined(FERRUM_NEON)
    return vaddvq_f32((float32x4_t)s);
#else
    for (int count = LANES; count > 1; count /= 2) s = add_pairs(s, s);
    return s[0];
#endif
}

#ifdef FERRUM_AVX512
FERRUM_INLINE float largest(Floats v) { return _mm512_reduce_max_ps((__m512)v); }
FERRUM_INLINE int largest(Ints v) { return _mm512_reduce_max_epi32((__m512i)v); }
#else
// The largest lane of Floats or Ints.
template <typename Vector>
FERRUM_INLINE auto largest(Vector v) {
#ifdef FERRUM_AVX2
    Vector other = (Vector)_mm256_permute2x128_si256((__m256i)v, (__m256i)v, 1);
    v = v > other ? v : other;
    other = (Vector)_mm256_shuffle_epi32((__m256i)v, 0x4e);
    v = v > other ? v : other;
    return v[0] > v[1] ? v[0] : v[1];
#else
    auto out = v[0];
    for (int i = 1; i < LANES; i++) out = v[i] > out ? v[i] : out;
    return out;
#endif
}
#endif
