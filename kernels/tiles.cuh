// Multiplies tiles on tensor cores: each warp computes 32 rows of w by COLUMNS / 2 rows of x and keeps the sums as
// fragments of mma.m16n8k16.
#pragma once

#include "prelude.metal"

constexpr int TILE_ROWS = 64;
constexpr int DEPTH = 32; // weights per row and step

// The first row of w and the first row of x, within a tile, that a warp computes with.
struct TilePart {
    int row, column;
};

template <int COLUMNS>
METAL_FUNC TilePart tile_part(uint simdgroup) {
    return TilePart{int(simdgroup % 2) * 32, int(simdgroup / 2) * (COLUMNS / 2)};
}

// Where the eight halves from 8 part on of a row start in a tile of ROWS rows: 8x8 blocks, as ldmatrix expects.
template <int ROWS>
METAL_FUNC int tile_index(int row, int part) {
    return 64 * (part * (ROWS / 8) + row / 8) + 8 * (row % 8);
}

// Fragments of 16 rows of w by 8 rows of x: a lane holds rows lane / 4 and lane / 4 + 8, columns lane % 4 * 2 and the
// next.
template <int COLUMNS>
struct Accumulators {
    float v[COLUMNS / 16][2][4];
};

template <int COLUMNS>
METAL_FUNC Accumulators<COLUMNS> make_sums() {
    return Accumulators<COLUMNS>();
}

template <int COLUMNS>
METAL_FUNC void clear(Accumulators<COLUMNS>& sums) {
    UNROLL for (int j = 0; j < COLUMNS / 16; j++) {
        UNROLL for (int i = 0; i < 2; i++) { UNROLL for (int e = 0; e < 4; e++) sums.v[j][i][e] = 0; }
    }
}

template <int COLUMNS>
METAL_FUNC void add_products(Accumulators<COLUMNS>& sums, const half* weights, const half* activations, uint lane) {
    constexpr int W_STRIDE = 64 * (TILE_ROWS / 8), X_STRIDE = 64 * (COLUMNS / 8); // halves per depth of 8
    constexpr int FRAGMENTS = COLUMNS == 16 ? 1 : 2;                              // of x per load
    const half* w_row = weights + lane / 16 * W_STRIDE + lane / 8 % 2 * 64 + lane % 8 * 8;
    const half* x_row = activations + lane / 8 % 2 * X_STRIDE + (FRAGMENTS == 2 ? lane / 16 * 64 : 0) + lane % 8 * 8;
    UNROLL for (int part = 0; part < DEPTH / 8; part += 2) {
        uint w[2][4];
        UNROLL for (int i = 0; i < 2; i++) load_matrices(w[i], w_row + part * W_STRIDE + 128 * i);
        UNROLL for (int j = 0; j < COLUMNS / 16; j += FRAGMENTS) {
            uint x[FRAGMENTS][2];
            load_matrices((uint(&)[2 * FRAGMENTS]) x, x_row + part * X_STRIDE + 64 * j);
            UNROLL for (int e = 0; e < FRAGMENTS; e++) {
                UNROLL for (int i = 0; i < 2; i++) multiply_fragments(sums.v[j + e][i], w[i], x[e]);
            }
        }
    }
}

// Calls store(row of w, row of x, sum) for each sum of a warp; eight lanes write 32 contiguous bytes of y.
template <int COLUMNS, typename S>
METAL_FUNC void store_sums(Accumulators<COLUMNS>& sums, float*, S store, uint lane) {
    UNROLL for (int j = 0; j < COLUMNS / 16; j++) {
        UNROLL for (int i = 0; i < 2; i++) {
            UNROLL for (int e = 0; e < 4; e++)
                store(16 * i + lane / 4 + e / 2 * 8, 8 * j + lane % 4 * 2 + e % 2, sums.v[j][i][e]);
        }
    }
}
