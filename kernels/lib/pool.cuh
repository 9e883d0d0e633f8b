// Windows over images x [B, H, W, C]; pairs are rows, columns. `ops/pool.rs` lowers them.
#pragma once
#include "lines.cuh"

struct Pair {
    u32 row, col;
};

// What an entry is told of the window, and of the image that it makes: pixels, or what stands for each window.
struct Pool {
    // Of what is made.
    Divisor channels, height, width;
    // Of what is read.
    Pair size;
    Pair kernel, near;
    Divisor stride;
};

#define POOL                                                                                                          \
    DIVISOR(channels), DIVISOR(height), DIVISOR(width), u32 rows, u32 cols, u32 kernel_rows, u32 kernel_cols, u32 top, \
        u32 left, DIVISOR(stride)
#define AS_POOL                                                                                                       \
    Pool {                                                                                                            \
        AS_DIVISOR(channels), AS_DIVISOR(height), AS_DIVISOR(width), {rows, cols}, {kernel_rows, kernel_cols},        \
            {top, left}, AS_DIVISOR(stride)                                                                           \
    }

// From `start` to before `end`.
struct Span {
    u32 start, end;
    __device__ __forceinline__ u32 count() const { return end - start; }
};

// The pixels under window `o` along an axis of n.
__device__ __forceinline__ Span pixels(u32 o, u32 kernel, u32 near, u32 stride, u32 n) {
    u32 start = o * stride, end = start + kernel - near;
    return {start > near ? start - near : 0, end < n ? end : n};
}

// The windows over pixel `i` along an axis of n windows.
__device__ __forceinline__ Span windows(u32 i, u32 kernel, u32 near, Divisor stride, u32 n) {
    u32 at = i + near, last = quotient(at, stride) + 1;
    return {at + 1 > kernel ? quotient(at + 1 - kernel + stride.size - 1, stride) : 0, last < n ? last : n};
}

// Where element `i` of what is made lies.
struct Spot {
    u32 channel;
    Pair at;
    u32 image;
};

__device__ __forceinline__ Spot spot(u32 i, const Pool& p) {
    Divided pixel = divide(i, p.channels), line = divide(pixel.quotient, p.width), image = divide(line.quotient, p.height);
    return {pixel.rest, {image.rest, line.rest}, image.quotient};
}

// The rows and columns of what is read that have to do with it.
struct Under {
    Span rows, cols;
};

__device__ __forceinline__ Under pixels(const Spot& s, const Pool& p) {
    return {pixels(s.at.row, p.kernel.row, p.near.row, p.stride.size, p.size.row),
            pixels(s.at.col, p.kernel.col, p.near.col, p.stride.size, p.size.col)};
}

__device__ __forceinline__ Under windows(const Spot& s, const Pool& p) {
    return {windows(s.at.row, p.kernel.row, p.near.row, p.stride, p.size.row),
            windows(s.at.col, p.kernel.col, p.near.col, p.stride, p.size.col)};
}

// The number of the element at a row and column of what is read.
__device__ __forceinline__ u32 number(const Spot& s, u32 row, u32 col, const Pool& p) {
    return ((s.image * p.size.row + row) * p.size.col + col) * p.channels.size + s.channel;
}

// NaN is larger than all, and the first of equal ones counts.
__device__ __forceinline__ bool exceeds(float v, float best) { return v > best || v != v; }
