// dW = patches(x)ᵀ dy on Hopper: `linear_weight_grad`, and `conv2d_weight_grad` of stride 1   x [B, H, W, C], dy [B, H', W', n] -> dW [taps * C, n] in
// panels, f32; or parts of it, sums over parts of the pixels, which `sum_parts` adds up in order.
//
// Floor: 2 · pixels · taps · C · n FLOPs, by the tensor cores that only `wgmma` keeps busy; `lib/weight_grad_hopper.cuh`. For C and n that are multiples of 8; what
// else there is, and f32, has the kernels of sm_80.
//
// x and dy come as maps of [B, H, W, C] and [B, H', W', n] in boxes of a patch of 64 pixels by 64 channels or columns. Entries are named by the rows of a tile.
#include "lib/weight_grad_hopper.cuh"

template <class T, int ROWS>
__device__ __forceinline__ void weight_grad(const TensorMap& x, const TensorMap& dy, f32* out, const GradPatches& patches, const GradWeight& weight,
                                            const GradParts& parts) {
    using Tiles = WeightGrad<T, ROWS>;
    extern __shared__ __align__(1024) char room[];
    __shared__ u64 barriers[2 * Tiles::STAGES];
    // Patterns of the swizzle begin at multiples of 1024 bytes, whatever stands before the room.
    u32 base = u32(__cvta_generic_to_shared(room)) + 1023 & ~1023;
    Tiles tiles{patches, weight, parts, base, u32(__cvta_generic_to_shared(barriers))};
    if (threadIdx.x == 0) tiles.make_barriers();
    __syncthreads();
    // Threads begin with 168 registers.
    if (warp_id() >= 8) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 256) tiles.bring(x, dy);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        tiles.multiply(out);
    }
}

#define WEIGHT_GRAD(T, ROWS)                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(HOPPER_THREADS, 1) weight_grad_##ROWS##_##T(                                                \
        const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap dy, f32* out, u32 width, u32 height, u32 wide, u32 high,      \
        u32 channels, u32 taps, u32 tap_columns, u32 pad_top, u32 pad_left, u32 n, u32 steps, u32 part, u32 parts) {                         \
        weight_grad<T, ROWS>(x, dy, out, {width, height, wide, high}, {channels, taps, tap_columns, pad_top, pad_left, n},                   \
                             {steps, part, parts});                                                                                          \
    }
WEIGHT_GRAD(f16, 128)
WEIGHT_GRAD(f16, 192)
WEIGHT_GRAD(f16, 256)
WEIGHT_GRAD(bf16, 128)
WEIGHT_GRAD(bf16, 192)
WEIGHT_GRAD(bf16, 256)
