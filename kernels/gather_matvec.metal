// x w[id]^T for few tokens: a matvec for each (token, expert) pair, in one launch.
#pragma once

#include "experts.metal"
#include "matvec.metal"

// One simdgroup: ROWS rows from `first` on of pair `pair`: w (experts, rows, k), x (tokens, k), ids (pairs,),
// bias (experts, rows), read if BIAS -> y (pairs, rows).
template <int ROWS, bool BIAS, typename B, typename X, typename I, typename P, typename T>
METAL_FUNC void gather_matvec(const device B* w, X x, I ids, P bias, device T* y, ExpertShape s, int pair, int first,
                              uint lane) {
    long id = ids[pair];
    device T* out = y + size_t(pair) * s.rows;
    X in = x + size_t(pair / s.used) * s.k;
    if (!is_expert(id, s)) return fill_rows_nan<ROWS>(out, s.rows, first, lane);
    P expert_bias = BIAS ? bias + id * s.rows : bias;
    matvec<ROWS, 1, BIAS, false>(select_expert(w, id, s), in, expert_bias, in, out, s.rows, s.k, first, lane);
}
