// Attention of a few query rows of one head, over tiles of keys and values, with an online softmax.
#pragma once

#include <cfloat>

#include "attention.h"
#include "exp.h"
#include "floats.h"

namespace {

constexpr int ROWS = 8;  // query rows multiplied together
constexpr int PART = 16; // query rows of a part of the job

// Vectors that N rows are multiplied with at a time: half of the registers hold sums.
template <int N>
constexpr int SIDE_BY_SIDE = REGISTERS / (N > 4 ? 16 : 8);

constexpr int WHOLE = std::max(ROWS, LANES); // a number of each row, in whole vectors

// Up to eight query rows, their softmax so far and their part of the output.
struct Rows {
    int count, seen; // seen: the first position that a row sees
    const float* q[ROWS];
    float* out[ROWS];
    int first[ROWS], last[ROWS];
    float largest[WHOLE], shrink[WHOLE];
    Floats weights[ROWS]; // LANES sums each
    alignas(64) float score[ROWS][TILE];
};

// Rows [row, row + 8) of [0, end). parts: where row 0 goes, in rows of dv + 2; null: their place in a.out.
void start(const Head& h, long row, long end, float* parts, Rows& rows) {
    const Attention& a = h.a;
    rows.count = int(std::min<long>(ROWS, end - row));
    rows.seen = h.first(row);
    std::fill_n(rows.largest, WHOLE, -FLT_MAX);
    for (int r = 0; r < ROWS; r++) {
        long i = std::min(row + r, end - 1); // rows that do not exist repeat the last
        long at = h.place(i);
        rows.q[r] = a.q + at * a.d;
        rows.out[r] = parts ? parts + i * (a.dv + 2) : a.out + at * a.dv;
        rows.first[r] = h.first(i);
        rows.last[r] = h.last(i);
        rows.weights[r] = Floats{};
        if (r < rows.count) std::fill_n(rows.out[r], a.dv, 0.0f);
    }
}

// sums[r] += x[r][i] * (VECTORS vectors of row i of y), for i < count.
template <int N, int VECTORS, typename Y>
FERRUM_INLINE void multiply(const float* const* x, const Y& y, int count, Floats (*sums)[VECTORS]) {
    for (int i = 0; i < count; i++) {
        Floats row[VECTORS];
        auto* p = y(i);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) row[v] = load_floats(p + LANES * v);
#pragma GCC unroll 8
        for (int r = 0; r < N; r++)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) sums[r][v] += row[v] * x[r][i];
    }
}

// Scores of `count` transposed keys: (d, 64).
template <int N>
void multiply_transposed(const Attention& a, const float* keys, int count, Rows& rows) {
    constexpr int VECTORS = SIDE_BY_SIDE<N>;
    for (int s = 0; s < count; s += LANES * VECTORS) {
        Floats sums[N][VECTORS] = {};
        multiply<N, VECTORS>(rows.q, [=](int i) { return keys + s + i * TILE; }, a.d, sums);
        for (int r = 0; r < N; r++)
            for (int v = 0; v < VECTORS; v++) store_floats(rows.score[r] + s + LANES * v, sums[r][v] * a.scale);
    }
}

// Scores of LANES / N keys for N rows from r on, of which sums take all lanes: a key is read once for N rows.
template <int N, typename T>
FERRUM_INLINE void multiply_few(const Attention& a, const T* const* key, int r, int s, Rows& rows) {
    constexpr int KEYS = LANES / N;
    Floats sums[LANES] = {};
    int i = 0;
    for (; i + LANES <= a.d; i += LANES) {
        Floats q[N];
        for (int n = 0; n < N; n++) q[n] = load_floats(rows.q[r + n] + i);
#pragma GCC unroll 16
        for (int j = 0; j < KEYS; j++) {
            Floats k = in_register(load_floats(key[j] + i));
            for (int n = 0; n < N; n++) sums[n * KEYS + j] += q[n] * k;
        }
    }
    Floats score = totals(sums);
    for (; i < a.d; i++)
        for (int j = 0; j < LANES; j++) score[j] += rows.q[r + j / KEYS][i] * float(key[j % KEYS][i]);
    alignas(64) float each[LANES];
    store_floats(each, score * a.scale);
    for (int n = 0; n < N; n++) std::copy_n(each + n * KEYS, KEYS, rows.score[r + n] + s);
}

template <typename T>
constexpr int LINE = 64 / sizeof(T); // numbers of a cache line

// Rows that are read soon, of `width` numbers each. They lie in blocks all over the pool, where the processor does not
// look for them by itself; fetched all at once, they would keep what is read meanwhile waiting.
template <typename T>
struct Ahead {
    int count = 0, width = 0;
    const T* row[TILE];

    FERRUM_INLINE void fetch(int from, int to) const {
        for (int s = from; s < std::min(to, count); s++)
            for (int i = 0; i < width; i += LINE<T>) __builtin_prefetch(row[s] + i);
    }
};

// Scores of `count` keys as they lie in the pool, for N rows at a time.
template <int N, typename T>
void multiply_keys(const Attention& a, const T* const* keys, int count, const Ahead<T>& ahead, Rows& rows) {
    constexpr int KEYS = LANES / N;
    for (int s = 0; s < (count + LANES - 1) / LANES * LANES; s += KEYS) {
        ahead.fetch(s, s + KEYS);
        const T* key[KEYS]; // keys that do not exist repeat the last
        for (int j = 0; j < KEYS; j++) key[j] = keys[std::min(s + j, count - 1)];
        for (int r = 0; r < rows.count; r += N) multiply_few<N>(a, key, r, s, rows);
    }
}

// Bounds scores to (-cap, cap).
void cap(float* score, int count, float cap) {
    for (int s = 0; s < count; s += LANES) store_floats(score + s, cap * tanh_floats(load_floats(score + s) / cap));
}

// Puts -infinity where a row does not see a key: outside [first, last], counted from the tile's start.
void hide(float* score, int count, int first, int last) {
    for (int s = 0; s < count; s++)
        if (s < first || s > last) score[s] = -INFINITY;
}

float largest_of(const float* score, int count, float largest) {
    Floats most = repeat(largest);
    for (int s = 0; s < count; s += LANES) {
        Floats v = load_floats(score + s);
        most = v > most ? v : most;
    }
    return ::largest(most);
}

// Scores of positions [from, to) become weights; `shrink` is the factor for what was summed before.
void soften(const Attention& a, int from, int to, Rows& rows) {
    int count = (to - from + LANES - 1) / LANES * LANES;
    float before[WHOLE];
    std::copy_n(rows.largest, WHOLE, before);
    for (int r = 0; r < rows.count; r++) {
        int first = rows.first[r] - from, last = rows.last[r] - from;
        if (a.softcap > 0) cap(rows.score[r], count, a.softcap);
        if (first > 0 || last < count - 1) hide(rows.score[r], count, first, last);
        rows.largest[r] = largest_of(rows.score[r], count, rows.largest[r]);
    }
    for (int i = 0; i < WHOLE; i += LANES)
        store_floats(rows.shrink + i, exp_floats(load_floats(before + i) - load_floats(rows.largest + i)));
    for (int r = 0; r < rows.count; r++)
        rows.weights[r] = rows.weights[r] * rows.shrink[r] + exp_sums(rows.score[r], count, rows.largest[r]);
}

// Shrinks the output, and adds `count` values times their weights, which begin at `skip` in each row of scores.
template <int N, typename T>
void add_values(const Attention& a, const T* const* values, int skip, int count, const Ahead<T>& ahead, Rows& rows) {
    constexpr int VECTORS = SIDE_BY_SIDE<N>, WIDTH = LANES * VECTORS;
    const float* scores[N];
    for (int r = 0; r < N; r++) scores[r] = rows.score[r] + skip;
    int i = 0;
    for (; i + WIDTH <= a.dv; i += WIDTH) {
        Floats sums[N][VECTORS] = {};
        int fetched = i < ahead.width && i % LINE<T> == 0 ? ahead.count : 0; // one line of each
        auto value = [=, &ahead](int s) {
            if (s < fetched) __builtin_prefetch(ahead.row[s] + i);
            return values[s] + i;
        };
        multiply<N, VECTORS>(scores, value, count, sums);
        for (int r = 0; r < std::min(N, rows.count); r++)
            for (int j = 0; j < VECTORS; j++) {
                float* out = rows.out[r] + i + LANES * j;
                store_floats(out, load_floats(out) * rows.shrink[r] + sums[r][j]);
            }
    }
    for (; i < a.dv; i++)
        for (int r = 0; r < rows.count; r++) {
            float sum = rows.out[r][i] * rows.shrink[r];
            for (int s = 0; s < count; s++) sum += scores[r][s] * float(values[s][i]);
            rows.out[r][i] = sum;
        }
}

// Multiplies scores by the scales of 8-bit keys or values; the scales of a head lie one after another in a block.
void apply_scales(const Head& h, const float* scales, int from, int to, Rows& rows) {
    const float* scale[TILE];
    h.a.scale_blocks().collect(scales, h.table(), h.group, from, to, scale);
    for (int s = 0; s < to - from; s++)
        for (int r = 0; r < rows.count; r++) rows.score[r][s] *= *scale[s];
}

// Positions [from, to) of a tile for N rows. transposed: all keys of the head in tiles of (d, 64), or null.
// Values before the first position that a row sees are not read: their blocks may be another sequence's by now.
template <typename T, int N>
void attend_tile(const Head& h, const float* transposed, int from, int to, Rows& rows) {
    const Attention& a = h.a;
    Ahead<T> keys, values;
    int seen = std::max(from, std::min(rows.seen, to)), next = std::min(to + TILE, h.held());
    values.count = to - seen, values.width = a.dv;
    a.value_blocks().collect(a.values, h.table(), h.group, seen, to, values.row);
    if (transposed)
        multiply_transposed<N>(a, transposed + long(from - h.begin()) * a.d, to - from, rows);
    else {
        a.key_blocks().collect(a.keys, h.table(), h.group, from, to, keys.row);
        auto multiply = rows.count > 1 ? multiply_keys<2, T> : multiply_keys<1, T>;
        multiply(a, keys.row, to - from, values, rows);
        if (a.bits == 8) apply_scales(h, a.key_scales, from, to, rows);
        keys.count = std::max(0, next - to), keys.width = a.d;
        a.key_blocks().collect(a.keys, h.table(), h.group, to, next, keys.row);
    }
    soften(a, from, to, rows);
    if (a.bits == 8) apply_scales(h, a.value_scales, from, to, rows);
    add_values<N>(a, values.row, seen - from, to - seen, keys, rows);
}

// Positions [from, to), from the first of a tile, for several times eight rows.
template <typename T>
void attend_tiles(const Head& h, const float* transposed, int from, int to, Rows* part, int count) {
    for (; from < to; from += TILE)
        for (int n = 0; n < count; n++) {
            auto attend = part[n].count > 4 ? attend_tile<T, 8> : attend_tile<T, 4>;
            attend(h, transposed, from, std::min(from + TILE, to), part[n]);
        }
}

// Divides a row's sum of values by the sum of its weights, to which the sink adds its own.
void finish(const Head& h, long row, float largest, float weights, float* out) {
    const Attention& a = h.a;
    float shrink = 1;
    if (a.sinks) {
        float sink = a.sinks[h.head(row)], most = std::max(sink, largest);
        shrink = std::exp(largest - most);
        weights = weights * shrink + std::exp(sink - most);
    }
    for (int i = 0; i < a.dv; i++) out[i] *= shrink / weights;
}

// Rows [row, row + 16) over all positions that they see.
template <typename T>
void attend_rows(const Head& h, long row, const float* transposed) {
    long end = std::min(row + PART, h.rows());
    Rows part[PART / ROWS];
    int count = 0;
    for (long i = row; i < end; i += ROWS) start(h, i, end, nullptr, part[count++]);
    attend_tiles<T>(h, transposed, h.first(row) / TILE * TILE, h.last(end - 1) + 1, part, count);
    for (int n = 0; n < count; n++)
        for (int r = 0; r < part[n].count; r++)
            finish(h, row + n * ROWS + r, part[n].largest[r], total(part[n].weights[r]), part[n].out[r]);
}

// All rows over positions [from, to). parts: for `merge`, dv values, the largest score and the sum of weights of each
// row; null if this is the only run.
template <typename T>
void attend_run(const Head& h, int from, int to, float* parts) {
    for (long i = 0; i < h.rows(); i += ROWS) {
        Rows rows;
        start(h, i, h.rows(), parts, rows);
        attend_tiles<T>(h, nullptr, from, to, &rows, 1);
        for (int r = 0; r < rows.count; r++) {
            float weights = total(rows.weights[r]);
            if (parts)
                rows.out[r][h.a.dv] = rows.largest[r], rows.out[r][h.a.dv + 1] = weights;
            else
                finish(h, i + r, rows.largest[r], weights, rows.out[r]);
        }
    }
}

// One row's softmax over several runs, `apart` floats from each other.
void merge(const Head& h, long row, const float* parts, int count, long apart) {
    int dv = h.a.dv;
    float *out = h.a.out + h.place(row) * dv, largest = -FLT_MAX, weights = 0;
    for (int n = 0; n < count; n++) largest = std::max(largest, parts[n * apart + dv]);
    std::fill_n(out, dv, 0.0f);
    for (int n = 0; n < count; n++) {
        const float* part = parts + n * apart;
        float share = std::exp(part[dv] - largest);
        weights += share * part[dv + 1];
        for (int i = 0; i < dv; i++) out[i] += share * part[i];
    }
    finish(h, row, largest, weights, out);
}

} // namespace
