// Block types whose products take numbers instead of codes. Those of IQ4 stay codes: bytes are looked up by permutations
// of registers (prelude.cuh).
#pragma once

#include "numbers.h"

struct MXFP4;

METAL_FUNC uint4 packed_codes(const device MXFP4& b, int i, int) { return packed_levels(b, i); }
METAL_FUNC uint2 code_halves(const device MXFP4&, uint word, int, int h) {
    return uint2(e2m1_halves(h ? word << 5 : word << 9), e2m1_halves(h ? word >> 3 : word << 1));
}
constexpr float code_scale(const device MXFP4*) { return E2M1_SCALE; }
constexpr bool has_bias(const device MXFP4*) { return false; }
