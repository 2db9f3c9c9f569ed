// act(x gate[id]^T) * (x up[id]^T) for few tokens: gate_up for each (token, expert) pair.
#pragma once

#include "experts.metal"
#include "gate_up.metal"

// One simdgroup: ROWS rows from `first` on of pair `pair`: gate, up (experts, rows, k), x (tokens, k), ids (pairs,)
// -> y (pairs, rows).
template <int ROWS, int ACT, typename G, typename U, typename X, typename I, typename T>
METAL_FUNC void gather_gate_up(const device G* gate, const device U* up, X x, I ids, device T* y, ExpertShape s,
                               int pair, int first, uint lane) {
    long id = ids[pair];
    device T* out = y + size_t(pair) * s.rows;
    X in = x + size_t(pair / s.used) * s.k;
    if (!is_expert(id, s)) return fill_rows_nan<ROWS>(out, s.rows, first, lane);
    gate_up<ROWS, 1, ACT>(select_expert(gate, id, s), select_expert(up, id, s), in, out, s.rows, s.k, first, lane);
}
