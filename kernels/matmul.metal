// y = x w^T for many rows of x: tiles of 64 rows of w and COLUMNS rows of x, 128 threads.
//
// A step is a slice of each row: the two runs of 16 that share bytes, so that a byte is loaded once; which weights
// meet in a step does not matter to a sum. Each thread expands one run to halves and stores it as vectors. Tiles
// lie as 8x8 blocks of 128 bytes, which simdgroup_load takes without conflicts. 64x64 needs 8 KiB of
// threadgroup memory, so that an M1 core holds four groups, and expands a weight once for 64 rows of x:
// some 80 instructions a thread and step, against 64 8x8 products a simdgroup. The loads of a step are under way during
// the products of the one before. Sums are float32; each simdgroup has 32 x COLUMNS / 2 of them in registers.
// Numbers beyond the range of halves become the largest half, for infinity times 0 would be NaN. This is done as tiles
// are stored, when the loads have arrived anyway, and eight numbers share a test.
#pragma once

#include "activation.metal"
#include "runs.metal"
#include "tiles.metal"

constant constexpr float MOST_CODE = 255; // codes are bytes

// What a thread brings to a step: eight weights or activations each.
struct Eight {
    half4 v[2];
};

METAL_FUNC Eight halves_of(float4 a, float4 b) { return Eight{{half4(a), half4(b)}}; }

METAL_FUNC Eight finite(Eight x) {
    half4 most = max(abs(x.v[0]), abs(x.v[1]));
    if (max(max(most.x, most.y), max(most.z, most.w)) > LARGEST_HALF) {
        UNROLL for (int j = 0; j < 2; j++) { UNROLL for (int i = 0; i < 4; i++) x.v[j][i] = finite(x.v[j][i]); }
    }
    return x;
}

// Where in a row run h of a step starts.
template <typename B>
METAL_FUNC int run_start(int step, int h) {
    if constexpr (B::WEIGHTS == 1)
        return DEPTH * step + 16 * h;
    else {
        constexpr int SLICES = B::WEIGHTS / DEPTH;
        return step / SLICES * B::WEIGHTS + 16 * ((first_run<B>(step % SLICES) | (h * B::APART)));
    }
}

// Eight of the numbers of a row of k, zeros past its end.
template <typename P>
METAL_FUNC Eight load_eight(P row, int start, int k) {
    return halves_of(load_up_to_4(row + start, max(k - start, 0)),
                     load_up_to_4(row + start + 4, max(k - start - 4, 0)));
}

// Run h of a step of a row of w, as halves; returns whether any of them may be infinite.
template <typename B>
METAL_FUNC bool expand_run(const device B* row, int step, int h, int k, thread Eight* out) {
    if constexpr (B::WEIGHTS == 1) {
        int start = run_start<B>(step, h);
        UNROLL for (int j = 0; j < 2; j++) out[j] = load_eight(&row->value, start + 8 * j, k);
        return true;
    } else {
        constexpr int SLICES = B::WEIGHTS / DEPTH;
        const device B& b = row[step / SLICES];
        int start = first_run<B>(step % SLICES), i = start | (h * B::APART);
        Codes c = split(words(b, start, h), mask(b, i));
        float2 a = affine(b, i * 16 / B::GROUP);
        float4 scale = a.x * place(b, i) / CODE_UNIT, bias = a.y;
        UNROLL for (int j = 0; j < 2; j++) {
            float4 low = float4(c.even[2 * j].x, c.odd[2 * j].x, c.even[2 * j].y, c.odd[2 * j].y);
            float4 high = float4(c.even[2 * j + 1].x, c.odd[2 * j + 1].x, c.even[2 * j + 1].y, c.odd[2 * j + 1].y);
            out[j] = halves_of(fma(scale, low, bias), fma(scale, high, bias));
        }
        return fma(abs(a.x), MOST_CODE, abs(a.y)) > float(LARGEST_HALF);
    }
}

// Which rows of x a tile takes, and which of y it fills: neighbours, of n from `start` on. `in` is asked for rows
// past the count too.
struct Neighbours {
    int start, n;

    int count() const { return n - start; }
    int in(int c) const { return min(start + c, n - 1); }
    int out(int c) const { return start + c; }
};

// The tiles of a step, as 8x8 blocks of halves: block (part, j) has numbers 8 part .. of rows 8 j ...
// A thread takes half of what a row of w has, and COLUMNS / 32 eighths of rows of x; of 16, half of the threads do.
template <typename B, int COLUMNS, typename X>
struct Tiles {
    static constexpr constant int EIGHTHS = (COLUMNS + 31) / 32;
    const device B* row;
    threadgroup half4 *weights, *activations;
    int k, thread_index;
    X from[EIGHTHS];
    Eight w[2], a[EIGHTHS];
    bool may_overflow; // of w

    template <typename N>
    void take(X x, N taken) {
        UNROLL for (int j = 0; j < EIGHTHS; j++) from[j] = x + size_t(taken.in((thread_index + 128 * j) / 4)) * k;
    }

    void load(int step) {
        may_overflow = expand_run(row, step, thread_index % 2, k, w);
        UNROLL for (int j = 0; j < EIGHTHS; j++) {
            int piece = thread_index + 128 * j, part = piece % 4;
            a[j] = load_eight(from[j], run_start<B>(step, part / 2) + 8 * (part % 2), k);
        }
    }

    void store() {
        int r = thread_index / 2;
        UNROLL for (int j = 0; j < 2; j++) {
            int block = (2 * (thread_index % 2) + j) * (TILE_ROWS / 8) + r / 8;
            if (may_overflow) w[j] = finite(w[j]);
            put(weights + 16 * block + 2 * (r % 8), w[j]);
        }
        UNROLL for (int j = 0; j < EIGHTHS; j++) {
            int piece = thread_index + 128 * j, c = piece / 4, block = piece % 4 * (COLUMNS / 8) + c / 8;
            if (c < COLUMNS) put(activations + 16 * block + 2 * (c % 8), finite(a[j]));
        }
    }

    static void put(threadgroup half4* to, Eight from) {
        to[0] = from.v[0];
        to[1] = from.v[1];
    }
};

// What becomes of a sum: bias (rows,), add (n, rows), gate (n, rows); the ones that the flags name are read.
template <bool BIAS, bool ADD, int ACT, typename P, typename Q, typename G>
struct Finish {
    P bias;
    Q add;
    G gate;

    float operator()(float sum, int row, size_t at) const {
        if (BIAS) sum += float(bias[row]);
        if (ADD) sum += float(add[at]);
        if constexpr (ACT != NO_ACTIVATION) sum *= activation<ACT>(float(gate[at]));
        return sum;
    }
};

template <bool BIAS, bool ADD, int ACT, typename P, typename Q, typename G>
METAL_FUNC Finish<BIAS, ADD, ACT, P, Q, G> finish(P bias, Q add, G gate) {
    return Finish<BIAS, ADD, ACT, P, Q, G>{bias, add, gate};
}

// Puts a sum of the tile where it belongs, as `finished` makes it: row `row` of w, row `first_column + column` of x.
template <typename N, typename F, typename T>
struct Put {
    N taken;
    F finished;
    device T* y;
    int rows, first_row, first_column;

    void operator()(int row, int column, float sum) const {
        int m = first_row + row, c = first_column + column;
        if (m >= rows || c >= taken.count()) return;
        size_t at = size_t(taken.out(c)) * rows + m;
        y[at] = T(finished(sum, m, at));
    }
};

// One threadgroup of 128: rows [first, first + 64) of w (rows, k), up to COLUMNS rows of x (…, k) -> the same of
// y (…, rows). memory: (64 + COLUMNS) * 32 halves.
template <int COLUMNS, typename B, typename X, typename N, typename F, typename T>
METAL_FUNC void matmul(const device B* w, X x, N taken, F finished, device T* y, int rows, int k, int first,
                       threadgroup half4* memory, uint thread_index) {
    uint simdgroup = thread_index / 32, lane = thread_index % 32;
    int blocks = k / B::WEIGHTS, steps = (k + DEPTH - 1) / DEPTH;
    const device B* row = w + size_t(min(first + int(thread_index) / 2, rows - 1)) * blocks;
    threadgroup half4* activations = memory + TILE_ROWS * DEPTH / 4;
    Tiles<B, COLUMNS, X> tiles = {row, memory, activations, k, int(thread_index)};
    tiles.take(x, taken);
    // a simdgroup has a quarter of the tile
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
    Put<N, F, T> put = {taken, finished, y, rows, first + int(simdgroup % 2) * 32, int(simdgroup / 2) * (COLUMNS / 2)};
    put_sums(sums, (threadgroup float*)memory + 256 * simdgroup, put, lane);
}
