// Runs and slices of a block. A run is 16 consecutive weights; a slice is two runs that share bytes, the 32 weights
// that a lane loads from a block at a time.
//
// Codes are not converted to floats, because a conversion costs an Apple GPU as much as four multiply-adds. Read as the
// bits of a half, a code below 1,024 is the subnormal number code * 2^-24. So one mask gives two halves for the
// multiply-adds, and sums are scaled by 2^-24. GPUs that take subnormal halves for 0 get other text (halves.metal).
#pragma once

#include "levels.metal"
#include "numbers.h"

// Sixteen weights, activations or codes.
struct Run {
    float4 v[4];
};

// 16 codes, each times code_scale. Element j holds codes 4 j and 4 j + 2 in even, 4 j + 1 and 4 j + 3 in odd.
struct Codes {
    half2 even[4], odd[4];
};

// Defaults that a block type may overload. packed_codes loads bytes that hold the codes of run h of the slice from run
// i, or of both runs; code_mask gives the bits of run i in them, so that a mask selects codes without a shift;
// slice_affines gives the scales and biases of both runs; code_halves unpacks a word of run h of the slice from run i
// to the bits of halves, codes 0 and 2 in x, 1 and 3 in y, each times code_scale; has_bias says whether weights are
// more than a scale times a code.
template <typename B>
METAL_FUNC uint4 packed_codes(const device B& b, int i, int h) {
    return codes(b, i | (h * B::RUN_STRIDE));
}

template <typename B>
METAL_FUNC uint code_mask(const device B&, int) {
    return 0xffffffff;
}

template <typename B>
METAL_FUNC uint2 code_halves(const device B& b, uint word, int i, int h) {
    uint mask = code_mask(b, i | (h * B::RUN_STRIDE)) & 0x00ff00ff;
    return uint2(code_halves(word & mask), code_halves((word >> 8) & mask));
}

template <typename B>
constexpr float code_scale(const device B*) {
    return B::WEIGHTS == 1 ? 1 : CODE_SCALE;
}

template <typename B>
constexpr bool has_bias(const device B*) {
    return true;
}

template <typename B>
METAL_FUNC float4 slice_affines(const device B& b, int i) {
    float2 a = affine(b, i * 16 / B::GROUP);
    if (B::RUN_STRIDE * 16 < B::GROUP)
        return float4(a, a); // both runs are in one group
    else
        return float4(a, affine(b, (i | B::RUN_STRIDE) * 16 / B::GROUP));
}

// MXFP4's values, 2 v, without bias: the four bits of E2M1 are a part of those of a half.
struct MXFP4;

METAL_FUNC uint2 code_halves(const device MXFP4&, uint word, int, int h) {
    return uint2(e2m1_halves(h ? word << 5 : word << 9), e2m1_halves(h ? word >> 3 : word << 1));
}
constexpr float code_scale(const device MXFP4*) { return E2M1_SCALE; }
constexpr bool has_bias(const device MXFP4*) { return false; }

// What is loaded of run h of the slice from run i, before any arithmetic where the block type overloads load_raw.
struct RawRun {
    uint4 packed;
    float2 affine;
};

template <typename B>
METAL_FUNC RawRun load_raw(const device B& b, int i, int h) {
    return RawRun{packed_codes(b, i, h), affine(b, (i | (h * B::RUN_STRIDE)) * 16 / B::GROUP)};
}

METAL_FUNC uint4 raw_codes(RawRun raw, int, int) { return raw.packed; }

METAL_FUNC float2 raw_affine(RawRun raw, int) { return raw.affine; }

// The scale that undoes the shift of codes that a mask alone selects: 2^-shift.
template <typename B>
METAL_FUNC float shift_scale(const device B& b, int i) {
    return as_float((127 - ctz(code_mask(b, i))) << 23);
}

// A slice: the scale and bias of each run, with shift_scale in the scales, and the packed codes of each run.
struct Slice {
    float4 affine;
    uint4 packed[2];
};

template <typename B>
METAL_FUNC Slice load_slice(const device B& b, int i) {
    float4 a = slice_affines(b, i);
    a.x *= shift_scale(b, i);
    a.z *= shift_scale(b, i | B::RUN_STRIDE);
    return Slice{a, {packed_codes(b, i, 0), packed_codes(b, i, 1)}};
}

// Unpacks codes of run h of the slice from run i.
template <typename B>
METAL_FUNC Codes unpack_codes(const device B& b, uint4 packed, int i, int h) {
    Codes c;
    UNROLL for (int j = 0; j < 4; j++) {
        uint2 bits = code_halves(b, packed[j], i, h);
        c.even[j] = as_type<half2>(bits.x);
        c.odd[j] = as_type<half2>(bits.y);
    }
    return c;
}

// The first run of slice t of a block; the second is that | B::RUN_STRIDE.
template <typename B>
METAL_FUNC int first_run(int t) {
    return ((t & -B::RUN_STRIDE) << 1) | (t & (B::RUN_STRIDE - 1));
}

// Loads 16 activations.
template <typename X>
METAL_FUNC Run load_run(X x) {
    return Run{
        {load_aligned_floats(x), load_aligned_floats(x + 4), load_aligned_floats(x + 8), load_aligned_floats(x + 12)}};
}

METAL_FUNC float sum_run(Run x) {
    float4 s = (x.v[0] + x.v[1]) + (x.v[2] + x.v[3]);
    return (s.x + s.y) + (s.z + s.w);
}

METAL_FUNC float dot_run(Codes c, Run x) {
    float s = 0;
    UNROLL for (int j = 0; j < 4; j++) {
        s = fma(float(c.even[j].x), x.v[j].x, s);
        s = fma(float(c.odd[j].x), x.v[j].y, s);
        s = fma(float(c.even[j].y), x.v[j].z, s);
        s = fma(float(c.odd[j].y), x.v[j].w, s);
    }
    return s;
}
