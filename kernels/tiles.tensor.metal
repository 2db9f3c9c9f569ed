// Multiplies tiles with the tensor operations of Metal 4, on GPUs that have hardware for them: each simdgroup computes
// 32 rows of w by COLUMNS / 2 rows of x, or 16 by 16 of a tile of 16 rows of x, and keeps the sums in a cooperative
// tensor. Which lane holds which sum is the implementation's choice, so each element is asked where it is.
#pragma once

#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>
#include <metal_tensor>

#include "prelude.metal"

constant constexpr int TILE_ROWS = 64;
constant constexpr int DEPTH = 32; // weights per row and step

// The first row of w and the first row of x, within a tile, that a simdgroup computes with.
struct TilePart {
    int row, column;
};

// How many rows of w and of x a simdgroup computes with: multiples of 16.
template <int COLUMNS>
struct PartSize {
    static constexpr constant int ROWS = COLUMNS == 16 ? 16 : 32;
    static constexpr constant int WIDTH = COLUMNS == 16 ? 16 : COLUMNS / 2;
};

template <int COLUMNS>
METAL_FUNC TilePart tile_part(uint simdgroup) {
    if (COLUMNS == 16) return TilePart{int(simdgroup) * 16, 0};
    return TilePart{int(simdgroup % 2) * 32, int(simdgroup / 2) * (COLUMNS / 2)};
}

// Where the eight halves from 8 part on of a row start in a tile: rows follow one another.
template <int ROWS>
METAL_FUNC int tile_index(int row, int part) {
    return DEPTH * row + 8 * part;
}

// ROWS rows of a tile; the first extent is the one whose elements are adjacent.
template <int ROWS>
using TileTensor = tensor<threadgroup half, extents<int32_t, DEPTH, ROWS>, tensor_inline>;

// sums (WIDTH, ROWS) += activations (WIDTH, DEPTH) times the transpose of weights (ROWS, DEPTH), without relaxed
// precision
template <int COLUMNS>
using TileProduct =
    mpp::tensor_ops::matmul2d<mpp::tensor_ops::matmul2d_descriptor(
                                  PartSize<COLUMNS>::WIDTH, PartSize<COLUMNS>::ROWS, DEPTH, false, true, false,
                                  mpp::tensor_ops::matmul2d_descriptor::mode::multiply_accumulate),
                              execution_simdgroup>;

template <int COLUMNS>
METAL_FUNC auto make_sums() {
    return TileProduct<COLUMNS>()
        .template get_destination_cooperative_tensor<TileTensor<PartSize<COLUMNS>::WIDTH>,
                                                     TileTensor<PartSize<COLUMNS>::ROWS>, float>();
}

template <int COLUMNS>
using Accumulators = decltype(make_sums<COLUMNS>());

template <int COLUMNS>
METAL_FUNC void clear(thread Accumulators<COLUMNS>& sums) {
    UNROLL for (ushort i = 0; i < sums.get_capacity(); i++) {
        if (sums.is_valid_element(i)) sums[i] = 0;
    }
}

template <int COLUMNS>
METAL_FUNC void add_products(thread Accumulators<COLUMNS>& sums, const threadgroup half* weights,
                             const threadgroup half* activations, uint) {
    constexpr int WIDTH = PartSize<COLUMNS>::WIDTH, ROWS = PartSize<COLUMNS>::ROWS;
    TileTensor<WIDTH> left((threadgroup half*)activations, extents<int32_t, DEPTH, WIDTH>());
    TileTensor<ROWS> right((threadgroup half*)weights, extents<int32_t, DEPTH, ROWS>());
    TileProduct<COLUMNS>().run(left, right, sums);
}

// Calls store(row of w, row of x, sum) for each sum of a simdgroup.
template <int COLUMNS, typename S>
METAL_FUNC void store_sums(thread Accumulators<COLUMNS>& sums, threadgroup float*, S store, uint) {
    UNROLL for (ushort i = 0; i < sums.get_capacity(); i++) {
        if (!sums.is_valid_element(i)) continue;
        auto index = sums.get_multidimensional_index(i);
        store(index[0], index[1], sums[i]);
    }
}
