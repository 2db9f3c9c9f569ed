// A tile: chunks of some rows of weights, whose codes are unpacked to memory once, times panels of activations. A
// word of codes, repeated in all lanes, is multiplied with a word of each row of a panel; several rows of weights
// share what was loaded of the panel, several panels what was repeated.
#pragma once

#include "dot.h"

// A chunk of a row of weights: words as those of activations, scales and biases of 16.
struct Coded {
    alignas(64) int word[KINDS][CHUNK / 4];
    float scale[GROUPS], bias[GROUPS];

    // left: blocks that may be read, be they of this row or of the next ones.
    template <typename B>
    FERRUM_INLINE void unpack(const B* blocks, long left) {
        Registers chunk;
        registers::unpack_chunk(blocks, left, chunk);
        for (int j = 0; j < CHUNK / CODES; j++)
            for (int kind = 0; kind < KINDS; kind++) {
                Ints words = exact::words(chunk.code[j], kind);
                std::memcpy(word[kind] + LANES * j, &words, sizeof words);
            }
        for (int i = 0; i < GROUPS / LANES; i++) {
            store_floats(scale + LANES * i, chunk.scale[i]);
            store_floats(bias + LANES * i, chunk.bias[i]);
        }
    }
};

// SPAN: codes that share scale and bias, 16 or 32.
template <int SPAN>
class Tile {
    static constexpr int SUMS = REGISTERS / 2 * sizeof(Ints) / sizeof(exact::Sum); // that registers hold
    static constexpr int TOGETHER = 2;                                             // panels that share codes

public:
    static constexpr int ROWS = 16;

    // out[i * stride + r] = row r of `count` rows of k weights, at most ROWS, times row i of x. end: of what may be
    // read, at least these rows; ahead: bytes to the rows that are read next.
    template <typename B>
    void multiply(const B* rows, int count, const B* end, long ahead, const Input& x, float* out, long stride) {
        const Activations& in = *x.integers;
        int panels = in.count(x.panel, x.n), chunks = (x.k + CHUNK - 1) / CHUNK;
        sums_.assign(size_t(panels) * ROWS, Floats{});
        for (int c = 0; c < chunks; c++) {
            for (int r = 0; r < count; r++) {
                const B* row = rows + long(r) * (x.k / B::WEIGHTS);
                const B* blocks = row + c * (CHUNK / B::WEIGHTS);
                prefetch_chunk<2>(row, c, ahead);
                codes_[r].unpack(blocks, end - blocks);
            }
            int spans = std::min(CHUNK, x.k - c * CHUNK) / SPAN;
            for (int p = 0; p < panels;) p += multiply_panels(in, x.panel + p, x.panel + panels, c, count, spans, &sums_[p * ROWS]);
        }
        for (int p = 0; p < panels; p++) {
            finish(in, x.panel + p, &sums_[p * ROWS], count, out, stride);
            out += in.rows(x.panel + p) * stride;
        }
    }

private:
    // Chunk c times panels from `first` on; how many.
    int multiply_panels(const Activations& in, int first, int end, int c, int count, int spans, Floats* sums) const {
        if (end - first >= TOGETHER && in.parts(first + TOGETHER - 1) == 1) {
            multiply_chunk<1, TOGETHER>(in, first, c, count, spans, sums);
            return TOGETHER;
        }
        with_parts(in.parts(first), [&](auto parts) {
            if constexpr (parts.value != ALONE) multiply_chunk<parts.value, 1>(in, first, c, count, spans, sums);
        });
        return 1;
    }

    template <int PARTS, int N>
    void multiply_chunk(const Activations& in, int first, int c, int count, int spans, Floats* sums) const {
        constexpr int SIDE = std::min(8, SUMS / N); // rows of weights side by side
        const Panel<PARTS>* x[N];
        for (int i = 0; i < N; i++) x[i] = in.chunks<PARTS>(first + i) + c;
        for (int r = 0; r < count; r += SIDE) multiply_rows<PARTS, N, SIDE>(codes_ + r, x, spans, sums + r);
    }

    template <int PARTS, int N, int SIDE>
    __attribute__((noinline)) static void multiply_rows(const Coded* codes, const Panel<PARTS>* const* x, int spans, Floats* sums) {
        constexpr int QUADS = SPAN / 4;
        for (int s = 0; s < spans; s++) {
            exact::Sum exact[SIDE][N];
#pragma GCC unroll 8
            for (int q = 0; q < QUADS / PARTS; q++)
#pragma GCC unroll 2
                for (int kind = 0; kind < KINDS; kind++) {
                    Ints part[N];
#pragma GCC unroll 4
                    for (int i = 0; i < N; i++) part[i] = in_register(x[i]->word[s * QUADS / PARTS + q][kind]);
#pragma GCC unroll 8
                    for (int r = 0; r < SIDE; r++) {
                        Ints code = repeat_words<PARTS>(codes[r].word[kind] + s * QUADS + q * PARTS);
#pragma GCC unroll 4
                        for (int i = 0; i < N; i++) exact[r][i].add(code, part[i]);
                    }
                }
            int g = s * (SPAN / GROUP);
#pragma GCC unroll 4
            for (int i = 0; i < N; i++) {
                Floats step = x[i]->scale[g], shift = x[i]->sum[g];
                if (SPAN > GROUP) shift += x[i]->sum[g + 1];
#pragma GCC unroll 8
                for (int r = 0; r < SIDE; r++) {
                    Floats& sum = sums[i * ROWS + r];
                    Floats total = sum + codes[r].bias[g] * shift;
                    sum = total + to_floats(exact[r][i].value()) * (codes[r].scale[g] * step);
                }
            }
        }
    }

    // Each row's sums, added up over its lanes, to where they belong.
    static void finish(const Activations& in, int panel, Floats* sums, int count, float* out, long stride) {
        int rows = in.rows(panel), lanes = LANES / panel_rows(in.parts(panel));
        for (int r = 0; r < count; r += LANES) {
            registers::transpose(sums + r);
            for (int i = 0; i < rows; i++) {
                Floats total = sums[r + i * lanes];
                for (int j = 1; j < lanes; j++) total += sums[r + i * lanes + j];
                if (r + LANES <= count)
                    store_floats(out + i * stride + r, total);
                else
                    for (int j = r; j < count; j++) out[i * stride + j] = total[j - r];
            }
        }
    }

    Coded codes_[ROWS];
    std::vector<Floats> sums_; // of each panel, for each row of weights
};
