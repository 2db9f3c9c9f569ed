// Sixteen numbers at a time, in GCC's and clang's portable vectors.
#pragma once

#include "prelude.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__) && !defined(FERRUM_PORTABLE)
#define FERRUM_VNNI 1
#endif

// For what runs once a chunk: registers must not go through memory, whatever the compiler thinks of size.
#define FERRUM_INLINE inline __attribute__((always_inline))

typedef int Ints __attribute__((vector_size(64)));

typedef float Floats __attribute__((vector_size(64)));

inline float total(Floats s) {
#ifdef FERRUM_VNNI
    return _mm512_reduce_add_ps((__m512)s);
#else
    float out = 0;
    for (int i = 0; i < 16; i++) out += s[i];
    return out;
#endif
}

inline float largest(Floats v) {
#ifdef FERRUM_VNNI
    return _mm512_reduce_max_ps((__m512)v);
#else
    float out = v[0];
    for (int i = 1; i < 16; i++) out = v[i] > out ? v[i] : out;
    return out;
#endif
}

inline int largest(Ints v) {
#ifdef FERRUM_VNNI
    return _mm512_reduce_max_epi32((__m512i)v);
#else
    int out = v[0];
    for (int i = 1; i < 16; i++) out = v[i] > out ? v[i] : out;
    return out;
#endif
}

inline Floats load_floats(const float* p) {
    Floats s;
    std::memcpy(&s, p, sizeof s);
    return s;
}

inline void store_floats(float* p, Floats s) { std::memcpy(p, &s, sizeof s); }
