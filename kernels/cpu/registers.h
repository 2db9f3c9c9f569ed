// Chunks in registers: vectors of four codes a lane, scales and biases. The decoders of blocks/ serve any type, through
// memory; those of avx512.h and avx2.h do the same with fewer instructions, the latter vector by vector.
#pragma once

#include <algorithm>

#include "unpack.h"
#include "vectors.h"

constexpr int CODES = 4 * LANES; // a vector's
constexpr int RUN = 32;          // codes that share scale and bias in most types

// Codes that share scale and bias in registers, if `group` do in blocks: 16, or a run where a chunk's runs fill a
// vector.
constexpr int each(int group) { return group >= RUN && CHUNK / RUN == LANES ? RUN : GROUP; }

// Where the scale of half h of a run lies among those of a chunk's groups. First halves fill the lower halves of AVX2's
// vectors, as their codes do, so that spreading a scale over its codes' lanes stays within halves.
constexpr int lane_of(int run, int h) { return LANES == 8 ? run + (run & 4) + 4 * h : 2 * run + h; }

template <int EACH>
struct Registers {
    static constexpr int SPANS = CHUNK / EACH;

    Ints code[CHUNK / CODES];
    Floats scale[SPANS / LANES], bias[SPANS / LANES];
};

template <typename B>
using RegistersOf = Registers<each(B::GROUP)>;

#ifdef FERRUM_AVX2
#include "avx2.h"
#else

namespace registers {

// The codes of the first `count` vectors of a chunk; all of its scales and biases.
FERRUM_INLINE void load(const Chunk& chunk, int count, Registers<GROUP>& out) {
    for (int j = 0; j < count; j++) out.code[j] = load_ints(chunk.code + CODES * j);
    for (int i = 0; i < GROUPS / LANES; i++) {
        out.scale[i] = load_floats(chunk.scale + LANES * i);
        out.bias[i] = load_floats(chunk.bias + LANES * i);
    }
}

// The first J vectors of a chunk.
template <int J, typename B>
FERRUM_INLINE void unpack(const B* b, RegistersOf<B>& out) {
    Chunk chunk;
    ::unpack(b, J * CODES / B::WEIGHTS, chunk);
    load(chunk, J, out);
}

} // namespace registers

#ifdef FERRUM_AVX512
#include "avx512.h"
#endif
#endif

namespace registers {

// LANES rows of LANES numbers become columns.
FERRUM_INLINE void transpose(Floats* rows) {
#if defined(FERRUM_AVX512)
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    for (int round = 0; round < 4; round++) {
        Floats mixed[16];
        for (int i = 0; i < 8; i++) {
            mixed[2 * i] = (Floats)_mm512_permutex2var_ps((__m512)rows[i], low, (__m512)rows[i + 8]);
            mixed[2 * i + 1] = (Floats)_mm512_permutex2var_ps((__m512)rows[i], high, (__m512)rows[i + 8]);
        }
        std::copy_n(mixed, 16, rows);
    }
#elif defined(FERRUM_AVX2)
    // 4 x 4 in each half of a register, then halves change places
    __m256 turned[8];
    for (int i = 0; i < 8; i += 4) {
        __m256d pairs[4];
        for (int j = 0; j < 2; j++) {
            __m256 a = (__m256)rows[i + 2 * j], b = (__m256)rows[i + 2 * j + 1];
            pairs[2 * j] = _mm256_castps_pd(_mm256_unpacklo_ps(a, b));
            pairs[2 * j + 1] = _mm256_castps_pd(_mm256_unpackhi_ps(a, b));
        }
        for (int j = 0; j < 2; j++) {
            turned[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(pairs[j], pairs[j + 2]));
            turned[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(pairs[j], pairs[j + 2]));
        }
    }
    for (int i = 0; i < 4; i++) {
        rows[i] = (Floats)_mm256_permute2f128_ps(turned[i], turned[i + 4], 0x20);
        rows[i + 4] = (Floats)_mm256_permute2f128_ps(turned[i], turned[i + 4], 0x31);
    }
#else
    Floats columns[LANES];
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < LANES; j++) columns[j][i] = rows[i][j];
    std::copy_n(columns, LANES, rows);
#endif
}

} // namespace registers
