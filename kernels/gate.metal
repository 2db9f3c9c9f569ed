// The output gate of attention: heads times the sigmoid of the second half of each head of queries and gates. A thread
// computes four adjacent numbers.
#pragma once

#include "activation.metal"

// Numbers [i, i + 4) of one head: x (d,), gates (d,) -> y (d,).
template <typename X, typename G>
METAL_FUNC void gate(X x, G gates, device float* y, int d, int i) {
    int count = min(d - i, 4);
    float4 values = load_up_to_4(x + i, count), raw = load_up_to_4(gates + i, count);
    UNROLL for (int j = 0; j < 4; j++) {
        if (j < count) y[i + j] = values[j] * sigmoid(raw[j]);
    }
}
