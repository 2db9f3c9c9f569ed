// Several weights of different types that share x, in one launch: each has simdgroups of its own, in the order of the
// weights, and a simdgroup runs the code of one type.
#pragma once

#include "matvec.metal"

// w (rows, k), bias (rows,), read if BIAS says so -> y (BATCH, rows).
template <bool BIAS, typename B, typename P, typename T>
struct Product {
    const device B* w;
    P bias;
    device T* y;
    int rows;
};

template <bool BIAS, typename B, typename P, typename T>
METAL_FUNC Product<BIAS, B, P, T> product(const device B* w, P bias, device T* y, int rows) {
    return Product<BIAS, B, P, T>{w, bias, y, rows};
}

template <int ROWS, int BATCH, typename X>
METAL_FUNC void matvecs(X, int, int, uint) {}

// One simdgroup, counted through all products; x may be Normed.
template <int ROWS, int BATCH, typename X, bool BIAS, typename B, typename P, typename T, typename... Others>
METAL_FUNC void matvecs(X x, int k, int simdgroup, uint lane, Product<BIAS, B, P, T> p, Others... others) {
    constexpr int TILE = ROWS * SIMDGROUPS;
    int simdgroups = (p.rows + TILE - 1) / TILE * SIMDGROUPS;
    if (simdgroup < simdgroups)
        matvec<ROWS, BATCH, BIAS, false>(p.w, x, p.bias, p.bias, p.y, p.rows, k, ROWS * simdgroup, lane);
    else
        matvecs<ROWS, BATCH>(x, k, simdgroup - simdgroups, lane, others...);
}
