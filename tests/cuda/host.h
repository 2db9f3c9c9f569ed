// What the text of a CUDA kernel needs on a CPU: the runtime of tests/msl runs its threads, 32 of them a warp.
// The functions of kernels/ptx.cuh are here in C++.
#pragma once

typedef unsigned long size_t;

#define __forceinline__ inline __attribute__((always_inline))
#define __global__
#define __launch_bounds__(THREADS)
#define memcpy __builtin_memcpy
#define threadIdx (position.thread_position_in_threadgroup)
#define blockIdx (position.threadgroup_position_in_grid)
#define blockDim (position.threads_per_threadgroup)
#define gridDim (position.threadgroups_per_grid)

struct alignas(16) host_uint3 {
    unsigned x, y, z;
};
#define VECTOR host_uint3
#define SCALAR unsigned
#include "../msl/include/position.h"
#undef VECTOR
#undef SCALAR

// nomerge: the return address tells the calls of a warp's threads apart
extern "C" {
void msl_collective(unsigned long function, void* argument) __attribute__((nomerge));
void msl_barrier(int flags) __attribute__((nomerge));
void msl_simdgroup_barrier(int flags) __attribute__((nomerge));
void* msl_threadgroup(int index, unsigned long size, unsigned long align);
float expf(float);
float logf(float);
float sinf(float);
float cosf(float);
float tanhf(float);
}

// one place in the code is one call, as on a GPU, where all is inlined
#pragma clang attribute push(__attribute__((always_inline)), apply_to = function)

inline float fabsf(float x) { return __builtin_fabsf(x); }
inline float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float fminf(float a, float b) { return __builtin_fminf(a, b); }
inline float fmaxf(float a, float b) { return __builtin_fmaxf(a, b); }
inline float rintf(float x) { return __builtin_rintf(x); }
inline float sqrtf(float x) { return __builtin_sqrtf(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }

template <typename R, typename T>
R same_bits(T x) {
    return __builtin_bit_cast(R, x);
}
inline float __int_as_float(int x) { return same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return same_bits<float>(x); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned((((unsigned long)high << 32) | low) >> (shift & 31));
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    unsigned long bytes = ((unsigned long)b << 32) | a;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        unsigned s = selector >> (4 * i), byte = unsigned(bytes >> (8 * (s & 7))) & 255;
        if (s & 8) byte = byte & 128 ? 255 : 0; // the sign alone
        out |= byte << (8 * i);
    }
    return out;
}

// ---- what the threads of a warp do together

enum Together { SHUFFLE, SUM, LEAST, MOST, BALLOT };

struct Record {
    Together what;
    unsigned value, result;
    int other; // lane ^ other gives the value, in a shuffle

    static void run(void** p, unsigned mask) {
        Record* first = (Record*)p[__builtin_ctz(mask)];
        unsigned sum = 0, votes = 0;
        int least = 0x7fffffff, most = -0x7fffffff - 1;
        for (int i = 0; i < 32; i++) {
            if (!(mask >> i & 1)) continue;
            unsigned value = ((Record*)p[i])->value;
            sum += value;
            votes |= unsigned(value != 0) << i;
            least = int(value) < least ? int(value) : least;
            most = int(value) > most ? int(value) : most;
        }
        for (int i = 0; i < 32; i++) {
            if (!(mask >> i & 1)) continue;
            Record& r = *(Record*)p[i];
            int from = i ^ r.other;
            switch (first->what) {
            case SHUFFLE:
                r.result = mask >> from & 1 ? ((Record*)p[from])->value : 0x7fc00000;
                break;
            case SUM:
                r.result = sum;
                break;
            case LEAST:
                r.result = unsigned(least);
                break;
            case MOST:
                r.result = unsigned(most);
                break;
            case BALLOT:
                r.result = votes;
                break;
            }
        }
    }
};

inline unsigned together(Together what, unsigned value, int other = 0) {
    Record record = {what, value, 0, other};
    msl_collective((unsigned long)&Record::run, &record);
    return record.result;
}

inline float __shfl_xor_sync(unsigned, float x, int other) {
    return same_bits<float>(together(SHUFFLE, same_bits<unsigned>(x), other));
}
inline int __reduce_add_sync(unsigned, int x) { return int(together(SUM, unsigned(x))); }
inline int __reduce_min_sync(unsigned, int x) { return int(together(LEAST, unsigned(x))); }
inline int __reduce_max_sync(unsigned, int x) { return int(together(MOST, unsigned(x))); }
inline unsigned __ballot_sync(unsigned, bool x) { return together(BALLOT, x); }
inline void __syncthreads() { msl_barrier(2); }
inline void __syncwarp() { msl_simdgroup_barrier(2); }

// ---- kernels/ptx.cuh

inline float half_to_float(unsigned short bits) { return float(same_bits<_Float16>(bits)); }
inline unsigned short float_to_half(float x) { return same_bits<unsigned short>(_Float16(x)); }
inline unsigned short float_to_bfloat(float x) { return same_bits<unsigned short>(__bf16(x)); }
inline unsigned short max_half(unsigned short a, unsigned short b) {
    return float_to_half(fmaxf(half_to_float(a), half_to_float(b)));
}

template <int COUNT>
struct Matrices {
    const unsigned short* row;
    unsigned* out;

    static void run(void** p, unsigned mask) {
        for (int i = 0; i < 32; i++) {
            if (!(mask >> i & 1)) continue;
            for (int m = 0; m < COUNT; m++) {
                const unsigned short* row = ((Matrices*)p[8 * m + i / 4])->row;
                memcpy(((Matrices*)p[i])->out + m, row + i % 4 * 2, 4);
            }
        }
    }
};

template <int COUNT>
void load_matrices(unsigned (&out)[COUNT], const void* row) {
    Matrices<COUNT> record = {(const unsigned short*)row, out};
    msl_collective((unsigned long)&Matrices<COUNT>::run, &record);
}

struct Fragments {
    float* sum;
    const unsigned *w, *x;

    static float number(unsigned pair, int i) { return half_to_float((unsigned short)(pair >> (16 * i))); }

    static void run(void** p, unsigned) {
        float w[16][16], x[8][16];
        for (int lane = 0; lane < 32; lane++) {
            Fragments& f = *(Fragments*)p[lane];
            for (int i = 0; i < 2; i++) {
                for (int e = 0; e < 4; e++) w[lane / 4 + e % 2 * 8][lane % 4 * 2 + i + e / 2 * 8] = number(f.w[e], i);
                for (int e = 0; e < 2; e++) x[lane / 4][lane % 4 * 2 + i + 8 * e] = number(f.x[e], i);
            }
        }
        for (int lane = 0; lane < 32; lane++) {
            for (int e = 0; e < 4; e++) {
                float& sum = ((Fragments*)p[lane])->sum[e];
                for (int k = 0; k < 16; k++) sum += w[lane / 4 + e / 2 * 8][k] * x[lane % 4 * 2 + e % 2][k];
            }
        }
    }
};

inline void multiply_fragments(float (&sum)[4], const unsigned (&w)[4], const unsigned (&x)[2]) {
    Fragments record = {sum, w, x};
    msl_collective((unsigned long)&Fragments::run, &record);
}
