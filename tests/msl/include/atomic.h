// <metal_atomic>. The command line renames what OpenCL has under the same names.
#pragma once

namespace metal {
enum memory_order { memory_order_relaxed, memory_order_seq_cst = 5 };
enum thread_scope {
    thread_scope_thread,
    thread_scope_simdgroup,
    thread_scope_threadgroup,
    thread_scope_device,
    thread_scope_system
};

template <typename T>
struct atomic {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 1, "no atomic type of this size");
    T msl_value;
};
typedef atomic<uint> atomic_uint;
typedef atomic<int> atomic_int;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;
typedef atomic<ulong> atomic_ulong;

enum { msl_atomic_read = 2, msl_atomic_write, msl_atomic_modify }; // Access in shadow.h

// Replaces the value by f of it; the value before.
template <typename T, typename F>
METAL_FUNC T msl_modify(ulong address, uint how, F f) {
    msl_atomic(address, sizeof(T), how);
    __private T* p = (__private T*)address;
    T before = T(0); // a guess; a wrong one is put right by the exchange
    for (;;) {
        T after = f(before);
        if (__atomic_compare_exchange(p, &before, &after, false, 0, 0)) return before;
    }
}

#define MSL_MODIFY(SPACE, NAME, HOW, ...)                                                                              \
    template <typename T, typename U>                                                                                  \
    METAL_FUNC T atomic_##NAME##_explicit(volatile SPACE atomic<T>* object, U operand, memory_order) {                 \
        T b = T(operand);                                                                                              \
        return msl_modify<T>((ulong)object, HOW, [b](T a) { return T(__VA_ARGS__); });                                 \
    }
#define MSL_ATOMIC(SPACE)                                                                                              \
    MSL_MODIFY(SPACE, exchange, msl_atomic_write, b)                                                                   \
    MSL_MODIFY(SPACE, fetch_add, msl_atomic_modify, a + b)                                                             \
    MSL_MODIFY(SPACE, fetch_sub, msl_atomic_modify, a - b)                                                             \
    MSL_MODIFY(SPACE, fetch_min, msl_atomic_modify, b < a ? b : a)                                                     \
    MSL_MODIFY(SPACE, fetch_max, msl_atomic_modify, a < b ? b : a)                                                     \
    MSL_MODIFY(SPACE, fetch_and, msl_atomic_modify, a& b)                                                              \
    MSL_MODIFY(SPACE, fetch_or, msl_atomic_modify, a | b)                                                              \
    MSL_MODIFY(SPACE, fetch_xor, msl_atomic_modify, a ^ b)                                                             \
    template <typename T>                                                                                              \
    METAL_FUNC T atomic_load_explicit(const volatile SPACE atomic<T>* object, memory_order) {                          \
        return msl_modify<T>((ulong)object, msl_atomic_read, [](T a) { return a; });                                   \
    }                                                                                                                  \
    template <typename T, typename U>                                                                                  \
    METAL_FUNC void atomic_store_explicit(volatile SPACE atomic<T>* object, U desired, memory_order order) {           \
        atomic_exchange_explicit(object, desired, order);                                                              \
    }                                                                                                                  \
    template <typename T, typename U>                                                                                  \
    METAL_FUNC bool atomic_compare_exchange_weak_explicit(volatile SPACE atomic<T>* object, __private T* expected,     \
                                                          U desired, memory_order, memory_order) {                     \
        msl_atomic((ulong)object, sizeof(T), msl_atomic_modify);                                                       \
        T after = T(desired);                                                                                          \
        return __atomic_compare_exchange((__private T*)(ulong)object, expected, &after, false, 0, 0);                  \
    }
MSL_ATOMIC(__global)
MSL_ATOMIC(__local)
#undef MSL_ATOMIC
#undef MSL_MODIFY

METAL_FUNC void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope_device) {
    __atomic_thread_fence(5);
}
} // namespace metal
