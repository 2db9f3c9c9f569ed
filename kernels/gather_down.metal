// The weighted sum of what a token's experts say, for few tokens: a simdgroup takes some rows for all experts of a
// token as one long product, whose rows go on in the next expert's matrix. So no lane idles where a row of one matrix
// has less than the 32 slices of a step (768 weights: 24), sums meet once for all experts, and their order is fixed.
#pragma once

#include "experts.metal"
#include "matvec.metal"

// A lane's place in the long rows: a slice of a block, or four numbers. PART: weights of a row that LANES share in a
// step; parts: of such a row.
template <typename B>
struct Walk {
    static constexpr constant int PART = B::WEIGHTS == 1 ? 4 : B::WEIGHTS;
    static constexpr constant int LANES = B::WEIGHTS == 1 ? 1 : B::WEIGHTS / 32;
    int parts, expert, part;

    void settle() {
        while (part >= parts) {
            part -= parts;
            expert++;
        }
    }

    void step() {
        part += 32 / LANES;
        settle();
    }
};

template <typename B>
METAL_FUNC Walk<B> walk(int k, uint lane) {
    Walk<B> out = {(k + Walk<B>::PART - 1) / Walk<B>::PART, 0, int(lane) / Walk<B>::LANES};
    out.settle();
    return out;
}

// A lane's part of the weighted products of ROWS rows of w (experts, rows, k) with x (used, k).
template <int ROWS, typename B, typename X, typename I, typename W>
METAL_FUNC Sums<ROWS, 1> weighted_products(const device B* w, X x, I ids, W weights, Stack s, int first, uint lane) {
    using At = Walk<B>;
    Sums<ROWS, 1> sums = {};
    for (At at = walk<B>(s.k, lane); at.expert < s.used; at.step()) {
        long id = ids[at.expert];
        if (!is_expert(id, s)) {
            UNROLL for (int r = 0; r < ROWS; r++) sums.v[0][r] = not_a_number();
            continue;
        }
        int start = at.part * At::PART;
        Rows<B, ROWS> row = rows_of<ROWS>(expert_matrix(w, id, s), first, s.rows, s.k);
        UNROLL for (int r = 0; r < ROWS; r++) row.at[r] += start / B::WEIGHTS;
        X in = x + size_t(at.expert) * s.k + start;
        // a row that ends with this part
        Sums<ROWS, 1> part = products<1>(row, in, min(s.k - start, At::PART), lane % At::LANES);
        float weight = weights[at.expert];
        UNROLL for (int r = 0; r < ROWS; r++) sums.v[0][r] = fma(weight, part.v[0][r], sums.v[0][r]);
    }
    return sums;
}

// One simdgroup: ROWS rows from `first` on of one token: w (experts, rows, k), x (used, k), ids, weights: (used,),
// add (rows,), read if ADD says so -> y (rows,).
template <int ROWS, bool ADD, typename B, typename X, typename I, typename W, typename Q, typename T>
METAL_FUNC void gather_down(const device B* w, X x, I ids, W weights, Q add, device T* y, Stack s, int first,
                            uint lane) {
    if (first >= s.rows) return;
    float sum = whole_sum(weighted_products<ROWS>(w, x, ids, weights, s, first, lane), lane) / product_unit<B>();
    int row = first + lane;
    if (int(lane) >= ROWS || row >= s.rows) return;
    y[row] = T(ADD ? sum + float(add[row]) : sum);
}
