// Multiplies tiles with simdgroup matrices: each simdgroup computes 32 rows of w by COLUMNS / 2 rows of x and keeps the
// sums in registers. tiles.tensor.metal replaces this file where products use tensor hardware, tiles.cuh on NVIDIA
// GPUs.
#pragma once

#include "prelude.metal"

constant constexpr int TILE_ROWS = 64;
constant constexpr int DEPTH = 32; // weights per row and step

// The first row of w and the first row of x, within a tile, that a simdgroup computes with.
struct TilePart {
    int row, column;
};

template <int COLUMNS>
METAL_FUNC TilePart tile_part(uint simdgroup) {
    return TilePart{int(simdgroup % 2) * 32, int(simdgroup / 2) * (COLUMNS / 2)};
}

// Where the eight halves from 8 part on of a row start in a tile of ROWS rows: 8x8 blocks, which simdgroup_load reads
// without bank conflicts.
template <int ROWS>
METAL_FUNC int tile_index(int row, int part) {
    return 64 * (part * (ROWS / 8) + row / 8) + 8 * (row % 8);
}

template <int COLUMNS>
struct Accumulators {
    simdgroup_float8x8 v[COLUMNS / 16][4];
};

template <int COLUMNS>
METAL_FUNC void add_products(thread Accumulators<COLUMNS>& sums, const threadgroup half* weights,
                             const threadgroup half* activations, uint) {
    UNROLL for (int part = 0; part < DEPTH / 8; part++) {
        simdgroup_half8x8 a[COLUMNS / 16], w[4];
        simdgroup_barrier(mem_flags::mem_none); // keeps the loads of a part together, and those of the next behind
        UNROLL for (int i = 0; i < 4; i++)
            simdgroup_load(w[i], weights + 64 * (part * (TILE_ROWS / 8) + i), 8, ulong2(0, 0), true);
        UNROLL for (int j = 0; j < COLUMNS / 16; j++)
            simdgroup_load(a[j], activations + 64 * (part * (COLUMNS / 8) + j), 8);
        simdgroup_barrier(mem_flags::mem_none);
        UNROLL for (int j = 0; j < COLUMNS / 16; j++) {
            UNROLL for (int i = 0; i < 4; i++) simdgroup_multiply_accumulate(sums.v[j][i], a[j], w[i], sums.v[j][i]);
        }
    }
}

template <int COLUMNS>
METAL_FUNC Accumulators<COLUMNS> make_sums() {
    Accumulators<COLUMNS> sums; // not filled with zeros, as `clear` does that
    return sums;
}

template <int COLUMNS>
METAL_FUNC void clear(thread Accumulators<COLUMNS>& sums) {
    UNROLL for (int j = 0; j < COLUMNS / 16; j++) {
        UNROLL for (int i = 0; i < 4; i++) sums.v[j][i] = make_filled_simdgroup_matrix<float, 8, 8>(0);
    }
}

// Calls store(row of w, row of x, sums of four rows of w) for all sums of a simdgroup, eight rows of x at a time.
// scratch: 1 KiB per simdgroup
template <int COLUMNS, typename S>
METAL_FUNC void store_sums(thread Accumulators<COLUMNS>& sums, threadgroup float* scratch, S store, uint lane) {
    int row = lane % 8 * 4, column = lane / 8;
    UNROLL for (int j = 0; j < COLUMNS / 16; j++) {
        UNROLL for (int i = 0; i < 4; i++) simdgroup_store(sums.v[j][i], scratch + 8 * i, 32);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        for (int i = 0; i < 8; i += 4)
            store(row, 8 * j + i + column, float4(*(threadgroup packed_float4*)(scratch + 32 * (i + column) + row)));
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
}
