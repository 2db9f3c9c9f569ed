// y = x w^T for up to 8 rows of x, as a token or a few cost it: every byte of w from memory, once.
//
// Memory: a simdgroup takes ROWS rows of w, and its 32 lanes neighbouring slices, 16 bytes each, so that an
// access is one stretch of a row. Loads of all rows stand before their use: 2 KiB in flight for 4 rows.
// Cache: x comes from there, 4 bytes a weight against 0.5 of w itself; with ROWS rows a lane loads it once.
// Arithmetic: codes become numbers by masks alone (runs.metal), at one multiply-add a weight and row of x;
// scales meet a sum of 16 products, biases the sum of 16 activations, which all rows share.
// Registers: 8 for the codes of a row, 16 for activations, one a sum; runs follow one another, so that
// 4 rows with 8 rows of x stay within the 128 at which an M1 core still holds a dozen simdgroups.
// Norm: a simdgroup sees all of x, so it sums the squares beside the products, and scales these at the end.
#pragma once

#include "runs.metal"

constant constexpr int SIMDGROUPS = 2; // of a threadgroup; each for itself

template <typename B, int ROWS>
struct Rows {
    const device B* at[ROWS];
};

// Rows [first, first + ROWS) of w (rows, k); past the end the last one again.
template <int ROWS, typename B>
METAL_FUNC Rows<B, ROWS> rows_of(const device B* w, int first, int rows, int k) {
    Rows<B, ROWS> out;
    UNROLL for (int r = 0; r < ROWS; r++) out.at[r] = w + size_t(min(first + r, rows - 1)) * (k / B::WEIGHTS);
    return out;
}

// In the place of x: its RMS norm with weight (k,).
template <typename X, typename W>
struct Normed {
    X x;
    W weight;
    float eps;
};

template <typename X, typename W>
METAL_FUNC Normed<X, W> normed(X x, W weight, float eps) {
    return Normed<X, W>{x, weight, eps};
}

// squares: of x, if it is Normed
template <int ROWS, int BATCH>
struct Sums {
    float v[BATCH][ROWS];
    float squares[BATCH];
};

// 16 numbers of the row of x that starts at `row`; of a Normed one before it is scaled.
template <typename X>
METAL_FUNC Run input_run(X x, int row, int at, thread float&) {
    return load_run(x + row + at);
}

template <typename X, typename W>
METAL_FUNC Run input_run(Normed<X, W> x, int row, int at, thread float& squares) {
    Run values = load_run(x.x + row + at), weights = load_run(x.weight + at);
    UNROLL for (int j = 0; j < 4; j++) {
        UNROLL for (int i = 0; i < 4; i++) squares = fma(values.v[j][i], values.v[j][i], squares);
        values.v[j] *= weights.v[j];
    }
    return values;
}

// Up to four of them.
template <typename X>
METAL_FUNC float4 input_4(X x, int row, int at, int count, thread float&) {
    return load_up_to_4(x + row + at, count);
}

template <typename X, typename W>
METAL_FUNC float4 input_4(Normed<X, W> x, int row, int at, int count, thread float& squares) {
    float4 values = load_up_to_4(x.x + row + at, count);
    squares += dot(values, values);
    return values * load_up_to_4(x.weight + at, count);
}

// A lane's part of the products of rows of w with x (BATCH, k), in units of product_unit.
template <int BATCH, typename B, int ROWS, typename X>
METAL_FUNC Sums<ROWS, BATCH> run_products(Rows<B, ROWS> row, X x, int k, uint lane) {
    constexpr int SLICES = B::WEIGHTS / 32;
    int blocks = k / B::WEIGHTS, i = first_run<B>(lane % SLICES);
    Sums<ROWS, BATCH> sums = {};
    for (int b = lane / SLICES; b < blocks; b += 32 / SLICES) {
        Slice slice[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++) slice[r] = load_slice(row.at[r][b], i);
        UNROLL for (int h = 0; h < 2; h++) {
            Codes codes[ROWS];
            uint bits = mask(row.at[0][b], i | (h * B::APART));
            UNROLL for (int r = 0; r < ROWS; r++) codes[r] = split(slice[r].words[h], bits);
            UNROLL for (int n = 0; n < BATCH; n++) {
                Run values = input_run(x, n * k, b * B::WEIGHTS + 16 * (i + h * B::APART), sums.squares[n]);
                float sum = run_sum(values) * CODE_UNIT;
                UNROLL for (int r = 0; r < ROWS; r++) {
                    sums.v[n][r] = fma(slice[r].affine[2 * h], run_dot(codes[r], values), sums.v[n][r]);
                    sums.v[n][r] = fma(slice[r].affine[2 * h + 1], sum, sums.v[n][r]);
                }
            }
        }
    }
    return sums;
}

// The same for weights that are numbers, of which a row has any count.
template <int BATCH, typename B, int ROWS, typename X>
METAL_FUNC Sums<ROWS, BATCH> number_products(Rows<B, ROWS> row, X x, int k, uint lane) {
    Sums<ROWS, BATCH> sums = {};
    for (int i = 4 * lane; i < k; i += 128) {
        int count = min(k - i, 4);
        float4 weights[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++) weights[r] = load_up_to_4(&row.at[r][i].value, count);
        UNROLL for (int n = 0; n < BATCH; n++) {
            float4 values = input_4(x, n * k, i, count, sums.squares[n]);
            UNROLL for (int r = 0; r < ROWS; r++) sums.v[n][r] += dot(weights[r], values);
        }
    }
    return sums;
}

template <int BATCH, typename B, int ROWS, typename X>
METAL_FUNC Sums<ROWS, BATCH> products(Rows<B, ROWS> row, X x, int k, uint lane) {
    if constexpr (B::WEIGHTS == 1)
        return number_products<BATCH>(row, x, k, lane);
    else
        return run_products<BATCH>(row, x, k, lane);
}

template <typename B>
METAL_FUNC float product_unit() {
    return B::WEIGHTS == 1 ? 1 : CODE_UNIT;
}

// In lane n * ROWS + r: the sum of v[n][r] over all lanes.
template <int ROWS, int BATCH>
METAL_FUNC float whole_sum(Sums<ROWS, BATCH> sums, uint lane) {
    float mine = 0;
    UNROLL for (int n = 0; n < BATCH; n++) {
        UNROLL for (int r = 0; r < ROWS; r++) {
            float sum = simd_sum(sums.v[n][r]);
            if (lane == uint(n * ROWS + r)) mine = sum;
        }
    }
    return mine;
}

// What row n of x is still to be multiplied by, in all lanes.
template <typename X, int ROWS, int BATCH>
METAL_FUNC float input_scale(X, Sums<ROWS, BATCH>, int, int) {
    return 1;
}

template <typename X, typename W, int ROWS, int BATCH>
METAL_FUNC float input_scale(Normed<X, W> x, Sums<ROWS, BATCH> sums, int n, int k) {
    return precise::rsqrt(simd_sum(sums.squares[n]) / k + x.eps);
}

// In lane n * ROWS + r: the product of row r of w and row n of x.
template <typename B, int ROWS, int BATCH, typename X>
METAL_FUNC float whole_product(Sums<ROWS, BATCH> sums, X x, int k, uint lane) {
    float scale = 1;
    UNROLL for (int n = 0; n < BATCH; n++) {
        float found = input_scale(x, sums, n, k);
        if (lane / ROWS == uint(n)) scale = found;
    }
    return whole_sum(sums, lane) * scale / product_unit<B>();
}

// One simdgroup: ROWS rows of w (rows, k) from `first` on, times x (BATCH, k), which may be Normed -> y (BATCH, rows).
// bias: (rows,), add: (BATCH, rows); read if BIAS and ADD say so.
template <int ROWS, int BATCH, bool BIAS, bool ADD, typename B, typename X, typename P, typename Q, typename T>
METAL_FUNC void matvec(const device B* w, X x, P bias, Q add, device T* y, int rows, int k, int first, uint lane) {
    if (first >= rows) return;
    float sum = whole_product<B>(products<BATCH>(rows_of<ROWS>(w, first, rows, k), x, k, lane), x, k, lane);
    int n = lane / ROWS, row = first + lane % ROWS;
    if (n >= BATCH || row >= rows) return;
    if (BIAS) sum += float(bias[row]);
    if (ADD) sum += float(add[n * rows + row]);
    y[n * rows + row] = T(sum);
}
