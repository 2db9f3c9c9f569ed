// The weighted sum of the outputs of a token's experts, for few tokens. A simdgroup treats the rows of all experts of a
// token as one long product: each row continues in the matrix of the next expert. So no lane idles where a row of one
// matrix has fewer than the 32 slices of a step (768 weights: 24), the lanes are reduced once for all experts, and
// the order of summation is fixed.
#pragma once

#include "experts.metal"
#include "matvec.metal"

// A lane's position in the concatenated rows. CHUNK: consecutive weights that LANES lanes process together in a step,
// a block or four floats; chunks: per row of one expert
template <typename B>
struct Cursor {
    static constexpr constant int CHUNK = B::WEIGHTS == 1 ? 4 : B::WEIGHTS;
    static constexpr constant int LANES = B::WEIGHTS == 1 ? 1 : B::WEIGHTS / 32;
    int chunks, expert, chunk;

    // Moves on to the next expert where the chunk is past the end of a row.
    void carry() {
        while (chunk >= chunks) {
            chunk -= chunks;
            expert++;
        }
    }

    void advance() {
        chunk += 32 / LANES;
        carry();
    }
};

template <typename B>
METAL_FUNC Cursor<B> make_cursor(int k, uint lane) {
    Cursor<B> out = {(k + Cursor<B>::CHUNK - 1) / Cursor<B>::CHUNK, 0, int(lane) / Cursor<B>::LANES};
    out.carry();
    return out;
}

// A lane's partial sums of the weighted products of ROWS rows of w (experts, rows, k) with x (used, k).
template <int ROWS, typename B, typename X, typename I, typename W>
METAL_FUNC PartialSums<ROWS, 1> multiply_experts(const device B* w, X x, I ids, W weights, ExpertShape s, int first,
                                                 uint lane) {
    PartialSums<ROWS, 1> sums = {};
    for (Cursor<B> cursor = make_cursor<B>(s.k, lane); cursor.expert < s.used; cursor.advance()) {
        long id = ids[cursor.expert];
        if (!is_expert(id, s)) {
            UNROLL for (int r = 0; r < ROWS; r++) sums.v[0][r] = quiet_nan();
            continue;
        }
        int start = cursor.chunk * Cursor<B>::CHUNK;
        RowPointers<B, ROWS> rows = select_rows<ROWS>(select_expert(w, id, s), first, s.rows, s.k);
        UNROLL for (int r = 0; r < ROWS; r++) rows.row[r] += start / B::WEIGHTS;
        X in = x + size_t(cursor.expert) * s.k + start;
        // as if the row ended with this chunk
        PartialSums<ROWS, 1> chunk =
            multiply_rows<1>(rows, in, min(s.k - start, Cursor<B>::CHUNK), lane % Cursor<B>::LANES);
        float weight = weights[cursor.expert];
        UNROLL for (int r = 0; r < ROWS; r++) sums.v[0][r] = fma(weight, chunk.v[0][r], sums.v[0][r]);
    }
    return sums;
}

// One simdgroup: ROWS rows from `first` on for one token: w (experts, rows, k), x (used, k), ids, weights: (used,),
// add (rows,), read if ADD -> y (rows,).
template <int ROWS, bool ADD, typename B, typename X, typename I, typename W, typename Q, typename T>
METAL_FUNC void gather_down(const device B* w, X x, I ids, W weights, Q add, device T* y, ExpertShape s, int first,
                            uint lane) {
    if (first >= s.rows) return;
    float sum = reduce_sums(multiply_experts<ROWS>(w, x, ids, weights, s, first, lane), lane) /
                code_scale((const device B*)nullptr);
    int row = first + lane;
    if (int(lane) >= ROWS || row >= s.rows) return;
    y[row] = T(ADD ? sum + float(add[row]) : sum);
}
