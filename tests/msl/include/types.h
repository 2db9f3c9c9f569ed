// Scalars, vectors and constants.
#pragma once

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef uchar uint8_t;
typedef short int16_t;
typedef ushort uint16_t;
typedef int int32_t;
typedef uint uint32_t;
typedef long int64_t;
typedef ulong uint64_t;
typedef ulong size_t;
typedef long ptrdiff_t;
typedef ulong uintptr_t;
typedef __bf16 bfloat;

namespace metal {
template <typename T, int N>
using vec = T __attribute__((ext_vector_type(N)));
}

// A packed vector has the alignment of an element. Three elements make a struct, for clang pads three to four.
#define MSL_VECTORS(T, NAME)                                                                                           \
    typedef metal::vec<T, 2> NAME##2;                                                                                  \
    typedef metal::vec<T, 3> NAME##3;                                                                                  \
    typedef metal::vec<T, 4> NAME##4;                                                                                  \
    typedef T packed_##NAME##2 __attribute__((ext_vector_type(2), aligned(sizeof(T))));                                \
    typedef T packed_##NAME##4 __attribute__((ext_vector_type(4), aligned(sizeof(T))));                                \
    struct packed_##NAME##3 {                                                                                          \
        T x, y, z;                                                                                                     \
        packed_##NAME##3() = default;                                                                                  \
        packed_##NAME##3(NAME##3 v) : x(v.x), y(v.y), z(v.z) {}                                                        \
        operator NAME##3() const { return NAME##3 {x, y, z}; }                                                         \
    };                                                                                                                 \
    namespace metal {                                                                                                  \
    using ::NAME##2;                                                                                                   \
    using ::NAME##3;                                                                                                   \
    using ::NAME##4;                                                                                                   \
    METAL_FUNC NAME##3 msl_unpacked(packed_##NAME##3 v) { return v; }                                                  \
    }
MSL_VECTORS(char, char)
MSL_VECTORS(uchar, uchar)
MSL_VECTORS(short, short)
MSL_VECTORS(ushort, ushort)
MSL_VECTORS(int, int)
MSL_VECTORS(uint, uint)
MSL_VECTORS(long, long)
MSL_VECTORS(ulong, ulong)
MSL_VECTORS(half, half)
MSL_VECTORS(float, float)
MSL_VECTORS(bfloat, bfloat)
#undef MSL_VECTORS

// A comparison of vectors gives -1 and 0 in elements of the operands' size; these are the 32-bit ones.
typedef int2 bool2;
typedef int3 bool3;
typedef int4 bool4;

#define INFINITY (__builtin_inff())
#define NAN (__builtin_nanf(""))
#define MAXFLOAT 3.40282346638528859812e+38f
#define HUGE_VALF INFINITY
#define FLT_MAX MAXFLOAT
#define FLT_MIN 1.17549435e-38f
#define FLT_EPSILON 1.1920929e-7f
#define HALF_MAX 65504.0h
#define CHAR_BIT 8
#define SHRT_MAX 32767
#define USHRT_MAX 65535
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u
#define LONG_MAX 9223372036854775807l
#define ULONG_MAX 18446744073709551615ul
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LOG10E_F 0.43429448190325182765f
#define M_LN2_F 0.69314718055994530942f
#define M_LN10_F 2.30258509299404568402f
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_1_PI_F 0.31830988618379067154f
#define M_2_SQRTPI_F 1.12837916709551257390f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.70710678118654752440f
