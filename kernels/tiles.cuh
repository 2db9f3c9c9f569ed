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
        UNROLL for (int i = 0; i < 2; i++) {
            UNROLL for (int e = 0; e < 4; e++) sums.v[j][i][e] = 0;
        }
    }
}

// Four blocks; lanes 8 m ... 8 m + 7 have the addresses of the rows of block m.
METAL_FUNC uint4 load_blocks(const half* row) {
    uint4 out;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
                 : "r"(uint(__cvta_generic_to_shared(row)))
                 : "memory");
    return out;
}

METAL_FUNC uint2 load_two_blocks(const half* row) {
    uint2 out;
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out.x), "=r"(out.y)
                 : "r"(uint(__cvta_generic_to_shared(row)))
                 : "memory");
    return out;
}

// sum += w x^T: 16 rows of w and 8 of x, 16 numbers of each.
METAL_FUNC void multiply(float (&sum)[4], uint4 w, uint2 x) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w), "r"(x.x), "r"(x.y));
}

template <int COLUMNS>
METAL_FUNC void add_products(Accumulators<COLUMNS>& sums, const half* weights, const half* activations) {
    constexpr int WEIGHTS = 64 * (TILE_ROWS / 8), ACTIVATIONS = 64 * (COLUMNS / 8); // of a part of 8
    int lane = threadIdx.x % 32, row = lane % 8 * 8;
    UNROLL for (int part = 0; part < DEPTH / 8; part += 2) {
        uint4 w[2];
        UNROLL for (int i = 0; i < 2; i++)
            w[i] = load_blocks(weights + (part + lane / 16) * WEIGHTS + 64 * (2 * i + lane / 8 % 2) + row);
        const half* x = activations + part * ACTIVATIONS + row;
        if constexpr (COLUMNS == 16) {
            uint2 a = load_two_blocks(x + lane / 8 % 2 * ACTIVATIONS);
            UNROLL for (int i = 0; i < 2; i++) multiply(sums.v[0][i], w[i], a);
        } else {
            UNROLL for (int j = 0; j < COLUMNS / 16; j += 2) {
                uint4 a = load_blocks(x + lane / 8 % 2 * ACTIVATIONS + 64 * (j + lane / 16));
                UNROLL for (int i = 0; i < 2; i++) {
                    multiply(sums.v[j][i], w[i], uint2(a.x, a.y));
                    multiply(sums.v[j + 1][i], w[i], uint2(a.z, a.w));
                }
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
