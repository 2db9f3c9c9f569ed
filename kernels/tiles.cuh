// The products of a tile on tensor cores: a warp has 32 rows of w and COLUMNS / 2 rows of x, whose sums it keeps as
// fragments of mma.m16n8k16. The 8x8 blocks of halves that tiles lie in are what ldmatrix takes.
#pragma once

#include "prelude.metal"

constexpr int TILE_ROWS = 64;
constexpr int DEPTH = 32; // weights of a row in a step

// Fragments of 16 rows of w by 8 rows of x: a lane has rows lane / 4 and that + 8, columns lane % 4 * 2 and the next.
template <int COLUMNS>
struct Accumulators {
    float v[COLUMNS / 16][2][4];
};

template <int COLUMNS>
METAL_FUNC void clear(Accumulators<COLUMNS>& sums) {
    UNROLL for (int j = 0; j < COLUMNS / 16; j++) {
        UNROLL for (int i = 0; i < 2; i++) { UNROLL for (int e = 0; e < 4; e++) sums.v[j][i][e] = 0; }
    }
}

template <int COLUMNS>
METAL_FUNC void add_products(Accumulators<COLUMNS>& sums, const half* weights, const half* activations, uint lane) {
    constexpr int WEIGHTS = 64 * (TILE_ROWS / 8), ACTIVATIONS = 64 * (COLUMNS / 8); // of a part of 8
    constexpr int EACH = COLUMNS == 16 ? 1 : 2;                                     // fragments of x at a time
    const half* w_row = weights + lane / 16 * WEIGHTS + lane / 8 % 2 * 64 + lane % 8 * 8;
    const half* x_row = activations + lane / 8 % 2 * ACTIVATIONS + (EACH == 2 ? lane / 16 * 64 : 0) + lane % 8 * 8;
    UNROLL for (int part = 0; part < DEPTH / 8; part += 2) {
        uint w[2][4];
        UNROLL for (int i = 0; i < 2; i++) load_blocks(w[i], w_row + part * WEIGHTS + 128 * i);
        UNROLL for (int j = 0; j < COLUMNS / 16; j += EACH) {
            uint x[EACH][2];
            load_blocks((uint(&)[2 * EACH]) x, x_row + part * ACTIVATIONS + 64 * j);
            UNROLL for (int e = 0; e < EACH; e++) {
                UNROLL for (int i = 0; i < 2; i++) multiply_fragments(sums.v[j + e][i], w[i], x[e]);
            }
        }
    }
}

// put(row of w, row of x, sum) for all of a warp's; eight lanes fill 32 bytes of y together.
template <int COLUMNS, typename P>
METAL_FUNC void put_sums(Accumulators<COLUMNS>& sums, float*, P put, uint lane) {
    UNROLL for (int j = 0; j < COLUMNS / 16; j++) {
        UNROLL for (int i = 0; i < 2; i++) {
            UNROLL for (int e = 0; e < 4; e++)
                put(16 * i + lane / 4 + e / 2 * 8, 8 * j + lane % 4 * 2 + e % 2, sums.v[j][i][e]);
        }
    }
}
