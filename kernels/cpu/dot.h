// A chunk of codes times a chunk of activations. Floats of 16 products are exact integers; scales are
// applied to them in float32.
#pragma once

#include "activations.h"
#include "avx512.h"

#ifdef FERRUM_VNNI

using Unpacked = Registers;

template <typename B>
FERRUM_INLINE void take_chunk(const B* row, int k, int c, Unpacked& chunk) {
    avx512::unpack_chunk(row, k, c, chunk);
}

// Add the first J vectors of a chunk times x.
template <int J = 4>
FERRUM_INLINE void add_product(const Unpacked& chunk, const Whole& x, Floats& sums) {
    // a vector has four groups, in each of which four lanes hold sums of four products
    const __m512i lanes = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    __m512 scale = _mm512_mul_ps(chunk.scale, _mm512_loadu_ps(x.scale));
    sums += (Floats)chunk.bias * load_floats(x.sum);
#pragma GCC unroll 4
    for (int j = 0; j < J; j++) {
        __m512i high = _mm512_loadu_si512(x.high + 64 * j);
        __m512i low = _mm512_loadu_si512(x.low + 64 * j);
        __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), chunk.code[j], high);
        sum = _mm512_dpbusd_epi32(_mm512_slli_epi32(sum, 7), chunk.code[j], low);
        __m512i lane = _mm512_add_epi32(lanes, _mm512_set1_epi32(4 * j));
        sums += (Floats)_mm512_cvtepi32_ps(sum) * (Floats)_mm512_permutexvar_ps(lane, scale);
    }
}

template <int J, typename B>
FERRUM_INLINE void add_vectors(const B* blocks, const Whole& x, Floats& sums) {
    Unpacked part;
    avx512::unpack<J>(blocks, part);
    add_product<J>(part, x, sums);
}

// One block of 32 codes, half a vector, times x from `at` on; its bias's part is returned.
template <typename B>
FERRUM_INLINE float add_block(const B& block, const Whole& x, int at, Floats& sums) {
    float2 a = affine(block, 0);
    __m256i code = avx512::codes32(block);
    __m256i sum = _mm256_dpbusd_epi32(_mm256_setzero_si256(), code, avx512::load256(x.high + at));
    sum = _mm256_dpbusd_epi32(_mm256_slli_epi32(sum, 7), code, avx512::load256(x.low + at));
    __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(a.x * x.scale[at / GROUP]));
    sums += (Floats)_mm512_zextps256_ps512(product);
    return a.y * (x.sum[at / GROUP] + x.sum[at / GROUP + 1]);
}

// Add the last blocks of a row, which do not fill a chunk, times x: J vectors, and maybe one block more.
// A part that is not in `sums` is returned.
template <int J, typename B>
FERRUM_INLINE float add_rest(const B* row, int k, const Whole* x, Floats& sums) {
    if constexpr (B::WEIGHTS == SHARED) {
        const B* blocks = row + k / CHUNK * (CHUNK / SHARED);
        const Whole& part = x[k / CHUNK];
        if constexpr (J > 0) add_vectors<J>(blocks, part, sums);
        if (k % 64) return add_block(blocks[2 * J], part, 64 * J, sums);
    }
    return 0;
}

#else

using Unpacked = Chunk;

template <typename B>
FERRUM_INLINE void take_chunk(const B* row, int k, int c, Unpacked& chunk) {
    unpack_chunk(row, k, c, chunk);
}

FERRUM_INLINE void add_product(const Unpacked& chunk, const Whole& x, Floats& sums) {
    Floats scale = load_floats(chunk.scale) * load_floats(x.scale);
    sums += load_floats(chunk.bias) * load_floats(x.sum);
#if defined(__AVX2__) && !defined(FERRUM_PORTABLE)
    typedef float Half __attribute__((vector_size(32)));
    Half part[2] = {};
#pragma GCC unroll 16
    for (int g = 0; g < GROUPS; g++) {
        __m128i code = _mm_load_si128((const __m128i*)(chunk.code + GROUP * g));
        __m256i value = _mm256_loadu_si256((const __m256i*)(x.value + GROUP * g));
        __m256i sum = _mm256_madd_epi16(_mm256_cvtepu8_epi16(code), value);
        part[g & 1] += (Half)_mm256_cvtepi32_ps(sum) * scale[g];
    }
    for (int i = 0; i < 8; i++) sums[i] += part[0][i] + part[1][i];
#else
    for (int g = 0; g < GROUPS; g++) {
        int sum = 0;
        for (int i = GROUP * g; i < GROUP * (g + 1); i++) sum += chunk.code[i] * x.value[i];
        sums[g] += scale[g] * float(sum);
    }
#endif
}

// Add the last blocks of a row, which do not fill a chunk, times x.
template <int, typename B>
FERRUM_INLINE float add_rest(const B* row, int k, const Whole* x, Floats& sums) {
    if (k % CHUNK == 0) return 0;
    Chunk chunk;
    take_chunk(row, k, k / CHUNK, chunk);
    add_product(chunk, x[k / CHUNK], sums);
    return 0;
}

#endif
