// Numbers as keys and values are stored: float, half, or 8 bits times a scale that a whole row shares.
#pragma once

#include <cstdint>

#include "vectors.h"

FERRUM_INLINE Floats load_floats(const std::int8_t* p) {
#if defined(FERRUM_AVX512)
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(FERRUM_AVX2)
    return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
    typedef std::int8_t Bytes __attribute__((vector_size(LANES)));
    Bytes bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return __builtin_convertvector(__builtin_convertvector(bytes, Ints), Floats);
#endif
}

// Calls f with a null pointer of the stored type.
template <typename F>
void with_stored(int bits, const F& f) {
    if (bits == 32)
        f((float*)nullptr);
    else if (bits == 16)
        f((half*)nullptr);
    else
        f((std::int8_t*)nullptr);
}
