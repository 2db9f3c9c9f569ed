// Stacks of experts' matrices, and pairs of a token and an expert that it chose: pair p of n a token is of token
// p / n. An id may be anything, as nothing waits for ids to look at them: one that is no expert's reads no weights,
// and what it leads to is NaN.
#pragma once

#include "numbers.h"

// Weights (experts, rows, k); used: experts of a token.
struct Stack {
    int experts, rows, k, used;
};

METAL_FUNC bool is_expert(long id, Stack s) { return id >= 0 && id < s.experts; }

// Matrix `id` of a stack.
template <typename B>
METAL_FUNC const device B* expert_matrix(const device B* w, int id, Stack s) {
    return w + size_t(id) * s.rows * (s.k / B::WEIGHTS);
}

METAL_FUNC float not_a_number() { return as_float(0x7fc00000); }

// ROWS of y (rows,) from `first` on: what weights that are not there give.
template <int ROWS, typename T>
METAL_FUNC void no_rows(device T* y, int rows, int first, uint lane) {
    int row = first + lane;
    if (int(lane) < ROWS && row < rows) y[row] = T(not_a_number());
}
