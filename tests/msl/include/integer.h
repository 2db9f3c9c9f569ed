// <metal_integer>.
#pragma once

namespace metal {
#define MSL_SIGNED(T)                                                                                                  \
    METAL_FUNC T abs(T x) { return x < 0 ? -x : x; }
MSL_SIGNED(char)
MSL_SIGNED(signed char)
MSL_SIGNED(short)
MSL_SIGNED(int)
MSL_SIGNED(long)
#undef MSL_SIGNED
MSL_SIZES(MSL_EACH, abs, int)

template <typename T>
METAL_FUNC T popcount(T x) {
    return T(__builtin_popcountl(make_unsigned_t<T>(x)));
}
// of 0: the number of bits
template <typename T>
METAL_FUNC T clz(T x) {
    return x == 0 ? T(8 * sizeof(T)) : T(__builtin_clzl(make_unsigned_t<T>(x)) - (64 - 8 * int(sizeof(T))));
}
template <typename T>
METAL_FUNC T ctz(T x) {
    return x == 0 ? T(8 * sizeof(T)) : T(__builtin_ctzl(make_unsigned_t<T>(x)));
}
template <typename T>
METAL_FUNC T reverse_bits(T x) {
    T r = 0;
    for (uint i = 0; i < 8 * sizeof(T); i++) r = T(r << 1 | (x >> i & 1));
    return r;
}
template <typename T>
METAL_FUNC T rotate(T x, T n) {
    using U = make_unsigned_t<T>;
    const uint bits = 8 * sizeof(T), k = uint(n) % bits;
    return k == 0 ? x : T(U(U(x) << k) | U(U(x) >> (bits - k)));
}
METAL_FUNC uint extract_bits(uint x, uint offset, uint bits) {
    return bits == 0 ? 0 : x >> offset & 0xffffffffu >> (32 - bits);
}
METAL_FUNC int extract_bits(int x, uint offset, uint bits) {
    return bits == 0 ? 0 : x << (32 - bits - offset) >> (32 - bits);
}
METAL_FUNC uint insert_bits(uint base, uint insert, uint offset, uint bits) {
    uint mask = bits == 0 ? 0 : 0xffffffffu >> (32 - bits) << offset;
    return (base & ~mask) | (insert << offset & mask);
}
METAL_FUNC uint mulhi(uint a, uint b) { return ulong(a) * b >> 32; }
METAL_FUNC int mulhi(int a, int b) { return long(a) * b >> 32; }
METAL_FUNC uint mul24(uint a, uint b) { return (a & 0xffffff) * (b & 0xffffff); }
METAL_FUNC uint mad24(uint a, uint b, uint c) { return mul24(a, b) + c; }
METAL_FUNC uint absdiff(int a, int b) { return a < b ? uint(b) - uint(a) : uint(a) - uint(b); }
METAL_FUNC uint absdiff(uint a, uint b) { return a < b ? b - a : a - b; }
} // namespace metal
