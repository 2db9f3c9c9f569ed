// Instructions of NVIDIA GPUs that have no C++ equivalent. tests/cuda/host.h replaces these functions when the tests
// run kernels on a CPU.
#pragma once

// Conversions between floats and the bits of half and bfloat16.
__forceinline__ float half_to_float(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

__forceinline__ unsigned short float_to_half(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

__forceinline__ unsigned short float_to_bfloat(float x) {
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

__forceinline__ unsigned short max_half(unsigned short a, unsigned short b) {
    unsigned short out;
    asm("max.f16 %0, %1, %2;" : "=h"(out) : "h"(a), "h"(b));
    return out;
}

// Loads 8x8 matrices of halves from shared memory as fragments. Lane 8 m + r passes the address of row r of matrix m,
// 16 bytes; each lane receives elements lane % 4 * 2 and the next of row lane / 4 of every matrix.
__forceinline__ void load_matrices(unsigned (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}

__forceinline__ void load_matrices(unsigned (&out)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}

// sum += w x^T, where w has 16 rows of 16 halves and x has 8. A lane holds the sums of rows lane / 4 and lane / 4 + 8,
// columns lane % 4 * 2 and the next. All lanes take part: volatile keeps it out of branches that some of them take.
__forceinline__ void multiply_fragments(float (&sum)[4], const unsigned (&w)[4], const unsigned (&x)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(x[0]), "r"(x[1]));
}
