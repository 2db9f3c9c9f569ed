// Rows of activations side by side: a vector holds a word of each row, so that a word of codes, repeated in all
// lanes, is multiplied with all rows at once. Few rows leave room for PARTS neighbouring words of each.
#pragma once

#include "exact.h"
#include "registers.h"

// A chunk of a row of activations, as words for each four; see exact.h.
struct Whole {
    alignas(64) int first[CHUNK / 4], second[CHUNK / 4];
    float scale[GROUPS]; // of each 16 values
    float sum[GROUPS];   // scale times the sum of the 16
};

constexpr int HALVES = exact::BYTES ? 2 : 1;    // lanes that a word of a row takes
constexpr int KINDS = 3 - HALVES;               // vectors that four activations take
constexpr int MOST_ROWS = LANES / HALVES;       // of a panel
constexpr int MOST_PARTS = MOST_ROWS < 4 ? MOST_ROWS : 4;
constexpr int ALONE = 0; // instead of parts: a row that is no panel

constexpr int panel_rows(int parts) { return MOST_ROWS / parts; }

// The parts of the smallest panel that holds n rows, or of the largest.
constexpr int parts_for(int n) {
    int parts = MOST_PARTS;
    while (parts > 1 && panel_rows(parts) < n) parts /= 2;
    return parts;
}

// A chunk of the rows of a panel. Lanes: row, then high and low bytes, then part.
template <int PARTS>
struct Panel {
    static constexpr int ROWS = panel_rows(PARTS);

    Ints word[CHUNK / 4 / PARTS][KINDS];
    Floats scale[GROUPS]; // of each row, for each of its lanes
    Floats sum[GROUPS];   // in the first lane of each row, zero elsewhere

    // Take over chunks of `count` rows.
    void fill(const Whole* rows, int count) {
        if constexpr (ROWS == LANES) {
            for (int kind = 0; kind < KINDS; kind++)
                turn(rows, count, CHUNK / 4, [&](const Whole& row) { return kind ? row.second : row.first; }, &word[0][kind], KINDS);
            turn(rows, count, GROUPS, [](const Whole& row) { return row.scale; }, scale, 1);
            turn(rows, count, GROUPS, [](const Whole& row) { return row.sum; }, sum, 1);
        } else {
            std::memset(this, 0, sizeof *this);
            for (int i = 0; i < count; i++) fill_row(rows[i], i);
        }
    }

private:
    // Numbers of rows that fill the lanes: number j of each goes to out[j * step].
    template <typename Numbers, typename V>
    static void turn(const Whole* rows, int count, int numbers, Numbers of, V* out, int step) {
        for (int j = 0; j < numbers; j += LANES) {
            Floats block[LANES] = {};
            for (int i = 0; i < count; i++) std::memcpy(&block[i], of(rows[i]) + j, sizeof block[i]);
            registers::transpose(block);
            for (int i = 0; i < LANES; i++) out[(j + i) * step] = (V)block[i];
        }
    }

    void fill_row(const Whole& row, int i) {
        for (int q = 0; q < CHUNK / 4 / PARTS; q++) {
            std::memcpy(lane(word[q][0], i, 0), row.first + q * PARTS, 4 * PARTS);
            std::memcpy(lane(word[q][KINDS - 1], i, HALVES - 1), row.second + q * PARTS, 4 * PARTS);
        }
        for (int g = 0; g < GROUPS; g++) {
            for (int h = 0; h < HALVES; h++)
                std::fill_n((float*)lane(scale[g], i, h), PARTS, row.scale[g] * (h + 1 < HALVES ? 128 : 1));
            *(float*)lane(sum[g], i, 0) = row.sum[g];
        }
    }

    // Where the parts of a row lie in a vector.
    template <typename V>
    static int* lane(V& v, int row, int half) {
        return (int*)&v + (row * HALVES + half) * PARTS;
    }
};

// Call f with the parts as a constant.
template <int N>
struct Parts {
    static constexpr int value = N;
};

template <typename F>
void with_parts(int parts, F&& f) {
    if (parts == ALONE) return f(Parts<ALONE>{});
    if (parts == 1) return f(Parts<1>{});
    if constexpr (MOST_PARTS >= 2)
        if (parts == 2) return f(Parts<2>{});
    if constexpr (MOST_PARTS >= 4)
        if (parts == 4) return f(Parts<4>{});
}

// Bytes of a chunk.
inline size_t panel_size(int parts) {
    size_t size = sizeof(Whole);
    with_parts(parts, [&](auto p) {
        if constexpr (p.value != ALONE) size = sizeof(Panel<p.value>);
    });
    return size;
}
