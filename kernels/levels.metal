// Products with IQ4 take its levels as halves, instead of codes: no bias, and no bytes between. levels.cuh replaces
// this file on NVIDIA GPUs.
#pragma once

#include "numbers.h"

struct IQ4_NL;
struct IQ4_XS;

// The bits of -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89 and 113 as halves. All of it is in
// one line of the cache, so that lanes may look up different numbers at once.
constant ushort IQ4_HALVES[16] = {0xd7f0, 0xd680, 0xd530, 0xd410, 0xd220, 0xd060, 0xcd80, 0xc900,
                                  0x3c00, 0x4a80, 0x4e40, 0x50c0, 0x52a0, 0x5450, 0x5590, 0x5710};

// Looks up the numbers at two indices, in the low and the high 16 bits.
METAL_FUNC uint look_up_halves(uint indices) {
    ushort2 i = as_type<ushort2>(indices & 0x000f000f);
    return as_type<uint>(ushort2(IQ4_HALVES[i.x], IQ4_HALVES[i.y]));
}

METAL_FUNC uint2 iq4_halves(uint word, int h) {
    return uint2(look_up_halves(h ? word >> 4 : word), look_up_halves(h ? word >> 12 : word >> 8));
}

METAL_FUNC uint4 packed_codes(const device IQ4_NL& b, int i, int) { return packed_levels(b, i); }
METAL_FUNC uint2 code_halves(const device IQ4_NL&, uint word, int, int h) { return iq4_halves(word, h); }
constexpr float code_scale(const device IQ4_NL*) { return 1; }
constexpr bool has_bias(const device IQ4_NL*) { return false; }

METAL_FUNC uint4 packed_codes(const device IQ4_XS& b, int i, int) { return packed_levels(b, i); }
METAL_FUNC uint2 code_halves(const device IQ4_XS&, uint word, int, int h) { return iq4_halves(word, h); }
constexpr float code_scale(const device IQ4_XS*) { return 1; }
constexpr bool has_bias(const device IQ4_XS*) { return false; }
