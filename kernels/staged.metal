// Products of 2 to 8 rows of x with quantized weights: the 8 simdgroups of a threadgroup share x in threadgroup memory.
//
// Cache: with 4 rows of w, a simdgroup that reads x for itself reads a byte of float32 x per weight and row of x,
// more than the second-level cache delivers. Here a threadgroup reads x once for 32 rows of w. The loads of w are
// issued before x is staged, so that the two latencies overlap.
//
// Threadgroup memory: x lies there as halves, in the order in which lanes read it: adjacent lanes read adjacent banks.
// Floats for a step of 8 rows would take all 32 KB, and twice the bandwidth.
//
// Rounding: a run of 16 shares a power of two as scale, so no activation is too large or too small for a half; those
// below 2^-28 of the largest of a run lose bits. A product changes by at most 2^-11 |w| |x|, and with normal random
// numbers by 1.3e-5 |w| |x| for k = 4096 and 5e-5 for 256, measured. The bias of a group is applied to the sum of the
// rounded activations, so that the errors of large codes and of a large bias cancel.
//
// Norm: simdgroup n stages row n of x, so it alone applies the norm's weight and sums the squares of that row.
//
// Loop: for more than 4 rows of x, the two runs of a slice take turns in its body. It has at most 770 instructions,
// about 6 KB; an M1's instruction cache has 12 KB.
#pragma once

#include "matvec.metal"

constant constexpr int SHARING = 8; // simdgroups per threadgroup, as many as rows of x

// x: (BATCH, k) or an RmsNormInput, and threadgroup memory for the 32 slices of a step.
// values: (BATCH, 2 runs, 4, 32 lanes), factors: (BATCH, 2 runs, 32 lanes), the scale of a run and its sum times
// CODE_SCALE, squares: (BATCH,); simdgroup: in the threadgroup
template <typename X>
struct StagedInput {
    X input;
    threadgroup half4* values;
    threadgroup float2* factors;
    threadgroup float* squares;
    uint simdgroup;
};

template <typename X>
METAL_FUNC StagedInput<X> stage_input(X input, threadgroup half4* values, threadgroup float2* factors,
                                      threadgroup float* squares, uint simdgroup) {
    return StagedInput<X>{input, values, factors, squares, simdgroup};
}

template <typename X>
METAL_FUNC int group_simdgroups(StagedInput<X>) {
    return SHARING;
}

// Stores run h of a lane's slice of row n. The scale is that of the largest number, which becomes 2^14 to 2^15.
template <typename X>
METAL_FUNC void stage_run(StagedInput<X> x, Run run, int n, int h, uint lane) {
    float largest = 0;
    UNROLL for (int j = 0; j < 4; j++) { UNROLL for (int i = 0; i < 4; i++) largest = max(largest, abs(run.v[j][i])); }
    int exponent = max(as_type<int>(largest) & 0x7f800000, 15 << 23);
    float scale = as_type<float>(exponent - (14 << 23)), inverse = as_float((268u << 23) - exponent);
    Run rounded;
    UNROLL for (int j = 0; j < 4; j++) {
        half4 values = half4(run.v[j] * inverse);
        x.values[32 * (4 * (2 * n + h) + j) + lane] = values;
        rounded.v[j] = float4(values);
    }
    x.factors[32 * (2 * n + h) + lane] = float2(scale, sum_run(rounded) * scale * CODE_SCALE);
}

// Adds the products of the runs of slices with staged activations.
template <int BATCH, typename B, int ROWS, typename X>
METAL_FUNC void multiply_slices(const device B& block, int i, thread Slice* slices, StagedInput<X> x,
                                thread PartialSums<ROWS, BATCH>& sums, uint lane) {
    constexpr int AT_ONCE = BATCH <= 4 ? 2 : 1; // runs per loop body
    ROLLED for (int first = 0; first < 2; first += AT_ONCE) {
        UNROLL for (int h = first; h < first + AT_ONCE; h++) {
            Codes codes[ROWS];
            UNROLL for (int r = 0; r < ROWS; r++) codes[r] = unpack_codes(block, slices[r].packed[0], i, h);
            UNROLL for (int n = 0; n < BATCH; n++) {
                const threadgroup half4* values = x.values + 128 * (2 * n + h) + lane;
                Run run = {{float4(values[0]), float4(values[32]), float4(values[64]), float4(values[96])}};
                float2 factors = x.factors[32 * (2 * n + h) + lane];
                UNROLL for (int r = 0; r < ROWS; r++) {
                    float scale = slices[r].affine[0] * factors.x;
                    sums.v[n][r] = fma(scale, dot_run(codes[r], run), sums.v[n][r]);
                    if (has_bias(&block)) sums.v[n][r] = fma(slices[r].affine[1], factors.y, sums.v[n][r]);
                }
            }
            UNROLL for (int r = 0; r < ROWS; r++) { // an index that is not constant would move them to memory
                slices[r].packed[0] = slices[r].packed[1];
                slices[r].affine[0] = slices[r].affine[2];
                slices[r].affine[1] = slices[r].affine[3];
            }
        }
    }
}

// Gives lane 0 the sums of squares of all rows. squares: a lane's of the row that its simdgroup staged
template <int ROWS, int BATCH, typename X>
METAL_FUNC void share_squares(StagedInput<X>, float, thread PartialSums<ROWS, BATCH>&, uint) {}

template <int ROWS, int BATCH, typename X, typename W>
METAL_FUNC void share_squares(StagedInput<RmsNormInput<X, W>> x, float squares, thread PartialSums<ROWS, BATCH>& sums,
                              uint lane) {
    float sum = simd_sum(squares);
    if (int(x.simdgroup) < BATCH && lane == 0) x.squares[x.simdgroup] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    UNROLL for (int n = 0; n < BATCH; n++) sums.squares[n] = lane == 0 ? x.squares[n] : 0;
}

// As multiply_runs; all simdgroups of the threadgroup call it, with rows of any weight of this type.
template <int BATCH, typename B, int ROWS, typename X>
METAL_FUNC enable_if_t<(B::WEIGHTS > 1), PartialSums<ROWS, BATCH>> multiply_rows(RowPointers<B, ROWS> w,
                                                                                 StagedInput<X> x, int k, uint lane) {
    constexpr int SLICES = B::WEIGHTS / 32;
    int blocks = k / B::WEIGHTS, i = first_run<B>(lane % SLICES), n = x.simdgroup;
    PartialSums<ROWS, BATCH> sums = {};
    float squares = 0;
    for (int start = 0; start < blocks; start += 32 / SLICES) {
        int b = start + lane / SLICES, loaded = min(b, blocks - 1); // loads need no branch
        Slice slices[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++) slices[r] = load_slice(w.row[r][loaded], i);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (n < BATCH && b < blocks) {
            Run runs[2];
            UNROLL for (int h = 0; h < 2; h++) runs[h] =
                load_input_run(x.input, n * k, b * B::WEIGHTS + 16 * (i | (h * B::RUN_STRIDE)), squares);
            UNROLL for (int h = 0; h < 2; h++) stage_run(x, runs[h], n, h, lane);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (b < blocks) multiply_slices(w.row[0][0], i, slices, x, sums, lane);
    }
    share_squares(x, squares, sums, lane);
    return sums;
}

// Weights that are not quantized: each simdgroup reads x for itself, as their own bytes are most of what it reads.
template <int BATCH, typename B, int ROWS, typename X>
METAL_FUNC enable_if_t<B::WEIGHTS == 1, PartialSums<ROWS, BATCH>> multiply_rows(RowPointers<B, ROWS> w,
                                                                                StagedInput<X> x, int k, uint lane) {
    return multiply_floats<BATCH>(w, x.input, k, lane);
}

template <typename X, int ROWS, int BATCH>
METAL_FUNC float lane_scale(StagedInput<X> x, PartialSums<ROWS, BATCH> sums, int k, uint lane) {
    return lane_scale(x.input, sums, k, lane);
}
