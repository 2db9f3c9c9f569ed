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
