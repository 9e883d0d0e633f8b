// y = epilogue(x * W) on Hopper: `linear`, x [m, k], and `conv2d` of stride 1 or 2, x [B, H, W, C]; W [taps * C, n] in panels -> y [m, n]
//
// Floor: 2 m n k FLOPs, by the tensor cores that only `wgmma` keeps busy; `lib/gemm_hopper.cuh`. For sizes that give every multiprocessor a tile, or a part of
// one; what is smaller has the kernels of sm_80, and so has f32.
//
// x comes as a map of [B, H, W, C] in boxes of a patch by 64 channels, W as it lies, [n / 16, taps, C, 16].
//
// y = a * gelu(b), a and b the halves of the rows of x * W + bias: `linear_geglu`, W [C, 2 n] in panels, n a multiple of 16.
#include "lib/gemm_hopper.cuh"

template <class T, int COLS, bool GATED = false>
__device__ __forceinline__ void product(const TensorMap& x, const T* w, const Patches& patches, const Taps& taps, Terms steps, f32* parts,
                                        u32* arrivals, const Epilogue<T>& epilogue) {
    using Tiles = Wgmma<T, COLS, GATED>;
    extern __shared__ __align__(1024) char room[];
    __shared__ u64 barriers[Tiles::BARRIERS];
    // Patterns of the swizzles begin at multiples of 1024 bytes, whatever stands before the room.
    char* shared = room + (-u32(__cvta_generic_to_shared(room)) & 1023);
    Tiles tiles{patches, epilogue.n, steps, parts, arrivals, u32(__cvta_generic_to_shared(shared)), u32(__cvta_generic_to_shared(barriers))};
    if (threadIdx.x == 0) tiles.make_barriers();
    __syncthreads();
    // Threads begin with 168 registers.
    if (warp_id() >= 8) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        tiles.bring(x, w, taps);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        f32* sums = (f32*)(shared + Tiles::STAGES * Tiles::STAGE + warp_id() * Tiles::ROOM);
        tiles.multiply(sums, epilogue);
    }
}

#define PRODUCT(T, COLS)                                                                                                                    \
    extern "C" __global__ void __launch_bounds__(HOPPER_THREADS, 1) product_##COLS##_##T(                                                   \
        const __grid_constant__ TensorMap x, const T* w, const T* bias, const T* sample, const T* residual, T* y, f32* parts, u32* arrivals,                \
        u32 width, u32 height, u32 images, u32 wide, u32 high, u32 tap_columns, u32 stride, u32 pad_top, u32 pad_left, u32 tap_steps, u32 tap_channels, \
        u32 lines, u32 m, u32 n, u32 steps, u32 per_sample, u32 part, EPILOGUE_SCALARS) {                                                   \
        Epilogue<T> e = EPILOGUE(T);                                                                                                        \
        Taps taps{tap_columns, stride, pad_top, pad_left, tap_steps, tap_channels, lines};                                                          \
        product<T, COLS>(x, w, {width, height, images, wide, high}, taps, terms_of(steps, part), parts, arrivals, e);                               \
    }
// Of a linear layer: images of one pixel, one tap.
#define GATED_PRODUCT(T, COLS)                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(HOPPER_THREADS, 1) product_geglu_##COLS##_##T(                                                 \
        const __grid_constant__ TensorMap x, const T* w, const T* bias, T* y, f32* parts, u32* arrivals, u32 channels, u32 m, u32 n, u32 steps, \
        u32 part, u32 has_bias) {                                                                                                               \
        Epilogue<T> e(bias, nullptr, nullptr, y, m, n, m, has_bias, 0, 0, n, 0, IDENTITY, 1.0f);                                                \
        Taps taps{1, 1, 0, 0, steps, channels, channels};                                                                                       \
        product<T, COLS, true>(x, w, {1, 1, m, 0, 0}, taps, terms_of(steps, part), parts, arrivals, e);                                         \
    }
#define PRODUCTS(T) \
    PRODUCT(T, 256) PRODUCT(T, 192) PRODUCT(T, 160) PRODUCT(T, 128) PRODUCT(T, 64) GATED_PRODUCT(T, 192) GATED_PRODUCT(T, 160) GATED_PRODUCT(T, 128)
PRODUCTS(f16)
PRODUCTS(bf16)
