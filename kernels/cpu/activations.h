// Rows of activations as whole numbers of 15 bits, each 32 of them with a scale: the largest becomes
// 16,256, so rounding costs 2^-15 of it. Products with codes are then exact sums of integers.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "exact.h"
#include "linear.h"
#include "unpack.h"

constexpr int SHARED = 32;         // values that share a scale
constexpr float LARGEST = 16256;   // 127 * 128: the upper half of the bits fits a signed byte
constexpr float SMALLEST = 1e-34f; // if none of 32 is larger, they count as zero: 1 / step must be finite

// A chunk of activations, as words for each four; see exact.h.
struct Whole {
    alignas(64) int first[CHUNK / 4], second[CHUNK / 4];
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
        for (int g = 0; g < GROUPS; g += LANES) {
            Floats most = load_floats(sizes + g), poison = most * 0.0f; // NaN if a value is infinite or NaN
            store_floats(out.scale + g, most / LARGEST + poison);
            store_floats(factors + g, most > SMALLEST ? LARGEST / most : Floats{});
        }
        for (int i = 0; i < CHUNK; i += LANES) {
            Floats scaled = load_floats(x + i) * factors[i / GROUP];
            Floats half = scaled < 0 ? Floats{} - 0.5f : Floats{} + 0.5f;
            exact::split(__builtin_convertvector(scaled + half, Ints), out.first + i / 4, out.second + i / 4);
        }
        for (int g = 0; g < GROUPS; g += LANES) store_floats(out.sum + g, load_floats(out.scale + g) * totals(out, g));
    }

    // The largest magnitude of 32 values; infinite or NaN if one of them is. As integers, magnitudes
    // have the same order, then comes infinity, then NaN.
    static float largest_size(const float* x) {
        Ints most = {};
        for (int i = 0; i < SHARED; i += LANES) {
            Ints size = load_ints(x + i) & 0x7fffffff;
            most = size > most ? size : most;
        }
        return as_float(uint(largest(most)));
    }

    // Sums of 16 values each, of LANES groups from g on.
    static Floats totals(const Whole& x, int g) {
        Ints fours[4];
        for (int j = 0; j < 4; j++) {
            int at = 4 * g + LANES * j;
            fours[j] = exact::product(Ints{} + 0x01010101, load_ints(x.first + at), load_ints(x.second + at));
        }
        Ints sums = add_pairs(add_pairs(fours[0], fours[1]), add_pairs(fours[2], fours[3]));
        return __builtin_convertvector(sums, Floats);
    }

    std::vector<Whole> kept_;
};

inline const Whole* Input::whole(int i) const { return integers->row(place(i)); }
