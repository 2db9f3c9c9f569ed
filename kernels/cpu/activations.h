// Rows of activations as whole numbers of 15 bits, each 32 of them with a scale: the largest becomes
// 16,256, so rounding costs 2^-15 of it. Products with codes are then exact sums of integers.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "unpack.h"
#include "vectors.h"

constexpr int SHARED = 32;       // values that share a scale
constexpr float LARGEST = 16256; // 127 * 128: the upper half of the bits fits a signed byte

// n rows of k values, each padded with zeros to whole chunks. Storage is kept between uses.
class Activations {
public:
    void resize(int rows, int k) {
        n = rows, chunks = (k + CHUNK - 1) / CHUNK, width = chunks * CHUNK;
        size_t size = size_t(n) * width;
        if (scale.size() * GROUP >= size) return;
#ifdef FERRUM_VNNI
        high.resize(size);
        low.resize(size);
#else
        value.resize(size);
#endif
        scale.resize(size / GROUP);
        sum.resize(size / GROUP);
    }

    // Take over row i of x: (k,) floats.
    void quantize(int i, const float* x, int k) {
        for (int at = 0; at < width; at += SHARED) {
            float group[SHARED] = {};
            if (at < k) std::memcpy(group, x + at, sizeof(float) * std::min(SHARED, k - at));
            quantize_group(size_t(i) * width + at, group);
        }
    }

    int n = 0, chunks = 0, width = 0;
#ifdef FERRUM_VNNI
    std::vector<signed char> high, low; // value = 128 high + low, low in 0..127
#else
    std::vector<short> value;
#endif
    std::vector<float> scale; // of each 16 values
    std::vector<float> sum;   // scale times the sum of the 16

private:
    void quantize_group(size_t at, const float* x) {
        Floats value[2] = {load_floats(x), load_floats(x + GROUP)};
        Floats size[2] = {value[0] < 0 ? -value[0] : value[0], value[1] < 0 ? -value[1] : value[1]};
        float most = largest(size[0] > size[1] ? size[0] : size[1]);
        float poison = total((value[0] + value[1]) * 0.0f); // NaN if a value is infinite or NaN
        float step = most / LARGEST + poison;
        float inverse = most > 0 && poison == 0 ? LARGEST / most : 0;
        for (int g = 0; g < 2; g++) {
            Floats scaled = poison == 0 ? value[g] * inverse : Floats{};
            Ints whole = __builtin_convertvector(scaled + (scaled < 0 ? Floats{} - 0.5f : Floats{} + 0.5f), Ints);
            store(at + GROUP * g, whole);
            scale[at / GROUP + g] = step;
            sum[at / GROUP + g] = step * total(__builtin_convertvector(whole, Floats));
        }
    }

    void store(size_t at, Ints v) {
#ifdef FERRUM_VNNI
        typedef signed char Bytes __attribute__((vector_size(16)));
        Bytes upper = __builtin_convertvector(v >> 7, Bytes), lower = __builtin_convertvector(v & 127, Bytes);
        std::memcpy(&high[at], &upper, sizeof upper);
        std::memcpy(&low[at], &lower, sizeof lower);
#else
        typedef short Shorts __attribute__((vector_size(32)));
        Shorts shorts = __builtin_convertvector(v, Shorts);
        std::memcpy(&value[at], &shorts, sizeof shorts);
#endif
    }
};
