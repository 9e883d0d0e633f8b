// y = act(embedding(t) W1 + b1) W2 + b2 (+ label), W1 [dim, hidden] and W2 [hidden, n] in panels of 16 columns. Times, the embedding and the hidden
// layer are f32 whatever the type of the others.
// Floor: both weights read once: 8 MB for Stable Diffusion, 3 µs; 1.3 MB for EDM's CIFAR-10 networks. A batch goes four samples at a
// time, so that a product of four columns by four samples follows on a read of 16 bytes.
//
// Every output needs all of the hidden layer, and blocks cannot wait for each other. Where W1 is small, one launch: every block makes the
// whole hidden layer, a panel a warp, W1 coming from the L2: some 3 µs by estimate, as another launch would take. Elsewhere two, the first
// of which makes the embedding in every block and leaves the hidden layer, four samples beside each other.
#include "lib/activation.cuh"
#include "lib/lines.cuh"
#include "lib/wave.cuh"

constexpr u32 THREADS = 512, WARPS = THREADS / 32, PANEL = 16, SAMPLES = 4;

// What the samples of a batch have at one place.
using Samples = Pack<f32, SAMPLES>;

// Of four columns and four samples: sample s of column c is at 4 c + s.
struct Products {
    float at[4 * SAMPLES];
};

// Sums over k = from, from + step, ... < end of x[k] times four columns of a panel; w is that panel's, at those columns.
template <class T>
__device__ __forceinline__ Products multiply(const T* w, const Samples* x, u32 from, u32 step, u32 end) {
    Products p;
#pragma unroll
    for (int k = 0; k < 16; k++) p.at[k] = 0.0f;
#pragma unroll 4
    for (u32 k = from; k < end; k += step) {
        Pack<T, 4> v = load<T, 4>(w + u64(k) * PANEL);
        Samples in = x[k];
#pragma unroll
        for (int k = 0; k < 16; k++) p.at[k] = fmaf(in.at[k % 4], widen(v.at[k / 4]), p.at[k]);
    }
    return p;
}

// What a lane has of a panel in the end: of column `col` the samples `sample` and the one after it.
struct Part {
    float at[2];
    u32 col, sample;
};

// Adds what two lanes have; each is left with HALF of their sums.
template <int HALF>
__device__ __forceinline__ void share(Products& p, u32 lane, u32 distance) {
#pragma unroll
    for (int k = 0; k < HALF; k++) {
        bool upper = lane & distance;
        float kept = upper ? p.at[k + HALF] : p.at[k], given = upper ? p.at[k] : p.at[k + HALF];
        p.at[k] = kept + __shfl_xor_sync(~0u, given, distance);
    }
}

// Lanes have four columns each, and eight places along k: their sums.
__device__ __forceinline__ Part join_lanes(Products p) {
    u32 lane = threadIdx.x % 32;
    share<8>(p, lane, 16);
    share<4>(p, lane, 8);
    share<2>(p, lane, 4);
    return {{p.at[0], p.at[1]}, lane % 4 * 4 + lane / 8, lane / 4 % 2 * 2};
}

// The product of x with a panel by all warps of the block: of thread 4 c + s column c and sample s, for the first 64.
template <class T>
__device__ __forceinline__ float whole_panel(const T* w, const Samples* x, u32 k) {
    __shared__ f32 parts[WARPS][PANEL * SAMPLES];
    Part part = join_lanes(multiply(w + threadIdx.x % 4 * 4, x, threadIdx.x / 4, THREADS / 4, k));
#pragma unroll
    for (int s = 0; s < 2; s++) parts[threadIdx.x / 32][part.col * SAMPLES + part.sample + s] = part.at[s];
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (u32 k = 0; k < WARPS; k++) sum += parts[k][threadIdx.x % (PANEL * SAMPLES)];
    return sum;
}

// The embeddings of up to four times, see timestep_embedding.cu.
__device__ __forceinline__ void embed(const f32* t, f32* x, u32 samples, u32 dim, u32 cosines_first, double first,
                                      double ratio) {
    u32 half = dim / 2;
    for (u32 i = threadIdx.x; i < (dim - half) * SAMPLES; i += THREADS) {
        u32 j = i / SAMPLES, s = i % SAMPLES;
        if (j == half) {
            x[i + half * SAMPLES] = 0.0f;
            continue;
        }
        Wave w = wave(s < samples ? double(t[s]) * frequency(first, ratio, j) : 0.0);
        x[i] = cosines_first ? w.cosine : w.sine;
        x[i + half * SAMPLES] = cosines_first ? w.sine : w.cosine;
    }
    __syncthreads();
}

// Writes this thread's number of `whole_panel` to y.
template <class T>
__device__ __forceinline__ void write(float sum, const T* bias, const T* label, T* y, u32 samples, u32 n, u32 has_label) {
    u32 col = blockIdx.x * PANEL + threadIdx.x / SAMPLES, sample = blockIdx.y * SAMPLES + threadIdx.x % SAMPLES;
    u64 at = u64(sample) * n + col;
    if (threadIdx.x < PANEL * SAMPLES && col < n && sample < samples) y[at] = narrow<T>(sum + widen(bias[col]) + (has_label ? widen(label[at]) : 0.0f));
}

#define TIMES u32 samples, u32 dim, u32 hidden, u32 kind, u32 cosines_first, F64(turns), F64(ratio)

// A block is a panel of y; its dynamic memory holds the embeddings and the hidden layer.
template <class T>
__device__ __forceinline__ void whole(const f32* t, const T* w1, const T* b1, const T* w2, const T* b2, const T* label, T* y, u32 samples, u32 dim,
                                      u32 hidden, u32 kind, u32 cosines_first, double turns, double ratio, u32 n, u32 has_label) {
    extern __shared__ Samples memory[];
    Samples *x = memory, *h = memory + dim;
    u32 first = blockIdx.y * SAMPLES, lane = threadIdx.x % 32;
    embed(t + first, (f32*)x, samples - first, dim, cosines_first, turns, ratio);
#pragma unroll 1
    for (u32 panel = threadIdx.x / 32; panel * PANEL < hidden; panel += WARPS) {
        Part part = join_lanes(multiply(w1 + u64(panel) * dim * PANEL + lane % 4 * 4, x, lane / 4, 8, dim));
        u32 col = panel * PANEL + part.col;
        if (col >= hidden) continue;
#pragma unroll
        for (int s = 0; s < 2; s++) h[col].at[part.sample + s] = act(kind, part.at[s] + widen(b1[col]));
    }
    __syncthreads();
    write(whole_panel(w2 + u64(blockIdx.x) * hidden * PANEL, h, hidden), b2, label, y, samples, n, has_label);
}

// A block is a panel of the hidden layer; its dynamic memory holds the embeddings. h [batches of four, hidden, 4].
template <class T>
__device__ __forceinline__ void hidden_layer(const f32* t, const T* w1, const T* b1, f32* h, u32 samples, u32 dim, u32 hidden, u32 kind,
                                             u32 cosines_first, double turns, double ratio) {
    extern __shared__ Samples memory[];
    u32 first = blockIdx.y * SAMPLES, col = blockIdx.x * PANEL + threadIdx.x / SAMPLES;
    embed(t + first, (f32*)memory, samples - first, dim, cosines_first, turns, ratio);
    float sum = whole_panel(w1 + u64(blockIdx.x) * dim * PANEL, memory, dim);
    if (threadIdx.x < PANEL * SAMPLES && col < hidden)
        h[(u64(blockIdx.y) * hidden + col) * SAMPLES + threadIdx.x % SAMPLES] = act(kind, sum + widen(b1[col]));
}

#define TIMES u32 samples, u32 dim, u32 hidden, u32 kind, u32 cosines_first, F64(turns), F64(ratio)
#define THESE_TIMES samples, dim, hidden, kind, cosines_first, AS_F64(turns), AS_F64(ratio)

#define ENTRIES(T)                                                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                                       \
        timestep_mlp_##T(const f32* t, const T* w1, const T* b1, const T* w2, const T* b2, const T* label, T* y, TIMES, u32 n, u32 has_label) { \
        whole(t, w1, b1, w2, b2, label, y, THESE_TIMES, n, has_label);                                                                          \
    }                                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS) timestep_mlp_hidden_##T(const f32* t, const T* w1, const T* b1, f32* h, TIMES) {      \
        hidden_layer(t, w1, b1, h, THESE_TIMES);                                                                                                \
    }                                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                                       \
        timestep_mlp_out_##T(const Samples* h, const T* w2, const T* b2, const T* label, T* y, u32 samples, u32 hidden, u32 n, u32 has_label) { \
        float sum = whole_panel(w2 + u64(blockIdx.x) * hidden * PANEL, h + u64(blockIdx.y) * hidden, hidden);                                   \
        write(sum, b2, label, y, samples, n, has_label);                                                                                        \
    }
FOR_TYPES(ENTRIES)
