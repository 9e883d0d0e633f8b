// y = epilogue(x * W), a convolution of images that have a few channels on one side   x [B, H, W, C], W [taps * C, n] in panels -> y [B, H', W', n]
//
// Floor: the bytes of the images on the other side. `conv2d_from`, up to 8 channels in: all taps of a pixel are a row of a matrix, which a warp has in registers
// for all columns. `conv2d_to`, up to 4 channels out, 3 × 3 and stride 1: what every tap makes of every pixel is a product of x, which is read once (1.4 times where
// patches meet), by n columns a tap; then each output pixel sums up nine of those.
#include "lib/epilogue.cuh"
#include "lib/fragments.cuh"
#include "lib/gemm.cuh"
#include "lib/window.cuh"

// Pixels of a block, by a warp for sixteen; terms at most, and how far rows of them are from each other, so that eight are in different banks; columns that are
// sent at a time, and the distance of rows of them.
constexpr int FROM_PIXELS = 64, FROM_TERMS = 96, FROM_PITCH = FROM_TERMS + 8, FROM_PART = 32, PART_PITCH = FROM_PART + 8;

template <class T>
__device__ __forceinline__ void conv2d_from(const T* x, const T* w, const Window& window, u32 k, u32 columns, const Epilogue<T>& epilogue) {
    __shared__ __align__(16) T rows[FROM_PIXELS * FROM_PITCH];
    __shared__ __align__(16) f32 rooms[FROM_PIXELS * PART_PITCH];
    extern __shared__ __align__(128) char weights[];
    u32 m = epilogue.m, n = epilogue.n, lane = lane_id(), warp = warp_id(), steps = tiles_of(k, 16);
    u32 first = blockIdx.x * FROM_PIXELS, first_col = blockIdx.y * columns, panels = tiles_of(min(columns, n - first_col), 16), weights_at = shared_address(weights);
    // Terms of a panel are lines of two places; those behind the last are zeros.
    for (u32 i = threadIdx.x; i < panels * steps * 32; i += 128) {
        u32 panel = i / (steps * 32), place = i - panel * steps * 32;
        const char* from = (const char*)w + ((first_col / 16 + panel) * u64(k) * 32 + place * 16);
        copy_16(weights_at + (panel * steps * 32 + swizzled<2>(place / 2, place % 2)) * 16, from, place / 2 < k);
    }
    commit_copies();
    u32 pixel = threadIdx.x % FROM_PIXELS, channels = window.channels;
    Corner corner(window, first + pixel, m);
    T* row = rows + pixel * FROM_PITCH;
    for (u32 tap = threadIdx.x / FROM_PIXELS; tap < window.kernel_rows * window.kernel_cols; tap += 128 / FROM_PIXELS) {
        u32 ky = tap / window.kernel_cols, number;
        bool there = window.pixel(corner.first, corner.y + int(ky), corner.x + int(tap - ky * window.kernel_cols), number);
        const T* from = x + u64(number) * channels;
        if (channels == 4) {
            *(Pack<T, 4>*)(row + tap * 4) = there ? *(const Pack<T, 4>*)from : Pack<T, 4>::zeros();
        } else {
#pragma unroll 1
            for (u32 c = 0; c < channels; c++) row[tap * channels + c] = there ? from[c] : narrow<T>(0.0f);
        }
    }
    for (u32 i = k + threadIdx.x / FROM_PIXELS; i < steps * 16; i += 128 / FROM_PIXELS) row[i] = narrow<T>(0.0f);
    wait_copies<0>();
    __syncthreads();
    u32 a[FROM_TERMS / 16][4];
#pragma unroll
    for (int s = 0; s < FROM_TERMS / 16; s++)
        if (s < steps) load_matrices(a[s], shared_address(rows + (warp * 16 + lane % 16) * FROM_PITCH + s * 16 + lane / 16 * 8));
    f32* room = rooms + warp * 16 * PART_PITCH;
#pragma unroll 1
    for (u32 panel = 0; panel < panels; panel += 2) {
        float sums[4][4] = {};
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int s = 0; s < FROM_TERMS / 16; s++)
                if (s < steps && panel + half < panels) {
                    u32 b[4], line = s * 16 + lane % 16;
                    load_matrices_transposed(b, weights_at + ((panel + half) * steps * 32 + swizzled<2>(line, lane / 16)) * 16);
                    multiply_add<T>(sums[2 * half], a[s], b[0], b[1]);
                    multiply_add<T>(sums[2 * half + 1], a[s], b[2], b[3]);
                }
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                store_shared(room + (lane / 4 + 8 * h) * PART_PITCH + 8 * j + lane % 4 * 2, sums[j][2 * h], sums[j][2 * h + 1]);
        __syncwarp();
        send_sums<16, FROM_PART, PART_PITCH>(room, first + warp * 16, first_col + panel * 16, epilogue);
        __syncwarp();
    }
}

// The patch of y of a block and that of x, whose pixels are rows, sixteen a warp; columns, which are taps of channels of y, in blocks of eight.
constexpr int TO_ROWS = 8, TO_COLUMNS = 16, TO_WIDTH = TO_COLUMNS + 2, TO_PIXELS = (TO_ROWS + 2) * TO_WIDTH, TO_WARPS = (TO_PIXELS + 15) / 16, TO_TAPS = 40;

template <class T>
__device__ __forceinline__ void conv2d_to(const T* x, const T* w, const Window& window, const Epilogue<T>& epilogue) {
    __shared__ __align__(16) f32 made[TO_WARPS * 16 * TO_TAPS];
    extern __shared__ __align__(16) char room[];
    auto weights = (Pack<T, 8>*)room;
    u32 n = epilogue.n, channels = window.channels, lane = lane_id();
    u32 across = tiles_of(window.out_width, TO_COLUMNS), down = tiles_of(window.out_height, TO_ROWS);
    u32 band = blockIdx.x / across, image = band / down, left = (blockIdx.x - band * across) * TO_COLUMNS, top = (band - image * down) * TO_ROWS;
    // Eight channels of a column lie together, those of four lanes beside each other: which channels a product's terms are does not matter if x has the same.
#pragma unroll 1
    for (u32 i = threadIdx.x; i < channels / 32 * TO_TAPS * 4; i += TO_WARPS * 32) {
        u32 chunk = i / (TO_TAPS * 4), col = i / 4 % TO_TAPS, tap = col / n;
        Pack<T, 8> eight = Pack<T, 8>::zeros();
        const T* from = w + (u64(tap) * channels + chunk * 32 + i % 4 * 8) * 16 + (col - tap * n);
        if (tap < 9)
#pragma unroll
            for (int j = 0; j < 8; j++) eight.at[j] = from[j * 16];
        weights[i] = eight;
    }
    const T* from[2];
    bool inside[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        u32 pixel = warp_id() * 16 + 8 * h + lane / 4, line = pixel / TO_WIDTH, number;
        inside[h] = window.pixel(image * window.height * window.width, int(top + line - window.pad_top), int(left + pixel - line * TO_WIDTH - window.pad_left), number) &&
                    pixel < TO_PIXELS;
        from[h] = x + u64(number) * channels + lane % 4 * 8;
    }
    __syncthreads();
    float sums[TO_TAPS / 8][4] = {};
#pragma unroll 4
    for (u32 chunk = 0; chunk < channels / 32; chunk++) {
        Pack<u32, 4> a[2];
#pragma unroll
        for (int h = 0; h < 2; h++) a[h] = inside[h] ? *(const Pack<u32, 4>*)(from[h] + chunk * 32) : Pack<u32, 4>::zeros();
#pragma unroll
        for (int j = 0; j < TO_TAPS / 8; j++) {
            Pack<u32, 4> b = *(const Pack<u32, 4>*)(weights + (chunk * TO_TAPS + j * 8 + lane / 4) * 4 + lane % 4);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                u32 both[4] = {a[0].at[2 * half], a[1].at[2 * half], a[0].at[2 * half + 1], a[1].at[2 * half + 1]};
                multiply_add<T>(sums[j], both, b.at[2 * half], b.at[2 * half + 1]);
            }
        }
    }
#pragma unroll
    for (int j = 0; j < TO_TAPS / 8; j++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            store_shared(made + (warp_id() * 16 + 8 * h + lane / 4) * TO_TAPS + 8 * j + lane % 4 * 2, sums[j][2 * h], sums[j][2 * h + 1]);
    __syncthreads();
    u32 line = threadIdx.x / TO_COLUMNS, column = threadIdx.x % TO_COLUMNS, py = top + line, px = left + column;
    if (line >= TO_ROWS || py >= window.out_height || px >= window.out_width) return;
    float sum[4] = {};
#pragma unroll
    for (int tap = 0; tap < 9; tap++) {
        const f32* part = made + ((line + tap / 3) * TO_WIDTH + column + tap % 3) * TO_TAPS + tap * n;
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (j < n) sum[j] += part[j];
    }
    finish_quad((image * window.out_height + py) * window.out_width + px, 0, sum, epilogue);
}

#define THIN_PARAMETERS(T) const T *x, const T *w, const T *bias, const T *sample, const T *residual, T *y, WINDOW_PARAMETERS, u32 m, u32 n, u32 k, u32 per_sample
#define ENTRIES(T)                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(128, 4) conv2d_from_##T(THIN_PARAMETERS(T), u32 columns, EPILOGUE_SCALARS) {                   \
        conv2d_from(x, w, Window{WINDOW_ARGUMENTS}, k, columns, EPILOGUE(T));                                                       \
    }                                                                                                                                    \
    extern "C" __global__ void __launch_bounds__(TO_WARPS * 32, 1) conv2d_to_##T(THIN_PARAMETERS(T), EPILOGUE_SCALARS) {                        \
        conv2d_to(x, w, Window{WINDOW_ARGUMENTS}, EPILOGUE(T));                                                                     \
    }
ENTRIES(f16)
ENTRIES(bf16)
