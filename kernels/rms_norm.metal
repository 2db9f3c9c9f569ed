// x / rms(x) * weight + add, one threadgroup per row: the residual of a layer is added while its norm is in registers.
// A thread processes four adjacent elements at a time.
#pragma once

#include "numbers.h"

// The sum over the threadgroup, in every thread. partial: one float per simdgroup
METAL_FUNC float threadgroup_sum(float x, threadgroup float* partial, uint simdgroup, uint simdgroups, uint lane) {
    float sum = simd_sum(x);
    if (lane == 0) partial[simdgroup] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return simd_sum(lane < simdgroups ? partial[lane] : 0);
}

// One row: x, weight, add: (d,) -> y (d,).
template <typename X, typename W, typename A, typename T>
METAL_FUNC void rms_norm(X x, W weight, A add, device T* y, int d, float eps, threadgroup float* partial, uint index,
                         uint threads) {
    float squares = 0;
    for (int i = 4 * index; i < d; i += 4 * threads) {
        float4 v = load_up_to_4(x + i, d - i);
        squares += dot(v, v);
    }
    float sum = threadgroup_sum(squares, partial, index / 32, threads / 32, index % 32);
    float scale = precise::rsqrt(sum / d + eps);
    for (int i = 4 * index; i < d; i += 4 * threads) {
        int count = min(d - i, 4);
        float4 v = load_up_to_4(x + i, count) * scale * load_up_to_4(weight + i, count) + load_up_to_4(add + i, count);
        UNROLL for (int j = 0; j < 4; j++) {
            if (j < count) y[i + j] = T(v[j]);
        }
    }
}
