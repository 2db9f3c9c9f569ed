// Instructions of NVIDIA GPUs that C++ has no word for. The tests run kernels on a CPU with functions of their own in
// place of these.
#pragma once

// Half precision and bfloat16, as their bits.
__forceinline__ float float_of_half(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

__forceinline__ unsigned short half_bits(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

__forceinline__ unsigned short bfloat_bits(float x) {
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

__forceinline__ unsigned short max_of_halves(unsigned short a, unsigned short b) {
    unsigned short out;
    asm("max.f16 %0, %1, %2;" : "=h"(out) : "h"(a), "h"(b));
    return out;
}

// 8x8 blocks of halves in shared memory as fragments: lane 8 m + r has the address of row r of block m, 16 bytes, and
// gets numbers lane % 4 * 2 and the next of row lane / 4 of every block.
__forceinline__ void load_blocks(unsigned (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}

__forceinline__ void load_blocks(unsigned (&out)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}

// sum += w x^T: w has 16 rows of 16 halves, x 8; of the sums a lane has rows lane / 4 and that + 8, columns
// lane % 4 * 2 and the next.
__forceinline__ void multiply_fragments(float (&sum)[4], const unsigned (&w)[4], const unsigned (&x)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(x[0]), "r"(x[1]));
}
