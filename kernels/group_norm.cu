// x [B, R, C] -> y = act((n · gamma + beta) · (1 + scale) + shift), the last pair there or not, n = (x - mean) · rstd over each sample's
// group of C / groups channels; stats [B, groups, 2]: mean, rstd.
// Floor: x read once, y written once. `whole` reaches it where samples are small: a block has all rows of some groups, in shared
// memory between the passes. Elsewhere two launches read x twice, the second one mostly from the L2 where x fits it, as it begins with
// what the first one read last. Both lay tiles over channels and stretches over rows, so that one sample has work for all
// multiprocessors: `moments` leaves mean and squared differences of every stretch of a group, `apply` joins those of its groups
// (Chan, Golub & LeVeque 1983).
#include "lib/activation.cuh"
#include "lib/copies.cuh"
#include "lib/norm.cuh"

// What a block's threads have of their channels, by line and channel.
template <int E, u32 THREADS = FLAT_THREADS>
using Slots = float[THREADS * E];

template <int E>
__device__ __forceinline__ void put(float* slots, const float (&v)[E]) {
    constexpr int P = E < 4 ? E : 4;
#pragma unroll
    for (int i = 0; i < E; i += P) {
        Pack<f32, P> piece;
#pragma unroll
        for (int k = 0; k < P; k++) piece.at[k] = v[i + k];
        *(Pack<f32, P>*)(slots + threadIdx.x * E + i) = piece;
    }
}

// The slots of a group, shared by the threads of a team: of `span` neighbouring ones of each line of `pitch`.
struct GroupSlots {
    u32 pitch, span, lines;
    // Of this thread: the line and place of the first, and how far it is to the next.
    u32 line, at, lines_on, on;

    __device__ __forceinline__ GroupSlots(u32 pitch, u32 width, u32 lines, const RowTeam& teams)
        : pitch(pitch), span(width < pitch ? width : pitch), lines(lines) {
        line = teams.lane / span, at = teams.lane % span;
        lines_on = teams.lanes / span, on = teams.lanes % span;
    }

    // f(line, slot), `first` being the group's first in a line.
    template <class F>
    __device__ __forceinline__ void each(u32 first, F f) const {
        u32 l = line, i = at, slot = l * pitch + first + i, far = lines_on * pitch + on;
#pragma unroll 4
        while (l < lines) {
            f(l, slot);
            l += lines_on, i += on, slot += far;
            if (i >= span) i -= span, slot += pitch - span, l++;
        }
    }
};

// What means of parts are less: the first number of a sample's group, so that large means cost no digits. Numbers of 16 bits have fewer than they
// would lose.
template <class T>
__device__ __forceinline__ float origin_of(const T* sample, u32 group, u32 width) {
    return sizeof(T) == 2 ? 0.0f : widen(sample[u64(group) * width]);
}

// Mean and squared differences of a thread's rows, channel by channel. Numbers are summed less the first one of their channel: large means
// cost no digits, and a first number far from n others costs no more than a factor of n of the rounding.
template <class T, int E, bool ALIGNED>
struct Moments {
    // Loads under way: of 32 numbers.
    static constexpr int ROWS = !ALIGNED ? 1 : E == 8 ? 4 : 8;
    float mean[E], square[E];

    // Of the rows from `from` on in channels from c on, `rows` of them `step` apart; the mean is less the group's origin.
    __device__ __forceinline__ Moments(const T* from, u32 rows, u32 step, const T* sample, u32 c, u32 width) {
        float first[E];
        widen_all<T>(first, read<T, E, ALIGNED>(from));
#pragma unroll
        for (int k = 0; k < E; k++) mean[k] = square[k] = 0.0f;
#pragma unroll 1
        for (u32 row = 0; row < rows; row += ROWS, from += u64(ROWS) * step) {
            Pack<T, E> v[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++)
                if (row + r < rows) v[r] = read<T, E, ALIGNED>(from + u64(r) * step);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                if (row + r >= rows) continue;
                float x[E];
                widen_all<T>(x, v[r]);
#pragma unroll
                for (int k = 0; k < E; k++) {
                    float d = x[k] - first[k];
                    mean[k] += d;
                    square[k] = fmaf(d, d, square[k]);
                }
            }
        }
        float each = 1.0f / float(rows);
        each_group<E>(c, width, [&](int k, u32 g) {
            float own = mean[k] * each;
            square[k] = fmaxf(fmaf(-own, mean[k], square[k]), 0.0f);
            mean[k] = (first[k] - origin_of(sample, g, width)) + own;
        });
    }
};

// Moments of weighted parts, of which parts.each(f) calls f(weight, mean, square) for this thread's: mean, and the sum of squares in y. `all` is
// the sum of weights.
template <class Parts>
__device__ __forceinline__ float2 joined(const GroupTeams<>& teams, float all, bool there, const Parts& parts) {
    float mean = 0.0f, square = 0.0f;
    if (there) parts.each([&](float n, float m, float) { mean = fmaf(n, m, mean); });
    mean = teams.total(mean) / all;
    if (there) parts.each([&](float n, float m, float s) { square += fmaf(n * (m - mean), m - mean, s); });
    return make_float2(mean, teams.total(square));
}

// What the lines of a tile have of a group: f(numbers, mean, square) for this thread's slots.
template <int E>
struct SlotMoments {
    const GroupSlots& slots;
    const Slots<E>&means, &squares;
    u32 width, group, rows;

    template <class F>
    __device__ __forceinline__ void each(F f) const {
        // Rows of the first `more` lines, and of the others.
        u32 first = group * width, more = rows % slots.lines;
        float few = float(rows / slots.lines), many = few + 1.0f;
        slots.each(first, [&](u32 line, u32 slot) {
            float n = line < more ? many : few;
            // Of a group wider than a line, some of its channels share a slot.
            if (width > slots.pitch) n *= float((width - (slot - line * slots.pitch) + slots.pitch - 1) / slots.pitch);
            f(n, means[slot], squares[slot]);
        });
    }
};

template <bool ALIGNED, class T, int E>
__device__ __forceinline__ void fill(Slots<E>& means, Slots<E>& squares, const T* sample, u32 width, const Tile<E>& t) {
    u32 rows = t.own_rows(), visits = 0;
    float none[E] = {};
    put<E>(means, none);
    put<E>(squares, none);
    // A group wider than a line comes again further right: as many rows join those before.
#pragma unroll 1
    for (u32 c = t.col; c < t.end_col && rows > 0; c += t.across * E, visits++) {
        Moments<T, E, ALIGNED> own(sample + t.at(c), rows, t.step(), sample, c, width);
        float part = 1.0f / float(visits + 1), weight = float(visits * rows) * part;
#pragma unroll
        for (int k = 0; k < E; k++) {
            float before = means[threadIdx.x * E + k], apart = own.mean[k] - before;
            own.mean[k] = fmaf(apart, part, before);
            own.square[k] += fmaf(apart * apart, weight, squares[threadIdx.x * E + k]);
        }
        put<E>(means, own.mean);
        put<E>(squares, own.square);
    }
}

// out [B, groups, count, 2]: mean less the origin, sum of squared differences from the mean.
template <class T, int E>
__device__ __forceinline__ void moments(const T* x, f32* out, u32 groups, Tile<E> t) {
    __shared__ alignas(16) Slots<E> means, squares;
    u32 width = t.channels / groups;
    const T* sample = x + u64(t.sample) * t.rows * t.channels;
    if (E == 1 || packs_are_aligned(x)) fill<true>(means, squares, sample, width, t);
    else fill<false>(means, squares, sample, width, t);
    __syncthreads();
    GroupTeams<> teams((t.end_col - t.first_col) / width);
    GroupSlots slots(t.across * E, width, t.down, teams);
    u32 rows = t.end - t.start;
    teams.each([&](u32 g, bool there) {
        float2 own = joined(teams, float(rows) * float(width), there, SlotMoments<E>{slots, means, squares, width, g, rows});
        if (!there || teams.lane > 0) return;
        u64 group = u64(t.sample) * groups + t.first_col / width + g;
        *(float2*)(out + 2 * (group * t.count + t.stretch)) = own;
    });
}

// What `moments` left of a group: of stretches of `part_rows` rows.
struct Parts {
    const float2* moments;
    u32 parts, part_rows, rows, width, lane, lanes;

    template <class F>
    __device__ __forceinline__ void each(F f) const {
#pragma unroll 4
        for (u32 i = lane; i < parts; i += lanes) {
            float2 m = moments[i];
            f(float(min(rows - i * part_rows, part_rows)) * float(width), m.x, m.y);
        }
    }
};

// Of a tile's groups: the mean, what rounding took from it, rstd.
template <int GROUPS>
struct GroupStats {
    float mean[GROUPS], rest[GROUPS], rstd[GROUPS];

    // Of group g of the tile, from its mean in two parts and its variance; out [2] gets mean and rstd, unless null.
    __device__ __forceinline__ void set(u32 g, float large, float small, float variance, float eps, f32* out) {
        // The root to 2 ulp.
        float rounded = large + small, own = rsqrtf(variance + eps);
        mean[g] = rounded;
        rest[g] = (large - rounded) + small;
        rstd[g] = own;
        if (out == nullptr) return;
        out[0] = rounded;
        out[1] = own;
    }
};

// What makes y of N channels: act((x - mean) · factor + offset). In 16 bits the mean is in the offset: what rounding takes from that is far less
// than from y.
template <class T, int N>
struct Coefficients {
    static constexpr bool FOLDED = sizeof(T) == 2;
    float mean[N], factor[N], offset[N];

    // `first`: the tile's first group.
    template <int GROUPS>
    __device__ __forceinline__ Coefficients(const Parameters<T>& p, const GroupStats<GROUPS>& s, u32 c, u32 width, u32 first) {
        p.linear(c, factor, offset);
        each_group<N>(c, width, [&](int k, u32 g) {
            mean[k] = s.mean[g - first];
            factor[k] *= s.rstd[g - first];
            offset[k] = fmaf(-s.rest[g - first], factor[k], offset[k]);
            if (FOLDED) offset[k] = fmaf(-mean[k], factor[k], offset[k]);
        });
    }

    __device__ __forceinline__ float of(float v, int k) const {
        return fmaf(FOLDED ? v : v - mean[k], factor[k], offset[k]);
    }
};

// y of a thread's rows, ROWS loads under way.
template <class T, int N, int ROWS, class F>
__device__ __forceinline__ void apply_rows(const T* from, u32 from_step, T* to, u32 to_step, u32 rows, const Coefficients<T, N>& p,
                                           F f) {
#pragma unroll 1
    for (u32 row = 0; row < rows; row += ROWS, from += u64(ROWS) * from_step, to += u64(ROWS) * to_step) {
        Pack<T, N> v[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            if (row + r < rows) v[r] = read<T, N, true>(from + u64(r) * from_step);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (row + r >= rows) continue;
            float out[N];
            widen_all<T>(out, v[r]);
#pragma unroll
            for (int k = 0; k < N; k++) out[k] = f(p.of(out[k], k));
            write<T, N, true>(to + u64(r) * to_step, narrow_all<T>(out));
        }
    }
}

// y of a thread's rows of E channels from c on. Entries of one channel a thread know all activations, whose code is long, the others SiLU
// and the identity. Channels are taken one after the other where packs do not lie at 16 bytes.
template <class T, int E, int GROUPS>
__device__ __forceinline__ void apply_channels(const T* from, u32 from_step, T* to, u32 to_step, u32 rows, const Parameters<T>& p,
                                               const GroupStats<GROUPS>& s, u32 c, u32 width, u32 first, u32 kind, bool aligned) {
    Gated gated(kind == SILU);
    auto frequent = [=](float v) { return gated.value(v); };
    if constexpr (E == 1) {
        Coefficients<T, 1> own(p, s, c, width, first);
        apply_rows<T, 1, 4>(from, from_step, to, to_step, rows, own, [=](float v) { return act(kind, v); });
    } else if (aligned) {
        Coefficients<T, E> own(p, s, c, width, first);
        apply_rows<T, E, 4>(from, from_step, to, to_step, rows, own, frequent);
    } else {
#pragma unroll 1
        for (int k = 0; k < E; k++) {
            Coefficients<T, 1> own(p, s, c + k, width, first);
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
    GroupTeams<> teams((t.end_col - t.first_col) / width);
    teams.each([&](u32 g, bool there) {
        u64 group = u64(t.sample) * groups + first + g;
        float origin = there ? origin_of(sample, first + g, width) : 0.0f;
        Parts of{(const float2*)moments + group * parts, parts, part_rows, t.rows, width, teams.lane, teams.lanes};
        float2 own = joined(teams, all, there, of);
        if (there && teams.lane == 0) tile.set(g, origin, own.x, own.y / all, eps, t.stretch == 0 ? stats + 2 * group : nullptr);
    });
    __syncthreads();
    bool aligned = packs_are_aligned(x, y);
    for (u32 c = t.col; c < t.end_col; c += t.across * E) {
        const T* from = sample + t.at(c);
        apply_channels<T, E>(from, t.step(), y + (from - x), t.step(), t.own_rows(), p, tile, c, width, first, kind, aligned);
    }
}

// Of `whole`: threads of a block, and groups of a tile at most; `ops/group_norm.rs` has them too.
constexpr u32 WHOLE_THREADS = 512, WHOLE_GROUPS = 64;

// A thread's rows of a tile in shared memory, `step` units apart. Only this thread reads and writes them.
template <class T>
struct KeptRows {
    static constexpr int E = WIDE<T>;
    Wide<T>* at;
    u32 rows, step;

    // Copies the rows from `from` on, in two halves to wait for.
    __device__ __forceinline__ void fetch(const T* from, u64 from_step, bool aligned) const {
#pragma unroll 2
        for (u32 i = 0; i < rows; i++, from += from_step) {
            if (i == rows / 2) commit_copies();
            if (aligned) copy_16(shared_address(at + i * step), from, true);
            else at[i * step] = read<T, E, false>(from);
        }
        commit_copies();
    }

    // f(numbers) for rows from..to
    template <class F>
    __device__ __forceinline__ void each(u32 from, u32 to, F f) const {
#pragma unroll 2
        for (u32 i = from; i < to; i++) {
            float v[E];
            widen_all<T>(v, at[i * step]);
            f(v);
        }
    }
};

// Sums by channel of the threads of `whole`, neighbours of a group already joined in the thread: as many as divide both a group and a pack.
template <int E>
struct JoinedSlots {
    u32 join, each, pitch;

    __device__ __forceinline__ JoinedSlots(u32 width, u32 across) {
        join = width % 8 == 0 ? 8 : width % 4 == 0 ? 4 : width % 2 == 0 ? 2 : 1;
        if (join > E) join = E;
        each = E / join;
        // An odd number: lines below each other are in different banks.
        pitch = across * each | 1;
    }

    __device__ __forceinline__ void put(float* slots, float (&v)[E], u32 line, u32 column) const {
#pragma unroll
        for (int n = 2; n <= E; n *= 2) {
            if (join < n) continue;
#pragma unroll
            for (int k = 0; k < E / n; k++) v[k] = v[2 * k] + v[2 * k + 1];
        }
#pragma unroll
        for (int k = 0; k < E; k++)
            if (k < each) slots[line * pitch + column * each + k] = v[k];
    }
};

// All rows of a tile in one block, which keeps them in shared memory between the passes: mean, then the squared differences from it, then y.
template <class T, int E>
__device__ __forceinline__ void whole(const T* x, Parameters<T> p, T* y, f32* stats, u32 groups, u32 kind, float eps,
                                      Tile<E, WHOLE_THREADS> t) {
    // What rounding leaves of the mean, without which large means would cost digits, is more than nothing to numbers of 32 bits only.
    constexpr int SUMS = sizeof(T) == 4 ? 2 : 1;
    extern __shared__ uint4 held[];
    // Of lines of an odd pitch.
    __shared__ float slots[SUMS][WHOLE_THREADS * (E + 1)];
    __shared__ GroupStats<WHOLE_GROUPS> tile;
    bool there = t.col < t.end_col;
    KeptRows<T> kept{(Wide<T>*)held + threadIdx.x, there ? t.own_rows() : 0, t.across * t.down};
    const T* from = x + u64(t.sample) * t.rows * t.channels + t.at(t.col);
    kept.fetch(from, t.step(), packs_are_aligned(x));
    if (there) p.prefetch(t.col);

    u32 width = t.channels / groups, first = t.first_col / width, line = t.row - t.start, column = (t.col - t.first_col) / E;
    GroupTeams<WHOLE_THREADS> teams((t.end_col - t.first_col) / width);
    JoinedSlots<E> joined(width, t.across);
    GroupSlots of(joined.pitch, width / joined.join, t.down, teams);
    float each = 1.0f / (float(t.rows) * float(width)), sum[E], square[E], mean[E];
#pragma unroll
    for (int k = 0; k < E; k++) sum[k] = square[k] = mean[k] = 0.0f;
    auto add = [&](const float (&v)[E]) {
#pragma unroll
        for (int k = 0; k < E; k++) sum[k] += v[k];
    };
    wait_copies<1>();
    kept.each(0, kept.rows / 2, add);
    wait_copies<0>();
    kept.each(kept.rows / 2, kept.rows, add);
    if (there) joined.put(slots[0], sum, line, column);
    __syncthreads();
    teams.each([&](u32 g, bool there) {
        float own = 0.0f;
        if (there) of.each(g * of.span, [&](u32, u32 slot) { own += slots[0][slot]; });
        own = teams.total(own);
        if (there && teams.lane == 0) tile.mean[g] = own * each;
    });
    __syncthreads();
#pragma unroll
    for (int k = 0; k < E; k++) sum[k] = 0.0f;
    if (there) each_group<E>(t.col, width, [&](int k, u32 g) { mean[k] = tile.mean[g - first]; });
    kept.each(0, kept.rows, [&](const float (&v)[E]) {
#pragma unroll
        for (int k = 0; k < E; k++) {
            float d = v[k] - mean[k];
            if (SUMS == 2) sum[k] += d;
            square[k] = fmaf(d, d, square[k]);
        }
    });
    if (there) joined.put(slots[0], square, line, column);
    if (there && SUMS == 2) joined.put(slots[SUMS - 1], sum, line, column);
    __syncthreads();
    teams.each([&](u32 g, bool there) {
        float squares = 0.0f, left = 0.0f;
        if (there)
            of.each(g * of.span, [&](u32, u32 slot) {
                squares += slots[0][slot];
                if (SUMS == 2) left += slots[SUMS - 1][slot];
            });
        squares = teams.total(squares);
        if (SUMS == 2) left = teams.total(left) * each;
        float variance = fmaxf(fmaf(-left, left, squares * each), 0.0f);
        f32* out = stats + 2 * (u64(t.sample) * groups + first + g);
        if (there && teams.lane == 0) tile.set(g, tile.mean[g], left, variance, eps, out);
    });
    __syncthreads();
    if (!there) return;
    T* to = y + (from - x);
    apply_channels<T, E>((const T*)kept.at, kept.step * E, to, t.step(), kept.rows, p, tile, t.col, width, first, kind,
                         packs_are_aligned(y));
}

#define NORM_KERNEL(THREADS, BLOCKS) extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)

#define ENTRY(T, E)                                                                                                    \
    NORM_KERNEL(FLAT_THREADS, 3) group_norm_moments_##E##_##T(const T* x, f32* out, TILE, u32 groups) {                                 \
        moments<T, E>(x, out, groups, AS_TILE(E, false));                                                              \
    }                                                                                                                  \
    NORM_KERNEL(FLAT_THREADS, 4) group_norm_apply_##E##_##T(const T* x, const T* gamma, const T* beta, const T* scale, const T* shift,  \
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
    NORM_KERNEL(WHOLE_THREADS, 2) group_norm_whole_##T(const T* x, const T* gamma, const T* beta, const T* scale, const T* shift, T* y,  \
                                     f32* stats, TILE, u32 groups, u32 kind, u32 modulate, float eps) {                \
        Tile<WIDE<T>, WHOLE_THREADS> t(rows, channels, cols, across, tiles, count, per, false);                                                                     \
        u64 sample = u64(t.sample) * channels;                                                                         \
        Parameters<T> p{gamma, beta, scale + sample, shift + sample, true, modulate != 0};                             \
        whole<T, WIDE<T>>(x, p, y, stats, groups, kind, eps, t);                                                       \
    }
FOR_TYPES(WHOLE)
