// Rows of activations side by side: a vector holds a word of each of some rows, so that a word of codes, repeated for
// each row, is multiplied with all of them at once. Where vectors are long, a row takes several lanes: for words of
// INTERLEAVED runs of 32 values, which then share the scaling of their sums, and in small panels for WIDE neighbouring
// words of a run.
#pragma once

#include "exact.h"
#include "registers.h"

constexpr int SHARED = RUN;                  // values that share a scale
constexpr int RUNS = CHUNK / SHARED;         // of a chunk
constexpr int QUADS = SHARED / 4;            // fours of a run
constexpr int HALVES = exact::BYTES ? 2 : 1; // lanes that a word takes
constexpr int KINDS = 3 - HALVES;            // vectors that four activations take
constexpr int INTERLEAVED = LANES == 16 ? 4 : 1;
constexpr int SETS = RUNS / INTERLEAVED;
constexpr int MOST_ROWS = LANES / HALVES / INTERLEAVED; // of a panel
constexpr int MOST_WIDE = INTERLEAVED == 1 && MOST_ROWS > 2 ? 2 : 1;

// A chunk of a row of activations, as words for each four; see exact.h. Numbers of groups lie as in registers; in
// chunks for panels, as in the row.
struct Whole {
    alignas(64) int first[CHUNK / 4], second[CHUNK / 4];
    float scale[GROUPS], run_scale[RUNS]; // of each 16 values, and of each run of 32
    float sum[GROUPS], run_sum[RUNS];     // scale times the sum of the values

    // Of each so many values.
    template <int EACH>
    const float* scales() const {
        return EACH == GROUP ? scale : run_scale;
    }
    template <int EACH>
    const float* sums() const {
        return EACH == GROUP ? sum : run_sum;
    }
};

// A chunk of the rows of a panel. Lanes: row, then high and low bytes, then words of runs.
template <int WIDE>
struct Panel {
    static constexpr int ROWS = MOST_ROWS / WIDE, EACH = INTERLEAVED * WIDE; // lanes of a half of a row

    Ints word[SETS][QUADS / WIDE][KINDS];
    Floats scale[SETS];   // of each row
    Floats sum[2 * SETS]; // scale times the sum of 16 values, the first and the second ones of a run, in one lane

    // Take over chunks of `count` rows.
    void fill(const Whole* rows, int count) {
        std::memset(this, 0, sizeof *this);
        if constexpr (ROWS == LANES) return turn(rows, count);
        for (int i = 0; i < count; i++) fill_row(rows[i], i * HALVES * EACH);
    }

private:
    // Rows that fill the lanes become columns.
    void turn(const Whole* rows, int count) {
        turn(rows, count, CHUNK / 4, [](const Whole& row) { return row.first; }, &word[0][0][0], KINDS);
        turn(rows, count, CHUNK / 4, [](const Whole& row) { return row.second; }, &word[0][0][KINDS - 1], KINDS);
        turn(rows, count, GROUPS, [](const Whole& row) { return row.sum; }, sum, 1);
        for (int i = 0; i < count; i++)
            for (int run = 0; run < RUNS; run++) scale[run][i] = rows[i].run_scale[run];
    }

    // Number j of each row goes to out[j * step].
    template <typename Numbers, typename V>
    static void turn(const Whole* rows, int count, int numbers, Numbers of, V* out, int step) {
        for (int j = 0; j < numbers; j += LANES) {
            Floats block[LANES] = {};
            for (int i = 0; i < count; i++) std::memcpy(&block[i], of(rows[i]) + j, sizeof block[i]);
            registers::transpose(block);
            for (int i = 0; i < LANES; i++) out[(j + i) * step] = (V)block[i];
        }
    }

    void fill_row(const Whole& row, int lane) {
        fill_words(row.first, 0, lane);
        fill_words(row.second, KINDS - 1, lane + (HALVES - 1) * EACH);
        for (int run = 0; run < RUNS; run++) {
            int set = run / INTERLEAVED, at = lane + run % INTERLEAVED;
            for (int w = 0; w < WIDE; w++) {
                scale[set][at + w] = row.run_scale[run] * (exact::BYTES ? 128 : 1);
                if (exact::BYTES) scale[set][at + EACH + w] = row.run_scale[run];
            }
            for (int h = 0; h < 2; h++) sum[2 * set + h][at] = row.sum[2 * run + h];
        }
    }

    void fill_words(const int* words, int kind, int lane) {
        Ints all[CHUNK / CODES];
        std::memcpy(all, words, sizeof all);
        for (int j = 0; INTERLEAVED > 1 && j < CHUNK / CODES; j += 2) exact::interleave(all[j], all[j + 1]);
        Ints* to = &word[0][0][kind];
        for (int i = 0; i < CHUNK / 4 / EACH; i++)
            std::memcpy((int*)(to + i * KINDS) + lane, (const int*)all + i * EACH, 4 * EACH);
    }
};

// The smallest panel that holds n rows, or the largest one.
constexpr int wide_for(int n) { return MOST_WIDE > 1 && n <= MOST_ROWS / MOST_WIDE ? MOST_WIDE : 1; }
