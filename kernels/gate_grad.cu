// dx = gate · dy, and the sums of dy · x over a sample's rows: of every stretch of them, then dgate, theirs   x, dy, dx [B, R, C], gate, dgate
// [B, C], sums [B, stretches, C], f32
// Floor: x and dy once, dx once. Threads lie along channels, 16 bytes each, and down the rows of a stretch: four rows of both under way, of
// 16-bit numbers, or one at a time, two.
#include "lib/norm.cuh"

template <class T, int E>
__device__ __forceinline__ void gate_grad(const T* x, const T* gate, const T* dy, T* dx, f32* out, const Tile<E>& t) {
    using P = Pack<T, E>;
    constexpr int ROWS = E == 4 ? 4 : 2;
    ColumnSums<E, 1> sums;
    if (t.col < t.end_col) {
        u64 at = u64(t.sample) * t.rows * t.channels + t.at(t.col);
        P by = load<T, E>(gate + u64(t.sample) * t.channels + t.col);
        auto row = [&](u32 i, const P& x, const P& d, bool aligned) {
            P made;
#pragma unroll
            for (int k = 0; k < E; k++) {
                float e = widen(d.at[k]);
                sums.at[0][k] = fmaf(e, widen(x.at[k]), sums.at[0][k]);
                made.at[k] = narrow<T>(e * widen(by.at[k]));
            }
            T* to = dx + at + i * t.step();
            aligned ? write<T, E, true>(to, made) : write<T, E, false>(to, made);
        };
        if (packs_are_aligned(x, dy, dx))
            each_row<E, ROWS, true>(x + at, dy + at, t.own_rows(), t.step(), [&](u32 i, const P& x, const P& d) { row(i, x, d, true); });
        else
            each_row<E, 1, false>(x + at, dy + at, t.own_rows(), t.step(), [&](u32 i, const P& x, const P& d) { row(i, x, d, false); });
    }
    sums.store(out, t);
}

#define ENTRY(T, E)                                                                                                   \
    FLAT_KERNEL gate_grad_##E##_##T(const T* x, const T* gate, const T* dy, T* dx, f32* sums, TILE) {                 \
        gate_grad<T, E>(x, gate, dy, dx, sums, AS_TILE(E, false));                                                    \
    }
ENTRY(f32, 4)
ENTRY(f32, 1)
ENTRY(f16, 8)
ENTRY(f16, 1)
ENTRY(bf16, 8)
ENTRY(bf16, 1)

// A block has 32 channels of a sample, its eight warps share the stretches.
template <class T>
__device__ __forceinline__ void join(const f32* sums, T* dgate, u32 count, u32 channels, Divisor tiles) {
    constexpr u32 WARPS = FLAT_THREADS / 32;
    __shared__ f32 parts[WARPS][32];
    Divided at = divide(blockIdx.x, tiles);
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = at.rest * 32 + lane;
    float sum = 0.0f;
    if (c < channels) {
        const f32* from = sums + u64(at.quotient) * count * channels + c;
#pragma unroll 4
        for (u32 i = warp; i < count; i += WARPS) sum += from[u64(i) * channels];
    }
    parts[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || c >= channels) return;
#pragma unroll
    for (u32 k = 1; k < WARPS; k++) sum += parts[k][lane];
    dgate[u64(at.quotient) * channels + c] = narrow<T>(sum);
}

#define JOIN(T)                                                                                                       \
    FLAT_KERNEL gate_grad_join_##T(const f32* sums, T* dgate, u32 count, u32 channels, DIVISOR(tiles)) {              \
        join(sums, dgate, count, channels, AS_DIVISOR(tiles));                                                        \
    }
FOR_TYPES(JOIN)
