// Halves from memory as floats, and codes as halves. halves.flushed.metal replaces this file on GPUs that take
// subnormal halves for 0.
#pragma once

// A code below 1,024, read as the bits of a half, is the subnormal number code * 2^-24.
constant constexpr float CODE_SCALE = 1.0f / 16777216; // 2^-24

// Two codes below 1,024, in the low and the high 16 bits, each times CODE_SCALE.
METAL_FUNC half2 code_halves(uint codes) { return as_type<half2>(codes); }

// The half with the low 16 bits of `bits`, as a float.
inline float half_float(uint bits) { return float(as_type<half>(ushort(bits))); }

template <typename T>
METAL_FUNC float to_float(T x) {
    return float(x);
}

METAL_FUNC float4 to_floats(half4 x) { return float4(x); }
