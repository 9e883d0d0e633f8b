// y = last(act(embedding(t) W1 + b1) W2 + b2 (+ label)), W1 [dim, hidden] and W2 [hidden, n] in panels of 16 columns. Times, the embedding and the hidden
// layer are f32 whatever the type of the others.
// Floor: both weights read once: 8 MB for Stable Diffusion, 3 µs; 1.3 MB for EDM's CIFAR-10 networks. A batch goes four samples at a
// time, so that a product of four columns by four samples follows on a read of 16 bytes.
//
// Every output needs all of the hidden layer, and blocks cannot wait for each other. Where W1 is small, one launch: every block makes the
// whole hidden layer, a panel a warp, W1 coming from the L2, which takes as long as another launch would. Elsewhere two, the first
// of which makes the embedding in every block and leaves the hidden layer, four samples beside each other. Weights and biases are asked for first: no
// load waits for what they are multiplied with.
#include "lib/activation.cuh"
#include "lib/lines.cuh"
#include "lib/wave.cuh"

constexpr u32 THREADS = 512, WARPS = THREADS / 32, PANEL = 16, SAMPLES = 4;

// What the samples of a batch have at one place.
using Samples = Pack<f32, SAMPLES>;

__device__ __forceinline__ Samples all(float v) {
    Samples out;
#pragma unroll
    for (int s = 0; s < SAMPLES; s++) out.at[s] = v;
    return out;
}

// Of four columns and four samples: sample s of column c is at 4 c + s.
struct Products {
    float at[4 * SAMPLES];
};

// Four columns of a panel in the rows k = from, from + step, ... < end; w is that panel's, at those columns. The first N of them are asked for before
// what they are multiplied with is there.
template <class T, int N>
struct Columns {
    const T* w;
    u32 from, step, end;
    Pack<T, 4> at[N];

    __device__ __forceinline__ Columns(const T* w, u32 from, u32 step, u32 end) : w(w), from(from), step(step), end(end) { fetch(from); }

    // Those from `first` on. Of 16 bits, weights begin at multiples of 16 bytes.
    __device__ __forceinline__ void fetch(u32 first) {
        if (sizeof(T) == 2 || is_aligned(w)) read<true>(first);
        else read<false>(first);
    }

    template <bool ALIGNED>
    __device__ __forceinline__ void read(u32 first) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            const T* from = w + u64(first + i * step) * PANEL;
            at[i] = Pack<T, 4>::zeros();
            if (first + i * step >= end) continue;
            if constexpr (ALIGNED) {
                at[i] = *(const Pack<T, 4>*)from;
            } else {
#pragma unroll
                for (int k = 0; k < 4; k++) at[i].at[k] = from[k];
            }
        }
    }

    // Sums over k of x[k] times these.
    __device__ __forceinline__ Products times(const Samples* x) {
        Products p;
#pragma unroll
        for (int k = 0; k < 16; k++) p.at[k] = 0.0f;
#pragma unroll 1
        for (u32 first = from; first < end; first += N * step) {
            if (first > from) fetch(first);
#pragma unroll
            for (int i = 0; i < N; i++) {
                Samples in = first + i * step < end ? x[first + i * step] : Samples::zeros();
#pragma unroll
                for (int k = 0; k < 16; k++) p.at[k] = fmaf(in.at[k % 4], widen(at[i].at[k / 4]), p.at[k]);
            }
        }
        return p;
    }
};

// Of a panel of which a warp has all rows, and of one that the whole block has.
template <class T>
using OfWarp = Columns<T, sizeof(T) == 2 ? 16 : 8>;
template <class T>
struct OfBlock : Columns<T, sizeof(T) == 2 ? 10 : 6> {
    __device__ __forceinline__ OfBlock(const T* panel, u32 rows)
        : Columns<T, sizeof(T) == 2 ? 10 : 6>(panel + threadIdx.x % 4 * 4, threadIdx.x / 4, THREADS / 4, rows) {}
};

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
__device__ __forceinline__ float whole_panel(OfBlock<T>& panel, const Samples* x) {
    __shared__ f32 parts[WARPS][PANEL * SAMPLES];
    Part part = join_lanes(panel.times(x));
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

// The column and sample of a thread's number of `whole_panel`, and what is added to it, asked for before that is there.
template <class T>
struct Place {
    u32 col, sample;
    u64 at;
    bool there;
    float added = 0.0f;

    // `label` [samples, n] or null.
    __device__ __forceinline__ Place(const T* bias, const T* label, u32 samples, u32 n)
        : col(blockIdx.x * PANEL + threadIdx.x / SAMPLES), sample(blockIdx.y * SAMPLES + threadIdx.x % SAMPLES), at(u64(sample) * n + col),
          there(threadIdx.x < PANEL * SAMPLES && col < n && sample < samples) {
        if (there) added = widen(bias[col]);
        if (there && label != nullptr) added += widen(label[at]);
    }
};

// A block is a panel of y; its dynamic memory holds the embeddings and the hidden layer.
template <class T>
__device__ __forceinline__ void whole(const f32* t, const T* w1, const T* b1, const T* w2, const T* b2, const T* label, T* y, u32 samples, u32 dim,
                                      u32 hidden, u32 kind, u32 cosines_first, double turns, double ratio, u32 n, u32 last) {
    extern __shared__ Samples memory[];
    Samples *x = memory, *h = memory + dim;
    u32 first = blockIdx.y * SAMPLES, lane = threadIdx.x % 32, panel = threadIdx.x / 32;
    u64 from_panel = u64(dim) * PANEL;
    bool there = panel * PANEL < hidden;
    OfBlock<T> out(w2 + u64(blockIdx.x) * hidden * PANEL, hidden);
    OfWarp<T> own(w1 + panel * from_panel + lane % 4 * 4, lane / 4, 8, there ? dim : 0);
    Place<T> place(b2, label, samples, n);
    for (u32 i = threadIdx.x; i < hidden; i += THREADS) h[i] = all(widen(b1[i]));
    embed(t + first, (f32*)x, samples - first, dim, cosines_first, turns, ratio);
#pragma unroll 1
    for (; panel * PANEL < hidden; panel += WARPS) {
        Products sums = own.times(x);
        if ((panel + WARPS) * PANEL < hidden) own.w += WARPS * from_panel, own.fetch(own.from);
        Part part = join_lanes(sums);
        u32 col = panel * PANEL + part.col;
        if (col >= hidden) continue;
#pragma unroll
        for (int s = 0; s < 2; s++) {
            f32& to = h[col].at[part.sample + s];
            to = act(kind, part.at[s] + to);
        }
    }
    __syncthreads();
    float sum = whole_panel(out, h);
    if (place.there) y[place.at] = narrow<T>(act(last, sum + place.added));
}

// A block is a panel of the hidden layer; its dynamic memory holds the embeddings. h [batches of four, hidden, 4].
template <class T>
__device__ __forceinline__ void hidden_layer(const f32* t, const T* w1, const T* b1, f32* h, u32 samples, u32 dim, u32 hidden, u32 kind,
                                             u32 cosines_first, double turns, double ratio) {
    extern __shared__ Samples memory[];
    u32 first = blockIdx.y * SAMPLES;
    OfBlock<T> own(w1 + u64(blockIdx.x) * dim * PANEL, dim);
    Place<T> place(b1, nullptr, gridDim.y * SAMPLES, hidden);
    embed(t + first, (f32*)memory, samples - first, dim, cosines_first, turns, ratio);
    float sum = whole_panel(own, memory);
    if (place.there) h[(u64(blockIdx.y) * hidden + place.col) * SAMPLES + threadIdx.x % SAMPLES] = act(kind, sum + place.added);
}

// A block is a panel of y; its dynamic memory holds the hidden layer.
template <class T>
__device__ __forceinline__ void out_layer(const Samples* h, const T* w2, const T* b2, const T* label, T* y, u32 samples, u32 hidden, u32 n, u32 last) {
    extern __shared__ Samples memory[];
    OfBlock<T> own(w2 + u64(blockIdx.x) * hidden * PANEL, hidden);
    Place<T> place(b2, label, samples, n);
#pragma unroll 4
    for (u32 i = threadIdx.x; i < hidden; i += THREADS) memory[i] = h[u64(blockIdx.y) * hidden + i];
    __syncthreads();
    float sum = whole_panel(own, memory);
    if (place.there) y[place.at] = narrow<T>(act(last, sum + place.added));
}

#define TIMES u32 samples, u32 dim, u32 hidden, u32 kind, u32 cosines_first, F64(turns), F64(ratio)
#define THESE_TIMES samples, dim, hidden, kind, cosines_first, AS_F64(turns), AS_F64(ratio)

#define ENTRIES(T)                                                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                                       \
        timestep_mlp_##T(const f32* t, const T* w1, const T* b1, const T* w2, const T* b2, const T* label, T* y, TIMES, u32 n, u32 has_label,   \
                         u32 last) {                                                                                                            \
        whole(t, w1, b1, w2, b2, has_label ? label : nullptr, y, THESE_TIMES, n, last);                                                                    \
    }                                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS) timestep_mlp_hidden_##T(const f32* t, const T* w1, const T* b1, f32* h, TIMES) {      \
        hidden_layer(t, w1, b1, h, THESE_TIMES);                                                                                                \
    }                                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                                       \
        timestep_mlp_out_##T(const Samples* h, const T* w2, const T* b2, const T* label, T* y, u32 samples, u32 hidden, u32 n, u32 has_label,   \
                             u32 last) {                                                                                                        \
        out_layer(h, w2, b2, has_label ? label : nullptr, y, samples, hidden, n, last);                                                         \
    }
FOR_TYPES(ENTRIES)
