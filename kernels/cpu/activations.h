// Rows of activations as whole numbers of 15 bits, each 32 of them with a scale: the largest becomes
// 16,256, so rounding costs 2^-15 of it. Products with codes are then exact sums of integers.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "avx512.h"

constexpr int SHARED = 32;         // values that share a scale
constexpr float LARGEST = 16256;   // 127 * 128: the upper half of the bits fits a signed byte
constexpr float SMALLEST = 1e-34f; // if none of 32 is larger, they count as zero: 1 / step must be finite

// A chunk of activations.
struct Whole {
#ifdef FERRUM_VNNI
    alignas(64) signed char high[CHUNK], low[CHUNK]; // value = 128 high + low, low in 0..127
#else
    alignas(64) short value[CHUNK];
#endif
    float scale[GROUPS]; // of each 16 values
    float sum[GROUPS];   // scale times the sum of the 16
};

// n rows of k values, each padded with zeros to whole chunks. Storage is kept between uses.
class Activations {
public:
    void resize(int rows, int k) {
        n = rows, chunks = (k + CHUNK - 1) / CHUNK;
        kept_.resize(std::max(kept_.size(), size_t(n) * chunks));
    }

    // Take over row i of x: (k,) floats.
    void quantize(int i, const float* x, int k) {
        for (int c = 0; c < chunks; c++, x += CHUNK, k -= CHUNK) {
            Whole& out = kept_[size_t(i) * chunks + c];
            if (k >= CHUNK) {
                quantize_chunk(x, out);
            } else {
                float padded[CHUNK] = {};
                std::memcpy(padded, x, sizeof(float) * k);
                quantize_chunk(padded, out);
            }
        }
    }

    // The chunks of row i.
    const Whole* row(int i) const { return &kept_[size_t(i) * chunks]; }

    int n = 0, chunks = 0;

private:
    static void quantize_chunk(const float* x, Whole& out) {
        float sizes[GROUPS], factors[GROUPS];
        for (int g = 0; g < GROUPS; g++) sizes[g] = largest_size(x + g / 2 * SHARED);
        Floats most = load_floats(sizes), poison = most * 0.0f; // NaN if a value is infinite or NaN
        Floats step = most / LARGEST + poison;
        store_floats(factors, most > SMALLEST ? LARGEST / most : Floats{});
        for (int g = 0; g < GROUPS; g++) {
            Floats scaled = load_floats(x + GROUP * g) * factors[g];
            Floats half = scaled < 0 ? Floats{} - 0.5f : Floats{} + 0.5f;
            store(out, GROUP * g, __builtin_convertvector(scaled + half, Ints));
        }
        store_floats(out.scale, step);
        store_floats(out.sum, step * totals(out));
    }

    // The largest magnitude of 32 values; infinite or NaN if one of them is. As integers, magnitudes
    // have the same order, then comes infinity, then NaN.
    static float largest_size(const float* x) {
        Ints a, b;
        std::memcpy(&a, x, sizeof a);
        std::memcpy(&b, x + GROUP, sizeof b);
        a &= 0x7fffffff;
        b &= 0x7fffffff;
        return as_float(uint(largest(a > b ? a : b)));
    }

    static void store(Whole& out, int at, Ints v) {
#ifdef FERRUM_VNNI
        typedef signed char Bytes __attribute__((vector_size(16)));
        Bytes upper = __builtin_convertvector(v >> 7, Bytes), lower = __builtin_convertvector(v & 127, Bytes);
        std::memcpy(out.high + at, &upper, sizeof upper);
        std::memcpy(out.low + at, &lower, sizeof lower);
#else
        typedef short Shorts __attribute__((vector_size(32)));
        Shorts shorts = __builtin_convertvector(v, Shorts);
        std::memcpy(out.value + at, &shorts, sizeof shorts);
#endif
    }

    // Sums of each 16 values.
    static Floats totals(const Whole& x) {
        Ints sums;
#ifdef FERRUM_VNNI
        __m512i part[4];
        for (int j = 0; j < 4; j++) {
            __m512i high = avx512::add_fours(x.high + 64 * j), low = avx512::add_fours(x.low + 64 * j);
            part[j] = _mm512_add_epi32(_mm512_slli_epi32(high, 7), low);
        }
        sums = (Ints)avx512::add_pairs(avx512::add_pairs(part[0], part[1]), avx512::add_pairs(part[2], part[3]));
#else
        for (int g = 0; g < GROUPS; g++) {
            int sum = 0;
            for (int i = 0; i < GROUP; i++) sum += x.value[GROUP * g + i];
            sums[g] = sum;
        }
#endif
        return __builtin_convertvector(sums, Floats);
    }

    std::vector<Whole> kept_;
};
