// The products of a tile, as simdgroups have them: each 32 rows of w with COLUMNS / 2 rows of x, sums in registers.
// On NVIDIA GPUs tiles.cuh is in its place.
#pragma once

#include "prelude.metal"

constant constexpr int TILE_ROWS = 64;
constant constexpr int DEPTH = 32; // weights of a row in a step

template <int COLUMNS>
struct Accumulators {
    simdgroup_float8x8 v[COLUMNS / 16][4];
};

template <int COLUMNS>
METAL_FUNC void add_products(thread Accumulators<COLUMNS>& sums, const threadgroup half* weights,
                             const threadgroup half* activations, uint) {
    UNROLL for (int part = 0; part < DEPTH / 8; part++) {
        simdgroup_half8x8 a[COLUMNS / 16], w[4];
        UNROLL for (int i = 0; i < 4; i++)
            simdgroup_load(w[i], weights + 64 * (part * (TILE_ROWS / 8) + i), 8, ulong2(0, 0), true);
        UNROLL for (int j = 0; j < COLUMNS / 16; j++)
            simdgroup_load(a[j], activations + 64 * (part * (COLUMNS / 8) + j), 8);
        UNROLL for (int j = 0; j < COLUMNS / 16; j++) {
            UNROLL for (int i = 0; i < 4; i++) simdgroup_multiply_accumulate(sums.v[j][i], a[j], w[i], sums.v[j][i]);
        }
    }
}

template <int COLUMNS>
METAL_FUNC void clear(thread Accumulators<COLUMNS>& sums) {
    UNROLL for (int j = 0; j < COLUMNS / 16; j++) {
        UNROLL for (int i = 0; i < 4; i++) sums.v[j][i] = make_filled_simdgroup_matrix<float, 8, 8>(0);
    }
}

// put(row of w, row of x, sum) for all of a simdgroup's, whose own are the 1 KiB of `memory`: eight rows of x at a
// time.
template <int COLUMNS, typename P>
METAL_FUNC void put_sums(thread Accumulators<COLUMNS>& sums, threadgroup float* memory, P put, uint lane) {
    UNROLL for (int j = 0; j < COLUMNS / 16; j++) {
        UNROLL for (int i = 0; i < 4; i++) simdgroup_store(sums.v[j][i], memory + 8 * i, 32);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        for (int i = 0; i < 8; i++) put(lane, 8 * j + i, memory[32 * i + lane]);
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
}
