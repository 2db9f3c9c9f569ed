// The small operations between the products.
#pragma once

#include "../activation.h"

struct half;

// out[i] = x[i] / rms(x[i]) * weight + add[i], rows of d; add: shaped as x, or null.
struct RmsNorm {
    const float *x, *weight, *add;
    float* out;
    long rows;
    int d;
    float eps;
};

void rms_norm(const RmsNorm& a);

// out[i] = x[i] * sigmoid(gate[row]) + add[i], rows of d; gate: (rows,); add: shaped as x, or null.
struct SigmoidGate {
    const float *x, *gate, *add;
    float* out;
    long rows;
    int d;
};

void sigmoid_gate(const SigmoidGate& a);

// q (batch, length, heads, d) -> turned (batch, heads, length, d); k (batch, length, groups, d) and
// v (batch, length, groups, dv) -> added (2, batch, groups, length, width), with zeros past the shorter of them.
// Queries and keys: RMS norm, if there are weights (d,), then rotation of the first 2 pairs values by the position
// times frequencies (pairs,).
struct Rotate {
    const float *q, *k, *v, *q_weight, *k_weight, *frequencies;
    const long* offset; // (batch,) position of the first
    float* turned;
    half* added;
    int batch, length, heads, groups, d, dv, pairs, interleaved;
    float magnitude, eps;
    long later; // positions to add to each offset

    int width() const { return d > dv ? d : dv; }
};

void rotate(const Rotate& a);

// out[i] = the exact GELU of x[i], i < count.
struct Gelu {
    const float* x;
    float* out;
    long count;
};

void gelu(const Gelu& a);

// gate[i] = act(gate[i]) * up[i]; act: an Activation.
void activate(float* gate, const float* up, long count, int act);
