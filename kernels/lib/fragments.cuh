// Matrices of 16-bit numbers spread over the lanes of a warp, and their products on tensor cores. Lane = 4 · group + member.
#pragma once
#include "copies.cuh"

template <class T>
constexpr bool IS_BF16 = false;
template <>
constexpr bool IS_BF16<bf16> = true;

// Tiles in shared memory have rows of C places of 16 bytes, C even. Place c of row r lies where eight rows below each other are in different
// banks, and places beside each other too: c and a number of the row's differ in their lowest bits.
template <u32 C>
constexpr u32 KINDS = C % 8 == 0 ? 8 : C % 4 == 0 ? 4 : 2;

template <u32 C>
__device__ __forceinline__ u32 swizzled(u32 row, u32 c) {
    return row * C + (c ^ (row / (8 / KINDS<C>) % KINDS<C>));
}

// The address 2 n places further in a row, from that of its place 0 or 1, in a tile that begins at a multiple of 128.
template <u32 C>
__device__ __forceinline__ u32 beside(u32 from, u32 n) {
    constexpr u32 CYCLE = 16 * KINDS<C>;
    return (from ^ 32 * n % CYCLE) + 32 * n / CYCLE * CYCLE;
}

// Four 8 × 8 matrices; lane l gives the address of row l % 8 of matrix l / 8. Each register has two neighbours of row `group`, at column
// 2 · member.
__device__ __forceinline__ void load_matrices(u32 (&out)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
}

// The same transposed: two neighbours of column `group`, at row 2 · member.
__device__ __forceinline__ void load_matrices_transposed(u32 (&out)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
}

#define MULTIPLY_ADD(TYPE)                                                                                             \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "   \
        "{%0, %1, %2, %3};"                                                                                            \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                               \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

// C [16, 8] += A [16, 16] · B [16, 8]. A's registers: rows `group` and `group` + 8 of columns 2 · member, then of 8 columns further; B's: rows
// 2 · member, then 8 rows below, of column `group`; C's: columns 2 · member and the next of rows `group`, then `group` + 8.
template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    if constexpr (IS_BF16<T>) {
        MULTIPLY_ADD("bf16");
    } else {
        MULTIPLY_ADD("f16");
    }
}

// Two numbers in a register, `low` at the lower place.
template <class T>
__device__ __forceinline__ u32 pack(float low, float high) {
    u32 out;
    if constexpr (IS_BF16<T>) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    }
    return out;
}
