// <metal_math>: float, half and their vectors; bfloat scalars, as MLX has them. half is computed in float and rounded.
#pragma once

#define MSL_EACH(NAME, T, N)                                                                                           \
    METAL_FUNC T##N NAME(T##N x) {                                                                                     \
        T##N r = x;                                                                                                    \
        for (int i = 0; i < N; i++) r[i] = NAME(T(x[i]));                                                              \
        return r;                                                                                                      \
    }
#define MSL_EACH2(NAME, T, N)                                                                                          \
    METAL_FUNC T##N NAME(T##N x, T##N y) {                                                                             \
        T##N r = x;                                                                                                    \
        for (int i = 0; i < N; i++) r[i] = NAME(T(x[i]), T(y[i]));                                                     \
        return r;                                                                                                      \
    }
#define MSL_EACH3(NAME, T, N)                                                                                          \
    METAL_FUNC T##N NAME(T##N x, T##N y, T##N z) {                                                                     \
        T##N r = x;                                                                                                    \
        for (int i = 0; i < N; i++) r[i] = NAME(T(x[i]), T(y[i]), T(z[i]));                                            \
        return r;                                                                                                      \
    }
#define MSL_SIZES(EACH, NAME, T) EACH(NAME, T, 2) EACH(NAME, T, 3) EACH(NAME, T, 4)
#define MSL_FLOATS(EACH, NAME) MSL_SIZES(EACH, NAME, float) MSL_SIZES(EACH, NAME, half)

#define MSL_MATH1(NAME, ...)                                                                                           \
    METAL_FUNC float NAME(float x) { return __VA_ARGS__; }                                                             \
    METAL_FUNC half NAME(half x) { return half(NAME(float(x))); }                                                      \
    METAL_FUNC bfloat NAME(bfloat x) { return bfloat(NAME(float(x))); }                                                \
    MSL_FLOATS(MSL_EACH, NAME)
#define MSL_MATH2(NAME, ...)                                                                                           \
    METAL_FUNC float NAME(float x, float y) { return __VA_ARGS__; }                                                    \
    METAL_FUNC half NAME(half x, half y) { return half(NAME(float(x), float(y))); }                                    \
    METAL_FUNC bfloat NAME(bfloat x, bfloat y) { return bfloat(NAME(float(x), float(y))); }                            \
    MSL_FLOATS(MSL_EACH2, NAME)
#define MSL_MATH3(NAME, ...)                                                                                           \
    METAL_FUNC float NAME(float x, float y, float z) { return __VA_ARGS__; }                                           \
    METAL_FUNC half NAME(half x, half y, half z) { return half(NAME(float(x), float(y), float(z))); }                  \
    METAL_FUNC bfloat NAME(bfloat x, bfloat y, bfloat z) { return bfloat(NAME(float(x), float(y), float(z))); }        \
    MSL_FLOATS(MSL_EACH3, NAME)

// The functions that fast:: and precise:: have too; here both are the precise ones, but fast::sin and cos (below).
#define MSL_MATH                                                                                                       \
    MSL_MATH1(acos, __builtin_acosf(x))                                                                                \
    MSL_MATH1(acosh, __builtin_acoshf(x))                                                                              \
    MSL_MATH1(asin, __builtin_asinf(x))                                                                                \
    MSL_MATH1(asinh, __builtin_asinhf(x))                                                                              \
    MSL_MATH1(atan, __builtin_atanf(x))                                                                                \
    MSL_MATH1(atanh, __builtin_atanhf(x))                                                                              \
    MSL_MATH1(ceil, __builtin_ceilf(x))                                                                                \
    MSL_MATH1(cosh, __builtin_coshf(x))                                                                                \
    MSL_MATH1(cospi, __builtin_cosf(x* M_PI_F))                                                                        \
    MSL_MATH1(exp, __builtin_expf(x))                                                                                  \
    MSL_MATH1(exp10, __builtin_powf(10.0f, x))                                                                         \
    MSL_MATH1(exp2, __builtin_exp2f(x))                                                                                \
    MSL_MATH1(fabs, __builtin_fabsf(x))                                                                                \
    MSL_MATH1(floor, __builtin_floorf(x))                                                                              \
    MSL_MATH1(fract, fmin(x - __builtin_floorf(x), 0x1.fffffep-1f))                                                    \
    MSL_MATH1(log, __builtin_logf(x))                                                                                  \
    MSL_MATH1(log10, __builtin_log10f(x))                                                                              \
    MSL_MATH1(log2, __builtin_log2f(x))                                                                                \
    MSL_MATH1(rint, __builtin_rintf(x))                                                                                \
    MSL_MATH1(round, __builtin_roundf(x))                                                                              \
    MSL_MATH1(rsqrt, 1.0f / __builtin_sqrtf(x))                                                                        \
    MSL_MATH1(saturate, fmin(fmax(x, 0.0f), 1.0f))                                                                     \
    MSL_MATH1(sign, x > 0 ? 1.0f : x < 0 ? -1.0f : x == 0 ? x : 0.0f)                                                  \
    MSL_MATH1(sinh, __builtin_sinhf(x))                                                                                \
    MSL_MATH1(sinpi, __builtin_sinf(x* M_PI_F))                                                                        \
    MSL_MATH1(sqrt, __builtin_sqrtf(x))                                                                                \
    MSL_MATH1(tan, __builtin_tanf(x))                                                                                  \
    MSL_MATH1(tanh, __builtin_tanhf(x))                                                                                \
    MSL_MATH1(tanpi, __builtin_tanf(x* M_PI_F))                                                                        \
    MSL_MATH1(trunc, __builtin_truncf(x))                                                                              \
    MSL_MATH2(atan2, __builtin_atan2f(x, y))                                                                           \
    MSL_MATH2(copysign, __builtin_copysignf(x, y))                                                                     \
    MSL_MATH2(divide, x / y)                                                                                           \
    MSL_MATH2(fdim, __builtin_fdimf(x, y))                                                                             \
    MSL_MATH2(fmod, __builtin_fmodf(x, y))                                                                             \
    MSL_MATH2(pow, __builtin_powf(x, y))                                                                               \
    MSL_MATH2(powr, __builtin_powf(x, y))                                                                              \
    MSL_MATH3(mix, x + (y - x) * z)                                                                                    \
    MSL_MATH3(smoothstep, ((y = saturate((z - x) / (y - x))), y * y * (3 - 2 * y)))                                    \
    MSL_MATH2(step, y < x ? 0.0f : 1.0f)

#define MSL_ANGLES                                                                                                     \
    MSL_MATH1(cos, __builtin_cosf(x))                                                                                  \
    MSL_MATH1(sin, __builtin_sinf(x))
// Metal bounds the error of the fast ones in [-pi, pi] only.
#define MSL_FAST_ANGLE(VALUE) (__builtin_fabsf(x) <= M_PI_F ? VALUE : NAN)
#define MSL_FAST_ANGLES                                                                                                \
    MSL_MATH1(cos, MSL_FAST_ANGLE(__builtin_cosf(x)))                                                                  \
    MSL_MATH1(sin, MSL_FAST_ANGLE(__builtin_sinf(x)))

namespace metal {
MSL_MATH2(fmin, __builtin_fminf(x, y))
MSL_MATH2(fmax, __builtin_fmaxf(x, y))
MSL_MATH3(fma, __builtin_fmaf(x, y, z))
MSL_ANGLES
MSL_MATH

#define MSL_MIN_MAX(T)                                                                                                 \
    METAL_FUNC T min(T x, T y) { return y < x ? y : x; }                                                               \
    METAL_FUNC T max(T x, T y) { return x < y ? y : x; }
#define MSL_MIN_MAX_FLOAT(T)                                                                                           \
    METAL_FUNC T min(T x, T y) { return fmin(x, y); }                                                                  \
    METAL_FUNC T max(T x, T y) { return fmax(x, y); }
// a scalar bound holds for every element
#define MSL_BOUNDS(T, N)                                                                                               \
    METAL_FUNC T##N min(T##N x, T y) { return min(x, T##N(y)); }                                                       \
    METAL_FUNC T##N max(T##N x, T y) { return max(x, T##N(y)); }                                                       \
    METAL_FUNC T##N clamp(T##N x, T low, T high) { return min(max(x, T##N(low)), T##N(high)); }
#define MSL_RANGES(T)                                                                                                  \
    METAL_FUNC T clamp(T x, T low, T high) { return min(max(x, low), high); }                                          \
    METAL_FUNC T min3(T x, T y, T z) { return min(x, min(y, z)); }                                                     \
    METAL_FUNC T max3(T x, T y, T z) { return max(x, max(y, z)); }
#define MSL_RANGE_VECTORS(T)                                                                                           \
    MSL_SIZES(MSL_EACH2, min, T)                                                                                       \
    MSL_SIZES(MSL_EACH2, max, T)                                                                                       \
    MSL_SIZES(MSL_EACH3, clamp, T)                                                                                     \
    MSL_BOUNDS(T, 2) MSL_BOUNDS(T, 3) MSL_BOUNDS(T, 4)
#define MSL_INTEGER(T) MSL_MIN_MAX(T) MSL_RANGES(T) MSL_RANGE_VECTORS(T)
MSL_INTEGER(char)
MSL_INTEGER(uchar)
MSL_INTEGER(short)
MSL_INTEGER(ushort)
MSL_INTEGER(int)
MSL_INTEGER(uint)
MSL_INTEGER(long)
MSL_INTEGER(ulong)
MSL_MIN_MAX(signed char)
MSL_RANGES(signed char)
MSL_MIN_MAX_FLOAT(float)
MSL_MIN_MAX_FLOAT(half)
MSL_MIN_MAX_FLOAT(bfloat)
MSL_RANGES(float)
MSL_RANGES(half)
MSL_RANGES(bfloat)
MSL_RANGE_VECTORS(float)
MSL_RANGE_VECTORS(half)
#undef MSL_INTEGER
#undef MSL_MIN_MAX

METAL_FUNC float abs(float x) { return fabs(x); }
METAL_FUNC half abs(half x) { return fabs(x); }
METAL_FUNC bfloat abs(bfloat x) { return fabs(x); }
MSL_FLOATS(MSL_EACH, abs)

#define MSL_CLASSIFY(NAME)                                                                                             \
    METAL_FUNC bool NAME(float x) { return __builtin_##NAME(x); }                                                      \
    METAL_FUNC bool NAME(half x) { return NAME(float(x)); }                                                            \
    METAL_FUNC bool NAME(bfloat x) { return NAME(float(x)); }
MSL_CLASSIFY(isnan)
MSL_CLASSIFY(isinf)
MSL_CLASSIFY(isfinite)
MSL_CLASSIFY(isnormal)
MSL_CLASSIFY(signbit)
#undef MSL_CLASSIFY

METAL_FUNC float ldexp(float x, int n) { return __builtin_ldexpf(x, n); }
METAL_FUNC half ldexp(half x, int n) { return half(__builtin_ldexpf(x, n)); }
METAL_FUNC float nextafter(float x, float y) { return __builtin_nextafterf(x, y); }
METAL_FUNC float frexp(float x, __private int& n) {
    int e;
    x = __builtin_frexpf(x, &e);
    n = e;
    return x;
}
METAL_FUNC float modf(float x, __private float& whole) {
    whole = trunc(x);
    return copysign(x - whole, x);
}
METAL_FUNC float sincos(float x, __private float& c) {
    c = cos(x);
    return sin(x);
}

template <typename T, int N>
METAL_FUNC T dot(vec<T, N> a, vec<T, N> b) {
    T sum = a[0] * b[0];
    for (int i = 1; i < N; i++) sum += a[i] * b[i];
    return sum;
}
template <typename T, int N>
METAL_FUNC T length_squared(vec<T, N> a) {
    return dot(a, a);
}
template <typename T, int N>
METAL_FUNC T length(vec<T, N> a) {
    return sqrt(dot(a, a));
}

template <typename T>
METAL_FUNC T select(T a, T b, bool c) {
    return c ? b : a;
}
template <typename T, typename C, int N>
METAL_FUNC vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<C, N> c) {
    for (int i = 0; i < N; i++) a[i] = c[i] ? b[i] : a[i];
    return a;
}
template <typename C, int N>
METAL_FUNC bool any(vec<C, N> c) {
    bool found = false;
    for (int i = 0; i < N; i++) found |= c[i] != 0;
    return found;
}
template <typename C, int N>
METAL_FUNC bool all(vec<C, N> c) {
    bool every = true;
    for (int i = 0; i < N; i++) every &= c[i] != 0;
    return every;
}

namespace fast {
MSL_MATH2(fmin, __builtin_fminf(x, y))
MSL_MATH2(fmax, __builtin_fmaxf(x, y))
MSL_FAST_ANGLES
MSL_MATH
MSL_MIN_MAX_FLOAT(float)
MSL_MIN_MAX_FLOAT(half)
} // namespace fast
namespace precise {
MSL_MATH2(fmin, __builtin_fminf(x, y))
MSL_MATH2(fmax, __builtin_fmaxf(x, y))
MSL_MATH3(fma, __builtin_fmaf(x, y, z))
MSL_ANGLES
MSL_MATH
MSL_MIN_MAX_FLOAT(float)
MSL_MIN_MAX_FLOAT(half)
} // namespace precise
} // namespace metal
