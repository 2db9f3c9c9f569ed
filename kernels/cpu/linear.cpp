// Few rows of activations: a row of weights is unpacked chunk by chunk and multiplied with each. The
// weights are read once, and that bounds the speed: with AVX-512, unpacking 256 codes takes some 100
// instructions and multiplying them 35; with AVX2 it takes 140 in all.
// More rows: see tile.h.
#include "linear.h"

#include <type_traits>

#include "tile.h"

namespace {

// Rows of activations from which on weights are packed, by measurement; and how many share one unpacking before.
constexpr int TILED = LANES == 16 ? 5 : LANES == 8 ? 3 : 2;
constexpr int AT_ONCE = 4;
// Bytes: how far ahead of use weights are fetched. The processor's own prefetching stops at every page
// of a mapped file, so far enough to hide that; but not past what the caller will read.
constexpr long AHEAD_LEAST = 4 << 10, AHEAD_MOST = 32 << 10;

template <typename B>
long ahead(long rows, int k) {
    long bytes = rows * (k / B::WEIGHTS) * long(sizeof(B));
    return std::min(AHEAD_MOST, std::max(AHEAD_LEAST, bytes / 8));
}

// ROWS rows of weights with N rows of x from `at` on, side by side: a sum alone would wait for itself. J: vectors of
// 64 codes beyond the last whole chunk.
template <typename B, int J, int ROWS, int N>
void multiply_some(const B* rows, const Input& in, int at, float* out, long stride, long ahead) {
    const Whole* x[N];
    for (int i = 0; i < N; i++) x[i] = in.whole(at + i);
    long blocks = in.k / B::WEIGHTS;
    Floats sums[ROWS][N] = {};
    Registers chunk;
    for (int c = 0; c < in.k / CHUNK; c++)
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            prefetch_chunk<3>(rows + r * blocks, c, ahead);
            registers::unpack<CHUNK / CODES>(rows + r * blocks + c * (CHUNK / B::WEIGHTS), chunk);
#pragma GCC unroll 4
            for (int i = 0; i < N; i++) add_product(chunk, x[i][c], sums[r][i]);
        }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < N; i++) {
            float rest = add_rest<J>(rows + r * blocks, in.k, x[i], sums[r][i]);
            out[(at + i) * stride + r] = total(sums[r][i]) + rest;
        }
}

template <typename B, int J, int N>
void multiply_few(const B* w, const Input& in, int at, int first, int last, float* out, long stride, const void* next) {
    constexpr int ROWS = N == 1 ? 4 : 2; // registers hold as many sums
    long blocks = in.k / B::WEIGHTS;
    const char* end = (const char*)(w + last * blocks);
    long near = ahead<B>(last - first, in.k), beyond = near + (next ? (const char*)next - end : 0);
    int row = first;
    for (; row + ROWS <= last; row += ROWS) {
        const B* rows = w + row * blocks;
        bool inside = end - (const char*)rows > near;
        multiply_some<B, J, ROWS, N>(rows, in, at, out + row, stride, inside ? near : beyond);
    }
    for (; row < last; row++) multiply_some<B, J, 1, N>(w + row * blocks, in, at, out + row, stride, AHEAD_LEAST);
}

template <typename B, int J>
void multiply_all(const B* w, const Input& in, int first, int last, float* out, long stride, const void* next) {
    for (int at = 0; at < in.n; at += AT_ONCE) {
        int count = in.n - at;
        if (count == 1) multiply_few<B, J, 1>(w, in, at, first, last, out, stride, next);
        if (count == 2) multiply_few<B, J, 2>(w, in, at, first, last, out, stride, next);
        if (count == 3) multiply_few<B, J, 3>(w, in, at, first, last, out, stride, next);
        if (count >= AT_ONCE) multiply_few<B, J, AT_ONCE>(w, in, at, first, last, out, stride, next);
    }
}

template <typename B>
void multiply_quantized(const B* w, const Input& in, int first, int last, float* out, long stride, const void* next) {
    long blocks = in.k / B::WEIGHTS;
    int row = first;
    using Fitting = Tile<B::GROUP == 16 ? 16 : 32>;
    if (in.n >= TILED)
        for (; row + Fitting::ROWS <= last; row += Fitting::ROWS) {
            thread_local Fitting tile;
            // the next tile's rows; there are none after the last but what `next` says
            long ahead = Fitting::ROWS * blocks * long(sizeof(B));
            if (next && row + 2 * Fitting::ROWS > last) ahead = (const char*)next - (const char*)(w + row * blocks);
            tile.pack(w + row * blocks, in.k, ahead);
            tile.multiply(in, out + row, stride);
        }
    if constexpr (B::WEIGHTS == SHARED && CODES > SHARED) // vectors that several blocks fill
        switch (in.k % CHUNK / CODES) {
        case 1:
            return multiply_all<B, 1>(w, in, row, last, out, stride, next);
        case 2:
            return multiply_all<B, 2>(w, in, row, last, out, stride, next);
        case 3:
            return multiply_all<B, 3>(w, in, row, last, out, stride, next);
        }
    multiply_all<B, 0>(w, in, row, last, out, stride, next);
}

// ROWS rows of weights times all rows of x.
template <int ROWS, typename B>
void multiply_floats(const B* rows, const Input& in, float* out, long stride) {
    for (int i = 0; i < in.n; i++) dots<ROWS>(rows, in.floats(i), in.k, out + i * stride);
}

template <int ROWS, typename B>
void multiply_some_floats(const B* rows, const Input& in, float* out, long stride) {
    if (std::is_same_v<B, F32> || in.n == 1) return multiply_floats<ROWS>(rows, in, out, stride);
    thread_local std::vector<F32> wide;
    wide.resize(size_t(ROWS) * in.k);
    widen(rows, ROWS * in.k, &wide[0].value);
    multiply_floats<ROWS>(wide.data(), in, out, stride);
}

template <typename B>
void multiply_all_floats(const B* w, const Input& in, int first, int last, float* out, long stride) {
    constexpr int TOGETHER = 4; // rows that share a pass over x
    int row = first;
    for (; row + TOGETHER <= last; row += TOGETHER)
        multiply_some_floats<TOGETHER>(w + long(row) * in.k, in, out + row, stride);
    for (; row < last; row++) multiply_some_floats<1>(w + long(row) * in.k, in, out + row, stride);
}

} // namespace

void multiply_rows(const Weight& w, const Input& in, int first, int last, float* out, long stride, const void* next) {
    with_block(int(w.type), [&](auto type) {
        using B = typename decltype(type)::type;
        if constexpr (is_float<B>)
            multiply_all_floats((const B*)w.data, in, first, last, out, stride);
        else
            multiply_quantized((const B*)w.data, in, first, last, out, stride, next);
    });
}

long matrix_bytes(const Weight& w, int k) {
    long size = 0;
    with_block(int(w.type), [&](auto type) {
        using B = typename decltype(type)::type;
        size = w.rows * (k / B::WEIGHTS) * long(sizeof(B));
    });
    return size;
}

int rows_per_part(long rows, int threads) {
    constexpr int UNIT = 32;
    long units = (rows + UNIT - 1) / UNIT, best = units, least = units;
    for (int share = 2; share <= 6; share++) { // parts that a thread takes
        long step = (units + threads * share - 1) / (threads * share), parts = (units + step - 1) / step;
        long most = (parts + threads - 1) / threads * step; // what the busiest thread does
        if (most <= least) best = step, least = most;
    }
    return int(best * UNIT);
}
