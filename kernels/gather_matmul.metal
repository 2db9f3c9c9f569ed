// x w[id]^T for many tokens: tiles as in matmul for the pairs of each expert, which sort_pairs.metal lists. Rows of x
// are gathered through the list as they are loaded, and results are scattered to their pairs, so that neither is copied
// in sorted order.
#pragma once

#include "experts.metal"
#include "matmul.metal"

// Maps the columns of a tile to pairs [first, first + pairs) of the order: pair p reads row p / used of x and writes
// row p of y.
template <typename O>
struct ColumnList {
    O order;
    int first, pairs, used;

    int count() const { return pairs; }
    int input_row(int c) const { return order[first + min(c, pairs - 1)] / used; }
    int output_row(int c) const { return order[first + c]; }
};

// Fills rows [row, row + 64) of the listed pairs in y (pairs, rows) with NaN, for ids out of range.
template <typename O, typename T>
METAL_FUNC void fill_tile_nan(ColumnList<O> columns, device T* y, int rows, int row, uint thread_index) {
    int m = row + int(thread_index) % TILE_ROWS;
    if (m >= rows) return;
    for (int c = thread_index / TILE_ROWS; c < columns.pairs; c += 128 / TILE_ROWS)
        y[size_t(columns.output_row(c)) * rows + m] = T(quiet_nan());
}

// One threadgroup of 128: rows [row, row + 64) of w (experts, rows, k) times the pairs of a tile
// (expert, first, count): x (pairs / used, k) -> y (pairs, rows). bias (experts, rows), gate (pairs, rows): see
// Epilogue.
template <int COLUMNS, bool BIAS, int ACT, typename B, typename X, typename O, typename I, typename P, typename G,
          typename T>
METAL_FUNC void gather_matmul(const device B* w, X x, O order, I tile, P bias, G gate, device T* y, ExpertShape s,
                              int row, threadgroup half4* memory, uint thread_index) {
    int expert = tile[0];
    ColumnList<O> columns = {order, tile[1], tile[2], s.used};
    if (columns.pairs == 0) return;
    if (expert == s.experts) return fill_tile_nan(columns, y, s.rows, row, thread_index);
    P expert_bias = BIAS ? bias + size_t(expert) * s.rows : bias;
    matmul<COLUMNS>(select_expert(w, expert, s), x, columns, make_epilogue<BIAS, false, ACT>(expert_bias, x, gate), y,
                    s.rows, s.k, row, memory, thread_index);
}
