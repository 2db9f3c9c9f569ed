// Products of one x with several weights, which may differ in type, in one launch. Each weight has its own simdgroups,
// in the order of the weights, so that a simdgroup runs the code of one type.
#pragma once

#include "staged.metal"

// w (rows, k), bias (rows,), read if BIAS -> y (BATCH, rows).
template <bool BIAS, typename B, typename P, typename T>
struct Projection {
    const device B* w;
    P bias;
    device T* y;
    int rows;
};

template <bool BIAS, typename B, typename P, typename T>
METAL_FUNC Projection<BIAS, B, P, T> make_projection(const device B* w, P bias, device T* y, int rows) {
    return Projection<BIAS, B, P, T>{w, bias, y, rows};
}

template <int ROWS, int BATCH, typename X>
METAL_FUNC void matvecs(X, int, int, uint) {}

// One simdgroup, numbered across all projections. x: (BATCH, k) or an RmsNormInput
template <int ROWS, int BATCH, typename X, bool BIAS, typename B, typename P, typename T, typename... Rest>
METAL_FUNC void matvecs(X x, int k, int simdgroup, uint lane, Projection<BIAS, B, P, T> p, Rest... rest) {
    int group = group_simdgroups(x), tile = ROWS * group;
    int simdgroups = (p.rows + tile - 1) / tile * group;
    if (simdgroup < simdgroups)
        matvec<ROWS, BATCH, BIAS, false>(p.w, x, p.bias, p.bias, p.y, p.rows, k, ROWS * simdgroup, lane);
    else
        matvecs<ROWS, BATCH>(x, k, simdgroup - simdgroups, lane, rest...);
}
