// Weights by runs: 16 of them, and how two runs that share bytes make a slice, the 32 weights that a lane
// takes from a block.
//
// A code becomes a number without a conversion, which costs an Apple GPU as much as four multiply-adds: as
// the bits of a half, a code below 1,024 is code * 2^-24, a subnormal number. So one mask makes two halves,
// which multiply-adds take as they are, and sums are in units of 2^-24. Subnormal halves are exact on
// these GPUs (block scales of real files are such numbers).
#pragma once

#include "numbers.h"

constant constexpr float CODE_UNIT = 1.0f / 16777216; // 2^-24

// Sixteen weights, activations or codes.
struct Run {
    float4 v[4];
};

// 16 codes, each times 2^-24, in fours: the first and the third of them, the second and the last.
struct Codes {
    half2 even[4], odd[4];
};

// What a block type may say better: bytes of both runs of the slice from run i, loaded once, with the bits where
// the codes of run h lie, so that a mask takes them without a shift; and the affines of both runs together.
template <typename B>
METAL_FUNC uint4 words(const device B& b, int i, int h) {
    return codes(b, i | (h * B::APART));
}

template <typename B>
METAL_FUNC uint mask(const device B&, int) {
    return 0xffffffff;
}

template <typename B>
METAL_FUNC float4 affines(const device B& b, int i) {
    float2 a = affine(b, i * 16 / B::GROUP);
    if constexpr (B::APART * 16 < B::GROUP)
        return float4(a, a); // of one group
    else
        return float4(a, affine(b, (i | B::APART) * 16 / B::GROUP));
}

// What codes in place are to be multiplied by.
template <typename B>
METAL_FUNC float place(const device B& b, int i) {
    return as_float((127 - ctz(mask(b, i))) << 23);
}

// The slice of a block from run i: scales and biases of its runs, for codes in place, and their words.
struct Slice {
    float4 affine;
    uint4 words[2];
};

template <typename B>
METAL_FUNC Slice load_slice(const device B& b, int i) {
    float4 a = affines(b, i);
    a.x *= place(b, i);
    a.z *= place(b, i | B::APART);
    return Slice{a, {words(b, i, 0), words(b, i, 1)}};
}

// Codes from their words; bits: the mask of the run.
METAL_FUNC Codes split(uint4 words, uint bits) {
    uint4 even = words & (bits & 0x00ff00ff), odd = (words >> 8) & (bits & 0x00ff00ff);
    Codes c;
    UNROLL for (int j = 0; j < 4; j++) {
        c.even[j] = as_type<half2>(even[j]);
        c.odd[j] = as_type<half2>(odd[j]);
    }
    return c;
}

// The first run of slice t of a block; the other is that | B::APART.
template <typename B>
METAL_FUNC int first_run(int t) {
    return ((t & -B::APART) << 1) | (t & (B::APART - 1));
}

// 16 activations.
template <typename X>
METAL_FUNC Run load_run(X x) {
    return Run{
        {load_aligned_floats(x), load_aligned_floats(x + 4), load_aligned_floats(x + 8), load_aligned_floats(x + 12)}};
}

METAL_FUNC float run_sum(Run x) {
    float4 s = (x.v[0] + x.v[1]) + (x.v[2] + x.v[3]);
    return (s.x + s.y) + (s.z + s.w);
}

METAL_FUNC float run_dot(Codes c, Run x) {
    float s = 0;
    UNROLL for (int j = 0; j < 4; j++) {
        s = fma(float(c.even[j].x), x.v[j].x, s);
        s = fma(float(c.odd[j].x), x.v[j].y, s);
        s = fma(float(c.even[j].y), x.v[j].z, s);
        s = fma(float(c.odd[j].y), x.v[j].w, s);
    }
    return s;
}
