// Rows of activations as whole numbers of 15 bits, each 32 of them with a scale: the largest becomes
// 16,256, so rounding costs 2^-15 of it. Products with codes are then exact sums of integers.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "linear.h"
#include "panel.h"

constexpr float LARGEST = 16256;   // 127 * 128: the upper half of the bits fits a signed byte
constexpr float SMALLEST = 1e-34f; // if none of 32 is larger, they count as zero: 1 / step must be finite

// So many rows are multiplied each by itself: unpacking codes for panels takes longer.
constexpr int FEW = LANES >= 8 ? 2 : 1;
constexpr int ALONE = 0; // instead of how wide a panel is

// Sets of rows of k values, which are multiplied set by set: few rows as chunks of each, more as panels. Rows are
// padded with zeros to whole chunks. Storage is kept between uses.
class Activations {
public:
    // Forget all sets.
    void clear(int k) {
        k_ = k, chunks_ = (k + CHUNK - 1) / CHUNK, used_ = 0;
        places_.clear();
    }

    // Make room for a set of n rows of x: those numbered `rows`, which must stay, or the first n. Returns the number
    // of its first row or panel; the others follow.
    int add(int n, const int* rows) {
        int number = int(places_.size());
        for (int i = 0; i < n; i += places_.back().count) {
            int wide = n <= FEW ? ALONE : wide_for(n - i), most = wide == ALONE ? 1 : MOST_ROWS / wide;
            places_.push_back({rows, i, std::min(most, n - i), wide, used_});
            used_ += chunks_ * (wide == ALONE ? sizeof(Whole)
                                : wide == 1   ? sizeof(Panel<1>)
                                              : sizeof(Panel<MOST_WIDE>));
        }
        kept_.resize(std::max(kept_.size(), used_ / sizeof(Line)));
        return number;
    }

    int places() const { return int(places_.size()); }

    // Take over a row or the rows of a panel: x: (.., k) floats.
    void quantize(int place, const float* x) {
        switch (places_[place].wide) {
        case ALONE:
            for (int c = 0; c < chunks_; c++) quantize_chunk<false>(place, 0, c, x, ((Whole*)at(place))[c]);
            break;
        case 1:
            quantize_panel<1>(place, x);
            break;
        default:
            quantize_panel<MOST_WIDE>(place, x);
        }
    }

    int wide(int place) const { return places_[place].wide; }
    int rows(int place) const { return places_[place].count; }

    // The chunks of a row or panel.
    const Whole* row(int place) const { return (const Whole*)at(place); }

    template <int WIDE>
    const Panel<WIDE>* panel(int place) const {
        return (const Panel<WIDE>*)at(place);
    }

private:
    struct Place {
        const int* rows;
        int first, count, wide;
        size_t at; // bytes
    };

    struct Line {
        alignas(64) char bytes[64];
    };

    char* at(int place) { return (char*)kept_.data() + places_[place].at; }
    const char* at(int place) const { return (const char*)kept_.data() + places_[place].at; }

    template <int WIDE>
    void quantize_panel(int place, const float* x) {
        for (int c = 0; c < chunks_; c++) {
            Whole rows[MOST_ROWS];
            int count = places_[place].count;
            for (int i = 0; i < count; i++) quantize_chunk<true>(place, i, c, x, rows[i]);
            ((Panel<WIDE>*)at(place))[c].fill(rows, count);
        }
    }

    // Chunk c of row i of a place.
    template <bool IN_PANEL>
    void quantize_chunk(int place, int i, int c, const float* x, Whole& out) {
        const Place& p = places_[place];
        x += long(p.rows ? p.rows[p.first + i] : p.first + i) * k_ + c * CHUNK;
        if (k_ - c * CHUNK >= CHUNK) return quantize_chunk<IN_PANEL>(x, out);
        float padded[CHUNK] = {};
        std::memcpy(padded, x, sizeof(float) * (k_ - c * CHUNK));
        quantize_chunk<IN_PANEL>(padded, out);
    }

    template <bool IN_PANEL>
    static void quantize_chunk(const float* x, Whole& out) {
        constexpr int COUNT = std::max(RUNS, LANES);
        float sizes[COUNT] = {}, scales[COUNT], factors[COUNT], sums[GROUPS];
        for (int run = 0; run < RUNS; run++) sizes[run] = largest_size(x + run * SHARED);
        for (int run = 0; run < RUNS; run += LANES) {
            Floats most = load_floats(sizes + run), poison = most * 0.0f; // NaN if a value is infinite or NaN
            store_floats(scales + run, most / LARGEST + poison);
            store_floats(factors + run, most > SMALLEST ? LARGEST / most : Floats{});
        }
        for (int i = 0; i < CHUNK; i += LANES) {
            Floats scaled = load_floats(x + i) * factors[i / SHARED];
            Floats half = scaled < 0 ? Floats{} - 0.5f : Floats{} + 0.5f;
            exact::split<IN_PANEL>(__builtin_convertvector(scaled + half, Ints), out.first + i / 4, out.second + i / 4);
        }
        for (int g = 0; g < GROUPS; g += LANES) store_floats(sums + g, totals<IN_PANEL>(out, g));
        for (int run = 0; run < RUNS; run++) {
            const float* halves = sums + 2 * run;
            for (int h = 0; h < 2; h++) {
                int at = IN_PANEL ? 2 * run + h : lane_of(run, h);
                out.scale[at] = scales[run];
                out.sum[at] = scales[run] * halves[h];
            }
            out.run_scale[run] = scales[run];
            out.run_sum[run] = scales[run] * (halves[0] + halves[1]);
        }
    }

    // Sums of 16 values each, of LANES groups from g on.
    template <bool IN_PANEL>
    static Floats totals(const Whole& x, int g) {
        Ints fours[4];
        for (int j = 0; j < 4; j++) {
            int at = 4 * g + LANES * j;
            fours[j] = exact::total<IN_PANEL>(load_ints(x.first + at), load_ints(x.second + at));
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
    std::vector<Place> places_;
    std::vector<Line> kept_;
};
