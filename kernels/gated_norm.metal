// The RMS norm of each head, times silu(gate). One simdgroup per head, whose numbers stay in registers where SIZE, the
// head's size, is small.
#pragma once

#include "activation.metal"

// One head: x, weight, gate (SIZE,) -> y (SIZE,).
template <int SIZE, typename X, typename W, typename G>
METAL_FUNC void gated_norm(X x, W weight, G gate, device float* y, float eps, uint lane) {
    constexpr int EACH = (SIZE + 31) / 32;
    float values[EACH], squares = 0;
    UNROLL for (int n = 0; n < EACH; n++) {
        int i = 32 * n + lane;
        values[n] = i < SIZE ? float(x[i]) : 0;
        squares = fma(values[n], values[n], squares);
    }
    float scale = precise::rsqrt(simd_sum(squares) / SIZE + eps);
    UNROLL for (int n = 0; n < EACH; n++) {
        int i = 32 * n + lane;
        if (i < SIZE) y[i] = values[n] * scale * float(weight[i]) * activate<SILU>(float(gate[i]));
    }
}
