// act(x gate^T) * (x up^T) for up to 8 rows of x: as matvec, with rows of both matrices in one pass over x, and
// without a trip of either product to memory.
#pragma once

#include "activation.metal"
#include "matvec.metal"

template <int ROWS, int BATCH>
METAL_FUNC Sums<ROWS / 2, BATCH> half_of(Sums<ROWS, BATCH> sums, int start) {
    Sums<ROWS / 2, BATCH> out;
    UNROLL for (int n = 0; n < BATCH; n++) {
        out.squares[n] = sums.squares[n];
        UNROLL for (int r = 0; r < ROWS / 2; r++) out.v[n][r] = sums.v[n][start + r];
    }
    return out;
}

// One simdgroup: ROWS rows of each of gate and up (rows, k) from `first` on, x (BATCH, k), which may be
// Normed -> y (BATCH, rows).
template <int ROWS, int BATCH, int ACT, typename G, typename U, typename X, typename T>
METAL_FUNC void gate_up(const device G* gate, const device U* up, X x, device T* y, int rows, int k, int first,
                        uint lane) {
    if (first >= rows) return;
    Rows<G, ROWS> gates = rows_of<ROWS>(gate, first, rows, k);
    Rows<U, ROWS> ups = rows_of<ROWS>(up, first, rows, k);
    float g, u;
    if constexpr (is_same_v<G, U>) {
        Rows<G, 2 * ROWS> both;
        UNROLL for (int r = 0; r < ROWS; r++) {
            both.at[r] = gates.at[r];
            both.at[ROWS + r] = ups.at[r];
        }
        Sums<2 * ROWS, BATCH> sums = products<BATCH>(both, x, k, lane);
        g = whole_product<G>(half_of(sums, 0), x, k, lane);
        u = whole_product<U>(half_of(sums, ROWS), x, k, lane);
    } else {
        g = whole_product<G>(products<BATCH>(gates, x, k, lane), x, k, lane);
        u = whole_product<U>(products<BATCH>(ups, x, k, lane), x, k, lane);
    }
    int n = lane / ROWS, row = first + lane % ROWS;
    if (n >= BATCH || row >= rows) return;
    y[n * rows + row] = T(activation<ACT>(g) * u);
}
