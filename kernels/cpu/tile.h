// Sixteen rows of weights, packed so that one vector holds four neighbouring codes of each row, times
// many rows of activations. Packing costs about as much as multiplying with five rows; after it a
// multiply-add of 16 x 4 codes takes one instruction for each half of the activation.
#pragma once

#include "dot.h"

#ifdef FERRUM_VNNI

class Tile {
public:
    static constexpr int VECTORS = 2, ROWS = 16 * VECTORS, AT_ONCE = 4;

    // Take over 16 rows of k weights.
    template <typename B>
    void pack(const B* rows, int k) {
        int chunks = (k + CHUNK - 1) / CHUNK;
        groups_ = k / GROUP;
        code_.resize(size_t(chunks) * CHUNK / 4 * ROWS);
        scale_.resize(size_t(chunks) * GROUPS * ROWS);
        bias_.resize(scale_.size());
        for (int r = 0; r < ROWS; r++)
            for (int c = 0; c < chunks; c++) {
                Chunk chunk;
                unpack_chunk(rows + long(r) * (k / B::WEIGHTS), k, c, chunk);
                place(chunk, r, c);
            }
    }

    // out[i * stride + r] = row r times row i of x.
    void multiply(const Activations& x, float* out, long stride) const {
        int i = 0;
        for (; i + AT_ONCE <= x.n; i += AT_ONCE) multiply_some<AT_ONCE>(x, i, out + i * stride, stride);
        for (; i < x.n; i++) multiply_some<1>(x, i, out + i * stride, stride);
    }

private:
    void place(const Chunk& chunk, int r, int c) {
        uint* code = code_.data() + size_t(c) * (CHUNK / 4) * ROWS + r;
        for (int i = 0; i < CHUNK / 4; i++) code[i * ROWS] = load4(chunk.code + 4 * i);
        size_t at = size_t(c) * GROUPS * ROWS + r;
        for (int g = 0; g < GROUPS; g++) {
            scale_[at + g * ROWS] = chunk.scale[g];
            bias_[at + g * ROWS] = chunk.bias[g];
        }
    }

    template <int N>
    void multiply_some(const Activations& x, int first, float* out, long stride) const {
        __m512 sums[N][VECTORS] = {};
        for (int g = 0; g < groups_; g++) {
            __m512i code[4][VECTORS];
            __m512 scale[VECTORS], bias[VECTORS];
            for (int v = 0; v < VECTORS; v++) {
                for (int j = 0; j < 4; j++)
                    code[j][v] = _mm512_loadu_si512(&code_[(size_t(g) * 4 + j) * ROWS + 16 * v]);
                scale[v] = _mm512_loadu_ps(&scale_[size_t(g) * ROWS + 16 * v]);
                bias[v] = _mm512_loadu_ps(&bias_[size_t(g) * ROWS + 16 * v]);
            }
#pragma GCC unroll 8
            for (int i = 0; i < N; i++) {
                size_t at = size_t(first + i) * x.width + size_t(g) * GROUP;
                __m512i sum[VECTORS] = {};
                for (int j = 0; j < 4; j++) add_codes(sum, code[j], &x.high[at + 4 * j]);
                for (int v = 0; v < VECTORS; v++) sum[v] = _mm512_slli_epi32(sum[v], 7);
                for (int j = 0; j < 4; j++) add_codes(sum, code[j], &x.low[at + 4 * j]);
                __m512 step = _mm512_set1_ps(x.scale[at / GROUP]);
                __m512 shift = _mm512_set1_ps(x.sum[at / GROUP]);
                for (int v = 0; v < VECTORS; v++) {
                    __m512 exact = _mm512_cvtepi32_ps(sum[v]);
                    sums[i][v] = _mm512_fmadd_ps(bias[v], shift, sums[i][v]);
                    sums[i][v] = _mm512_fmadd_ps(exact, _mm512_mul_ps(scale[v], step), sums[i][v]);
                }
            }
        }
        for (int i = 0; i < N; i++)
            for (int v = 0; v < VECTORS; v++) _mm512_storeu_ps(out + i * stride + 16 * v, sums[i][v]);
    }

    static void add_codes(__m512i* sum, const __m512i* code, const signed char* x) {
        __m512i four = _mm512_set1_epi32(int(load4((const uchar*)x)));
        for (int v = 0; v < VECTORS; v++) sum[v] = _mm512_dpbusd_epi32(sum[v], code[v], four);
    }

    int groups_ = 0;
    std::vector<uint> code_;          // [group of 4 codes][row]
    std::vector<float> scale_, bias_; // [group of 16 codes][row]
};

#endif
