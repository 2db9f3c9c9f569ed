// <metal_tensor> and mpp::tensor_ops::matmul2d, as far as kernels here use them: the product of two inline tensors of
// rank 2 by one simdgroup, into a cooperative tensor.
//
// The meaning is that of the comments in MPPTensorOpsMatMul2d.h of Apple's SDKs (26.1) and of the call sites in
// llama.cpp's Metal kernels (mul_mm, mul_mm_id), which run on GPUs:
// - The first extent of a tensor is that whose elements are adjacent. Without strides, rows follow one another.
// - run(left, right, destination): destination (m, n) = left (m, k) right (k, n), plus the destination in the mode
//   multiply_accumulate. A left tensor has extents (k, m), or (m, k) if it is transposed; a right one (n, k), or (k,
//   n).
// - All threads of the scope must call run, which synchronises among them as it needs.
// - A cooperative tensor's layout is the implementation's choice, and not all elements are valid: is_valid_element
//   (since 26.2) says which are. get_multidimensional_index gives (n, m), local to the tile.
// What is assumed: elements are undefined at first (NaN here); halves are multiplied exactly and summed in float
// without relaxed_precision; m, n and k are multiples of 16, as in every known use, while no document read here states
// a rule; the threads of the scope read the operands' memory, so that writes of others need a barrier before run.
#pragma once

namespace metal {
struct tensor_inline {};

template <typename I, size_t... E>
struct extents {
    static_assert(sizeof...(E) == 2, "the host has tensors of rank 2");
    static constexpr size_t msl_extent(int i) { return (const size_t[]){E...}[i]; }
};

template <typename T, typename E, typename D>
struct tensor {
    typedef E msl_extents;
    T* msl_data;

    tensor(T* data, E) : msl_data(data) {}
};

template <size_t N>
struct execution_simdgroups {};
typedef execution_simdgroups<1> execution_simdgroup;
} // namespace metal

namespace mpp {
namespace tensor_ops {
struct matmul2d_descriptor {
    enum class mode { multiply, multiply_accumulate };
};

// What a descriptor that is a template argument becomes.
template <int M, int N, int K, bool L, bool R, bool RELAXED, matmul2d_descriptor::mode MODE>
struct msl_descriptor {
    static constexpr __constant int m = M, n = N, k = K;
    static constexpr __constant bool left = L, right = R;
    static constexpr __constant bool adds = MODE == matmul2d_descriptor::mode::multiply_accumulate;
    static_assert(m % 16 == 0 && n % 16 == 0 && k % 16 == 0, "m, n and k are multiples of 16");
    static_assert(!RELAXED, "the host has no relaxed precision");
};

// m x n elements of a simdgroup, scattered, and one invalid element in each thread.
template <typename T, int M, int N>
struct msl_cooperative {
    static constexpr __constant int msl_size = M * N, msl_capacity = M * N / 32 + 1, msl_invalid = 1;
    T msl_elements[msl_capacity];

    msl_cooperative() {
        for (int i = 0; i < msl_capacity; i++) msl_elements[i] = T(__builtin_nanf(""));
    }
    // The place in the tile, by rows, of element i of a lane.
    static int msl_place(int lane, int i) {
        int valid = i < msl_invalid ? i : i - 1;
        return ((lane * (msl_capacity - 1) + valid) * 37 + 11) % msl_size;
    }
    ushort get_capacity() const __private { return msl_capacity; }
    bool is_valid_element(ushort i) const __private { return i < msl_capacity && i != msl_invalid; }
    metal::array<int, 2> get_multidimensional_index(ushort i) const __private {
        int place = i == msl_invalid ? msl_size : msl_place(msl_lane(), i);
        return {place % N, place / N};
    }
    __private T& operator[](ushort i) __private { return msl_elements[i]; }
    const __private T& operator[](ushort i) const __private { return msl_elements[i]; }
};

// Of 32 elements of an operand: that which a lane reads, which is hardly the one it wrote, and who reads an element.
METAL_FUNC int msl_element(int lane) { return (lane + 7) % 32; }
METAL_FUNC int msl_reader(int element) { return (element + 25) % 32; }

// One simdgroup's product. A lane has read every 32nd element of either operand.
template <typename D, typename L, typename R, typename T>
struct msl_tensor_product {
    L left[D::m * D::k / 32];
    R right[D::n * D::k / 32];
    __private msl_cooperative<T, D::m, D::n>* sums;

    static void run(__private void* __private* p, uint mask) {
        if (mask != 0xffffffff) return msl_inactive(__builtin_ctz(~mask));
        for (int lane = 0; lane < 32; lane++) {
            __private auto& sums = *((__private msl_tensor_product*)p[lane])->sums;
            for (int i = 0; i < sums.get_capacity(); i++) {
                if (!sums.is_valid_element(i)) continue;
                int place = sums.msl_place(lane, i), m = place / D::n, n = place % D::n;
                T sum = D::adds ? sums[i] : T(0);
                for (int k = 0; k < D::k; k++) {
                    int a = D::left ? k * D::m + m : m * D::k + k, b = D::right ? n * D::k + k : k * D::n + n;
                    sum += T(((__private msl_tensor_product*)p[msl_reader(a)])->left[a / 32]) *
                           T(((__private msl_tensor_product*)p[msl_reader(b)])->right[b / 32]);
                }
                sums[i] = sum;
            }
        }
    }
};

template <typename D, typename S>
struct matmul2d {
    static_assert(metal::is_same_v<S, metal::execution_simdgroup>, "the host has products of one simdgroup");

    template <typename L, typename R, typename T>
    msl_cooperative<T, D::m, D::n> get_destination_cooperative_tensor() const __private {
        return msl_cooperative<T, D::m, D::n>();
    }

    template <typename A, typename LE, typename LD, typename B, typename RE, typename RD, typename T>
    void run(__private metal::tensor<A, LE, LD>& left, __private metal::tensor<B, RE, RD>& right,
             __private msl_cooperative<T, D::m, D::n>& sums) const __private {
        static_assert(LE::msl_extent(D::left) == D::k && LE::msl_extent(!D::left) == D::m, "left is not (m, k)");
        static_assert(RE::msl_extent(!D::right) == D::k && RE::msl_extent(D::right) == D::n, "right is not (k, n)");
        msl_tensor_product<D, half, half, T> product;
        for (int i = 0; i < D::m * D::k / 32; i++) product.left[i] = left.msl_data[32 * i + msl_element(msl_lane())];
        for (int i = 0; i < D::n * D::k / 32; i++) product.right[i] = right.msl_data[32 * i + msl_element(msl_lane())];
        product.sums = &sums;
        msl_collective((ulong)&msl_tensor_product<D, half, half, T>::run, (__private void*)&product);
    }
};
} // namespace tensor_ops
} // namespace mpp
