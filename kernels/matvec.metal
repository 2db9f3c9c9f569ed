// y = x w^T for up to 8 rows of x (decode): reads every byte of w from memory once.
//
// Memory: a simdgroup computes ROWS rows of w. Its 32 lanes load adjacent slices of 16 bytes, so that an access is
// contiguous in a row. The loads of all rows are issued before their first use: 2 KiB in flight for 4 rows.
// Cache: x is read from the cache, 4 bytes per weight against 0.5 bytes of w; a lane loads it once for ROWS rows.
// Arithmetic: masks alone turn codes into numbers (runs.metal), so a weight costs one multiply-add per row of x.
// A scale is applied to a sum of 16 products, a bias to a sum of 16 activations that all rows of w share.
// Registers: 8 for the codes of a row, 16 for activations, one per sum. The two runs of a slice are processed one after
// the other, so that 4 rows with 8 rows of x stay within 128 registers, where an M1 core still holds 12 simdgroups.
// Norm: a simdgroup reads all of x, so it sums the squares along with the products, which it scales at the end.
#pragma once

#include "runs.metal"

constant constexpr int SIMDGROUPS = 2; // per threadgroup; they are independent

// Simdgroups per threadgroup; more where they share x, and have to reach the same barriers (staged.metal).
template <typename X>
METAL_FUNC int group_simdgroups(X) {
    return SIMDGROUPS;
}

template <typename B, int ROWS>
struct RowPointers {
    const device B* row[ROWS];
};

// Pointers to rows [first, first + ROWS) of w (rows, k), clamped to the last row.
template <int ROWS, typename B>
METAL_FUNC RowPointers<B, ROWS> select_rows(const device B* w, int first, int rows, int k) {
    RowPointers<B, ROWS> out;
    UNROLL for (int r = 0; r < ROWS; r++) out.row[r] = w + size_t(min(first + r, rows - 1)) * (k / B::WEIGHTS);
    return out;
}

// Input of a product with a fused RMS norm: x, the weight (k,) of the norm, and its epsilon.
template <typename X, typename W>
struct RmsNormInput {
    X x;
    W weight;
    float eps;
};

template <typename X, typename W>
METAL_FUNC RmsNormInput<X, W> rms_norm_input(X x, W weight, float eps) {
    return RmsNormInput<X, W>{x, weight, eps};
}

// A lane's partial sums. squares: sums of squares of x, for RmsNormInput
template <int ROWS, int BATCH>
struct PartialSums {
    float v[BATCH][ROWS];
    float squares[BATCH];
};

// Loads 16 numbers of the row of x that starts at `row`; for RmsNormInput, times the weight but not yet scaled.
template <typename X>
METAL_FUNC Run load_input_run(X x, int row, int start, thread float&) {
    return load_run(x + row + start);
}

template <typename X, typename W>
METAL_FUNC Run load_input_run(RmsNormInput<X, W> x, int row, int start, thread float& squares) {
    Run values = load_run(x.x + row + start), weights = load_run(x.weight + start);
    UNROLL for (int j = 0; j < 4; j++) {
        UNROLL for (int i = 0; i < 4; i++) squares = fma(values.v[j][i], values.v[j][i], squares);
        values.v[j] *= weights.v[j];
    }
    return values;
}

// As load_input_run, for up to four numbers.
template <typename X>
METAL_FUNC float4 load_input_4(X x, int row, int start, int count, thread float&) {
    return load_up_to_4(x + row + start, count);
}

template <typename X, typename W>
METAL_FUNC float4 load_input_4(RmsNormInput<X, W> x, int row, int start, int count, thread float& squares) {
    float4 values = load_up_to_4(x.x + row + start, count);
    squares += dot(values, values);
    return values * load_up_to_4(x.weight + start, count);
}

// A lane's partial sums of rows of w times x (BATCH, k), multiplied by code_scale.
template <int BATCH, typename B, int ROWS, typename X>
METAL_FUNC PartialSums<ROWS, BATCH> multiply_runs(RowPointers<B, ROWS> w, X x, int k, uint lane) {
    constexpr int SLICES = B::WEIGHTS / 32;
    int blocks = k / B::WEIGHTS, i = first_run<B>(lane % SLICES);
    PartialSums<ROWS, BATCH> sums = {};
    for (int b = lane / SLICES; b < blocks; b += 32 / SLICES) {
        Slice slice[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++) slice[r] = load_slice(w.row[r][b], i);
        UNROLL for (int h = 0; h < 2; h++) {
            Codes codes[ROWS];
            UNROLL for (int r = 0; r < ROWS; r++) codes[r] = unpack_codes(w.row[0][b], slice[r].packed[h], i, h);
            UNROLL for (int n = 0; n < BATCH; n++) {
                Run values = load_input_run(x, n * k, b * B::WEIGHTS + 16 * (i + h * B::RUN_STRIDE), sums.squares[n]);
                float activation_sum = sum_run(values) * CODE_SCALE;
                UNROLL for (int r = 0; r < ROWS; r++) {
                    sums.v[n][r] = fma(slice[r].affine[2 * h], dot_run(codes[r], values), sums.v[n][r]);
                    if (has_bias(w.row[0]))
                        sums.v[n][r] = fma(slice[r].affine[2 * h + 1], activation_sum, sums.v[n][r]);
                }
            }
        }
    }
    return sums;
}

// As multiply_runs, for weights that are not quantized; k may be any number.
template <int BATCH, typename B, int ROWS, typename X>
METAL_FUNC PartialSums<ROWS, BATCH> multiply_floats(RowPointers<B, ROWS> w, X x, int k, uint lane) {
    PartialSums<ROWS, BATCH> sums = {};
    for (int i = 4 * lane; i < k; i += 128) {
        int count = min(k - i, 4);
        float4 weights[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++) weights[r] = load_up_to_4(&w.row[r][i].value, count);
        UNROLL for (int n = 0; n < BATCH; n++) {
            float4 values = load_input_4(x, n * k, i, count, sums.squares[n]);
            UNROLL for (int r = 0; r < ROWS; r++) sums.v[n][r] += dot(weights[r], values);
        }
    }
    return sums;
}

template <int BATCH, typename B, int ROWS, typename X>
METAL_FUNC enable_if_t<B::WEIGHTS == 1, PartialSums<ROWS, BATCH>> multiply_rows(RowPointers<B, ROWS> w, X x, int k,
                                                                                uint lane) {
    return multiply_floats<BATCH>(w, x, k, lane);
}
template <int BATCH, typename B, int ROWS, typename X>
METAL_FUNC enable_if_t<(B::WEIGHTS > 1), PartialSums<ROWS, BATCH>> multiply_rows(RowPointers<B, ROWS> w, X x, int k,
                                                                                 uint lane) {
    return multiply_runs<BATCH>(w, x, k, lane);
}

constexpr int next_power_of_2(int n) { return n <= 1 ? 1 : 2 * next_power_of_2((n + 1) / 2); }

// Sums each of COUNT values over all lanes; the sum of v[i] is in lanes STRIDE * i to STRIDE * (i + 1) - 1, and in
// those COUNT * STRIDE further on. Both are powers of 2. Lanes exchange halves of their values, so that each step has
// half as many to add: 31 shuffles of 2 cycles for 32 values, 6 for 4, where a reduction of each would take an M1 14.5.
template <int COUNT, int STRIDE>
METAL_FUNC float sum_lanes(thread float* v, uint lane) {
    UNROLL for (int width = COUNT / 2; width; width /= 2) {
        bool up = lane & (STRIDE * width);
        UNROLL for (int i = 0; i < width; i++) {
            float low = v[i], high = v[i + width]; // numbers, as a choice of elements would be one of addresses
            v[i] = (up ? high : low) + simd_shuffle_xor(up ? low : high, STRIDE * width);
        }
    }
    UNROLL for (int width = 1; width < 32; width *= 2) {
        if (width < STRIDE || width >= COUNT * STRIDE) v[0] += simd_shuffle_xor(v[0], width);
    }
    return v[0];
}

// Sums v[n][r] over all lanes; the result is in lane n * ROWS + r.
template <int ROWS, int BATCH>
METAL_FUNC float reduce_sums(PartialSums<ROWS, BATCH> sums, uint lane) {
    constexpr int COUNT = next_power_of_2(ROWS * BATCH);
    float v[COUNT] = {};
    UNROLL for (int i = 0; i < ROWS * BATCH; i++) v[i] = sums.v[i / ROWS][i % ROWS];
    return sum_lanes<COUNT, 1>(v, lane);
}

// The deferred RMS-norm scale for row n of x, in all lanes.
template <typename X, typename W, int ROWS, int BATCH>
METAL_FUNC float input_scale(RmsNormInput<X, W> x, PartialSums<ROWS, BATCH> sums, int n, int k) {
    return precise::rsqrt(simd_sum(sums.squares[n]) / k + x.eps);
}

// The same for row lane / ROWS of x.
template <typename X, typename S>
METAL_FUNC float lane_scale(X, S, int, uint) {
    return 1;
}

template <typename X, typename W, int ROWS, int BATCH>
METAL_FUNC float lane_scale(RmsNormInput<X, W> x, PartialSums<ROWS, BATCH> sums, int k, uint lane) {
    constexpr int COUNT = next_power_of_2(BATCH);
    float v[COUNT] = {};
    UNROLL for (int n = 0; n < BATCH; n++) v[n] = sums.squares[n];
    return precise::rsqrt(sum_lanes<COUNT, ROWS>(v, lane) / k + x.eps);
}

// Reduces partial sums to products: that of row r of w and row n of x is in lane n * ROWS + r.
template <typename B, int ROWS, int BATCH, typename X>
METAL_FUNC float reduce_products(PartialSums<ROWS, BATCH> sums, X x, int k, uint lane) {
    return reduce_sums(sums, lane) * lane_scale(x, sums, k, lane) / code_scale((const device B*)nullptr);
}

// One simdgroup: ROWS rows of w (rows, k) from `first` on, times x (BATCH, k) or an RmsNormInput -> y (BATCH, rows).
// bias: (rows,), read if BIAS; add: (BATCH, rows), read if ADD.
template <int ROWS, int BATCH, bool BIAS, bool ADD, typename B, typename X, typename P, typename Q, typename T>
METAL_FUNC void matvec(const device B* w, X x, P bias, Q add, device T* y, int rows, int k, int first, uint lane) {
    if (first >= rows && group_simdgroups(x) == SIMDGROUPS) return;
    float sum = reduce_products<B>(multiply_rows<BATCH>(select_rows<ROWS>(w, first, rows, k), x, k, lane), x, k, lane);
    int n = lane / ROWS, row = first + lane % ROWS;
    if (n >= BATCH || row >= rows) return;
    if (BIAS) sum += float(bias[row]);
    if (ADD) sum += float(add[n * rows + row]);
    y[n * rows + row] = T(sum);
}
