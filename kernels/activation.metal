// Activation functions. Both are x / (1 + e^-z), which holds for any x: e^-z grows to infinity, or vanishes.
#pragma once

#include "activation.h"
#include "numbers.h"

// GELU in its tanh form: (1 + tanh(z / 2)) / 2 = 1 / (1 + e^-z).
template <int ACT>
METAL_FUNC float activation(float x) {
    float z = ACT == SILU ? x : 1.5957691216f * (x + 0.044715f * x * x * x);
    return x / (1 + exp(-z));
}
