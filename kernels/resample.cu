// x [B, H, W, C] -> y [B, H', W', C]: y[o, p] = sum over i, j of f[i] f[j] z[o down + i - pad, p down + j - pad], z = x with up - 1 zeros
// behind every pixel; sums in f32.
// Floor: x read once, y written once. A thread makes a pack of channels of one pixel from the taps that meet a pixel of x, four of a
// row loaded at once: four where blocks of 2 × 2 become one or a filter of four goes up, sixteen where it goes down. All but the first
// reader of a pixel find it in the L1 or L2. The filter lies in shared memory: parameters have no index. Where pixels are only repeated, a thread reads
// a pack of x once and writes it wherever it goes.
#include "lib/lines.cuh"

constexpr u32 MOST_TAPS = 16;

struct Resample {
    Divisor channels, out_height, out_width, up;
    u32 height, width, down, pad, taps;
    // Whether all taps are as the first.
    bool equal;
};

// The pixels of a line of n that output `o` sees: the first, its tap, how many.
struct Seen {
    u32 first, tap, count;
};

__device__ __forceinline__ Seen seen(u32 o, u32 n, const Resample& r) {
    u32 base = o * r.down, first = base > r.pad ? quotient(base - r.pad + r.up.size - 1, r.up) : 0;
    u32 tap = first * r.up.size + r.pad - base;
    u32 count = tap < r.taps ? quotient(r.taps - tap + r.up.size - 1, r.up) : 0, rest = first < n ? n - first : 0;
    return {first, tap, count < rest ? count : rest};
}

template <class T>
__device__ __forceinline__ void resample(const T* x, T* y, u32 n, bool wide, const Resample& r, const float* filter) {
    wide = wide && is_aligned(x) && is_aligned(y);
    by_pack<T>(n, wide, [=](u32 i) {
        Divided pixel = divide(i, r.channels), line = divide(pixel.quotient, r.out_width);
        Divided image = divide(line.quotient, r.out_height);
        Seen rows = seen(image.rest, r.height, r), cols = seen(line.rest, r.width, r);
        const T* from = x + u64((image.quotient * r.height + rows.first) * r.width + cols.first) * r.channels.size + pixel.rest;
        auto weight = [=](u32 tap) { return filter[r.equal ? 0 : tap]; };
        Floats<T> sum(0.0f);
        for (u32 row = 0; row < rows.count; row++, from += u64(r.width) * r.channels.size) {
            float of_row = weight(rows.tap + row * r.up.size);
            for (u32 col = 0; col < cols.count; col += 4) {
                Wide<T> v[4];
#pragma unroll
                for (u32 k = 0; k < 4; k++)
                    if (col + k < cols.count) v[k] = load_wide(from + (col + k) * r.channels.size, wide);
#pragma unroll
                for (u32 k = 0; k < 4; k++)
                    if (col + k < cols.count) sum.add(of_row * weight(cols.tap + (col + k) * r.up.size), v[k]);
            }
        }
        store_wide(y + i, sum.times(1.0f), wide);
    });
}

#define TAPS                                                                                                              \
    float f0, float f1, float f2, float f3, float f4, float f5, float f6, float f7, float f8, float f9, float f10,        \
        float f11, float f12, float f13, float f14, float f15

#define ENTRY(T)                                                                                                          \
    FLAT_KERNEL resample_##T(const T* x, T* y, u32 n, u32 wide, DIVISOR(channels), u32 height, u32 width,                 \
                             DIVISOR(out_height), DIVISOR(out_width), DIVISOR(up), u32 down, u32 pad, u32 taps,           \
                             u32 equal, TAPS) {                                                                           \
        __shared__ float filter[MOST_TAPS];                                                                               \
        if (threadIdx.x == 0) {                                                                                           \
            float all[] = {f0, f1, f2, f3, f4, f5, f6, f7, f8, f9, f10, f11, f12, f13, f14, f15};                         \
            _Pragma("unroll") for (u32 k = 0; k < MOST_TAPS; k++) filter[k] = all[k];                                     \
        }                                                                                                                 \
        __syncthreads();                                                                                                  \
        Resample r{AS_DIVISOR(channels), AS_DIVISOR(out_height), AS_DIVISOR(out_width), AS_DIVISOR(up), height, width,    \
                   down, pad, taps, equal != 0};                                                                          \
        resample(x, y, n, wide, r, filter);                                                                               \
    }
FOR_TYPES(ENTRY)

// Every pixel up × up times, times `scale`: n elements of x.
template <class T>
__device__ __forceinline__ void repeat(const T* x, T* y, u32 n, bool wide, Divisor channels, Divisor width, u32 up, float scale) {
    wide = wide && is_aligned(x) && is_aligned(y);
    by_pack<T>(n, wide, [=](u32 i) {
        Divided pixel = divide(i, channels), line = divide(pixel.quotient, width);
        Wide<T> v = Floats<T>(load_wide(x + i, wide)).times(scale);
        T* to = y + (u64(line.quotient) * up * width.size + line.rest) * up * channels.size + pixel.rest;
        for (u32 row = 0; row < up; row++, to += u64(width.size) * up * channels.size)
            for (u32 col = 0; col < up; col++) store_wide(to + u64(col) * channels.size, v, wide);
    });
}

#define REPEAT(T)                                                                                                         \
    FLAT_KERNEL resample_repeat_##T(const T* x, T* y, u32 n, u32 wide, DIVISOR(channels), DIVISOR(width), u32 up,         \
                                    float scale) {                                                                        \
        repeat(x, y, n, wide, AS_DIVISOR(channels), AS_DIVISOR(width), up, scale);                                        \
    }
FOR_TYPES(REPEAT)
