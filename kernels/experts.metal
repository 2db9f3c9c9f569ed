// Stacked expert matrices and (token, expert) pairs: with n experts per token, pair p belongs to token p / n. Ids are
// not checked before the launch, because that would wait for the GPU: an id out of range reads no weights and
// gives NaN.
#pragma once

#include "numbers.h"

// Shape of the weights: (experts, rows, k). used: experts per token; every: the matrices of two experts are so many
// matrices apart
struct ExpertShape {
    int experts, rows, k, used, every;
};

// How many experts there are in so many matrices, which end with that of the last one.
METAL_FUNC int count_experts(int matrices, int every) { return (matrices + every - 1) / every; }

METAL_FUNC bool is_expert(long id, ExpertShape s) { return id >= 0 && id < s.experts; }

// A pointer to the matrix of expert `id`.
template <typename B>
METAL_FUNC const device B* select_expert(const device B* w, int id, ExpertShape s) {
    return w + size_t(id) * s.every * s.rows * (s.k / B::WEIGHTS);
}

METAL_FUNC float quiet_nan() { return as_float(0x7fc00000); }

// Fills ROWS elements of y (rows,) from `first` on with NaN, for an id out of range.
template <int ROWS, typename T>
METAL_FUNC void fill_rows_nan(device T* y, int rows, int first, uint lane) {
    int row = first + lane;
    if (int(lane) < ROWS && row < rows) y[row] = T(quiet_nan());
}
