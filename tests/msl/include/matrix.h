// <metal_simdgroup_matrix>: 8 x 8 elements, two a thread.
#pragma once

namespace metal {
// Where a thread's two elements are: at (row, column) and (row, column + 1).
METAL_FUNC uint msl_row(uint lane) { return (lane / 4 & 4) + lane / 2 % 4; }
METAL_FUNC uint msl_column(uint lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }

template <typename T, int R, int C>
struct simdgroup_matrix {
    static_assert(R == 8 && C == 8, "a simdgroup_matrix is 8 x 8");
    vec<T, 2> msl_elements;

    simdgroup_matrix() = default;
    explicit simdgroup_matrix(T diagonal) {
        int off = int(msl_row(msl_lane())) - int(msl_column(msl_lane()));
        msl_elements[0] = off == 0 ? diagonal : T(0);
        msl_elements[1] = off == 1 ? diagonal : T(0);
    }
    __private vec<T, 2>& thread_elements() __private { return msl_elements; }
    const __private vec<T, 2>& thread_elements() const __private { return msl_elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <typename T, int R, int C>
METAL_FUNC simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T value) {
    simdgroup_matrix<T, R, C> m;
    m.msl_elements[0] = m.msl_elements[1] = value;
    return m;
}

// d = a b, or a b + c
template <typename D, typename A, typename B, typename C>
struct msl_product {
    __private vec<D, 2>* d;
    __private const vec<A, 2>* a;
    __private const vec<B, 2>* b;
    __private const vec<C, 2>* c;

    static void run(__private void* __private* p, uint mask) {
        float a[8][8];
        vec<float, 8> b[8], c[8];
        for (int i = 0; i < 32; i++) {
            if (!(mask >> i & 1)) {
                msl_inactive(i);
                return;
            }
            __private msl_product& m = *(__private msl_product*)p[i];
            uint row = msl_row(i), column = msl_column(i);
            for (uint j = 0; j < 2; j++) {
                a[row][column + j] = float((*m.a)[j]);
                b[row][column + j] = float((*m.b)[j]);
                c[row][column + j] = m.c ? float((*m.c)[j]) : 0;
            }
        }
        for (int i = 0; i < 8; i++)
            for (int k = 0; k < 8; k++) c[i] += a[i][k] * b[k];
        for (int i = 0; i < 32; i++)
            for (uint j = 0; j < 2; j++) (*((__private msl_product*)p[i])->d)[j] = D(c[msl_row(i)][msl_column(i) + j]);
    }
};
template <typename D, typename A, typename B, typename C>
METAL_FUNC void simdgroup_multiply_accumulate(__private simdgroup_matrix<D, 8, 8>& d,
                                              const __private simdgroup_matrix<A, 8, 8>& a,
                                              const __private simdgroup_matrix<B, 8, 8>& b,
                                              const __private simdgroup_matrix<C, 8, 8>& c) {
    msl_collective_of((ulong)&msl_product<D, A, B, C>::run, &d.msl_elements, &a.msl_elements, &b.msl_elements,
                      &c.msl_elements);
}
template <typename D, typename A, typename B>
METAL_FUNC void simdgroup_multiply(__private simdgroup_matrix<D, 8, 8>& d, const __private simdgroup_matrix<A, 8, 8>& a,
                                   const __private simdgroup_matrix<B, 8, 8>& b) {
    msl_collective_of((ulong)&msl_product<D, A, B, D>::run, &d.msl_elements, &a.msl_elements, &b.msl_elements, 0);
}

// All threads must take part, though none needs to wait for the others.
struct msl_whole {
    static void run(__private void* __private*, uint mask) {
        for (int i = 0; i < 32; i++)
            if (!(mask >> i & 1)) return msl_inactive(i);
    }
};
METAL_FUNC void msl_check_whole() {
#ifdef MSL_CHECKED
    msl_collective((ulong)&msl_whole::run, 0);
#endif
}

// Element (r, c) is at source[(r + origin.y) * elements_per_row + c + origin.x], or with r and c exchanged.
#define MSL_MOVE(SPACE)                                                                                                \
    template <typename T>                                                                                              \
    METAL_FUNC void simdgroup_load(__private simdgroup_matrix<T, 8, 8>& m, const SPACE T* source,                      \
                                   ulong elements_per_row = 8, ulong2 origin = 0, bool transpose = false) {            \
        msl_check_whole();                                                                                             \
        ulong r = msl_row(msl_lane()), c = msl_column(msl_lane());                                                     \
        const SPACE T* from = source + origin.y * elements_per_row + origin.x;                                         \
        for (ulong j = 0; j < 2; j++)                                                                                  \
            m.msl_elements[j] = from[transpose ? (c + j) * elements_per_row + r : r * elements_per_row + c + j];       \
    }                                                                                                                  \
    template <typename T>                                                                                              \
    METAL_FUNC void simdgroup_store(simdgroup_matrix<T, 8, 8> m, SPACE T* target, ulong elements_per_row = 8,          \
                                    ulong2 origin = 0, bool transpose = false) {                                       \
        msl_check_whole();                                                                                             \
        ulong r = msl_row(msl_lane()), c = msl_column(msl_lane());                                                     \
        SPACE T* to = target + origin.y * elements_per_row + origin.x;                                                 \
        for (ulong j = 0; j < 2; j++)                                                                                  \
            to[transpose ? (c + j) * elements_per_row + r : r * elements_per_row + c + j] = m.msl_elements[j];         \
    }
MSL_MOVE(__global)
MSL_MOVE(__local)
#undef MSL_MOVE
} // namespace metal
