// What both ways to attention's gradient on Hopper share: products over tiles of *others*, which a block's *rows* go over.
#pragma once
#include "attention_hopper.cuh"

constexpr u32 OTHERS = 64;
// Scores or dP of what is in two panelled tiles, `a` of 64 rows in panels of ROWS and `b` of OTHERS, over K columns.
template <u32 K, u32 ROWS, class T>
__device__ __forceinline__ void begin_scores(float (&s)[OTHERS / 2], u32 a, u32 b, T type) {
    u64 left = matrix_descriptor<128, 16, 1024>(a), right = matrix_descriptor<128, 16, 1024>(b);
#pragma unroll
    for (u32 i = 0; i < K / 16; i++) {
        u32 in_panel = i % 4 * (32 >> 4);
        score(s, left + (i / 4 * (ROWS * PANEL_ROW >> 4) + in_panel), right + (i / 4 * (OTHERS * PANEL_ROW >> 4) + in_panel), i > 0, type);
    }
    commit_products();
}

// The same with 64 rows in registers, over a panel's columns at most.
template <u32 K, class T>
__device__ __forceinline__ void begin_scores(float (&s)[OTHERS / 2], const u32 (&a)[K / 16][4], u32 b, T type) {
    u64 right = matrix_descriptor<128, 16, 1024>(b);
#pragma unroll
    for (u32 i = 0; i < K / 16; i++) score(s, a[i], right + i * (32 >> 4), i > 0, type);
    commit_products();
}

// o += W · X, with X a tile of others.
template <u32 N, class T>
__device__ __forceinline__ void begin_sums(float (&o)[N / 2], const u32 (&w)[OTHERS / 16][4], u32 x, T type) {
    u64 matrix = matrix_descriptor<128, OTHERS * PANEL_ROW, 1024>(x);
#pragma unroll
    for (u32 i = 0; i < OTHERS / 16; i++) weigh(o, w[i], matrix + i * (16 * PANEL_ROW >> 4), type);
    commit_products();
}

template <class T>
__device__ __forceinline__ void narrow_weights(u32 (&w)[OTHERS / 16][4], const float (&s)[OTHERS / 2]) {
#pragma unroll
    for (u32 k = 0; k < OTHERS / 16; k++) {
#pragma unroll
        for (u32 r = 0; r < 4; r++) {
            w[k][r] = pack<T>(s[8 * k + 2 * r], s[8 * k + 2 * r + 1]);
            asm volatile("" : "+r"(w[k][r])::"memory");
        }
    }
}
