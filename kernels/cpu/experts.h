// What mixtures of experts need: the router, and products with the experts that it chose.
#pragma once

#include "linear.h"

// logits: (n, experts) -> ids and weights: (n, used), the best first; ids lie below `experts` whatever the
// logits are. The fields are those of Routing in ops.py.
struct Route {
    const float *logits, *bias; // bias: (experts,), added for the choice; or null
    int* ids;
    float* weights;
    int n, experts, used, sigmoid, normalise, groups, groups_used;
    float scale;
};

void route(const Route& a);

// For each expert of a token x wᵀ + bias; with two weights act(x gateᵀ) * (x upᵀ). A weight's rows and bias
// are those of one expert; the others' bias follows, and their rows at every `step`.
struct Gather {
    const float* x;  // (n, k)
    const Weight* w; // `count` of them
    const int* ids;  // (n, used)
    float* out;      // (n, used, rows)
    int n, used, experts, k, count, act;
};

// The sum of weight times x wᵀ over the experts of a token, + add.
struct GatherDown {
    const float* x; // (n, used, k)
    const Weight* w;
    const int* ids;       // (n, used)
    const float* weights; // (n, used)
    const float* add;     // shaped as out, or null
    float* out;           // (n, rows)
    int n, used, experts, k;
};

// Ids are read when the call runs. For one outside the experts no weight is read, and the answer is NaN.
void gather(const Gather& a);
void gather_down(const GatherDown& a);
