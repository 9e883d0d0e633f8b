// Geometry of a 2-D convolution over NHWC images; `cpu::gemm::Window`. Its terms run over taps, then channels.
#pragma once
#include "types.cuh"

// The parameters of an entry that make a window, and their names, in their order.
#define WINDOW_PARAMETERS                                                                                                              \
    u32 height, u32 width, u32 channels, u32 out_height, u32 out_width, u32 kernel_rows, u32 kernel_cols, u32 stride, u32 pad_top, \
        u32 pad_left, u32 dilation
#define WINDOW_ARGUMENTS \
    height, width, channels, out_height, out_width, kernel_rows, kernel_cols, stride, pad_top, pad_left, dilation

// So far outside of any image that no tap reaches it.
constexpr int NOWHERE = -(1 << 30);

struct Window {
    u32 height, width, channels, out_height, out_width, kernel_rows, kernel_cols, stride, pad_top, pad_left, dilation;

    // The number of the input pixel in row y and column x of a padded, dilated image; `first` is the image's first. False if there is none.
    __device__ __forceinline__ bool pixel(u32 first, int y, int x, u32& number) const {
        if (dilation != 1) {
            // What is above or left of the image is larger than any number here.
            u32 row = u32(y) / dilation, col = u32(x) / dilation;
            number = first + row * width + col;
            return row < height && col < width && row * dilation == u32(y) && col * dilation == u32(x);
        }
        number = first + u32(y) * width + u32(x);
        return u32(y) < height && u32(x) < width;
    }
};

// The input under tap (0, 0) of an output pixel: the number of the image's first pixel, row and column in the dilated image.
struct alignas(16) Corner {
    u32 first;
    int y, x, unused;

    Corner() = default;

    // Of output pixel `number`; nowhere if there are not so many.
    __device__ __forceinline__ Corner(const Window& w, u32 number, u32 pixels) {
        u32 row = number / w.out_width, image = row / w.out_height;
        first = image * w.height * w.width;
        y = number < pixels ? int((row - image * w.out_height) * w.stride) - int(w.pad_top) : NOWHERE;
        x = int((number - row * w.out_width) * w.stride) - int(w.pad_left);
        unused = 0;
    }
};

// A tap and a channel.
struct Term {
    u32 ky, kx, c;

    __device__ __forceinline__ Term(const Window& w, u32 number) {
        u32 tap = number / w.channels;
        c = number - tap * w.channels;
        ky = tap / w.kernel_cols;
        kx = tap - ky * w.kernel_cols;
    }

    // The term that is `count` further: few rounds where there are many channels.
    __device__ __forceinline__ void advance(const Window& w, u32 count) {
        c += count;
        while (c >= w.channels) {
            c -= w.channels;
            if (++kx == w.kernel_cols) kx = 0, ky++;
        }
    }
};

// What a term adds to the corner of any output pixel: rows, columns and channels; nowhere if there are not so many terms.
struct alignas(16) Tap {
    int y, x;
    u32 c, unused;

    Tap() = default;

    __device__ __forceinline__ Tap(const Window& w, const Term& term) : c(term.c), unused(0) {
        y = term.ky < w.kernel_rows ? int(term.ky) - int(w.pad_top) : NOWHERE;
        x = int(term.kx) - int(w.pad_left);
    }
};

// An output pixel.
struct Pixel {
    u32 image, y, x;

    __device__ __forceinline__ Pixel(const Window& w, u32 number) {
        u32 row = number / w.out_width;
        x = number - row * w.out_width;
        image = row / w.out_height;
        y = row - image * w.out_height;
    }

    // The pixel that is `count` further.
    __device__ __forceinline__ void advance(const Window& w, u32 count) {
        x += count;
        while (x >= w.out_width) {
            x -= w.out_width;
            if (++y == w.out_height) y = 0, image++;
        }
    }
};

// What a block knows of each line of a convolution, in shared memory, since registers are short.
template <class Line, int LINES, int THREADS, class F>
__device__ __forceinline__ const Line* describe_lines(F line) {
    __shared__ Line lines[LINES];
    for (int i = threadIdx.x; i < LINES; i += THREADS) lines[i] = line(i);
    __syncthreads();
    return lines;
}
