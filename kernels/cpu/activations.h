// Rows of activations as whole numbers of 15 bits, each 32 of them with a scale: the largest becomes
// 16,256, so rounding costs 2^-15 of it. Products with codes are then exact sums of integers.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "linear.h"
#include "panel.h"

constexpr int SHARED = 32;         // values that share a scale
constexpr float LARGEST = 16256;   // 127 * 128: the upper half of the bits fits a signed byte
constexpr float SMALLEST = 1e-34f; // if none of 32 is larger, they count as zero: 1 / step must be finite

// Sets of rows of k values, which are multiplied set by set: a row alone as chunks of its own, several as
// panels. Rows are padded with zeros to whole chunks. Storage is kept between uses.
class Activations {
public:
    // Forget all sets.
    void clear(int k) {
        k_ = k, chunks_ = (k + CHUNK - 1) / CHUNK, used_ = 0;
        panels_.clear();
    }

    // Make room for a set of n rows of x: those numbered `rows`, which must stay, or the first n. Returns the number
    // of its first panel; the others follow.
    int add(int n, const int* rows) {
        int number = int(panels_.size());
        for (int i = 0; i < n;) {
            int parts = n == 1 ? ALONE : parts_for(n - i), count = parts == ALONE ? 1 : std::min(n - i, panel_rows(parts));
            panels_.push_back({rows, i, count, parts, used_});
            used_ += chunks_ * panel_size(parts);
            i += count;
        }
        kept_.resize(std::max(kept_.size(), used_ / sizeof(Line)));
        return number;
    }

    int panels() const { return int(panels_.size()); }

    // The panels of a set of n rows, from its first one.
    int count(int first, int n) const {
        int end = first;
        for (; n > 0; end++) n -= panels_[end].count;
        return end - first;
    }

    // Take over the rows of a panel: x: (.., k) floats.
    void quantize(int panel, const float* x) {
        const Place& p = panels_[panel];
        with_parts(p.parts, [&](auto parts) {
            Whole rows[MOST_ROWS];
            for (int c = 0; c < chunks_; c++) {
                for (int i = 0; i < p.count; i++) {
                    const float* row = x + long(p.rows ? p.rows[p.first + i] : p.first + i) * k_;
                    int left = std::min(CHUNK, k_ - c * CHUNK);
                    if constexpr (parts.value == ALONE)
                        quantize_chunk<false>(row + c * CHUNK, left, ((Whole*)at(p))[c]);
                    else
                        quantize_chunk<true>(row + c * CHUNK, left, rows[i]);
                }
                if constexpr (parts.value != ALONE) ((Panel<parts.value>*)at(p))[c].fill(rows, p.count);
            }
        });
    }

    // How the rows of a panel lie.
    int parts(int panel) const { return panels_[panel].parts; }
    int rows(int panel) const { return panels_[panel].count; }

    // The chunks of a panel, or of a row alone.
    template <int PARTS>
    const Panel<PARTS>* chunks(int panel) const {
        return (const Panel<PARTS>*)at(panels_[panel]);
    }
    const Whole* row(int panel) const { return (const Whole*)at(panels_[panel]); }

private:
    struct Place {
        const int* rows;
        int first, count, parts;
        size_t at; // bytes
    };

    struct Line {
        alignas(64) char bytes[64];
    };

    char* at(const Place& p) { return (char*)kept_.data() + p.at; }
    const char* at(const Place& p) const { return (const char*)kept_.data() + p.at; }

    template <bool PANEL>
    static void quantize_chunk(const float* x, int count, Whole& out) {
        float padded[CHUNK];
        if (count < CHUNK) {
            std::memset(padded, 0, sizeof padded);
            std::memcpy(padded, x, sizeof(float) * count);
            x = padded;
        }
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
            exact::split<PANEL>(__builtin_convertvector(scaled + half, Ints), out.first + i / 4, out.second + i / 4);
        }
        for (int g = 0; g < GROUPS; g += LANES)
            store_floats(out.sum + g, load_floats(out.scale + g) * totals<PANEL>(out, g));
    }

    // Sums of 16 values each, of LANES groups from g on.
    template <bool PANEL>
    static Floats totals(const Whole& x, int g) {
        Ints fours[4];
        for (int j = 0; j < 4; j++) {
            int at = 4 * g + LANES * j;
            fours[j] = exact::total<PANEL>(load_ints(x.first + at), load_ints(x.second + at));
        }
        Ints sums = add_pairs(add_pairs(fours[0], fours[1]), add_pairs(fours[2], fours[3]));
        return __builtin_convertvector(sums, Floats);
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

    int k_ = 0, chunks_ = 0;
    size_t used_ = 0; // bytes
    std::vector<Place> panels_;
    std::vector<Line> kept_;
};
