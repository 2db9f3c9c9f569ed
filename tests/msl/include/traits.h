// <metal_type_traits>, <metal_limits>, and what the host asks of a vector type.
#pragma once

namespace metal {
template <typename T, T v>
struct integral_constant {
    static constexpr __constant T value = v;
    using value_type = T;
    using type = integral_constant;
    constexpr operator T() const { return v; }
};
template <bool b>
using bool_constant = integral_constant<bool, b>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;

template <bool, typename T = void>
struct enable_if {};
template <typename T>
struct enable_if<true, T> {
    using type = T;
};
template <bool b, typename T = void>
using enable_if_t = typename enable_if<b, T>::type;

template <bool, typename A, typename B>
struct conditional {
    using type = A;
};
template <typename A, typename B>
struct conditional<false, A, B> {
    using type = B;
};
template <bool b, typename A, typename B>
using conditional_t = typename conditional<b, A, B>::type;

#define MSL_REMOVE(NAME, ...)                                                                                          \
    template <typename T>                                                                                              \
    struct NAME<__VA_ARGS__> {                                                                                         \
        using type = T;                                                                                                \
    };
template <typename T>
struct remove_reference {
    using type = T;
};
MSL_REMOVE(remove_reference, T&)
MSL_REMOVE(remove_reference, __private T&)
MSL_REMOVE(remove_reference, __constant T&)
MSL_REMOVE(remove_reference, __global T&)
MSL_REMOVE(remove_reference, __local T&)
template <typename T>
struct remove_cv {
    using type = T;
};
MSL_REMOVE(remove_cv, const T)
MSL_REMOVE(remove_cv, volatile T)
MSL_REMOVE(remove_cv, const volatile T)
#undef MSL_REMOVE
template <typename T>
using remove_reference_t = typename remove_reference<T>::type;
template <typename T>
using remove_cv_t = typename remove_cv<T>::type;
template <typename T>
using remove_const_t = remove_cv_t<T>;

template <typename A, typename B>
constexpr __constant bool is_same_v = __is_same(A, B);
template <typename A, typename B>
struct is_same : bool_constant<__is_same(A, B)> {};
template <typename T>
constexpr __constant bool is_integral_v = __is_integral(T);
template <typename T>
struct is_integral : bool_constant<__is_integral(T)> {};
template <typename T>
constexpr __constant bool is_floating_point_v =
    is_same_v<remove_cv_t<T>, float> || is_same_v<remove_cv_t<T>, half> || is_same_v<remove_cv_t<T>, bfloat>;
template <typename T>
constexpr __constant bool is_arithmetic_v = is_integral_v<remove_cv_t<T>> || is_floating_point_v<T>;
template <typename T>
struct is_floating_point : bool_constant<is_floating_point_v<T>> {};
template <typename T>
constexpr __constant bool is_signed_v = __is_signed(T);
template <typename T>
constexpr __constant bool is_unsigned_v = __is_unsigned(T);
template <typename A, typename B>
constexpr __constant bool is_convertible_v = __is_convertible(A, B);
template <typename T>
using make_unsigned_t = __make_unsigned(T);
template <typename T>
using make_signed_t = __make_signed(T);

template <typename T>
struct numeric_limits;
#define MSL_LIMITS(T, MIN, MAX, LOWEST, INF, EPSILON, QUIET)                                                           \
    template <>                                                                                                        \
    struct numeric_limits<T> {                                                                                         \
        static constexpr T min() { return MIN; }                                                                       \
        static constexpr T max() { return MAX; }                                                                       \
        static constexpr T lowest() { return LOWEST; }                                                                 \
        static constexpr T infinity() { return INF; }                                                                  \
        static constexpr T epsilon() { return EPSILON; }                                                               \
        static constexpr T quiet_NaN() { return QUIET; }                                                               \
    };
#define MSL_INTEGER(T, MIN, MAX) MSL_LIMITS(T, (T)(MIN), (T)(MAX), (T)(MIN), (T)0, (T)0, (T)0)
MSL_LIMITS(float, FLT_MIN, FLT_MAX, -FLT_MAX, INFINITY, FLT_EPSILON, NAN)
MSL_LIMITS(half, half(6.103515625e-5f), half(65504.f), half(-65504.f), half(INFINITY), half(9.765625e-4f), half(NAN))
MSL_LIMITS(bfloat, bfloat(FLT_MIN), bfloat(3.3895314e38f), bfloat(-3.3895314e38f), bfloat(INFINITY), bfloat(7.8125e-3f),
           bfloat(NAN))
MSL_INTEGER(bool, 0, 1)
MSL_INTEGER(char, -128, 127)
MSL_INTEGER(signed char, -128, 127)
MSL_INTEGER(uchar, 0, 255)
MSL_INTEGER(short, -32768, 32767)
MSL_INTEGER(ushort, 0, 65535)
MSL_INTEGER(int, INT_MIN, INT_MAX)
MSL_INTEGER(uint, 0, UINT_MAX)
MSL_INTEGER(long, -LONG_MAX - 1, LONG_MAX)
MSL_INTEGER(ulong, 0, ULONG_MAX)
#undef MSL_INTEGER
#undef MSL_LIMITS

// The element and the number of elements of a vector, or of a scalar.
template <typename T>
struct msl_vector {
    using element = T;
    enum { size = 1 };
};
#define MSL_VECTOR(N)                                                                                                  \
    template <typename T>                                                                                              \
    struct msl_vector<vec<T, N>> {                                                                                     \
        using element = T;                                                                                             \
        enum { size = N };                                                                                             \
    };
MSL_VECTOR(2)
MSL_VECTOR(3)
MSL_VECTOR(4)
#undef MSL_VECTOR
} // namespace metal
