// What is Metal's own in the kernels' text: its standard library, and loads that ask for no more alignment than a
// slice of a mapped file has. On NVIDIA GPUs prelude.cuh is in its place.
#pragma once

#include <metal_stdlib>

using namespace metal;

// Loops over registers: an index that is not a constant would put them into memory.
#define UNROLL _Pragma("clang loop unroll(full)")

// 16 bytes from an address that is a multiple of ALIGNED.
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

// Four numbers as floats, from an address that is a multiple of one of them.
METAL_FUNC float4 load_floats(const device float* p) { return float4(*(const device packed_float4*)p); }
METAL_FUNC float4 load_floats(const device half* p) { return float4(half4(*(const device packed_half4*)p)); }
METAL_FUNC float4 load_floats(const device bfloat* p) { return float4(bfloat4(*(const device packed_bfloat4*)p)); }

// Arrays of fewer than 8 elements are handed over as constants.
template <typename T>
METAL_FUNC float4 load_floats(const constant T* p) {
    return float4(float(p[0]), float(p[1]), float(p[2]), float(p[3]));
}

// The same from an address that is a multiple of 16 bytes where a GPU is faster with that.
template <typename P>
METAL_FUNC float4 load_aligned_floats(P p) {
    return load_floats(p);
}
