// Rows of weights, packed so that one vector holds four neighbouring codes of each of 16 rows, times
// rows of activations: 16 x 4 codes times the same half of four activations are one instruction.
// Packing costs about as much as multiplying with seven rows.
#pragma once

#include "dot.h"

#ifdef FERRUM_VNNI

// SPAN: codes that share scale and bias, 16 or 32.
template <int SPAN>
class Tile {
public:
    static constexpr int VECTORS = 2, ROWS = 16 * VECTORS, AT_ONCE = 4;

    // Take over 32 rows of k weights.
    template <typename B>
    void pack(const B* rows, int k) {
        size_t chunks = (k + CHUNK - 1) / CHUNK;
        spans_ = k / SPAN;
        code_.resize(chunks * CHUNK / 4);
        scale_.resize(chunks * CHUNK / SPAN);
        bias_.resize(scale_.size());
        for (int v = 0; v < VECTORS; v++, rows += 16 * long(k / B::WEIGHTS))
            for (size_t c = 0; c < chunks; c++) pack_chunk(rows, k, int(c), v);
    }

    // out[i * stride + r] = row r times row i of x.
    void multiply(const Activations& x, float* out, long stride) const {
        int i = 0;
        for (; i + AT_ONCE <= x.n; i += AT_ONCE) multiply_some<AT_ONCE>(x, i, out + i * stride, stride);
        for (; i + 2 <= x.n; i += 2) multiply_some<2>(x, i, out + i * stride, stride);
        if (i < x.n) multiply_some<1>(x, i, out + i * stride, stride);
    }

private:
    // A column of the tile: something of each row.
    struct Column {
        __m512 of[VECTORS];
    };

    // Chunk c of 16 rows, which go to vector v.
    template <typename B>
    void pack_chunk(const B* rows, int k, int c, int v) {
        __m512 code[4][16], scale[16], bias[16];
        for (int r = 0; r < 16; r++) {
            Registers chunk;
            avx512::unpack_chunk(rows + long(r) * (k / B::WEIGHTS), k, c, chunk);
            for (int j = 0; j < 4; j++) code[j][r] = (__m512)chunk.code[j];
            scale[r] = chunk.scale;
            bias[r] = chunk.bias;
        }
        for (int j = 0; j < 4; j++) place(code[j], 1, &code_[size_t(c) * CHUNK / 4 + 16 * j], v);
        place(scale, SPAN / GROUP, &scale_[size_t(c) * CHUNK / SPAN], v);
        place(bias, SPAN / GROUP, &bias_[size_t(c) * CHUNK / SPAN], v);
    }

    // Every `step`-th of the columns that 16 rows have.
    static void place(__m512* rows, int step, Column* out, int v) {
        avx512::transpose(rows);
        for (int i = 0; i < 16; i += step) out[i / step].of[v] = rows[i];
    }

    // N rows of x, four codes of all rows at a time: N * VECTORS * 2 sums that do not wait for each other.
    template <int N>
    void multiply_some(const Activations& x, int first, float* out, long stride) const {
        __m512 sums[N][VECTORS] = {};
        for (int s = 0; s < spans_; s++) {
            const Whole* part = x.row(first) + s * SPAN / CHUNK;
            int at = s * SPAN % CHUNK;
            __m512i high[N][VECTORS] = {}, low[N][VECTORS] = {};
#pragma GCC unroll 8
            for (int j = 0; j < SPAN; j += 4) {
                const Column& code = code_[(size_t(s) * SPAN + j) / 4];
#pragma GCC unroll 4
                for (int i = 0; i < N; i++) {
                    add_codes(high[i], code, part[i * x.chunks].high + at + j);
                    add_codes(low[i], code, part[i * x.chunks].low + at + j);
                }
            }
#pragma GCC unroll 4
            for (int i = 0; i < N; i++) add_scaled(sums[i], high[i], low[i], s, part[i * x.chunks]);
        }
        for (int i = 0; i < N; i++)
            for (int v = 0; v < VECTORS; v++) _mm512_storeu_ps(out + i * stride + 16 * v, sums[i][v]);
    }

    static void add_codes(__m512i* sum, const Column& code, const signed char* x) {
        __m512i four = _mm512_set1_epi32(int(load4((const uchar*)x)));
        for (int v = 0; v < VECTORS; v++) sum[v] = _mm512_dpbusd_epi32(sum[v], (__m512i)code.of[v], four);
    }

    // Exact sums of span s, which lies in x, as floats.
    void add_scaled(__m512* sum, const __m512i* high, const __m512i* low, int s, const Whole& x) const {
        int group = s * SPAN % CHUNK / GROUP;
        __m512 step = _mm512_set1_ps(x.scale[group]), shift = _mm512_set1_ps(x.sum[group]);
        if (SPAN > GROUP) shift = _mm512_add_ps(shift, _mm512_set1_ps(x.sum[group + 1]));
        for (int v = 0; v < VECTORS; v++) {
            __m512 exact = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high[v], 7), low[v]));
            sum[v] = _mm512_fmadd_ps(bias_[s].of[v], shift, sum[v]);
            sum[v] = _mm512_fmadd_ps(exact, _mm512_mul_ps(scale_[s].of[v], step), sum[v]);
        }
    }

    int spans_ = 0;
    std::vector<Column> code_;         // four codes of each row
    std::vector<Column> scale_, bias_; // of each span
};

#endif
