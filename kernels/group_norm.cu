// x [B, R, C] -> y = act((n · gamma + beta) · (1 + scale) + shift), the last pair there or not, n = (x - mean) · rstd over each sample's
// group of C / groups channels; stats [B, groups, 2]: mean, rstd.
// Floor: x read once, y written once. Two launches read x twice, the second one mostly from the L2 where x fits it, as it begins with
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
    static constexpr int ROWS = E == 8 ? 4 : 8;
    float mean[E], square[E], count;

    __device__ __forceinline__ Moments() : count(0.0f) {
#pragma unroll
        for (int k = 0; k < E; k++) mean[k] = square[k] = 0.0f;
    }

    // Adds a column's rows from `from` on, `rows` of them `step` apart.
    __device__ __forceinline__ void add(const T* from, u32 rows, u64 step, const float (&origin)[E]) {
#pragma unroll 1
        for (u32 row = 0; row < rows; row += ROWS, from += ROWS * step) {
            Pack<T, E> v[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                if (row + r < rows) v[r] = read<T, E, ALIGNED>(from + r * step);
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
struct Slots {
    float means[FLAT_THREADS * E], squares[FLAT_THREADS * E], counts[FLAT_THREADS];

    template <class T, bool ALIGNED>
    __device__ __forceinline__ void fill(const T* sample, u32 width, const Tile<E>& t) {
        Moments<T, E, ALIGNED> m;
        for (u32 c = t.col; c < t.end_col; c += t.across * E) {
            float origin[E];
#pragma unroll
            for (int k = 0; k < E; k++) origin[k] = origin_of(sample, c + k, width);
            m.add(sample + t.at(c), t.own_rows(), t.step(), origin);
        }
#pragma unroll
        for (int k = 0; k < E; k++) {
            means[threadIdx.x * E + k] = m.mean[k];
            squares[threadIdx.x * E + k] = m.square[k];
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
    if (is_aligned(x)) slots.template fill<T, true>(sample, width, t);
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

// What makes y of a thread's channels: act((x - mean) · factor + offset).
template <int E>
struct Coefficients {
    float mean[E], factor[E], offset[E];
};

// y of a thread's rows, ROWS loads under way.
template <class T, int E, int ROWS, bool ALIGNED, class F>
__device__ __forceinline__ void apply_rows(const T* from, T* to, u32 rows, u64 step, const Coefficients<E>& p, F f) {
#pragma unroll 1
    for (u32 row = 0; row < rows; row += ROWS, from += ROWS * step, to += ROWS * step) {
        Pack<T, E> v[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            if (row + r < rows) v[r] = read<T, E, ALIGNED>(from + r * step);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            Pack<T, E> out;
#pragma unroll
            for (int k = 0; k < E; k++)
                out.at[k] = narrow<T>(f(fmaf(widen(v[r].at[k]) - p.mean[k], p.factor[k], p.offset[k])));
            if (row + r < rows) write<T, E, ALIGNED>(to + r * step, out);
        }
    }
}

// moments [B, groups, parts, 2] of stretches of `part_rows` rows.
template <class T, int E>
__device__ __forceinline__ void apply(const T* x, Parameters<T> p, const f32* moments, T* y, f32* stats, u32 groups, u32 kind,
                                      u32 parts, u32 part_rows, float eps, Tile<E> t) {
    // Of the tile's groups: the mean, what rounding took from it, rstd.
    __shared__ float means[FLAT_THREADS * E], rests[FLAT_THREADS * E], rstds[FLAT_THREADS * E];
    u32 width = t.channels / groups, first = t.first_col / width;
    const T* sample = x + u64(t.sample) * t.rows * t.channels;
    float all = float(t.rows) * float(width);
    for (u32 g = threadIdx.x / 32; g < (t.end_col - t.first_col) / width; g += WARPS) {
        u64 group = u64(t.sample) * groups + first + g;
        float2 own = joined(all, Parts{(const float2*)moments + group * parts, parts, part_rows, t.rows, width});
        float mean = own.x, rstd = 1.0f / sqrtf(own.y / all + eps);
        if (threadIdx.x % 32 == 0) {
            float origin = origin_of(sample, (first + g) * width, width), rounded = origin + mean;
            means[g] = rounded;
            rests[g] = (origin - rounded) + mean;
            rstds[g] = rstd;
            if (t.stretch == 0) {
                stats[2 * group] = rounded;
                stats[2 * group + 1] = rstd;
            }
        }
    }
    __syncthreads();

    bool aligned = is_aligned(x) && is_aligned(y);
    for (u32 c = t.col; c < t.end_col; c += t.across * E) {
        Coefficients<E> own;
#pragma unroll
        for (int k = 0; k < E; k++) {
            u32 g = (c + k) / width - first;
            p.linear(c + k, own.factor[k], own.offset[k]);
            own.mean[k] = means[g];
            own.factor[k] *= rstds[g];
            own.offset[k] = fmaf(-rests[g], own.factor[k], own.offset[k]);
        }
        const T* from = sample + t.at(c);
        T* to = y + (from - x);
        u32 rows = t.own_rows();
        // The frequent ones with more loads under way than the code of all of them allows.
        if (aligned && kind == SILU) apply_rows<T, E, 4, true>(from, to, rows, t.step(), own, [](float v) { return act(SILU, v); });
        else if (aligned && kind == IDENTITY) apply_rows<T, E, 4, true>(from, to, rows, t.step(), own, [](float v) { return v; });
        else apply_rows<T, E, 1, false>(from, to, rows, t.step(), own, [=](float v) { return act(kind, v); });
    }
}

#define ENTRY(T, E)                                                                                                    \
    FLAT_KERNEL group_norm_moments_##E##_##T(const T* x, f32* out, TILE, u32 groups) {                                 \
        moments<T, E>(x, out, groups, AS_TILE(E, false));                                                              \
    }                                                                                                                  \
    FLAT_KERNEL group_norm_apply_##E##_##T(const T* x, const T* gamma, const T* beta, const T* scale, const T* shift,  \
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
