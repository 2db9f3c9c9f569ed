// The gated delta rule for a few rows, one by one. Columns of a state do not depend on each other: a strip of them is
// read, multiplied with key and query, and updated while it lies in the cache, so a state crosses memory once each way.
#pragma once

#include <algorithm>
#include <vector>

#include "gated_delta.h"

namespace {

// A row of a head: unit vectors, and what they give.
struct DeltaRow {
    const float *key, *query, *value; // (size,)
    float* out;                       // (size,)
    float decay, beta, product;       // product: of key and query
    int size;
};

// Columns [first, first + VECTORS * LANES). before and after may be the same state.
template <int VECTORS>
void step_strip(const DeltaRow& row, int first, const float* before, float* after) {
    Floats by_key[VECTORS] = {}, by_query[VECTORS] = {}, change[VECTORS];
    for (int i = 0; i < row.size; i++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            Floats m = load_floats(before + long(i) * row.size + first + LANES * v);
            by_key[v] += m * row.key[i];
            by_query[v] += m * row.query[i];
        }
    for (int v = 0; v < VECTORS; v++) {
        change[v] = (load_floats(row.value + first + LANES * v) - by_key[v] * row.decay) * row.beta;
        store_floats(row.out + first + LANES * v, by_query[v] * row.decay + change[v] * row.product);
    }
    for (int i = 0; i < row.size; i++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            long at = long(i) * row.size + first + LANES * v;
            store_floats(after + at, load_floats(before + at) * row.decay + change[v] * row.key[i]);
        }
}

// All rows of a head whose size is a multiple of LANES.
void run_rows(const DeltaHead& h) {
    thread_local std::vector<float> kept;
    int size = h.a.size;
    kept.resize(2 * size);
    float *key = kept.data(), *query = key + size, *after = h.after();
    const float* before = h.before();
    if (!before) std::fill_n(after, long(size) * size, 0.0f), before = after;
    for (int t = 0; t < h.rows(); t++, before = after) {
        unit(h.key(t), size, h.a.eps, 1, key);
        unit(h.query(t), size, h.a.eps, 1 / std::sqrt(float(size)), query);
        DeltaRow row{key, query, h.value(t), h.out(t), h.decay(t), h.beta(t), dot(key, query, size), size};
        int i = 0;
        for (; i + 4 * LANES <= size; i += 4 * LANES) step_strip<4>(row, i, before, after);
        for (; i < size; i += LANES) step_strip<1>(row, i, before, after);
    }
}

} // namespace
