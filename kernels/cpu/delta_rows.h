// The gated delta rule for a few rows, one by one. Columns of a state do not depend on each other: a strip of them is
// read, multiplied with key and query, and updated while it lies in the cache, so a state crosses memory once each way.
// Large states are written past the caches, in which nothing of them would be left in the next step.
#pragma once

#include <algorithm>
#include <cstdint>
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

constexpr long LARGE = 1 << 18; // numbers, of all states that a call writes

// Columns [first, first + VECTORS * LANES). before and after may be the same state. STREAM: write past the caches.
template <int VECTORS, bool STREAM>
void step_strip(const DeltaRow& row, int first, const float* before, float* after) {
    constexpr int WIDTH = VECTORS * LANES, LINE = 16;
    // where the next strip begins, the last one's in the next state
    const float* next = before + (first + WIDTH < row.size ? first + WIDTH : long(row.size) * row.size);
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
    for (int i = 0; i < row.size; i++) {
        for (int j = 0; STREAM && j < WIDTH; j += LINE) __builtin_prefetch(next + long(i) * row.size + j);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            long at = long(i) * row.size + first + LANES * v;
            Floats m = load_floats(before + at) * row.decay + change[v] * row.key[i];
            STREAM ? stream_floats(after + at, m) : store_floats(after + at, m);
        }
    }
}

template <bool STREAM>
void step(const DeltaRow& row, const float* before, float* after) {
    int i = 0;
    for (; i + 4 * LANES <= row.size; i += 4 * LANES) step_strip<4, STREAM>(row, i, before, after);
    for (; i < row.size; i += LANES) step_strip<1, STREAM>(row, i, before, after);
    if (STREAM) finish_streams();
}

// All rows of a head whose size is a multiple of LANES.
void run_rows(const DeltaHead& h) {
    thread_local std::vector<float> kept;
    int size = h.a.size;
    kept.resize(2 * size);
    float *key = kept.data(), *query = key + size, *after = h.after();
    const float* before = h.before();
    bool is_aligned = (std::uintptr_t)after % sizeof(Floats) == 0;
    bool is_large = h.rows() == 1 && long(h.a.sequences) * h.a.heads * size * size >= LARGE;
    if (!before) std::fill_n(after, long(size) * size, 0.0f), before = after;
    for (int t = 0; t < h.rows(); t++, before = after) {
        unit(h.key(t), size, h.a.eps, 1, key);
        unit(h.query(t), size, h.a.eps, 1 / std::sqrt(float(size)), query);
        DeltaRow row{key, query, h.value(t), h.out(t), h.decay(t), h.beta(t), dot(key, query, size), size};
        (is_large && is_aligned ? step<true> : step<false>)(row, before, after);
    }
}

} // namespace
