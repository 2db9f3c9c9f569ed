// act(x gate^T) * (x up^T) for up to 8 rows of x: as matvec, with rows of both matrices in one pass over x. Neither
// product is written to memory.
#pragma once

#include "activation.metal"
#include "staged.metal"

// Selects the sums of rows [first, first + ROWS / 2).
template <int ROWS, int BATCH>
METAL_FUNC PartialSums<ROWS / 2, BATCH> select_sums(PartialSums<ROWS, BATCH> sums, int first) {
    PartialSums<ROWS / 2, BATCH> out;
    UNROLL for (int n = 0; n < BATCH; n++) {
        out.squares[n] = sums.squares[n];
        UNROLL for (int r = 0; r < ROWS / 2; r++) out.v[n][r] = sums.v[n][first + r];
    }
    return out;
}

// The products of gate and up with x, summed over all lanes; weights of one type share loads of x.
template <int BATCH, typename G, typename U, int ROWS, typename X>
METAL_FUNC float2 multiply_both(RowPointers<G, ROWS> gates, RowPointers<U, ROWS> ups, X x, int k, uint lane) {
    return float2(reduce_products<G>(multiply_rows<BATCH>(gates, x, k, lane), x, k, lane),
                  reduce_products<U>(multiply_rows<BATCH>(ups, x, k, lane), x, k, lane));
}
template <int BATCH, typename B, int ROWS, typename X>
METAL_FUNC float2 multiply_both(RowPointers<B, ROWS> gates, RowPointers<B, ROWS> ups, X x, int k, uint lane) {
    RowPointers<B, 2 * ROWS> both;
    UNROLL for (int r = 0; r < ROWS; r++) {
        both.row[r] = gates.row[r];
        both.row[ROWS + r] = ups.row[r];
    }
    PartialSums<2 * ROWS, BATCH> sums = multiply_rows<BATCH>(both, x, k, lane);
    return float2(reduce_products<B>(select_sums(sums, 0), x, k, lane),
                  reduce_products<B>(select_sums(sums, ROWS), x, k, lane));
}

// One simdgroup: ROWS rows of each of gate and up (rows, k) from `first` on, x (BATCH, k) or an
// RmsNormInput -> y (BATCH, rows).
template <int ROWS, int BATCH, int ACT, typename G, typename U, typename X, typename T>
METAL_FUNC void gate_up(const device G* gate, const device U* up, X x, device T* y, int rows, int k, int first,
                        uint lane) {
    if (first >= rows && group_simdgroups(x) == SIMDGROUPS) return;
    RowPointers<G, ROWS> gates = select_rows<ROWS>(gate, first, rows, k);
    RowPointers<U, ROWS> ups = select_rows<ROWS>(up, first, rows, k);
    float2 products = multiply_both<BATCH>(gates, ups, x, k, lane);
    int n = lane / ROWS, row = first + lane % ROWS;
    if (n >= BATCH || row >= rows) return;
    y[n * rows + row] = T(activate<ACT>(products.x) * products.y);
}
