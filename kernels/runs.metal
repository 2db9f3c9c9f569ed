// Weights by runs: 16 of them, and how two runs that share bytes make a slice, the 32 weights that a lane
// takes from a block.
//
// A code becomes a number without a conversion, which costs an Apple GPU as much as four multiply-adds: as
// the bits of a half, a code below 1,024 is code * 2^-24, a subnormal number. So one mask makes two halves,
// which multiply-adds take as they are, and sums are in units of 2^-24. Subnormal halves are exact on
// these GPUs (block scales of real files are such numbers).
#pragma once

#include "prelude.metal"

constant constexpr float CODE_UNIT = 1.0f / 16777216; // 2^-24

// Sixteen weights, activations or codes.
struct Run {
    float4 v[4];
};

// 16 codes, each times 2^-24, in fours: the first and the third of them, the second and the last.
struct Codes {
    half2 even[4], odd[4];
};

// What a block type may say better: where its codes lie, so that a mask takes them without a shift; and the
// affines of the two runs of a slice together.
template <typename B>
METAL_FUNC uint4 words(const device B& b, int i) {
    return codes(b, i);
}

template <typename B>
METAL_FUNC uint mask(const device B&, int) {
    return 0xffffffff;
}

template <typename B>
METAL_FUNC float4 affines(const device B& b, int i) {
    return float4(affine(b, i * 16 / B::GROUP), affine(b, (i + B::APART) * 16 / B::GROUP));
}

// What codes in place are to be multiplied by.
template <typename B>
METAL_FUNC float place(const device B& b, int i) {
    return as_float((127 - ctz(mask(b, i))) << 23);
}

// Run i of a block: its bytes are shared with run i + B::APART.
template <typename B>
METAL_FUNC Codes run_codes(const device B& b, int i) {
    uint4 w = words(b, i);
    uint bits = mask(b, i) & 0x00ff00ff;
    Codes c;
    UNROLL for (int j = 0; j < 4; j++) {
        c.even[j] = as_type<half2>(w[j] & bits);
        c.odd[j] = as_type<half2>((w[j] >> 8) & bits);
    }
    return c;
}

// The first run of slice t of a block; the other is B::APART further.
template <typename B>
METAL_FUNC int first_run(int t) {
    return t / B::APART * (2 * B::APART) + t % B::APART;
}

// Scales and biases of the runs of a slice, for codes in place.
template <typename B>
METAL_FUNC float4 slice_affine(const device B& b, int i) {
    float4 a = affines(b, i);
    return float4(a.x * place(b, i), a.y, a.z * place(b, i + B::APART), a.w);
}

// 16 activations.
template <typename X>
METAL_FUNC Run load_run(X x) {
    return Run{{load_floats(x), load_floats(x + 4), load_floats(x + 8), load_floats(x + 12)}};
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
