// The most likely token of rows of logits, and their range; the logits of the tokens that a bit mask allows.
#include <cmath>
#include <cstdint>

#include "calls.h"
#include "floats.h"

namespace {

// logits (n, k) -> ids (n,), the first of the largest; ranges (n, 2), the smallest and the largest, NaN if one is.
struct Choose {
    const float* logits;
    int* ids;
    float* ranges;
    int n, k;
};

constexpr int RUN = 4096; // logits; of the runs, only the first that holds the largest is searched

void choose_row(const float* x, int k, int* id, float* range) {
    float low = INFINITY, high = -INFINITY, all = 0;
    int found = 0;
    for (int from = 0; from < k; from += RUN) {
        int to = std::min(k, from + RUN), i = from;
        Floats lows = repeat(INFINITY), highs = repeat(-INFINITY), sums = {};
        for (; i + LANES <= to; i += LANES) {
            Floats v = load_floats(x + i);
            lows = v < lows ? v : lows;
            highs = v > highs ? v : highs;
            sums += v - v; // NaN where v is NaN or infinite
        }
        float run_high = largest(highs), run_low = -largest(-lows);
        all += total(sums);
        for (; i < to; i++) {
            run_high = std::max(run_high, x[i]), run_low = std::min(run_low, x[i]);
            all += x[i] - x[i];
        }
        if (run_high > high) high = run_high, found = from;
        low = std::min(low, run_low);
    }
    *id = found;
    while (*id < k && x[*id] != high) ++*id;
    range[0] = low, range[1] = high;
    if (*id == k) *id = 0;
    if (all == all) return;
    for (int i = 0; i < k; i++)
        if (std::isnan(x[i])) range[0] = range[1] = NAN;
}

void choose(const Choose& a) {
    for (int i = 0; i < a.n; i++) choose_row(a.logits + long(i) * a.k, a.k, a.ids + i, a.ranges + 2 * i);
}

// logits (n, k), bits (n, ceil(k / 32)), the lowest bit first -> out (n, k), -inf where a bit is 0.
struct MaskLogits {
    const float* logits;
    const int* bits;
    float* out;
    int n, k;
};

void mask_logits(const MaskLogits& a) {
    const int words = (a.k + 31) / 32;
    for (int i = 0; i < a.n; i++) {
        const float* x = a.logits + long(i) * a.k;
        float* y = a.out + long(i) * a.k;
        for (int w = 0; w < words; w++) {
            const uint32_t bits = a.bits[long(i) * words + w];
            const int from = 32 * w, to = std::min(a.k, from + 32);
            for (int j = from; j < to; j++) y[j] = bits >> (j - from) & 1 ? x[j] : -INFINITY;
        }
    }
}

CALL(MaskLogits, mask_logits, F(logits), F(bits), F(out), F(n), F(k))
CALL(Choose, choose, F(logits), F(ids), F(ranges), F(n), F(k))

} // namespace
