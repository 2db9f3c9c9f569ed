// Conversions and constructors: the translator makes msl_make<T4>(a, b, ...) of T4(a, b, ...).
#pragma once

namespace metal {
template <typename R, typename T>
METAL_FUNC R as_type(T x) {
    static_assert(sizeof(R) == sizeof(T), "as_type: the sizes differ");
    return __builtin_bit_cast(R, x);
}

// clang refuses half to bfloat and back, which Metal takes where it is written as a conversion.
template <typename R, typename T>
METAL_FUNC constexpr R msl_convert(T x) {
    if constexpr ((is_same_v<R, bfloat> && is_same_v<T, half>) || (is_same_v<R, half> && is_same_v<T, bfloat>))
        return static_cast<R>(static_cast<float>(x));
    else
        return static_cast<R>(x);
}

// Whether clang converts A to R by itself.
template <typename R, typename A>
constexpr __constant bool msl_has_builtin =
    int(msl_vector<R>::size) == int(msl_vector<A>::size) && msl_vector<A>::size > 1 &&
    is_same_v<typename msl_vector<R>::element, bfloat> == is_same_v<typename msl_vector<A>::element, bfloat>;

template <typename R, int I>
METAL_FUNC constexpr void msl_fill(__private R&) {
    static_assert(I == msl_vector<R>::size, "wrong number of elements for a vector");
}
template <typename R, int I, typename A, typename... Rest>
METAL_FUNC constexpr void msl_fill(__private R& r, A a, Rest... rest) {
    using E = typename msl_vector<R>::element;
    if constexpr (msl_vector<A>::size == 1) {
        r[I] = msl_convert<E>(a);
    } else {
        for (int i = 0; i < msl_vector<A>::size; i++) r[I + i] = msl_convert<E>(a[i]);
    }
    msl_fill<R, I + msl_vector<A>::size>(r, rest...);
}

template <typename T>
METAL_FUNC constexpr T msl_unpacked(T x) {
    return x;
}

// A comparison as the number that Metal makes of it.
template <typename T, int N>
METAL_FUNC constexpr vec<T, N> msl_truth(vec<T, N> x) {
    return x & T(1);
}
METAL_FUNC constexpr bool msl_truth(bool x) { return x; }

// Checked mode converts element by element, as the sanitizer sees no others.
#ifdef MSL_CHECKED
constant constexpr bool MSL_CONVERTS_AT_ONCE = false;
#else
constant constexpr bool MSL_CONVERTS_AT_ONCE = true;
#endif

template <typename R, typename A, typename... Rest>
METAL_FUNC constexpr R msl_build(A a, Rest... rest) {
    using E = typename msl_vector<R>::element;
    if constexpr (msl_vector<R>::size == 1) {
        static_assert(sizeof...(Rest) == 0, "more than one value for a scalar");
        return msl_convert<R>(a);
    } else if constexpr (sizeof...(Rest) == 0 && msl_vector<A>::size == 1) {
        R r = msl_convert<E>(a);
        return r;
    } else if constexpr (sizeof...(Rest) == 0 && msl_has_builtin<R, A> && MSL_CONVERTS_AT_ONCE) {
        return __builtin_convertvector(a, R); // all elements in one instruction
    } else if constexpr (sizeof...(Rest) + 1 == msl_vector<R>::size && (... && (msl_vector<Rest>::size == 1))) {
        return R{msl_convert<E>(a), msl_convert<E>(rest)...};
    } else {
        R r = R{};
        msl_fill<R, 0>(r, a, rest...);
        return r;
    }
}
template <typename R, typename... A>
METAL_FUNC constexpr R msl_make(A... a) {
    if constexpr (sizeof...(A) == 0)
        return R{};
    else if constexpr (!is_arithmetic_v<typename msl_vector<R>::element>)
        return R(a...); // a struct or pointer, for a template's parameter
    else
        return msl_build<R>(msl_unpacked(a)...);
}

// Braces as an argument, of a type that only the parameter tells.
template <typename... A>
struct msl_list;
template <typename A, typename B>
struct msl_list<A, B> {
    A a;
    B b;
    template <typename T>
    operator T() const {
        if constexpr (msl_vector<T>::size > 1)
            return msl_make<T>(a, b);
        else
            return T{a, b};
    }
};
template <typename A, typename B, typename C>
struct msl_list<A, B, C> {
    A a;
    B b;
    C c;
    template <typename T>
    operator T() const {
        if constexpr (msl_vector<T>::size > 1)
            return msl_make<T>(a, b, c);
        else
            return T{a, b, c};
    }
};
template <typename... A>
METAL_FUNC msl_list<A...> msl_braces(A... a) {
    return {a...};
}

template <typename T, size_t N>
struct array {
    T msl_elements[N];
    constexpr __private T& operator[](size_t i) __private { return msl_elements[i]; }
    constexpr const __private T& operator[](size_t i) const __private { return msl_elements[i]; }
    constexpr const __constant T& operator[](size_t i) const __constant { return msl_elements[i]; }
    constexpr size_t size() const { return N; }
};

// C columns of R rows.
template <typename T, int C, int R>
struct matrix {
    vec<T, R> msl_columns[C];
    matrix() = default;
    template <typename... A>
    matrix(vec<T, R> a, A... rest) : msl_columns{a, rest...} {}
    __private vec<T, R>& operator[](int i) __private { return msl_columns[i]; }
    const __private vec<T, R>& operator[](int i) const __private { return msl_columns[i]; }
};
#define MSL_MATRIX(C, R)                                                                                               \
    typedef matrix<float, C, R> float##C##x##R;                                                                        \
    typedef matrix<half, C, R> half##C##x##R;
MSL_MATRIX(2, 2)
MSL_MATRIX(2, 4)
MSL_MATRIX(4, 2)
MSL_MATRIX(4, 4)
#undef MSL_MATRIX
} // namespace metal
using metal::as_type;
using metal::vec;
