// The encoders of all types: blocks of float32 weights to blocks of bytes, of least weighted squared error.
#pragma once

#include "lanes.h"

// How hard to search.
enum Effort { FAST, NORMAL, BEST };

// As many blocks as there are lanes, or fewer.
struct Blocks {
    const float* x[LANES];          // the weights of each
    const float* importance[LANES]; // of each weight, what its squared error counts
    std::uint8_t* out[LANES];
    int count;
    bool weighted; // else importance is not read
    Effort effort;

    const float* const* weights() const { return weighted ? importance : nullptr; }
};

void encode_q4_0(const Blocks& blocks);
void encode_q4_1(const Blocks& blocks);
void encode_q5_0(const Blocks& blocks);
void encode_q5_1(const Blocks& blocks);
void encode_q8_0(const Blocks& blocks);
void encode_q8_k(const Blocks& blocks);
void encode_q2_k(const Blocks& blocks);
void encode_q3_k(const Blocks& blocks);
void encode_q4_k(const Blocks& blocks);
void encode_q5_k(const Blocks& blocks);
void encode_q6_k(const Blocks& blocks);
void encode_iq4_nl(const Blocks& blocks);
void encode_iq4_xs(const Blocks& blocks);
void encode_mxfp4(const Blocks& blocks);
// n weights, each a block.
void convert_f32(const float* x, std::int64_t n, std::uint8_t* out);
void convert_f16(const float* x, std::int64_t n, std::uint8_t* out);
void convert_bf16(const float* x, std::int64_t n, std::uint8_t* out);
