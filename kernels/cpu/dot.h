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

FERRUM_INLINE Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }

// Vector j of a chunk's codes times x.
FERRUM_INLINE Ints product(Ints code, const Whole& x, int j) {
    return exact::product(code, load_ints(x.first + LANES * j), load_ints(x.second + LANES * j));
}

template <int EACH>
FERRUM_INLINE void add_biases(const Registers<EACH>& chunk, const Whole& x, Floats& sums) {
    for (int i = 0; i < Registers<EACH>::SPANS / LANES; i++)
        sums += chunk.bias[i] * load_floats(x.sums<EACH>() + LANES * i);
}

// The scales of a chunk of codes times those of activations, to be spread over the lanes that they belong to.
template <int EACH>
class Scales {
public:
    Scales() = default;
    FERRUM_INLINE Scales(const Floats* scale, const Whole& x) {
        Floats all[CHUNK / EACH / LANES];
        for (int i = 0; i < CHUNK / EACH / LANES; i++) all[i] = scale[i] * load_floats(x.scales<EACH>() + LANES * i);
        std::memcpy(all_, all, sizeof all);
#ifdef FERRUM_AVX2
        if (EACH == CODES) asm("" : "+m"(all_)); // loads that repeat a number take no time that arithmetic needs
#endif
    }

    // Those of vector j of codes.
    FERRUM_INLINE Floats operator[](int j) const {
#if defined(FERRUM_AVX512)
        const __m512i lanes = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
        __m512i lane = _mm512_add_epi32(lanes, _mm512_set1_epi32(LANES / 4 * (j % 4)));
        return (Floats)_mm512_permutexvar_ps(lane, (__m512)some(j / 4));
#elif defined(FERRUM_AVX2)
        if (EACH == CODES) return repeat(all_[j]);
        return (Floats)_mm256_permutevar_ps((__m256)some(j / 4), _mm256_set1_epi32(j % 4));
#else
        return repeat(all_[j]);
#endif
    }

private:
    FERRUM_INLINE Floats some(int i) const { return load_floats(all_ + LANES * i); }

    alignas(4 * LANES) float all_[CHUNK / EACH];
};

// The first J vectors of a chunk of codes times x.
template <int J = CHUNK / CODES, int EACH>
FERRUM_INLINE void add_product(const Registers<EACH>& chunk, const Whole& x, Floats& sums) {
    add_biases(chunk, x, sums);
    Scales<EACH> scales(chunk.scale, x);
#pragma GCC unroll 16
    for (int j = 0; j < J; j++) sums += to_floats(product(chunk.code[j], x, j)) * scales[j];
}

// A chunk of ROWS rows of weights times one of N rows of activations.
template <int ROWS, int N, typename B>
FERRUM_INLINE void add_products(const B* const* w, const Whole* const* x, Floats (*sums)[N]) {
#ifdef FERRUM_AVX2 // vector by vector: the rows share loads of activations, which take as long as arithmetic
    Scales<each(B::GROUP)> scales[ROWS][N];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
        RegistersOf<B> chunk;
        registers::scales(w[r], chunk);
#pragma GCC unroll 4
        for (int i = 0; i < N; i++) {
            add_biases(chunk, *x[i], sums[r][i]);
            scales[r][i] = {chunk.scale, *x[i]};
        }
    }
#pragma GCC unroll 8
    for (int j = 0; j < CHUNK / CODES; j++) {
        Ints first[N], second[N];
#pragma GCC unroll 4
        for (int i = 0; i < N; i++) {
            first[i] = in_register(load_ints(x[i]->first + LANES * j));
            second[i] = in_register(load_ints(x[i]->second + LANES * j));
        }
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            Ints code = registers::codes(w[r], j);
#pragma GCC unroll 4
            for (int i = 0; i < N; i++)
                sums[r][i] += to_floats(exact::product(code, first[i], second[i])) * scales[r][i][j];
        }
    }
#else
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
        RegistersOf<B> chunk;
        registers::unpack<CHUNK / CODES>(w[r], chunk);
#pragma GCC unroll 4
        for (int i = 0; i < N; i++) add_product(chunk, *x[i], sums[r][i]);
    }
#endif
}

// One block of 32 codes times x from `at` on; its bias's part is returned.
template <typename B>
FERRUM_INLINE float add_block(const B& block, const Whole& x, int at, Floats& sums) {
    float2 a = affine(block, 0);
    float scale = a.x * x.run_scale[at / RUN];
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
    return a.y * x.run_sum[at / RUN];
}

#ifdef FERRUM_AVX2
// The first `count` blocks of a chunk times x. Scales of the others are read and left out.
template <typename B>
FERRUM_INLINE void add_runs(const B* blocks, const Whole& x, int count, Floats& sums) {
    Registers<RUN> chunk;
    registers::scales(blocks, chunk);
    Ints counts = Ints{0, 1, 2, 3, 4, 5, 6, 7} < count;
    for (Floats* v : {chunk.scale, chunk.bias}) *v = (Floats)((Ints)*v & counts);
    add_biases(chunk, x, sums);
    Scales<RUN> scales(chunk.scale, x);
    for (int j = 0; j < count; j++) sums += to_floats(product(registers::codes(blocks, j), x, j)) * scales[j];
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
        if (k % CHUNK &&
            end - blocks >= CHUNK / SHARED) { // scales of what follows are read, too: faster than one by one
            add_runs(blocks, part, k % CHUNK / SHARED, sums);
            return 0;
        }
#endif
#ifdef FERRUM_AVX512
        if constexpr (J > 0) {
            RegistersOf<B> vectors;
            registers::unpack<J>(blocks, vectors);
            add_product<J>(vectors, part, sums);
            done = 2 * J;
        }
#endif
        for (; done < k % CHUNK / SHARED; done++) rest += add_block(blocks[done], part, SHARED * done, sums);
    }
    return rest;
}
