// The weighted sum of the outputs of a token's experts, in the order of the experts. A thread computes four adjacent
// elements of a row. SIGMOID: applies a sigmoid to the weights, as for a shared expert.
#pragma once

#include "numbers.h"

// Elements [i, i + 4) of one token: x (used, d), weights (used,), add (d,), read if ADD -> y (d,).
template <bool ADD, bool SIGMOID, typename X, typename W, typename Q, typename T>
METAL_FUNC void weighted_sum(X x, W weights, Q add, device T* y, int used, int d, int i) {
    int count = min(d - i, 4);
    float4 sum = 0;
    for (int e = 0; e < used; e++) {
        float weight = weights[e];
        if (SIGMOID) weight = 1 / (1 + exp(-weight));
        sum += weight * load_up_to_4(x + size_t(e) * d + i, count);
    }
    if (ADD) sum += load_up_to_4(add + i, count);
    UNROLL for (int j = 0; j < 4; j++) {
        if (j < count) y[i + j] = T(sum[j]);
    }
}
