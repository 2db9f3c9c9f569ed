// The RMS norm of x and its product with w, for up to 8 rows of x, in one launch, as a router needs both. Each
// simdgroup reads all of x and writes its share of the norm.
#pragma once

#include "matvec.metal"

// One simdgroup of ceil(rows / ROWS): w (rows, k), x (BATCH, k) -> out (BATCH, k), y (BATCH, rows).
template <int ROWS, int BATCH, typename B, typename X, typename W>
METAL_FUNC void norm_matvec(const device B* w, RmsNormInput<X, W> x, device float* out, device float* y, int rows,
                            int k, int simdgroup, uint lane) {
    int first = ROWS * simdgroup, simdgroups = (rows + ROWS - 1) / ROWS;
    if (first >= rows) return;
    PartialSums<ROWS, BATCH> sums = multiply_rows<BATCH>(select_rows<ROWS>(w, first, rows, k), x, k, lane);
    float sum = reduce_products<B>(sums, x, k, lane);
    for (int n = 0; n < BATCH; n++) {
        float scale = input_scale(x, sums, n, k);
        for (int i = 32 * simdgroup + lane; i < k; i += 32 * simdgroups)
            out[n * k + i] = float(x.x[n * k + i]) * scale * float(x.weight[i]);
    }
    int n = lane / ROWS, row = first + lane % ROWS;
    if (n < BATCH && row < rows) y[n * rows + row] = sum;
}
