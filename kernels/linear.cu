// y = epilogue(x W)   x [m, k], W [k, n] in panels -> y [m, n]
//
// Floor: 2 m n k FLOPs, or the bytes of x, W and y where there are few rows. Sums in registers: `lib/gemm_f32.cuh`, `lib/gemm_half.cuh`. Where tiles are
// too few, a launch sums parts of k, and `sum_parts` finishes.
#include "lib/gemm_f32.cuh"
#include "lib/gemm_half.cuh"

template <class Tile, class A, class B, class T>
__device__ __forceinline__ void linear(const T* x, const T* w, f32* parts, u32 k, u32 part, const Epilogue<T>& epilogue) {
    u32 m = epilogue.m, n = epilogue.n;
    TilePlace place(tiles_of(m, Tile::ROWS), tiles_of(n, Tile::COLS));
    u32 row = place.row * Tile::ROWS, col = place.col * Tile::COLS;
    Terms terms = terms_of(k, part);
    A a(x, k, row, m, terms);
    B b(w, k, col, n, terms);
    Tile::run(a, b, terms, row, col, Finish<T>{epilogue, parts});
}

#define LINEAR(T, SIZE, THREADS, BLOCKS, ...)                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) linear_##SIZE##_##T(                                    \
        const T* x, const T* w, const T* bias, const T* sample, const T* residual, T* y, f32* parts, u32 m, u32 n, u32 k, \
        u32 per_sample, u32 part, EPILOGUE_SCALARS) {                                                                     \
        Epilogue<T> e = EPILOGUE(T);                                                                                      \
        linear<__VA_ARGS__>(x, w, parts, k, part, e);                                                                     \
    }
#define LINEAR_F32(SIZE, WARPS_M, WARPS_N, UNROLL, BLOCKS)                                                                                        \
    LINEAR(f32, SIZE, 32 * WARPS_M * WARPS_N, BLOCKS, Ffma<WARPS_M, WARPS_N, UNROLL>, Rows<SIZE, WARPS_M * WARPS_N>, Panels<SIZE, WARPS_M * WARPS_N>)
#define LINEAR_HALF(T, SIZE, BLOCKS) LINEAR(T, SIZE, HALF_THREADS, BLOCKS, Mma<T, SIZE>, HalfRows<T, SIZE>, HalfPanels<T, SIZE>)

// Few rows, up to 8 a block: a product that reads its weight once, and waits for nothing else. A block has a panel, 16 columns, and 16 warps share its k:
// 2 KiB of weights each at a time in four loads of 16 bytes, 32 KiB in flight, which all lie side by side. A lane has `EACH` columns and every
// fourth terms; x comes from the cache. Sums meet in shared memory, in the same order every time.
constexpr int FEW_ROWS = 8, FEW_THREADS = 512;

template <class T>
__device__ __forceinline__ void linear_few(const T* x, const T* w, u32 k, const Epilogue<T>& epilogue) {
    constexpr int EACH = WIDE<T>, LANES = 16 / EACH, GROUPS = 32 / LANES;
    // The sums of 64 groups of lanes, 8 rows of 16 columns, and a gap so that eight lanes meet 32 banks: of two groups, or of four, where every
    // other lane has the second half of its columns first.
    constexpr int PITCH = FEW_ROWS * 16 + (EACH == 4 ? 16 : 24);
    __shared__ __align__(16) f32 shared[64 * PITCH];
    u32 lane = lane_id(), group = lane / LANES, col = lane % LANES * EACH;
    u32 first = blockIdx.y * FEW_ROWS, rows = min(u32(FEW_ROWS), epilogue.m - first);
    const T* panel = w + u64(blockIdx.x) * k * 16 + col;
    x += u64(first) * k;
    bool wide = k % 4 == 0 && is_aligned(x, 4 * sizeof(T));

    float sums[FEW_ROWS][EACH] = {};
#pragma unroll 1
    for (u32 at = (warp_id() * GROUPS + group) * 4; at < k; at += FEW_THREADS / LANES * 4) {
        Wide<T> loaded[4];
#pragma unroll
        for (int j = 0; j < 4; j++) loaded[j] = *(const Wide<T>*)(panel + u64(min(at + j, k - 1)) * 16);
        float weights[4][EACH];
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int c = 0; c < EACH; c++) weights[j][c] = widen(loaded[j].at[c]);
#pragma unroll
        for (int r = 0; r < FEW_ROWS; r++) {
            if (r >= rows) break;
            float term[4];
            const T* from = x + u64(r) * k + at;
            wide ? load_quad<true>(term, from, 4) : load_quad<false>(term, from, k - at);
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int c = 0; c < EACH; c++) sums[r][c] += term[j] * weights[j][c];
        }
    }

    // From all groups of a warp to four of them.
#pragma unroll 1
    for (int apart = 16; apart >= 4 * LANES; apart /= 2)
#pragma unroll
        for (int r = 0; r < FEW_ROWS; r++) {
            if (r >= rows) break;
#pragma unroll
            for (int c = 0; c < EACH; c++) sums[r][c] += __shfl_xor_sync(~0u, sums[r][c], apart);
        }
    if (group < 4) {
        f32* to = shared + (warp_id() * 4 + group) * PITCH + col;
#pragma unroll
        for (int r = 0; r < FEW_ROWS; r++) {
            if (r >= rows) break;
#pragma unroll
            for (int c = 0; c < EACH; c += 4) {
                bool turned = EACH == 8 && lane % 2;
                auto pick = [&](int i) { return turned ? sums[r][EACH == 8 ? (c ^ 4) + i : i] : sums[r][c + i]; };
                store_shared(to + r * 16 + (turned ? c ^ 4 : c), pick(0), pick(1), pick(2), pick(3));
            }
        }
    }
    __syncthreads();
    // Then 16 groups a thread, and four of those sums.
    u32 number = threadIdx.x % 128;
    f32* quarter = shared + threadIdx.x / 128 * 16 * PITCH + number;
    if (number < rows * 16) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 16; i++) sum += quarter[i * PITCH];
        *quarter = sum;
    }
    __syncthreads();
    if (threadIdx.x >= rows * 4) return;
    float v[4] = {};
#pragma unroll
    for (int i = 0; i < 4; i++) add_quad<true>(v, shared + i * 16 * PITCH + 4 * threadIdx.x, 4);
    u32 row = first + threadIdx.x / 4;
    col = blockIdx.x * 16 + threadIdx.x % 4 * 4;
    finish_quad(row, col, v, epilogue);
}

#define LINEAR_FEW(T)                                                                                                                             \
    extern "C" __global__ void __launch_bounds__(FEW_THREADS, 1) linear_few_##T(                                                                  \
        const T* x, const T* w, const T* bias, const T* sample, const T* residual, T* y, u32 m, u32 n, u32 k, u32 per_sample, EPILOGUE_SCALARS) { \
        Epilogue<T> e = EPILOGUE(T);                                                                                                              \
        linear_few(x, w, k, e);                                                                                                                   \
    }
FOR_TYPES(LINEAR_FEW)

LINEAR_F32(128, 4, 2, 16, 2)
LINEAR_F32(64, 2, 1, 2, 8)
LINEAR_HALF(f16, 128, 2)
LINEAR_HALF(f16, 64, 4)
LINEAR_HALF(bf16, 128, 2)
LINEAR_HALF(bf16, 64, 4)
