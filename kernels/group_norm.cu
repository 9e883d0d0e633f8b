// x [B, R, C] -> y = act((n · gamma + beta) · (1 + scale) + shift), the last pair there or not, n = (x - mean) · rstd over each sample's
// group of C / groups channels; stats [B, groups, 2]: mean, rstd.
// Floor: x read once, y written once. `whole` reaches it where samples are many and small: a block has all rows of some groups, in shared
// memory between the passes. Elsewhere two launches read x twice, the second one mostly from the L2 where x fits it, as it begins with
// what the first one read last. Both lay tiles over channels and stretches over rows, so that one sample has work for all
// multiprocessors: `moments` leaves mean and squared differences of every stretch of a group, `apply` joins those of its groups
// (Chan, Golub & LeVeque 1983). Numbers are taken less the group's first one: large means cost no digits.
#include "lib/activation.cuh"
#include "lib/norm.cuh"

constexpr int WARPS = FLAT_THREADS / 32;

// The sum over a warp, on every lane.
__device__ __forceinline__ float warp_sum(float v) {
    return join_warp(v, [](float a, float b) { return a + b; });
}

// The moments of a thread's rows, channel by channel: some rows are read at a time, whose moments come from two passes.
template <class T, int E, bool ALIGNED>
struct Moments {
    // Of 32 numbers.
    static constexpr int ROWS = !ALIGNED ? 1 : E == 8 ? 4 : 8;
    float mean[E], square[E], count;

    __device__ __forceinline__ Moments() : count(0.0f) {
#pragma unroll
        for (int k = 0; k < E; k++) mean[k] = square[k] = 0.0f;
    }

    // Adds a column's rows from `from` on, `rows` of them `step` apart, and keeps them, a block's threads apart, unless `kept` is null.
    __device__ __forceinline__ void add(const T* from, u32 rows, u64 step, const float (&origin)[E], T* kept) {
#pragma unroll 1
        for (u32 row = 0; row < rows; row += ROWS, from += ROWS * step) {
            Pack<T, E> v[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                if (row + r < rows) v[r] = read<T, E, ALIGNED>(from + r * step);
            }
            if (kept != nullptr) {
#pragma unroll
                for (int r = 0; r < ROWS; r++)
                    if (row + r < rows) *(Pack<T, E>*)(kept + u64(row + r) * FLAT_THREADS * E) = v[r];
            }
            float more = float(rows - row < ROWS ? rows - row : ROWS), all = count + more;
            float part = more / all, weight = count * part;
#pragma unroll
            for (int k = 0; k < E; k++) {
                float sum = 0.0f, squares = 0.0f;
#pragma unroll
                for (int r = 0; r < ROWS; r++)
                    if (row + r < rows) sum += widen(v[r].at[k]) - origin[k];
                float own = sum / more;
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    float d = widen(v[r].at[k]) - origin[k] - own;
                    if (row + r < rows) squares = fmaf(d, d, squares);
                }
                float apart = own - mean[k];
                mean[k] = fmaf(apart, part, mean[k]);
                square[k] += fmaf(apart * apart, weight, squares);
            }
            count = all;
        }
    }
};

// The first number of the group of a channel in a sample.
template <class T>
__device__ __forceinline__ float origin_of(const T* sample, u32 c, u32 width) {
    return widen(sample[c / width * width]);
}

// Moments of weighted parts, each(f) calling f(weight, mean, square) for this lane's: mean, and the sum of squares in y. `all` is the sum
// of weights.
template <class Each>
__device__ __forceinline__ float2 joined(float all, Each each) {
    float mean = 0.0f, square = 0.0f;
    each.run([&](float n, float m, float) { mean = fmaf(n, m, mean); });
    mean = warp_sum(mean) / all;
    each.run([&](float n, float m, float s) { square += fmaf(n * (m - mean), m - mean, s); });
    return make_float2(mean, warp_sum(square));
}

// What a block's threads have of their channels.
template <int E>
struct alignas(16) Slots {
    float means[FLAT_THREADS * E], squares[FLAT_THREADS * E], counts[FLAT_THREADS];

    template <class T, bool ALIGNED>
    __device__ __forceinline__ void fill(const T* sample, u32 width, const Tile<E>& t, T* kept = nullptr) {
        Moments<T, E, ALIGNED> m;
        for (u32 c = t.col; c < t.end_col; c += t.across * E) {
            float origin[E];
#pragma unroll
            for (int k = 0; k < E; k++) origin[k] = origin_of(sample, c + k, width);
            m.add(sample + t.at(c), t.own_rows(), t.step(), origin, kept);
        }
        constexpr int P = E < 4 ? E : 4;
#pragma unroll
        for (int i = 0; i < E; i += P) {
            Pack<f32, P> mean, square;
#pragma unroll
            for (int k = 0; k < P; k++) mean.at[k] = m.mean[i + k], square.at[k] = m.square[i + k];
            *(Pack<f32, P>*)(means + threadIdx.x * E + i) = mean;
            *(Pack<f32, P>*)(squares + threadIdx.x * E + i) = square;
        }
        counts[threadIdx.x] = m.count;
    }
};

// The slots of a group's channels in all lines.
template <int E>
struct GroupSlots {
    const Slots<E>& slots;
    // Of a line; the first of the group, how many it has.
    u32 pitch, first, span, lines;

    template <class F>
    __device__ __forceinline__ void run(F f) const {
#pragma unroll 1
        for (u32 i = threadIdx.x % 32; i < span * lines; i += 32) {
            u32 slot = i / span * pitch + first + i % span;
            f(slots.counts[slot / E], slots.means[slot], slots.squares[slot]);
        }
    }
};

// out [B, groups, count, 2]: mean less the origin, sum of squared differences from the mean.
template <class T, int E>
__device__ __forceinline__ void moments(const T* x, f32* out, u32 groups, Tile<E> t) {
    __shared__ Slots<E> slots;
    u32 width = t.channels / groups, pitch = t.across * E;
    const T* sample = x + u64(t.sample) * t.rows * t.channels;
    if (E == 1 || packs_are_aligned(x)) slots.template fill<T, true>(sample, width, t);
    else slots.template fill<T, false>(sample, width, t);
    __syncthreads();
    float all = float(t.end - t.start) * float(width);
    for (u32 g = threadIdx.x / 32; g < (t.end_col - t.first_col) / width; g += WARPS) {
        float2 own = joined(all, GroupSlots<E>{slots, pitch, g * width, width < pitch ? width : pitch, t.down});
        if (threadIdx.x % 32 > 0) continue;
        u64 group = u64(t.sample) * groups + t.first_col / width + g;
        *(float2*)(out + 2 * (group * t.count + t.stretch)) = own;
    }
}

// What `moments` left of a group: of stretches of `each` rows.
struct Parts {
    const float2* moments;
    u32 parts, each, rows, width;

    template <class F>
    __device__ __forceinline__ void run(F f) const {
#pragma unroll 1
        for (u32 i = threadIdx.x % 32; i < parts; i += 32) {
            float2 m = moments[i];
            u32 left = rows - i * each;
            f(float(left < each ? left : each) * float(width), m.x, m.y);
        }
    }
};

// Of a tile's groups: the mean, what rounding took from it, rstd.
template <int GROUPS>
struct GroupStats {
    float mean[GROUPS], rest[GROUPS], rstd[GROUPS];

    // Of group g of the tile, from its mean less the origin and its variance; out [2] gets mean and rstd, unless null.
    __device__ __forceinline__ void set(u32 g, float origin, float less, float variance, float eps, f32* out) {
        float rounded = origin + less, own = 1.0f / sqrtf(variance + eps);
        mean[g] = rounded;
        rest[g] = (origin - rounded) + less;
        rstd[g] = own;
        if (out == nullptr) return;
        out[0] = rounded;
        out[1] = own;
    }
};

// What makes y of N channels: act((x - mean) · factor + offset).
template <int N>
struct Coefficients {
    float mean[N], factor[N], offset[N];

    // `first`: the tile's first group.
    template <class T, int GROUPS>
    __device__ __forceinline__ Coefficients(const Parameters<T>& p, const GroupStats<GROUPS>& s, u32 c, u32 width, u32 first) {
        p.linear(c, factor, offset);
        each_group<N>(c, width, [&](int k, u32 g) {
            mean[k] = s.mean[g - first];
            factor[k] *= s.rstd[g - first];
            offset[k] = fmaf(-s.rest[g - first], factor[k], offset[k]);
        });
    }
};

// y of a thread's rows, ROWS loads under way.
template <class T, int N, int ROWS, class F>
__device__ __forceinline__ void apply_rows(const T* from, u64 from_step, T* to, u64 to_step, u32 rows, const Coefficients<N>& p,
                                           F f) {
#pragma unroll 1
    for (u32 row = 0; row < rows; row += ROWS, from += ROWS * from_step, to += ROWS * to_step) {
        Pack<T, N> v[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            if (row + r < rows) v[r] = read<T, N, true>(from + r * from_step);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            Pack<T, N> out;
#pragma unroll
            for (int k = 0; k < N; k++)
                out.at[k] = narrow<T>(f(fmaf(widen(v[r].at[k]) - p.mean[k], p.factor[k], p.offset[k])));
            if (row + r < rows) write<T, N, true>(to + r * to_step, out);
        }
    }
}

// y of a thread's rows of E channels from c on. Entries of one channel a thread know all activations, whose code is long, the others SiLU
// and the identity. Channels are taken one after the other where packs do not lie at 16 bytes.
template <class T, int E, int GROUPS>
__device__ __forceinline__ void apply_channels(const T* from, u64 from_step, T* to, u64 to_step, u32 rows, const Parameters<T>& p,
                                               const GroupStats<GROUPS>& s, u32 c, u32 width, u32 first, u32 kind, bool aligned) {
    Gated gated(kind == SILU);
    auto frequent = [=](float v) { return gated.value(v); };
    if constexpr (E == 1) {
        Coefficients<1> own(p, s, c, width, first);
        apply_rows<T, 1, 4>(from, from_step, to, to_step, rows, own, [=](float v) { return act(kind, v); });
    } else if (aligned) {
        Coefficients<E> own(p, s, c, width, first);
        apply_rows<T, E, 4>(from, from_step, to, to_step, rows, own, frequent);
    } else {
#pragma unroll 1
        for (int k = 0; k < E; k++) {
            Coefficients<1> own(p, s, c + k, width, first);
            apply_rows<T, 1, 1>(from + k, from_step, to + k, to_step, rows, own, frequent);
        }
    }
}

// moments [B, groups, parts, 2] of stretches of `part_rows` rows.
template <class T, int E>
__device__ __forceinline__ void apply(const T* x, Parameters<T> p, const f32* moments, T* y, f32* stats, u32 groups, u32 kind,
                                      u32 parts, u32 part_rows, float eps, Tile<E> t) {
    __shared__ GroupStats<FLAT_THREADS * E> tile;
    u32 width = t.channels / groups, first = t.first_col / width;
    const T* sample = x + u64(t.sample) * t.rows * t.channels;
    float all = float(t.rows) * float(width);
    for (u32 g = threadIdx.x / 32; g < (t.end_col - t.first_col) / width; g += WARPS) {
        u64 group = u64(t.sample) * groups + first + g;
        float2 own = joined(all, Parts{(const float2*)moments + group * parts, parts, part_rows, t.rows, width});
        float origin = origin_of(sample, (first + g) * width, width);
        if (threadIdx.x % 32 == 0) tile.set(g, origin, own.x, own.y / all, eps, t.stretch == 0 ? stats + 2 * group : nullptr);
    }
    __syncthreads();
    bool aligned = packs_are_aligned(x, y);
    for (u32 c = t.col; c < t.end_col; c += t.across * E) {
        const T* from = sample + t.at(c);
        apply_channels<T, E>(from, t.step(), y + (from - x), t.step(), t.own_rows(), p, tile, c, width, first, kind, aligned);
    }
}

// Groups of a tile of `whole`, at most; `WHOLE_GROUPS` of ops/group_norm.rs.
constexpr u32 WHOLE_GROUPS = 64;

// All rows of a tile in one block, which keeps them in shared memory between the passes: row i of a thread is unit i · 256 + thread.
template <class T, int E>
__device__ __forceinline__ void whole(const T* x, Parameters<T> p, T* y, f32* stats, u32 groups, u32 kind, float eps, Tile<E> t) {
    extern __shared__ uint4 held[];
    __shared__ Slots<E> slots;
    __shared__ GroupStats<WHOLE_GROUPS> tile;
    T* kept = (T*)(held + threadIdx.x);
    u32 width = t.channels / groups, first = t.first_col / width, pitch = t.across * E;
    const T* sample = x + u64(t.sample) * t.rows * t.channels;
    if (E == 1 || packs_are_aligned(x)) slots.template fill<T, true>(sample, width, t, kept);
    else slots.template fill<T, false>(sample, width, t, kept);
    __syncthreads();
    float all = float(t.rows) * float(width);
    for (u32 g = threadIdx.x / 32; g < (t.end_col - t.first_col) / width; g += WARPS) {
        float2 own = joined(all, GroupSlots<E>{slots, pitch, g * width, width, t.down});
        float origin = origin_of(sample, (first + g) * width, width);
        f32* out = stats + 2 * (u64(t.sample) * groups + first + g);
        if (threadIdx.x % 32 == 0) tile.set(g, origin, own.x, own.y / all, eps, out);
    }
    __syncthreads();
    if (t.col >= t.end_col) return;
    T* to = y + (sample + t.at(t.col) - x);
    apply_channels<T, E>(kept, FLAT_THREADS * E, to, t.step(), t.own_rows(), p, tile, t.col, width, first, kind, packs_are_aligned(y));
}

// Two blocks a multiprocessor are enough: ptxas aims at three, and spills.
#define NORM_KERNEL extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 2)

#define ENTRY(T, E)                                                                                                    \
    NORM_KERNEL group_norm_moments_##E##_##T(const T* x, f32* out, TILE, u32 groups) {                                 \
        moments<T, E>(x, out, groups, AS_TILE(E, false));                                                              \
    }                                                                                                                  \
    NORM_KERNEL group_norm_apply_##E##_##T(const T* x, const T* gamma, const T* beta, const T* scale, const T* shift,  \
                                           const f32* moments, T* y, f32* stats, TILE, u32 groups, u32 kind,           \
                                           u32 modulate, u32 parts, u32 part_rows, float eps) {                        \
        Tile<E> t = AS_TILE(E, true);                                                                                  \
        u64 sample = u64(t.sample) * channels;                                                                         \
        Parameters<T> p{gamma, beta, scale + sample, shift + sample, true, modulate != 0};                             \
        apply<T, E>(x, p, moments, y, stats, groups, kind, parts, part_rows, eps, t);                                  \
    }
ENTRY(f32, 4)
ENTRY(f32, 1)
ENTRY(f16, 8)
ENTRY(f16, 1)
ENTRY(bf16, 8)
ENTRY(bf16, 1)

#define WHOLE(T)                                                                                                       \
    NORM_KERNEL group_norm_whole_##T(const T* x, const T* gamma, const T* beta, const T* scale, const T* shift, T* y,  \
                                     f32* stats, TILE, u32 groups, u32 kind, u32 modulate, float eps) {                \
        Tile<WIDE<T>> t = AS_TILE(WIDE<T>, false);                                                                     \
        u64 sample = u64(t.sample) * channels;                                                                         \
        Parameters<T> p{gamma, beta, scale + sample, shift + sample, true, modulate != 0};                             \
        whole<T, WIDE<T>>(x, p, y, stats, groups, kind, eps, t);                                                       \
    }
FOR_TYPES(WHOLE)
