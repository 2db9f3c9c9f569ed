// Activation functions. Both are x / (1 + e^-z), which is safe for any x: e^-z overflows to infinity or underflows to
// 0.
#pragma once

#include "activation.h"
#include "numbers.h"

// GELU in its tanh form: (1 + tanh(z / 2)) / 2 = 1 / (1 + e^-z).
template <int ACT>
METAL_FUNC float activate(float x) {
    float z = ACT == SILU ? x : 1.5957691216f * (x + 0.044715f * x * x * x);
    return x / (1 + exp(-z));
}

METAL_FUNC float sigmoid(float x) { return 1 / (1 + exp(-x)); }

// log(1 + e^x), to a few last bits for any x.
METAL_FUNC float softplus(float x) {
    float y = exp(-abs(x)), sum = 1 + y;
    // what the sum lost of y is made up for by its ratio to what the sum gained
    float log1p = sum == 1 ? y : log(sum) * y / (sum - 1);
    return max(x, 0.0f) + log1p;
}
