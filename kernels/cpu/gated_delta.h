// The arguments of the gated delta rule, and one value head of one sequence.
#pragma once

#include <cmath>

#include "floats.h"

// The rows of all sequences lie one after another; channels: queries and keys of all key heads, then values. The state
// of a head is a matrix, rows along the key, columns along the value. A sequence's state before its rows is in its
// source, the one after them goes to its target.
struct GatedDelta {
    const float* qkv;             // (rows, channels)
    const float *a, *b;           // (rows, heads)
    const float *decay, *dt;      // (heads,)
    const int* starts;            // (sequences + 1,), the first row of each
    const int *sources, *targets; // (sequences,), slots; a source of -1 stands for zeros
    float* matrices;              // (slots, heads, size, size)
    float* out;                   // (rows, heads, size)
    int sequences, slots, heads, key_heads, size, is_tiled;
    float eps;

    long rows() const { return starts[sequences]; }
    long channels() const { return (2L * key_heads + heads) * size; }
};

struct DeltaHead {
    const GatedDelta& a;
    int sequence, head;

    int rows() const { return a.starts[sequence + 1] - a.starts[sequence]; }
    long row(int t) const { return a.starts[sequence] + t; }
    int key_head() const { return a.is_tiled ? head % a.key_heads : head / (a.heads / a.key_heads); }
    const float* query(int t) const { return a.qkv + row(t) * a.channels() + long(key_head()) * a.size; }
    const float* key(int t) const { return query(t) + long(a.key_heads) * a.size; }
    const float* value(int t) const { return a.qkv + row(t) * a.channels() + (2L * a.key_heads + head) * a.size; }
    float* out(int t) const { return a.out + (row(t) * a.heads + head) * a.size; }

    float* matrix(int slot) const { return a.matrices + (long(slot) * a.heads + head) * a.size * a.size; }
    // The state before the rows; null for zeros.
    const float* before() const { return a.sources[sequence] < 0 ? nullptr : matrix(a.sources[sequence]); }
    float* after() const { return matrix(a.targets[sequence]); }

    // By which the state is multiplied in row t.
    float decay(int t) const {
        float x = a.a[row(t) * a.heads + head] + a.dt[head];
        float softplus = x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
        return std::exp(a.decay[head] * softplus);
    }
    // How much of the difference from row t's value is made up for.
    float beta(int t) const { return 1 / (1 + std::exp(-a.b[row(t) * a.heads + head])); }
};

// out = x / sqrt(x x + eps) * scale
inline void unit(const float* x, int size, float eps, float scale, float* out) {
    scale /= std::sqrt(dot(x, x, size) + eps);
    for (int i = 0; i < size; i++) out[i] = x[i] * scale;
}
