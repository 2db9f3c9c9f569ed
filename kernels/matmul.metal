// y = x w^T for many rows of x: tiles of 64 rows of w and COLUMNS rows of x, 128 threads.
//
// A step processes one slice of each row: the two runs of 16 that share bytes, so that each byte is loaded once. The
// order of the weights does not matter to a sum. Each thread dequantizes one run to halves and stores it as vectors.
// Tiles are stored as 8x8 blocks of 128 bytes, which simdgroup_load reads without bank conflicts. A 64x64 tile needs 8
// KiB of threadgroup memory, so that an M1 core holds four threadgroups, and dequantizes a weight once for 64 rows of
// x: about 80 instructions per thread and step, against 64 8x8 products per simdgroup. The loads of a step overlap with
// the products of the previous one. Sums are float32; each simdgroup keeps 32 x COLUMNS / 2 of them in registers.
// Numbers beyond the range of halves are clamped to the largest half, because infinity times 0 would be NaN. They are
// clamped when tiles are stored, after the loads have completed, with one test for eight numbers.
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
    half4 largest = max(abs(x.v[0]), abs(x.v[1]));
    if (max(max(largest.x, largest.y), max(largest.z, largest.w)) > LARGEST_HALF) {
        UNROLL for (int j = 0; j < 2; j++) { UNROLL for (int i = 0; i < 4; i++) x.v[j][i] = clamp_half(x.v[j][i]); }
    }
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

// Loads eight numbers of a row (k,) from `start` on, zeros past its end.
template <typename P>
METAL_FUNC Half8 load_half8(P row, int start, int k) {
    return to_half8(load_up_to_4(row + start, max(k - start, 0)), load_up_to_4(row + start + 4, max(k - start - 4, 0)));
}

// Dequantizes run h of a step of a row of w; returns whether any of the halves may be infinite.
template <typename B>
METAL_FUNC enable_if_t<B::WEIGHTS == 1, bool> dequantize_run(const device B* row, int step, int h, int k,
                                                             thread Half8* out) {
    int start = run_start<B>(step, h);
    UNROLL for (int j = 0; j < 2; j++) out[j] = load_half8(&row->value, start + 8 * j, k);
    return true;
}
template <typename B>
METAL_FUNC enable_if_t<(B::WEIGHTS > 1), bool> dequantize_run(const device B* row, int step, int h, int k,
                                                              thread Half8* out) {
    constexpr int SLICES = B::WEIGHTS / DEPTH;
    const device B& b = row[step / SLICES];
    int start = first_run<B>(step % SLICES), i = start | (h * B::RUN_STRIDE);
    Codes c = unpack_codes(packed_codes(b, start, h), code_mask(b, i));
    float2 a = affine(b, i * 16 / B::GROUP);
    float4 scale = a.x * shift_scale(b, i) / CODE_SCALE, bias = a.y;
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
    Half8 w[2], a[CHUNKS];
    bool may_overflow; // w may hold infinities

    template <typename C>
    void set_inputs(X x, C columns) {
        UNROLL for (int j = 0; j < CHUNKS; j++) x_rows[j] =
            x + size_t(columns.input_row((thread_index + 128 * j) / 4)) * k;
    }

    void load(int step) {
        may_overflow = dequantize_run(row, step, thread_index % 2, k, w);
        UNROLL for (int j = 0; j < CHUNKS; j++) {
            int chunk = thread_index + 128 * j, part = chunk % 4;
            a[j] = load_half8(x_rows[j], run_start<B>(step, part / 2) + 8 * (part % 2), k);
        }
    }

    void store() {
        int r = thread_index / 2;
        UNROLL for (int j = 0; j < 2; j++) {
            int block = (2 * (thread_index % 2) + j) * (TILE_ROWS / 8) + r / 8;
            if (may_overflow) w[j] = clamp_half(w[j]);
            store_half8(weights + 16 * block + 2 * (r % 8), w[j]);
        }
        UNROLL for (int j = 0; j < CHUNKS; j++) {
            int chunk = thread_index + 128 * j, c = chunk / 4, block = chunk % 4 * (COLUMNS / 8) + c / 8;
            if (c < COLUMNS) store_half8(activations + 16 * block + 2 * (c % 8), clamp_half(a[j]));
        }
    }

    static void store_half8(threadgroup half4* to, Half8 x) {
        to[0] = x.v[0];
        to[1] = x.v[1];
    }
};

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
};

// One threadgroup of 128: rows [first, first + 64) of w (rows, k) times up to COLUMNS rows of x (…, k) -> the rows of
// y (…, rows) that `columns` gives. memory: (64 + COLUMNS) * 32 halves
template <int COLUMNS, typename B, typename X, typename C, typename E, typename T>
METAL_FUNC void matmul(const device B* w, X x, C columns, E epilogue, device T* y, int rows, int k, int first,
                       threadgroup half4* memory, uint thread_index) {
    uint simdgroup = thread_index / 32, lane = thread_index % 32;
    int blocks = k / B::WEIGHTS, steps = (k + DEPTH - 1) / DEPTH;
    const device B* row = w + size_t(min(first + int(thread_index) / 2, rows - 1)) * blocks;
    threadgroup half4* activations = memory + TILE_ROWS * DEPTH / 4;
    Tiles<B, COLUMNS, X> tiles = {row, memory, activations, k, int(thread_index)};
    tiles.set_inputs(x, columns);
    // a simdgroup computes a quarter of the tile
    const threadgroup half* my_weights = (const threadgroup half*)memory + simdgroup % 2 * 4 * 64;
    const threadgroup half* my_activations = (const threadgroup half*)activations + simdgroup / 2 * (COLUMNS / 16) * 64;
    Accumulators<COLUMNS> sums;
    clear(sums);
    tiles.load(0);
    for (int step = 0; step < steps; step++) {
        tiles.store();
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (step + 1 < steps) tiles.load(step + 1);
        add_products(sums, my_weights, my_activations, lane);
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    TileStore<C, E, T> store = {
        columns, epilogue, y, rows, first + int(simdgroup % 2) * 32, int(simdgroup / 2) * (COLUMNS / 2)};
    store_sums(sums, (threadgroup float*)memory + 256 * simdgroup, store, lane);
}
