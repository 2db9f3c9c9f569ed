// The most likely token of rows of logits, and their range.
#include <cmath>

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

CALL(Choose, choose, F(logits), F(ids), F(ranges), F(n), F(k))

} // namespace
