// Attention over keys and values that lie in a cache.
#pragma once

#include <cstddef>

constexpr long SMALL = 1 << 16; // multiply-adds below which threads cost more than they save

// Shapes: q (batch, heads, length, d) and out (batch, heads, length, dv), contiguous;
// k (batch, groups, held, d), v (batch, groups, held, dv), float32 or, if `halves`, float16, with strides
// in numbers. The queries are the last `length` of `held` positions. A position sees itself and those before it, the
// last `window` of them unless that is 0; with `both_ways` it sees all, and there is no window.
struct Attention {
    const float* q;
    const void *k, *v;
    float* out;
    int batch, heads, groups, length, held, d, dv, window, halves, both_ways;
    long k_batch, k_head, k_stride, v_batch, v_head, v_stride;
    float scale;

    // Query rows of one key-value head, position by position, so that neighbours see much the same.
    int per_group() const { return heads / groups; }
    long rows() const { return long(per_group()) * length; }
    // Row i of key-value head bg (counted through the batch) in q and out, in rows.
    long place(int bg, long i) const {
        long head = long(bg) * per_group() + i % per_group();
        return head * length + i / per_group();
    }
    template <typename T>
    const T* keys(int bg) const {
        return (const T*)k + bg / groups * k_batch + bg % groups * k_head;
    }
    template <typename T>
    const T* values(int bg) const {
        return (const T*)v + bg / groups * v_batch + bg % groups * v_head;
    }
    // The keys that row i sees: [first, last].
    int last(long i) const { return both_ways ? held - 1 : held - length + int(i / per_group()); }
    int first(long i) const {
        int from = window > 0 ? last(i) - window + 1 : 0;
        return from > 0 ? from : 0;
    }
};

void attend(const Attention& a);
