// What Python asks for: one struct a call, mirrored in calls.py and listed in layout.cpp, and `run` for each. Pointers
// are to contiguous float32 unless said otherwise; shapes were checked on the other side.
#pragma once

#include "attention.h"
#include "experts.h"
#include "layers.h"
#include "linear.h"

// Several weights that share x: (n, k). out: (n, rows) of the first, then of the second …
// add: shaped as out, or null.
struct Matmuls {
    const float* x;
    const Weight* w;
    const float* add;
    float* out;
    int n, k, count;
};

// act(x gateᵀ) * (x upᵀ), either with the bias of its weight: x (n, k), w: gate and up -> out (n, rows).
struct GateUp {
    const float* x;
    const Weight* w;
    float* out;
    int n, k, act;
};

// Rows of w at ids: (n,), times scale -> out (n, k).
struct Rows {
    const Weight* w;
    const long* ids;
    float* out;
    int n, k;
    float scale;
};

// Rows of a cache, `row` bytes each: source (2, batch, heads, length) goes to positions from `at` on. Strides are in
// bytes.
struct Put {
    const char* source;
    char* to;
    long at;
    int batch, heads, length, row;
    long source_strides[4], to_strides[4];
};

void run(const Matmuls& a);
void run(const GateUp& a);
void run(const Rows& a);
void run(const Put& a);
inline void run(const Attention& a) { attend(a); }
inline void run(const Rotate& a) { rotate(a); }
inline void run(const RmsNorm& a) { rms_norm(a); }
inline void run(const SigmoidGate& a) { sigmoid_gate(a); }
inline void run(const Route& a) { route(a); }
inline void run(const Gather& a) { gather(a); }
inline void run(const GatherDown& a) { gather_down(a); }
inline void run(const Gelu& a) { gelu(a); }
