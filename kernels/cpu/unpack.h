// Rows of blocks as chunks of 256 codes, each 16 of them with a scale and a bias:
// w[i] = scale[i / 16] * code[i] + bias[i / 16].
#pragma once

#include "blocks.h"

constexpr int CHUNK = 256; // codes
constexpr int GROUP = 16;  // codes that share scale and bias
constexpr int GROUPS = CHUNK / GROUP;

struct Chunk {
    alignas(64) uchar code[CHUNK];
    alignas(64) float scale[GROUPS];
    alignas(64) float bias[GROUPS];
};

// Blocks [0, count) of a row into a chunk, whose rest is zero.
template <typename B>
inline void unpack(const B* blocks, int count, Chunk& chunk) {
    constexpr int per_block = B::WEIGHTS / GROUP, per_affine = B::GROUP / GROUP;
    if (count * B::WEIGHTS < CHUNK) std::memset(&chunk, 0, sizeof chunk);
    for (int n = 0; n < count; n++) {
        const B& block = blocks[n];
        int first = n * per_block;
#pragma GCC unroll 16
        for (int i = 0; i < per_block; i++) {
            uint4 q = codes(block, i);
            std::memcpy(chunk.code + GROUP * (first + i), &q, 16);
        }
#pragma GCC unroll 16
        for (int g = 0; g < per_block / per_affine; g++) {
            float2 a = affine(block, g);
            for (int i = 0; i < per_affine; i++) {
                chunk.scale[first + g * per_affine + i] = a.x;
                chunk.bias[first + g * per_affine + i] = a.y;
            }
        }
    }
}

// Chunk c of a row of k weights.
template <typename B>
inline void unpack_chunk(const B* row, int k, int c, Chunk& chunk) {
    constexpr int per_chunk = CHUNK / B::WEIGHTS;
    int left = k / B::WEIGHTS - c * per_chunk;
    if (left >= per_chunk)
        unpack(row + c * per_chunk, per_chunk, chunk);
    else
        unpack(row + c * per_chunk, left, chunk);
}
