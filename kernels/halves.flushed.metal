// Halves from memory as floats, and codes as halves, for GPUs that take subnormal halves for 0: halves are converted by
// integer arithmetic, and codes are halves from 0 to 1,023.
#pragma once

constant constexpr float CODE_SCALE = 1;

// Two codes below 1,024, in the low and the high 16 bits. With the exponent of 1,024 they are 1,024 + code, exactly.
inline uint code_halves(uint codes) { return as_type<uint>(as_type<half2>(codes | 0x64006400) - half2(1024)); }

// E2M1 numbers v in bits 9 to 12 and 25 to 28, as the bits of halves, each 2 v times E2M1_SCALE.
constant constexpr float E2M1_SCALE = 1;

// 15 more in the exponent make 2 v of normal numbers; the others, of exponent 0, are 1 or 1.5 instead of 0 or 1.
inline uint e2m1_half(uint bits) {
    half size = as_type<half>(ushort((bits & 0x0e00) + 0x3c00));
    if (!(bits & 0x0c00)) size = 2 * size - 2;
    return as_type<ushort>(size) | (bits & 0x1000) << 3;
}

inline uint e2m1_halves(uint bits) { return e2m1_half(bits) | e2m1_half(bits >> 16) << 16; }

// The half with the low 16 bits of `bits`, as a float.
inline float half_float(uint bits) {
    uint size = bits & 0x7fff, sign = (bits & 0x8000) << 16;
    uint normal = (size << 13) + (size < 0x7c00 ? 0x38000000 : 0x70000000); // the exponents of a float are 112 larger
    uint subnormal = as_type<uint>(float(size) * (1.0f / 16777216));
    return as_type<float>((size < 0x400 ? subnormal : normal) | sign);
}

template <typename T>
METAL_FUNC float to_float(T x) {
    return float(x);
}

METAL_FUNC float to_float(half x) { return half_float(as_type<ushort>(x)); }

METAL_FUNC float4 to_floats(half4 x) { return float4(to_float(x.x), to_float(x.y), to_float(x.z), to_float(x.w)); }
