// A chunk of codes times a chunk of activations. Products of 16 codes are exact integers; scales are
// applied to them in float32.
#pragma once

#include "activations.h"
#include "registers.h"

// Fetch what lies `ahead` bytes behind chunk c of a row, into the caches of LEVEL: 3 all, 2 all but the first.
template <int LEVEL, typename B>
FERRUM_INLINE void prefetch_chunk(const B* row, int c, long ahead) {
    const char* here = (const char*)(row + c * (CHUNK / B::WEIGHTS)) + ahead;
    for (size_t at = 0; at < sizeof(B) * CHUNK / B::WEIGHTS; at += 64) __builtin_prefetch(here + at, 0, LEVEL);
}

// For each lane of vector j of codes, the number of its group of 16.
FERRUM_INLINE Floats spread(const Floats* groups, int j) {
    constexpr int PER = LANES / 4; // groups of a vector of codes
    Floats from = groups[j / 4];
#if defined(FERRUM_AVX512)
    const __m512i lanes = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    return (Floats)_mm512_permutexvar_ps(_mm512_add_epi32(lanes, _mm512_set1_epi32(PER * j)), (__m512)from);
#elif defined(FERRUM_AVX2)
    const __m256i lanes = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    __m256i lane = _mm256_add_epi32(lanes, _mm256_set1_epi32(PER * (j % 4)));
    return (Floats)_mm256_permutevar8x32_ps((__m256)from, lane);
#else
    return repeat(from[PER * (j % 4)]);
#endif
}

FERRUM_INLINE Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }

// Add the first J vectors of a chunk times x.
template <int J = CHUNK / CODES>
FERRUM_INLINE void add_product(const Registers& chunk, const Whole& x, Floats& sums) {
    Floats scale[GROUPS / LANES];
    for (int i = 0; i < GROUPS / LANES; i++) {
        scale[i] = chunk.scale[i] * load_floats(x.scale + LANES * i);
        sums += chunk.bias[i] * load_floats(x.sum + LANES * i);
    }
#pragma GCC unroll 16
    for (int j = 0; j < J; j++) {
        Ints sum = exact::product(chunk.code[j], load_ints(x.first + LANES * j), load_ints(x.second + LANES * j));
        sums += to_floats(sum) * spread(scale, j);
    }
}

// One block of 32 codes times x from `at` on; its bias's part is returned.
template <typename B>
FERRUM_INLINE float add_block(const B& block, const Whole& x, int at, Floats& sums) {
    float2 a = affine(block, 0);
    float scale = a.x * x.scale[at / GROUP];
    const int *first = x.first + at / 4, *second = x.second + at / 4;
#ifdef FERRUM_AVX512
    __m256i code = _mm256_set_m128i((__m128i)codes(block, 1), (__m128i)codes(block, 0));
    __m256i sum = _mm256_dpbusd_epi32(_mm256_setzero_si256(), code, _mm256_loadu_si256((const __m256i*)first));
    sum = _mm256_dpbusd_epi32(_mm256_slli_epi32(sum, 7), code, _mm256_loadu_si256((const __m256i*)second));
    __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(scale));
    sums += (Floats)_mm512_zextps256_ps512(product);
#else
    uint4 halves[2] = {codes(block, 0), codes(block, 1)};
    Ints code[SHARED / CODES];
    std::memcpy(code, halves, sizeof code);
    for (int j = 0; j < SHARED / CODES; j++) {
        Ints sum = exact::product(code[j], load_ints(first + LANES * j), load_ints(second + LANES * j));
        sums += to_floats(sum) * scale;
    }
#endif
    return a.y * (x.sum[at / GROUP] + x.sum[at / GROUP + 1]);
}

#ifdef FERRUM_AVX2
// Add the first `count` runs of 32 codes of a chunk times x. The others may be anything.
FERRUM_INLINE void add_runs(const Registers& chunk, const Whole& x, int count, Floats& sums) {
    Floats scale[GROUPS / LANES];
    for (int i = 0; i < GROUPS / LANES; i++) {
        Ints counts = Ints{0, 1, 2, 3, 4, 5, 6, 7} + LANES * i < 2 * count;
        scale[i] = (Floats)((Ints)chunk.scale[i] & counts) * load_floats(x.scale + LANES * i);
        sums += (Floats)((Ints)chunk.bias[i] & counts) * load_floats(x.sum + LANES * i);
    }
    for (int j = 0; j < count; j++) {
        Ints sum = exact::product(chunk.code[j], load_ints(x.first + LANES * j), load_ints(x.second + LANES * j));
        sums += to_floats(sum) * spread(scale, j);
    }
}
#endif

// Add the last blocks of a row, which do not fill a chunk, times x; a part that is not in `sums` is
// returned. J: whole vectors of 64 codes, which the longest registers take as such. end: of what may be read.
template <int J, typename B>
FERRUM_INLINE float add_rest(const B* row, int k, const B* end, const Whole* x, Floats& sums) {
    float rest = 0;
    if constexpr (B::WEIGHTS == SHARED) {
        const B* blocks = row + k / CHUNK * (CHUNK / SHARED);
        const Whole& part = x[k / CHUNK];
        int done = 0;
#ifdef FERRUM_AVX2
        if (k % CHUNK && end - blocks >= CHUNK / SHARED) { // what follows is decoded, too: faster than block by block
            Registers chunk;
            registers::unpack<CHUNK / CODES>(blocks, chunk);
            add_runs(chunk, part, k % CHUNK / SHARED, sums);
            return 0;
        }
#endif
#ifdef FERRUM_AVX512
        if constexpr (J > 0) {
            Registers vectors;
            registers::unpack<J>(blocks, vectors);
            add_product<J>(vectors, part, sums);
            done = 2 * J;
        }
#endif
        for (; done < k % CHUNK / SHARED; done++) rest += add_block(blocks[done], part, SHARED * done, sums);
    }
    return rest;
}
