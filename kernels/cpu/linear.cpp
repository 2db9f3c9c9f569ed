// Few rows of activations: a row of weights is unpacked chunk by chunk, in registers, and multiplied with each. The
// weights are read once, and that bounds the speed: with AVX-512, unpacking 256 codes takes some 100 instructions and
// multiplying them 35; with AVX2 it takes 140 in all.
// More rows: see tile.h.
#include "linear.h"

#include <type_traits>

#include "floats.h"
#include "tile.h"

namespace {

// Bytes: how far ahead of use weights are fetched. The processor's own prefetching stops at every page
// of a mapped file, so far enough to hide that; but not past what the caller will read.
constexpr long AHEAD_LEAST = 4 << 10, AHEAD_MOST = 32 << 10;

template <typename B>
long ahead(long rows, int k) {
    long bytes = rows * (k / B::WEIGHTS) * long(sizeof(B));
    return std::min(AHEAD_MOST, std::max(AHEAD_LEAST, bytes / 8));
}

// Turns the sums over the whole chunks of a row into its product with x. end: of what may be read.
template <typename B>
using Finish = float (*)(const B* row, int k, const B* end, const Whole* x, Floats sums);

// J: vectors of 64 codes beyond the last whole chunk. Not inlined: every caller would have several copies.
template <int J, typename B>
__attribute__((noinline)) float finish(const B* row, int k, const B* end, const Whole* x, Floats sums) {
    float rest = add_rest<J>(row, k, end, x, sums);
    return total(sums) + rest;
}

template <typename B>
Finish<B> finish_of(int k) {
    if constexpr (B::WEIGHTS == SHARED && CODES > SHARED) { // several blocks fill a vector
        constexpr Finish<B> ALL[] = {finish<0, B>, finish<1, B>, finish<2, B>, finish<3, B>};
        return ALL[k % CHUNK / CODES];
    }
    return finish<0, B>;
}

// Where a thread multiplies: rows [first, last) of w with k weights each, and where their products go.
template <typename B>
struct Stretch {
    const B* w;
    const Input& in;
    int first, last;
    float* out;
    long stride;
    const void* next; // what the thread reads after these rows, or null

    const B* row(int r) const { return w + r * long(in.k / B::WEIGHTS); }
};

// ROWS rows of weights from `row` on with N rows of x from `at` on, side by side: a sum alone would wait for itself.
template <int ROWS, int N, typename B>
void multiply_some(const Stretch<B>& s, int row, int at, long ahead) {
    const Whole* x[N];
    for (int i = 0; i < N; i++) x[i] = s.in.integers->row(s.in.place + at + i);
    const B* rows = s.row(row);
    int k = s.in.k;
    long blocks = k / B::WEIGHTS;
    Floats sums[ROWS][N] = {};
    for (int c = 0; c < k / CHUNK; c++) {
        const B* w[ROWS];
        const Whole* part[N];
        for (int i = 0; i < N; i++) part[i] = x[i] + c;
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            prefetch_chunk<3>(rows + r * blocks, c, ahead);
            w[r] = rows + r * blocks + c * (CHUNK / B::WEIGHTS);
        }
        add_products<ROWS, N>(w, part, sums);
    }
    Finish<B> finish = finish_of<B>(k);
    float* out = s.out + at * s.stride + row;
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int i = 0; i < N; i++)
            out[i * s.stride + r] = B::WEIGHTS == SHARED ? finish(rows + r * blocks, k, s.row(s.last), x[i], sums[r][i])
                                                         : total(sums[r][i]);
}

// All rows of x, which are N or fewer.
template <int N, typename B>
void multiply_few(const Stretch<B>& s) {
    if constexpr (N > 1)
        if (s.in.n < N) return multiply_few<N - 1>(s);
    constexpr int ROWS = N == 1 ? 4 : 2; // registers hold as many sums
    const char* end = (const char*)s.row(s.last);
    long near = ahead<B>(s.last - s.first, s.in.k), beyond = near + (s.next ? (const char*)s.next - end : 0);
    int row = s.first;
    for (; row + ROWS <= s.last; row += ROWS) {
        bool inside = end - (const char*)s.row(row) > near;
        multiply_some<ROWS, N>(s, row, 0, inside ? near : beyond);
    }
    for (; row < s.last; row++) // seldom any: not worth compiling for each N
        for (int i = 0; i < N; i++) multiply_some<1, 1>(s, row, i, AHEAD_LEAST);
}

template <typename B>
void multiply_quantized(const Stretch<B>& s) {
    if (s.in.n <= FEW) return multiply_few<FEW>(s);
    using Fitting = Tile<B::GROUP == 16 ? 16 : 32>;
    thread_local Fitting tile;
    for (int row = s.first; row < s.last; row += Fitting::ROWS) {
        // the next tile's rows; there are none after the last but what `next` says
        bool is_last = row + Fitting::ROWS >= s.last;
        long ahead = (const char*)(s.next && is_last ? s.next : s.row(row + Fitting::ROWS)) - (const char*)s.row(row);
        int count = std::min(Fitting::ROWS, s.last - row);
        tile.multiply(s.row(row), count, s.row(s.last), ahead, s.in, s.out + row, s.stride);
    }
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
            multiply_quantized(Stretch<B>{(const B*)w.data, in, first, last, out, stride, next});
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
