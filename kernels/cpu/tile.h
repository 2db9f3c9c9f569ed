// A tile: chunks of some rows of weights, whose codes are unpacked to memory once, times panels of activations. Words
// of codes, repeated for each row of a panel, are multiplied with all of them; several rows of weights share what was
// loaded of the panels, several panels what was repeated.
#pragma once

#include "dot.h"

// A chunk of a row of weights: words in the order of those of panels, scales and biases of so many codes each.
template <int EACH>
struct Coded {
    static constexpr int SPANS = CHUNK / EACH, IN_RUN = RUN / EACH;

    alignas(64) int word[KINDS][CHUNK / 4];
    alignas(64) float scale[SPANS], bias[SPANS];

    // Where the scale of part h of a run lies: as in the row, or the first halves of all runs before the second ones.
    static constexpr int at(int run, int h) { return INTERLEAVED > 1 ? h * RUNS + run : IN_RUN * run + h; }

    template <typename B>
    FERRUM_INLINE void unpack(const B* blocks) {
        constexpr int STEP = INTERLEAVED > 1 ? 2 : 1; // vectors
        Registers<EACH> chunk;
        registers::unpack<CHUNK / CODES>(blocks, chunk);
#pragma GCC unroll 16
        for (int j = 0; j < CHUNK / CODES; j += STEP)
#pragma GCC unroll 2
            for (int kind = 0; kind < KINDS; kind++) {
                Ints first = exact::words(chunk.code[j], kind), second = exact::words(chunk.code[j + STEP - 1], kind);
                if (STEP > 1) exact::interleave(first, second);
                store_ints(word[kind] + LANES * j, first);
                if (STEP > 1) store_ints(word[kind] + LANES * (j + 1), second);
            }
        store_affines(chunk);
    }

#ifdef FERRUM_AVX2
    // The codes of the first `count` blocks only.
    template <typename B>
    FERRUM_INLINE void unpack(const B* blocks, int count) {
        Registers<EACH> chunk;
        for (int j = 0; j < count; j++) {
            Ints code = registers::codes(blocks, j);
            for (int kind = 0; kind < KINDS; kind++) store_ints(word[kind] + LANES * j, exact::words(code, kind));
        }
        registers::scales(blocks, chunk);
        store_affines(chunk);
    }
#else
    template <typename B>
    FERRUM_INLINE void unpack(const B* blocks, int) {
        unpack(blocks);
    }
#endif

    // What lies behind the end of a row must not poison the lanes that none of its runs fills.
    void clear(int first) {
        for (int run = first; run < RUNS; run++)
            for (int h = 0; h < IN_RUN; h++) scale[at(run, h)] = bias[at(run, h)] = 0;
    }

private:
    FERRUM_INLINE void store_affines(const Registers<EACH>& chunk) {
        for (int i = 0; i < SPANS / LANES; i++) {
            store_floats(scale + LANES * i, ordered(chunk.scale[i]));
            store_floats(bias + LANES * i, ordered(chunk.bias[i]));
        }
    }

    // Numbers of groups, in the order of `at`.
    static FERRUM_INLINE Floats ordered(Floats groups) {
#if defined(FERRUM_AVX512)
        const __m512i lanes = _mm512_set_epi32(15, 13, 11, 9, 7, 5, 3, 1, 14, 12, 10, 8, 6, 4, 2, 0);
        return (Floats)_mm512_permutexvar_ps(lanes, (__m512)groups);
#elif defined(FERRUM_AVX2)
        if (EACH == RUN) return groups;
        return (Floats)_mm256_permutevar8x32_ps((__m256)groups, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#else
        return groups;
#endif
    }
};

// SPAN: codes that share scale and bias, 16 or 32.
template <int SPAN>
class Tile {
    static constexpr int SUMS = REGISTERS / 2 * sizeof(Ints) / sizeof(exact::Sum); // that registers hold
    static constexpr int TOGETHER = std::min(4, SUMS / 4);                         // panels that share codes
    static constexpr int SPANS = SHARED / SPAN;                                    // of a run
    using Codes = Coded<each(SPAN)>;

public:
    static constexpr int ROWS = 16;

    // out[i * stride + r] = row r of `count` rows of k weights, at most ROWS, times row i of x. end: of what may be
    // read, at least these rows; ahead: bytes to the rows that are read next.
    template <typename B>
    void multiply(const B* rows, int count, const B* end, long ahead, const Input& x, float* out, long stride) {
        const Activations& in = *x.integers;
        int end_place = x.place;
        for (int n = x.n; n > 0; end_place++) n -= in.rows(end_place);
        sums_.assign(size_t(end_place - x.place) * ROWS, Floats{});
        for (int c = 0; c * CHUNK < x.k; c++) {
            int runs = std::min(CHUNK, x.k - c * CHUNK) / SHARED;
            unpack(rows + c * (CHUNK / B::WEIGHTS), x.k / B::WEIGHTS, runs, count, end, ahead);
            for (int r = 0; INTERLEAVED > 1 && runs < RUNS && r < count; r++) codes_[r].clear(runs);
            Part part{in, c, (runs + INTERLEAVED - 1) / INTERLEAVED, count};
            Floats* sums = sums_.data();
            for (int p = x.place, done; p < end_place; p += done, sums += done * ROWS)
                done = in.wide(p) == 1 ? multiply_most<TOGETHER>(part, p, end_place, sums)
                                       : multiply_panels<MOST_WIDE, 1>(part, p, sums);
        }
        Floats* sums = sums_.data();
        for (int p = x.place; p < end_place; out += in.rows(p++) * stride, sums += ROWS)
            finish(sums, count, in.rows(p), LANES / (MOST_ROWS / in.wide(p)), out, stride);
    }

private:
    // Chunks of `count` rows, `step` blocks apart, of so many runs; with what follows them where they are not whole, or
    // else zeros.
    template <typename B>
    __attribute__((noinline)) void unpack(const B* first, long step, int runs, int count, const B* end, long ahead) {
        constexpr int per_chunk = CHUNK / B::WEIGHTS;
        long readable = end - first - per_chunk; // blocks from the last chunk that is whole
        int whole = readable < 0 ? 0 : int(std::min(long(count), readable / step + 1)), r = 0;
        for (; r < whole; r++) {
            prefetch_chunk<2>(first + r * step, 0, ahead);
            unpack_row(first + r * step, runs, codes_[r]);
        }
        for (; r < count; r++) {
            B padded[per_chunk] = {};
            std::memcpy(padded, first + r * step, sizeof(B) * (end - first - r * step));
            unpack_row(padded, runs, codes_[r]);
        }
    }

    template <typename B>
    static FERRUM_INLINE void unpack_row(const B* blocks, int runs, Codes& codes) {
        if constexpr (B::WEIGHTS == SHARED)
            if (runs < RUNS) return codes.unpack(blocks, runs);
        codes.unpack(blocks);
    }

    // Chunk c of `count` rows of weights, which has so many sets, times activations.
    struct Part {
        const Activations& in;
        int c, sets, count;
    };

    // Panels from `place` on, at most N. Returns how many.
    template <int N>
    int multiply_most(const Part& part, int place, int end, Floats* sums) const {
        if constexpr (N > 1)
            if (end - place < N || part.in.wide(place + N - 1) != 1)
                return multiply_most<N / 2>(part, place, end, sums);
        return multiply_panels<1, N>(part, place, sums);
    }

    template <int WIDE, int N>
    int multiply_panels(const Part& part, int place, Floats* sums) const {
        constexpr int SIDE = std::min(8, SUMS / N); // rows of weights side by side
        const Panel<WIDE>* x[N];
        for (int i = 0; i < N; i++) x[i] = part.in.template panel<WIDE>(place + i) + part.c;
        for (int r = 0; r < part.count; r += SIDE) multiply_some<WIDE, N, SIDE>(codes_ + r, x, part.sets, sums + r);
        return N;
    }

    template <int WIDE, int N, int SIDE>
    __attribute__((noinline)) static void multiply_some(const Codes* codes, const Panel<WIDE>* const* x, int sets,
                                                        Floats* sums) {
        constexpr int STEPS = QUADS / WIDE / SPANS;
        for (int s = 0; s < sets; s++)
#pragma GCC unroll 2
            for (int h = 0; h < SPANS; h++) {
                exact::Sum exact[SIDE][N];
#pragma GCC unroll 8
                for (int q = h * STEPS; q < (h + 1) * STEPS; q++)
#pragma GCC unroll 2
                    for (int kind = 0; kind < KINDS; kind++) {
                        Ints part[N];
#pragma GCC unroll 4
                        for (int i = 0; i < N; i++) part[i] = in_register(x[i]->word[s][q][kind]);
                        add<WIDE, N, SIDE>(codes, kind, (s * QUADS + q * WIDE) * INTERLEAVED, part, exact);
                    }
#pragma GCC unroll 4
                for (int i = 0; i < N; i++) {
                    Floats shift = x[i]->sum[2 * s + h];
                    if (SPANS == 1) shift += x[i]->sum[2 * s + 1];
                    add_scaled<N, SIDE>(codes, Codes::at(s * INTERLEAVED, h), x[i]->scale[s], shift, &exact[0][i],
                                        sums + i * ROWS);
                }
            }
    }

    // Words of SIDE rows of weights, at `at`, times those of N panels.
    template <int WIDE, int N, int SIDE>
    static FERRUM_INLINE void add(const Codes* codes, int kind, int at, const Ints* x, exact::Sum (*sums)[N]) {
#pragma GCC unroll 8
        for (int r = 0; r < SIDE; r++) {
            Ints code = repeat_words<INTERLEAVED * WIDE>(codes[r].word[kind] + at);
#pragma GCC unroll 4
            for (int i = 0; i < N; i++) sums[r][i].add(code, x[i]);
        }
    }

    // Every N-th exact sum as float, times the scales at `at`.
    template <int N, int SIDE>
    static FERRUM_INLINE void add_scaled(const Codes* codes, int at, Floats step, Floats shift, const exact::Sum* exact,
                                         Floats* sums) {
#pragma GCC unroll 8
        for (int r = 0; r < SIDE; r++) {
            Floats scale = (Floats)repeat_words<INTERLEAVED>(codes[r].scale + at);
            Floats sum = sums[r] + (Floats)repeat_words<INTERLEAVED>(codes[r].bias + at) * shift;
            sums[r] = sum + to_floats(exact[r * N].value()) * (scale * step);
        }
    }

    // The sums of `count` rows of weights, added up over the lanes of each row of x, to where they belong.
    static void finish(Floats* sums, int count, int rows, int lanes, float* out, long stride) {
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

    Codes codes_[ROWS];
    std::vector<Floats> sums_; // of each panel, for each row of weights
};
