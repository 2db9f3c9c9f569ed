// y = x w^T for many rows of x: tiles of 64 rows of w and COLUMNS rows of x, 128 threads.
//
// A step processes one slice of each row: the two runs of 16 that share bytes, so that each byte is loaded once. The
// order of the weights does not matter to a sum. Each thread dequantizes one run to halves and stores it as vectors.
// tiles.metal says how tiles are stored. A 64x64 tile needs 8 KiB of threadgroup memory, so that an M1 core holds four
// threadgroups, and dequantizes a weight once for 64 rows of x: about 80 instructions per thread and step, against 64
// 8x8 products per simdgroup. Sums are float32; each simdgroup keeps 32 x COLUMNS / 2 of them in registers.
// The loads of a step overlap with the products of the previous one: the words stay as they are until the products are
// done, and no branch separates the two. k that is not a multiple of a step, of types that are not quantized, ends with
// a step of its own.
// Numbers beyond the range of halves are clamped to the largest half, because infinity times 0 would be NaN. They are
// clamped when tiles are stored, after the loads have completed.
#pragma once

#include "activation.metal"
#include "runs.metal"
#include "tiles.metal"

constant constexpr float MAX_CODE = 255; // codes are bytes

// Eight weights or activations.
struct Half8 {
    half4 v[2];
};

METAL_FUNC Half8 to_half8(float4 a, float4 b) { return Half8{{half4(a), half4(b)}}; }

// Clamps infinities to the largest half.
METAL_FUNC Half8 clamp_half(Half8 x) {
    UNROLL for (int j = 0; j < 2; j++) { UNROLL for (int i = 0; i < 4; i++) x.v[j][i] = clamp_half(x.v[j][i]); }
    return x;
}

// The index in a row at which run h of a step starts.
template <typename B>
METAL_FUNC enable_if_t<B::WEIGHTS == 1, int> run_start(int step, int h) {
    return DEPTH * step + 16 * h;
}
template <typename B>
METAL_FUNC enable_if_t<(B::WEIGHTS > 1), int> run_start(int step, int h) {
    constexpr int SLICES = B::WEIGHTS / DEPTH;
    return step / SLICES * B::WEIGHTS + 16 * ((first_run<B>(step % SLICES) | (h * B::RUN_STRIDE)));
}

// Loads what a thread needs of run h of a step of a row of w, and leaves the arithmetic to expand_run.
template <typename B>
METAL_FUNC enable_if_t<B::WEIGHTS == 1, Run> load_weights(const device B* row, int step, int h) {
    const device auto* p = &row[run_start<B>(step, h)].value;
    return Run{{load_floats(p), load_floats(p + 4), load_floats(p + 8), load_floats(p + 12)}};
}
template <typename B>
METAL_FUNC enable_if_t<(B::WEIGHTS > 1), decltype(load_raw(*(const device B*)nullptr, 0, 0))>
load_weights(const device B* row, int step, int h) {
    constexpr int SLICES = B::WEIGHTS / DEPTH;
    return load_raw(row[step / SLICES], first_run<B>(step % SLICES), h);
}

template <typename B>
using RawWeights = decltype(load_weights((const device B*)nullptr, 0, 0));

// The sixteen weights of run h of a step as halves. Returns whether any of them may be infinite.
template <typename B>
METAL_FUNC bool expand_run(Run run, const device B*, int, int, thread Half8* out) {
    UNROLL for (int j = 0; j < 2; j++) out[j] = to_half8(run.v[2 * j], run.v[2 * j + 1]);
    return true;
}

template <typename B, typename R>
METAL_FUNC bool expand_run(R raw, const device B* row, int step, int h, thread Half8* out) {
    constexpr int SLICES = B::WEIGHTS / DEPTH;
    int start = first_run<B>(step % SLICES), i = start | (h * B::RUN_STRIDE);
    Codes c = unpack_codes(*row, raw_codes(raw, start, h), start, h);
    float2 a = raw_affine(raw, i * 16 / B::GROUP);
    if (!has_bias(row)) a.y = 0;
    float4 scale = a.x * shift_scale(*row, i) / code_scale(row), bias = a.y;
    UNROLL for (int j = 0; j < 2; j++) {
        float4 low = float4(c.even[2 * j].x, c.odd[2 * j].x, c.even[2 * j].y, c.odd[2 * j].y);
        float4 high = float4(c.even[2 * j + 1].x, c.odd[2 * j + 1].x, c.even[2 * j + 1].y, c.odd[2 * j + 1].y);
        out[j] = to_half8(fma(scale, low, bias), fma(scale, high, bias));
    }
    return fma(abs(a.x), MAX_CODE, abs(a.y)) > float(LARGEST_HALF);
}

// Maps the columns of a tile to rows of x and y: those from `start` on of n. input_row is also called for columns past
// the count.
struct ColumnRange {
    int start, n;

    int count() const { return n - start; }
    int input_row(int c) const { return min(start + c, n - 1); }
    int output_row(int c) const { return start + c; }
};

// The tiles of a step, as 8x8 blocks of halves: block (part, j) holds 8 numbers from 8 part on of 8 rows from 8 j on.
// A thread loads half of a row of w and CHUNKS chunks of 8 numbers of x; with 16 columns, only half of the threads
// store theirs.
template <typename B, int COLUMNS, typename X>
struct Tiles {
    static constexpr constant int CHUNKS = (COLUMNS + 31) / 32;
    const device B* row;
    threadgroup half4 *weights, *activations;
    int k, thread_index;
    X x_rows[CHUNKS];
    RawWeights<B> w;
    float4 a[CHUNKS][2];

    template <typename C>
    void set_inputs(X x, C columns) {
        UNROLL for (int j = 0; j < CHUNKS; j++) x_rows[j] =
            x + size_t(columns.input_row((thread_index + 128 * j) / 4)) * k;
    }

    // The place in a row of x of chunk j of a step.
    int x_start(int step, int j) const {
        int part = (thread_index + 128 * j) % 4;
        return run_start<B>(step, part / 2) + 8 * (part % 2);
    }

    void load(int step) {
        w = load_weights(row, step, thread_index % 2);
        UNROLL for (int j = 0; j < CHUNKS; j++) {
            UNROLL for (int i = 0; i < 2; i++) a[j][i] = load_floats(x_rows[j] + x_start(step, j) + 4 * i);
        }
    }

    // As load, with zeros past the end of the rows, for types that are not quantized.
    void load_end(int step) {
        int start = run_start<B>(step, thread_index % 2);
        UNROLL for (int i = 0; i < 4; i++) w.v[i] = load_up_to_4(&row->value + start + 4 * i, k - start - 4 * i);
        UNROLL for (int j = 0; j < CHUNKS; j++) {
            UNROLL for (int i = 0; i < 2; i++) {
                int at = x_start(step, j) + 4 * i;
                a[j][i] = load_up_to_4(x_rows[j] + at, k - at);
            }
        }
    }

    void store(int step) {
        Half8 halves[2];
        bool may_overflow = expand_run(w, row, step, thread_index % 2, halves);
        if (may_overflow) { // hardly ever
            UNROLL for (int j = 0; j < 2; j++) halves[j] = clamp_half(halves[j]);
        }
        int r = thread_index / 2;
        UNROLL for (int j = 0; j < 2; j++) {
            store_half8(weights + tile_index<TILE_ROWS>(r, 2 * (thread_index % 2) + j) / 4, halves[j]);
        }
        UNROLL for (int j = 0; j < CHUNKS; j++) {
            int chunk = thread_index + 128 * j, c = chunk / 4;
            Half8 x = clamp_half(to_half8(a[j][0], a[j][1]));
            if (COLUMNS >= 32 || c < COLUMNS) store_half8(activations + tile_index<COLUMNS>(c, chunk % 4) / 4, x);
        }
    }

    static void store_half8(threadgroup half4* to, Half8 x) {
        to[0] = x.v[0];
        to[1] = x.v[1];
    }
};

// Stores the tiles of a step and adds their products, while step `next` is loaded, if NEXT.
template <bool NEXT, int COLUMNS, typename S>
METAL_FUNC void multiply_step(thread S& tiles, int step, int next, thread Accumulators<COLUMNS>& sums,
                              const threadgroup half* weights, const threadgroup half* activations, uint lane) {
    tiles.store(step);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (NEXT) tiles.load(next);
    add_products<COLUMNS>(sums, weights, activations, lane);
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// What is left after the last whole step; rows of quantized weights have no such rest.
template <typename B, int COLUMNS, typename S>
METAL_FUNC enable_if_t<B::WEIGHTS == 1> multiply_end(thread S& tiles, int step, thread Accumulators<COLUMNS>& sums,
                                                     const threadgroup half* weights,
                                                     const threadgroup half* activations, uint lane) {
    tiles.load_end(step);
    multiply_step<false, COLUMNS>(tiles, step, 0, sums, weights, activations, lane);
}
template <typename B, int COLUMNS, typename S>
METAL_FUNC enable_if_t<(B::WEIGHTS > 1)> multiply_end(thread S&, int, thread Accumulators<COLUMNS>&,
                                                      const threadgroup half*, const threadgroup half*, uint) {}

// Completes a sum: adds bias (rows,) and add (n, rows), multiplies by act(gate), gate (n, rows); each read if its flag
// is set.
template <bool BIAS, bool ADD, int ACT, typename P, typename Q, typename G>
struct Epilogue {
    P bias;
    Q add;
    G gate;

    float operator()(float sum, int row, size_t index) const {
        if (BIAS) sum += float(bias[row]);
        if (ADD) sum += float(add[index]);
        if (ACT != NO_ACTIVATION) sum *= activate<ACT>(float(gate[index]));
        return sum;
    }

    // For rows `row` to `row` + 3.
    float4 operator()(float4 sum, int row, size_t index) const {
        if (BIAS) sum += load_floats(bias + row);
        if (ADD) sum += load_floats(add + index);
        if (ACT != NO_ACTIVATION) {
            float4 x = load_floats(gate + index);
            sum *= float4(activate<ACT>(x.x), activate<ACT>(x.y), activate<ACT>(x.z), activate<ACT>(x.w));
        }
        return sum;
    }
};

template <bool BIAS, bool ADD, int ACT, typename P, typename Q, typename G>
METAL_FUNC Epilogue<BIAS, ADD, ACT, P, Q, G> make_epilogue(P bias, Q add, G gate) {
    return Epilogue<BIAS, ADD, ACT, P, Q, G>{bias, add, gate};
}

// Applies the epilogue to a sum and stores it in y. row and column count from first_row and first_column.
template <typename C, typename E, typename T>
struct TileStore {
    C columns;
    E epilogue;
    device T* y;
    int rows, first_row, first_column;

    void operator()(int row, int column, float sum) const {
        int m = first_row + row, c = first_column + column;
        if (m >= rows || c >= columns.count()) return;
        size_t index = size_t(columns.output_row(c)) * rows + m;
        y[index] = T(epilogue(sum, m, index));
    }

    // Four rows, stored as a vector unless some are past the end.
    void operator()(int row, int column, float4 sums) const {
        int m = first_row + row, c = first_column + column;
        if (m + 4 > rows) {
            UNROLL for (int e = 0; e < 4; e++) (*this)(row + e, column, sums[e]);
        } else if (c < columns.count()) {
            size_t index = size_t(columns.output_row(c)) * rows + m;
            store_floats(y + index, epilogue(sums, m, index));
        }
    }
};

// One threadgroup of 128: rows [first, first + 64) of w (rows, k) times up to COLUMNS rows of x (…, k) -> the rows of
// y (…, rows) that `columns` gives. memory: (64 + COLUMNS) * 32 halves
template <int COLUMNS, typename B, typename X, typename C, typename E, typename T>
METAL_FUNC void matmul(const device B* w, X x, C columns, E epilogue, device T* y, int rows, int k, int first,
                       threadgroup half4* memory, uint thread_index) {
    uint simdgroup = thread_index / 32, lane = thread_index % 32;
    int blocks = k / B::WEIGHTS, steps = k / DEPTH;
    const device B* row = w + size_t(min(first + int(thread_index) / 2, rows - 1)) * blocks;
    threadgroup half4* activations = memory + TILE_ROWS * DEPTH / 4;
    Tiles<B, COLUMNS, X> tiles = {row, memory, activations, k, int(thread_index)};
    tiles.set_inputs(x, columns);
    // a simdgroup computes a quarter of the tile
    TilePart part = tile_part<COLUMNS>(simdgroup);
    const threadgroup half* my_weights = (const threadgroup half*)memory + tile_index<TILE_ROWS>(part.row, 0);
    const threadgroup half* my_activations = (const threadgroup half*)activations + tile_index<COLUMNS>(part.column, 0);
    auto sums = make_sums<COLUMNS>();
    clear<COLUMNS>(sums);
    if (B::WEIGHTS > 1 || steps > 0) tiles.load(0);
    for (int step = 0; step < steps; step++) {
        int next = min(step + 1, steps - 1); // the last one again, where there is no next
        multiply_step<true, COLUMNS>(tiles, step, next, sums, my_weights, my_activations, lane);
    }
    if (steps * DEPTH < k) multiply_end<B, COLUMNS>(tiles, steps, sums, my_weights, my_activations, lane);
    TileStore<C, E, T> store = {columns, epilogue, y, rows, first + part.row, part.column};
    store_sums<COLUMNS>(sums, (threadgroup float*)memory + 256 * simdgroup, store, lane);
}
