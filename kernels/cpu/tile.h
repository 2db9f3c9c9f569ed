// Rows of weights, packed so that one vector holds four neighbouring codes of each of LANES rows, times
// rows of activations: four codes of each row times the same four activations are a few instructions.
// Packing costs about as much as multiplying with seven rows with AVX-512, with three with AVX2.
#pragma once

#include "dot.h"

// SPAN: codes that share scale and bias, 16 or 32.
template <int SPAN>
class Tile {
    // sums that registers hold, half of which are for the vectors of a row
    static constexpr int SUMS = REGISTERS / 2 * sizeof(Ints) / sizeof(exact::Sum);

public:
    static constexpr int VECTORS = 2, ROWS = LANES * VECTORS, AT_ONCE = SUMS / VECTORS;

    // Take over ROWS rows of k weights. ahead: bytes to what is packed next.
    template <typename B>
    void pack(const B* rows, int k, long ahead) {
        size_t chunks = (k + CHUNK - 1) / CHUNK;
        spans_ = k / SPAN;
        code_.resize(chunks * CHUNK / 4);
        scale_.resize(chunks * CHUNK / SPAN);
        bias_.resize(scale_.size());
        for (int v = 0; v < VECTORS; v++, rows += LANES * long(k / B::WEIGHTS))
            for (size_t c = 0; c < chunks; c++) pack_chunk(rows, k, int(c), v, ahead);
    }

    // out[i * stride + r] = row r times row i of x.
    void multiply(const Input& x, float* out, long stride) const {
        int i = 0;
        for (; i + AT_ONCE <= x.n; i += AT_ONCE) multiply_some<AT_ONCE>(x, i, out + i * stride, stride);
        for (; i + 2 <= x.n; i += 2) multiply_some<2>(x, i, out + i * stride, stride);
        if (i < x.n) multiply_some<1>(x, i, out + i * stride, stride);
    }

private:
    // A column of the tile: something of each row.
    struct Column {
        Floats of[VECTORS];
    };

    // Chunk c of LANES rows, which go to vector v.
    template <typename B>
    void pack_chunk(const B* rows, int k, int c, int v, long ahead) {
        constexpr int CODE = CHUNK / CODES, SCALE = GROUPS / LANES; // vectors of a row
        Floats code[CODE][LANES], scale[SCALE][LANES], bias[SCALE][LANES];
        for (int r = 0; r < LANES; r++) {
            Registers chunk;
            prefetch_chunk<2>(rows + long(r) * (k / B::WEIGHTS), c, ahead);
            registers::unpack_chunk(rows + long(r) * (k / B::WEIGHTS), k, c, chunk);
            for (int j = 0; j < CODE; j++) code[j][r] = (Floats)chunk.code[j];
            for (int j = 0; j < SCALE; j++) {
                scale[j][r] = chunk.scale[j];
                bias[j][r] = chunk.bias[j];
            }
        }
        Column* codes = &code_[size_t(c) * CHUNK / 4];
        for (int j = 0; j < CODE; j++) place(code[j], 1, codes + LANES * j, v);
        constexpr int STEP = SPAN / GROUP;
        size_t at = size_t(c) * CHUNK / SPAN;
        for (int j = 0; j < SCALE; j++, at += LANES / STEP) {
            place(scale[j], STEP, &scale_[at], v);
            place(bias[j], STEP, &bias_[at], v);
        }
    }

    // Every `step`-th of the columns that LANES rows have.
    static void place(Floats* rows, int step, Column* out, int v) {
        registers::transpose(rows);
        for (int i = 0; i < LANES; i += step) out[i / step].of[v] = rows[i];
    }

    // N rows of x, four codes of all rows at a time: N * VECTORS sums that do not wait for each other.
    template <int N>
    void multiply_some(const Input& x, int first, float* out, long stride) const {
        const Whole* rows[N];
        for (int i = 0; i < N; i++) rows[i] = x.whole(first + i);
        Floats sums[N][VECTORS] = {};
        for (int s = 0; s < spans_; s++) {
            int chunk = s * SPAN / CHUNK, at = s * SPAN % CHUNK / 4;
            exact::Sum exact[N][VECTORS];
#pragma GCC unroll 8
            for (int j = 0; j < SPAN / 4; j++) {
                const Column& code = code_[size_t(s) * SPAN / 4 + j];
#pragma GCC unroll 4
                for (int i = 0; i < N; i++) {
                    const Whole& row = rows[i][chunk];
                    Ints high = Ints{} + row.first[at + j], low = Ints{} + row.second[at + j];
                    for (int v = 0; v < VECTORS; v++) exact[i][v].add((Ints)code.of[v], high, low);
                }
            }
#pragma GCC unroll 4
            for (int i = 0; i < N; i++) add_scaled(sums[i], exact[i], s, rows[i][chunk]);
        }
        for (int i = 0; i < N; i++)
            for (int v = 0; v < VECTORS; v++) store_floats(out + i * stride + LANES * v, sums[i][v]);
    }

    // Exact sums of span s, which lies in x, as floats.
    FERRUM_INLINE void add_scaled(Floats* sum, const exact::Sum* exact, int s, const Whole& x) const {
        int group = s * SPAN % CHUNK / GROUP;
        Floats step = repeat(x.scale[group]), shift = repeat(x.sum[group]);
        if (SPAN > GROUP) shift += x.sum[group + 1];
        for (int v = 0; v < VECTORS; v++) {
            sum[v] += bias_[s].of[v] * shift;
            sum[v] += to_floats(exact[v].value()) * (scale_[s].of[v] * step);
        }
    }

    int spans_ = 0;
    std::vector<Column> code_;         // four codes of each row
    std::vector<Column> scale_, bias_; // of each span
};
