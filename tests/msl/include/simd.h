// <metal_compute>, <metal_simdgroup>: barriers, and operations across a simdgroup.
// A thread leaves its operand in a record and waits; when all that take part have come, one call serves them all.
#pragma once

namespace metal {
enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
METAL_FUNC constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
METAL_FUNC void threadgroup_barrier(mem_flags flags) { msl_barrier(int(flags)); }
METAL_FUNC void simdgroup_barrier(mem_flags flags) { msl_simdgroup_barrier(int(flags)); }

// value: what this thread gives; lane: whose it wants; fill: where there is nobody's
template <typename T>
struct msl_record {
    T value, fill, result;
    int lane;
};

// The records of the simdgroup's threads; mask: those that take part
template <typename T>
struct msl_records {
    __private void* __private* records;
    uint mask;

    bool active(int i) { return i >= 0 && i < 32 && (mask >> i & 1); }
    __private msl_record<T>& operator[](int i) { return *(__private msl_record<T>*)records[i]; }
};

template <typename T, typename F>
METAL_FUNC T msl_together(T value, int lane = 0, T fill = T(0)) {
    __private msl_record<T> record;
    record.value = value;
    record.fill = fill;
    record.lane = lane;
    msl_collective((ulong)&F::run, (__private void*)&record);
    return record.result;
}

// A function of all values, the same for every thread: neighbours first, then pairs of them.
#define MSL_REDUCE(NAME, T, ...)                                                                                       \
    struct msl_##NAME {                                                                                                \
        static T apply(T a, T b) { return __VA_ARGS__; }                                                               \
        static void run(__private void* __private* p, uint mask) {                                                     \
            msl_records<T> all = {p, mask};                                                                            \
            T values[32];                                                                                              \
            int n = 0;                                                                                                 \
            for (int i = 0; i < 32; i++)                                                                               \
                if (all.active(i)) values[n++] = all[i].value;                                                         \
            for (; n > 1; n = (n + 1) / 2)                                                                             \
                for (int i = 0; 2 * i < n; i++)                                                                        \
                    values[i] = 2 * i + 1 < n ? apply(values[2 * i], values[2 * i + 1]) : values[2 * i];               \
            for (int i = 0; i < 32; i++)                                                                               \
                if (all.active(i)) all[i].result = values[0];                                                          \
        }                                                                                                              \
    };
// The function of the values of all threads before this one, and with it.
#define MSL_PREFIX(NAME, T, START, ...)                                                                                \
    template <bool inclusive>                                                                                          \
    struct msl_prefix_##NAME {                                                                                         \
        static void run(__private void* __private* p, uint mask) {                                                     \
            msl_records<T> all = {p, mask};                                                                            \
            T a = T(START);                                                                                            \
            for (int i = 0; i < 32; i++) {                                                                             \
                if (!all.active(i)) continue;                                                                          \
                T b = all[i].value, next = __VA_ARGS__;                                                                \
                all[i].result = inclusive ? next : a;                                                                  \
                a = next;                                                                                              \
            }                                                                                                          \
        }                                                                                                              \
    };
template <typename T>
struct msl_sums {
    MSL_REDUCE(sum, T, T(a + b))
    MSL_REDUCE(product, T, T(a* b))
    MSL_PREFIX(sum, T, 0, T(a + b))
    MSL_PREFIX(product, T, 1, T(a* b))
};
template <typename T>
struct msl_extremes {
    MSL_REDUCE(min, T, metal::min(a, b))
    MSL_REDUCE(max, T, metal::max(a, b))
};
template <typename T>
struct msl_bits {
    MSL_REDUCE(and, T, T(a& b))
    MSL_REDUCE(or, T, T(a | b))
    MSL_REDUCE(xor, T, T(a ^ b))
};
#undef MSL_REDUCE
#undef MSL_PREFIX

// bfloat is added up in float, as MLX has it.
template <typename T>
using msl_wide = conditional_t<is_same_v<T, bfloat>, float, T>;
#define MSL_OPERATION(NAME, WIDE, ...)                                                                                 \
    template <typename T>                                                                                              \
    METAL_FUNC T simd_##NAME(T x) {                                                                                    \
        using W = WIDE;                                                                                                \
        return T(msl_together<W, __VA_ARGS__>(W(x)));                                                                  \
    }
MSL_OPERATION(sum, msl_wide<T>, typename msl_sums<W>::msl_sum)
MSL_OPERATION(product, msl_wide<T>, typename msl_sums<W>::msl_product)
MSL_OPERATION(prefix_inclusive_sum, msl_wide<T>, typename msl_sums<W>::template msl_prefix_sum<true>)
MSL_OPERATION(prefix_exclusive_sum, msl_wide<T>, typename msl_sums<W>::template msl_prefix_sum<false>)
MSL_OPERATION(prefix_inclusive_product, msl_wide<T>, typename msl_sums<W>::template msl_prefix_product<true>)
MSL_OPERATION(prefix_exclusive_product, msl_wide<T>, typename msl_sums<W>::template msl_prefix_product<false>)
MSL_OPERATION(min, T, typename msl_extremes<W>::msl_min)
MSL_OPERATION(max, T, typename msl_extremes<W>::msl_max)
MSL_OPERATION(and, T, typename msl_bits<W>::msl_and)
MSL_OPERATION(or, T, typename msl_bits<W>::msl_or)
MSL_OPERATION(xor, T, typename msl_bits<W>::msl_xor)
#undef MSL_OPERATION

METAL_FUNC bool simd_any(bool x) { return simd_or(uint(x)); }
METAL_FUNC bool simd_all(bool x) { return simd_and(uint(x)); }

template <typename T>
struct msl_first {
    static void run(__private void* __private* p, uint mask) {
        msl_records<T> all = {p, mask};
        for (int i = 0; i < 32; i++)
            if (all.active(i)) all[i].result = all[__builtin_ctz(mask)].value;
    }
};
template <typename T>
METAL_FUNC T simd_broadcast_first(T x) {
    return msl_together<T, msl_first<T>>(x);
}
METAL_FUNC bool simd_is_first() { return simd_broadcast_first(msl_lane()) == msl_lane(); }

struct simd_vote {
    ulong msl_votes;
    explicit simd_vote(ulong votes = 0) : msl_votes(votes) {}
    explicit operator ulong() const { return msl_votes; }
    bool any() const { return msl_votes != 0; }
    bool all() const { return msl_votes == 0xffffffff; }
};
METAL_FUNC simd_vote simd_ballot(bool x) { return simd_vote(simd_or(uint(x) << msl_lane())); }
METAL_FUNC simd_vote simd_active_threads_mask() { return simd_ballot(true); }

// What Metal asks of the lanes that threads read.
enum class msl_lanes {
    exist, // each is one of the simdgroup
    equal, // and all threads read the same
    shift, // all are as far from their threads; at the edge, where there is none, threads keep what they have
    edge   // at the edge threads keep what they have
};

// Another thread's value; where there is no such thread or it takes no part, `fill`.
template <typename T, msl_lanes LANES>
struct msl_shuffle {
    static int told(__private msl_record<T>& record, int i) {
        return LANES == msl_lanes::shift ? record.lane - i : record.lane;
    }
    static void run(__private void* __private* p, uint mask) {
        msl_records<T> all = {p, mask};
        int leader = __builtin_ctz(mask);
        for (int i = 0; i < 32; i++) {
            if (!all.active(i)) continue;
            int from = all[i].lane;
            constexpr bool same = LANES == msl_lanes::equal || LANES == msl_lanes::shift;
            if (same && told(all[i], i) != told(all[leader], leader)) msl_lanes_differ();
            constexpr bool inside = LANES == msl_lanes::exist || LANES == msl_lanes::equal;
            if (inside && (from < 0 || from > 31)) msl_no_lane(from);
            if (from >= 0 && from < 32 && !all.active(from)) msl_inactive(from);
            all[i].result = all.active(from) ? all[from].value : all[i].fill;
        }
    }
};
template <msl_lanes LANES, typename T>
METAL_FUNC T msl_from(T x, int lane) {
    return msl_together<T, msl_shuffle<T, LANES>>(x, lane, x);
}
template <typename T>
METAL_FUNC T simd_shuffle(T x, ushort lane) {
    return msl_from<msl_lanes::exist>(x, lane);
}
template <typename T>
METAL_FUNC T simd_broadcast(T x, ushort lane) {
    return msl_from<msl_lanes::equal>(x, lane);
}
template <typename T>
METAL_FUNC T simd_shuffle_xor(T x, ushort mask) {
    return msl_from<msl_lanes::exist>(x, int(msl_lane() ^ mask));
}
template <typename T>
METAL_FUNC T simd_shuffle_down(T x, ushort delta) {
    return msl_from<msl_lanes::shift>(x, int(msl_lane()) + delta);
}
template <typename T>
METAL_FUNC T simd_shuffle_up(T x, ushort delta) {
    return msl_from<msl_lanes::shift>(x, int(msl_lane()) - delta);
}
template <typename T>
METAL_FUNC T simd_shuffle_rotate_down(T x, ushort delta) {
    return msl_from<msl_lanes::exist>(x, int(msl_lane() + delta) & 31);
}
template <typename T>
METAL_FUNC T simd_shuffle_rotate_up(T x, ushort delta) {
    return msl_from<msl_lanes::exist>(x, int(msl_lane() - delta) & 31);
}
// What is shifted in at the edge are the first values of `fill`, or the last.
template <typename T>
METAL_FUNC T simd_shuffle_and_fill_down(T x, T fill, ushort delta) {
    int from = int(msl_lane()) + delta;
    T inside = msl_from<msl_lanes::shift>(x, from), outside = msl_from<msl_lanes::exist>(fill, from & 31);
    return from < 32 ? inside : outside;
}
template <typename T>
METAL_FUNC T simd_shuffle_and_fill_up(T x, T fill, ushort delta) {
    int from = int(msl_lane()) - delta;
    T inside = msl_from<msl_lanes::shift>(x, from), outside = msl_from<msl_lanes::exist>(fill, from & 31);
    return from >= 0 ? inside : outside;
}

// The same among four neighbours.
template <typename T>
METAL_FUNC T quad_shuffle(T x, ushort lane) {
    return msl_from<msl_lanes::exist>(x, lane < 4 ? int(msl_lane() & ~3u) + lane : 32 + lane);
}
template <typename T>
METAL_FUNC T quad_broadcast(T x, ushort lane) {
    return quad_shuffle(x, lane);
}
template <typename T>
METAL_FUNC T quad_shuffle_xor(T x, ushort mask) {
    return msl_from<msl_lanes::exist>(x, mask < 4 ? int(msl_lane() ^ mask) : 32 + mask);
}
template <typename T>
METAL_FUNC T quad_shuffle_down(T x, ushort delta) {
    return msl_from<msl_lanes::edge>(x, int(msl_lane() % 4) + delta < 4 ? int(msl_lane()) + delta : -1);
}
template <typename T>
METAL_FUNC T quad_shuffle_up(T x, ushort delta) {
    return msl_from<msl_lanes::edge>(x, int(msl_lane() % 4) - delta >= 0 ? int(msl_lane()) - delta : -1);
}
#define MSL_QUAD(NAME, ...)                                                                                            \
    template <typename T>                                                                                              \
    METAL_FUNC T quad_##NAME(T a) {                                                                                    \
        T b = quad_shuffle_xor(a, 1);                                                                                  \
        a = __VA_ARGS__;                                                                                               \
        b = quad_shuffle_xor(a, 2);                                                                                    \
        return __VA_ARGS__;                                                                                            \
    }
MSL_QUAD(sum, T(a + b))
MSL_QUAD(product, T(a* b))
MSL_QUAD(min, metal::min(a, b))
MSL_QUAD(max, metal::max(a, b))
MSL_QUAD(and, T(a& b))
MSL_QUAD(or, T(a | b))
MSL_QUAD(xor, T(a ^ b))
#undef MSL_QUAD
METAL_FUNC bool quad_any(bool x) { return quad_or(uint(x)); }
METAL_FUNC bool quad_all(bool x) { return quad_and(uint(x)); }
} // namespace metal
