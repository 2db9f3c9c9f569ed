// The weighted sum over a token's experts of what each of them has given, in the experts' order; a thread takes four
// neighbours of a row. SIGMOID: weights are those of the sigmoid, as for an expert that every token has.
#pragma once

#include "numbers.h"

// Numbers [i, i + 4) of one token: x (used, d), weights (used,), add (d,), read if ADD says so -> y (d,).
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
