// Halves from memory as floats, and codes as halves. halves.flushed.metal replaces this file on GPUs that take
// subnormal halves for 0.
#pragma once

// A code below 1,024, read as the bits of a half, is the subnormal number code * 2^-24.
constant constexpr float CODE_SCALE = 1.0f / 16777216; // 2^-24

// The bits of two halves, for two codes below 1,024 in the low and the high 16 bits, each times CODE_SCALE.
inline uint code_halves(uint codes) { return codes; }

// E2M1 numbers v in bits 9 to 12 and 25 to 28, as the bits of halves, each 2 v times E2M1_SCALE. Their exponents and
// mantissas are those of halves, subnormal ones too; the addition carries the sign to its place.
constant constexpr float E2M1_SCALE = 1.0f / 32768; // 2^-15

inline uint e2m1_halves(uint bits) { return ((bits & 0x1e001e00) + 0x70007000) & 0x8e008e00; }

// The half with the low 16 bits of `bits`, as a float.
inline float half_float(uint bits) { return float(as_type<half>(ushort(bits))); }

template <typename T>
METAL_FUNC float to_float(T x) {
    return float(x);
}

METAL_FUNC float4 to_floats(half4 x) { return float4(x); }
