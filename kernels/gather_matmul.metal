// x w[id]^T for many tokens: the tiles of matmul for each expert's pairs, which sort_pairs.metal lists. Rows of x are
// found through the list as they are loaded, and results put where their pair belongs, so that neither lies in memory
// in another order.
#pragma once

#include "experts.metal"
#include "matmul.metal"

// Pairs [first, first + pairs) of the order: each takes row pair / used of x and fills row `pair` of y.
template <typename O>
struct Listed {
    O order;
    int first, pairs, used;

    int count() const { return pairs; }
    int in(int c) const { return order[first + min(c, pairs - 1)] / used; }
    int out(int c) const { return order[first + c]; }
};

// Rows [row, row + 64) of the listed pairs in y (pairs, rows): what weights that are not there give.
template <typename O, typename T>
METAL_FUNC void no_tile(Listed<O> taken, device T* y, int rows, int row, uint thread_index) {
    int m = row + int(thread_index) % TILE_ROWS;
    if (m >= rows) return;
    for (int c = thread_index / TILE_ROWS; c < taken.pairs; c += 128 / TILE_ROWS)
        y[size_t(taken.out(c)) * rows + m] = T(not_a_number());
}

// One threadgroup of 128: rows [row, row + 64) of w (experts, rows, k) with the pairs of a tile, which are
// (expert, first, count): x (pairs / used, k) -> y (pairs, rows). bias (experts, rows), gate (pairs, rows): see Finish.
template <int COLUMNS, bool BIAS, int ACT, typename B, typename X, typename O, typename I, typename P, typename G,
          typename T>
METAL_FUNC void gather_matmul(const device B* w, X x, O order, I tile, P bias, G gate, device T* y, Stack s, int row,
                              threadgroup half4* memory, uint thread_index) {
    int expert = tile[0];
    Listed<O> taken = {order, tile[1], tile[2], s.used};
    if (taken.pairs == 0) return;
    if (expert == s.experts) return no_tile(taken, y, s.rows, row, thread_index);
    P added = BIAS ? bias + size_t(expert) * s.rows : bias;
    matmul<COLUMNS>(expert_matrix(w, expert, s), x, taken, finish<BIAS, false, ACT>(added, x, gate), y, s.rows, s.k,
                    row, memory, thread_index);
}
