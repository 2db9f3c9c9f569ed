// Conversions between numbers and their bits, for the block decoders in blocks/ and the kernels.
#pragma once

#include "prelude.metal"

#include "halves.metal"

inline float as_float(uint bits) { return as_type<float>(bits); }

// The upper or else the lower 16 bits of x, below those of y. Registers have 16-bit halves, so this takes no shift.
inline uint select_halves(uint x, uint y, bool upper) {
    ushort2 a = as_type<ushort2>(x), b = as_type<ushort2>(y);
    return as_type<uint>(ushort2(upper ? a.y : a.x, upper ? b.y : b.x));
}

constant constexpr half LARGEST_HALF = 65504;

// Clamps infinity to the largest half; NaN stays NaN.
METAL_FUNC half clamp_half(half x) {
    half low = x < -LARGEST_HALF ? -LARGEST_HALF : x;
    return low > LARGEST_HALF ? LARGEST_HALF : low;
}

// Spreads the low 16 bits of `bits` over 16 bytes: each bit becomes bit `shift` of its byte.
inline uint4 spread16(uint bits, int shift) {
    uint4 nibbles = uint4(bits, bits >> 4, bits >> 8, bits >> 12) & 15;
    // the four partial products do not overlap: bit j of a nibble moves to bit 8 j
    return ((nibbles * 0x00204081) & 0x01010101) << shift;
}

// Loads up to four numbers as floats and fills the rest with zeros. count: how many are readable
template <typename P>
METAL_FUNC float4 load_up_to_4(P p, int count) {
    if (count >= 4) return load_floats(p);
    float4 out = 0;
    UNROLL for (int i = 0; i < 3; i++) {
        if (i < count) out[i] = to_float(p[i]);
    }
    return out;
}
