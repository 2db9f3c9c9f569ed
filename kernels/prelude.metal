// The Metal-specific part of the kernels: the standard library, and loads that only need the alignment of a slice of a
// mapped file. prelude.cuh replaces this file on NVIDIA GPUs.
#pragma once

#include <metal_stdlib>

using namespace metal;

// Unrolls loops over arrays in registers: an index that is not constant would move the array to memory.
#define UNROLL _Pragma("clang loop unroll(full)")
// Keeps a loop, whose body would otherwise be repeated.
#define ROLLED _Pragma("clang loop unroll(disable)")

#include "halves.metal"

// Loads 16 bytes from an address that is a multiple of ALIGNED.
template <int ALIGNED>
inline uint4 load16(const device uchar* p) {
    return uint4(*(const device packed_uint4*)p);
}

template <>
inline uint4 load16<2>(const device uchar* p) {
    const device packed_ushort4* halves = (const device packed_ushort4*)p;
    return uint4(as_type<uint2>(ushort4(halves[0])), as_type<uint2>(ushort4(halves[1])));
}

template <>
inline uint4 load16<1>(const device uchar* p) {
    const device packed_uchar4* words = (const device packed_uchar4*)p;
    return uint4(as_type<uint>(uchar4(words[0])), as_type<uint>(uchar4(words[1])), as_type<uint>(uchar4(words[2])),
                 as_type<uint>(uchar4(words[3])));
}

template <int ALIGNED>
inline uint load4(const device uchar* p) {
    return *(const device uint*)p;
}

template <>
inline uint load4<2>(const device uchar* p) {
    const device ushort* halves = (const device ushort*)p;
    return halves[0] | uint(halves[1]) << 16;
}

// table[b] for each byte b < 16 of `index`.
inline uint look_up4(uint index, constant uchar* table) {
    uchar4 i = as_type<uchar4>(index);
    return as_type<uint>(uchar4(table[i.x], table[i.y], table[i.z], table[i.w]));
}

inline uint4 look_up16(uint4 index, constant uchar* table) {
    return uint4(look_up4(index.x, table), look_up4(index.y, table), look_up4(index.z, table),
                 look_up4(index.w, table));
}

// Loads four numbers as floats; the address need only be aligned to one of them.
METAL_FUNC float4 load_floats(const device float* p) { return float4(*(const device packed_float4*)p); }
METAL_FUNC float4 load_floats(const device half* p) { return to_floats(half4(*(const device packed_half4*)p)); }
METAL_FUNC float4 load_floats(const device char* p) { return float4(char4(*(const device packed_char4*)p)); }
METAL_FUNC float4 load_floats(const device bfloat* p) { return float4(bfloat4(*(const device packed_bfloat4*)p)); }

// MLX passes arrays of fewer than 8 elements in the constant address space.
template <typename T>
METAL_FUNC float4 load_floats(const constant T* p) {
    return float4(to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3]));
}

// Stores four numbers; the address need only be aligned to one of them.
METAL_FUNC void store_floats(device float* p, float4 x) { *(device packed_float4*)p = packed_float4(x); }

// As load_floats, for addresses aligned to four numbers on GPUs where that is faster.
template <typename P>
METAL_FUNC float4 load_aligned_floats(P p) {
    return load_floats(p);
}
