// x [B, R, C] -> y = act((n · gamma + beta) · (1 + scale) + shift), the last pair there or not, n = (x - mean) · rstd over each sample's
// group of C / groups channels; stats [B, groups, 2]: mean, rstd.
// Floor: x read once, y written once. `held` reaches it where samples are small: a block has all rows of some groups, in registers from the
// first load to the last store. Elsewhere two launches read x twice, the second one mostly from the L2 where x fits it, as it begins with
// what the first one read last. Both lay tiles over channels and stretches over rows, so that one sample has work for all
// multiprocessors: `moments` leaves mean and squared differences of every stretch of a group, `apply` joins those of its groups
// (Chan, Golub & LeVeque 1983).
#include "lib/group_norm.cuh"

// out [B, groups, count, 2]: mean less the origin, sum of squared differences from the mean.
template <class T, int E>
__device__ __forceinline__ void moments(const T* x, f32* out, u32 groups, Divisor width, u32 pitch, const Tile<E>& t) {
    extern __shared__ float shared[];
    u32 own_rows = t.own_rows(), step = t.down.size * t.channels;
    const T* sample = x + u64(t.sample) * t.rows * t.channels;
    Slots<T, E> slots(shared, t, width.size, pitch);
    if (t.col < t.end_col && own_rows > 0) {
        bool aligned = packs_are_aligned(x);
        const T* from = sample + t.at(t.col);
        Rows<T, E> kept;
        kept.fetch(from, step, own_rows, aligned);
        Moments<T, E> own(kept.at[0]);
        own.add(kept, own_rows);
        u32 seen = own_rows;
#pragma unroll 1
        for (u32 row = HELD<E>; row < own_rows; row += HELD<E>) {
            kept.fetch(from + u64(row) * step, step, own_rows - row, aligned);
            own.add(kept, own_rows - row);
        }
        // A group wider than a line, which has the tile for itself, comes again further right.
#pragma unroll 1
        for (u32 c = t.col + t.across * E; c < t.end_col; c += t.across * E, seen += own_rows) {
#pragma unroll 1
            for (u32 row = 0; row < own_rows; row += HELD<E>) {
                kept.fetch(sample + t.at(c) + u64(row) * step, step, own_rows - row, aligned);
                own.add(kept, own_rows - row);
            }
        }
        own.finish(seen, sample, t.col, width);
        slots.put(own, float(seen * Moments<T, E>::EACH));
    }
    __syncthreads();
    u32 first = quotient(t.first_col, width), tile_groups = quotient(t.end_col - t.first_col, width);
    GroupTeam team(tile_groups);
    float each = 1.0f / (float(t.end - t.start) * float(width.size));
    team.each(tile_groups, [&](u32 g, bool there) {
        float2 own = joined(team, each, there, slots.of(g, team));
        if (!there || team.lane > 0) return;
        u64 group = u64(t.sample) * groups + first + g;
        *(float2*)(out + 2 * (group * t.count + t.stretch)) = own;
    });
}

// moments [B, groups, parts, 2] of stretches of `part_rows` rows. The first rows are on their way while those are joined.
template <class T, int E>
__device__ __forceinline__ void apply(const T* x, Parameters<T> p, const f32* moments, T* y, f32* stats, u32 groups, Divisor width,
                                      u32 kind, u32 parts, u32 part_rows, float eps, const Tile<E>& t) {
    __shared__ GroupStats<FLAT_THREADS * (E == 1 ? 1 : E / 2)> tile;
    u32 first = quotient(t.first_col, width), tile_groups = quotient(t.end_col - t.first_col, width);
    const T* sample = x + u64(t.sample) * t.rows * t.channels;
    u32 rows = t.col < t.end_col ? t.own_rows() : 0, step = t.down.size * t.channels;
    bool reads = packs_are_aligned(x), writes = packs_are_aligned(y);
    Rows<T, E> kept;
    kept.fetch(sample + t.at(t.col), step, rows, reads);
    float each = 1.0f / (float(t.rows) * float(width.size));
    GroupTeam team(tile_groups);
    team.each(tile_groups, [&](u32 g, bool there) {
        u64 group = u64(t.sample) * groups + first + g;
        float origin = there ? origin_of(sample, first + g, width.size) : 0.0f;
        Parts<sizeof(T) == 2 ? 4 : 2> of{(const float2*)moments + group * parts, parts, part_rows, t.rows, width.size, team.lane, team.lanes};
        float2 own = joined(team, each, there, of);
        if (there && team.lane == 0) tile.set(g, origin, own.x, own.y * each, eps, t.stretch == 0 ? stats + 2 * group : nullptr);
    });
    __syncthreads();
    Finish<T, E> finish{kind};
#pragma unroll 1
    for (u32 c = t.col; c < t.end_col; c += t.across * E) {
        Coefficients<T, E> own(p, c);
        own.normalise(tile, c, width, first, finish.times());
        const T* from = sample + t.at(c);
        T* to = y + (from - x);
        u64 on = u64(HELD<E>) * step;
#pragma unroll 1
        for (u32 row = 0; row < rows; row += HELD<E>, from += on, to += on) {
            if (row > 0 || c > t.col) kept.fetch(from, step, rows - row, reads);
            make(kept, to, step, rows - row, own, finish, writes);
        }
    }
}

// All rows of a tile in one block, HELD of them a thread.
template <class T, int E>
__device__ __forceinline__ void held(const T* x, Parameters<T> p, T* y, f32* stats, u32 groups, Divisor width, u32 kind,
                                     float eps, u32 pitch, const Tile<E>& t) {
    extern __shared__ float shared[];
    __shared__ GroupStats<HELD_GROUPS> tile;
    u32 rows = t.col < t.end_col ? t.own_rows() : 0, step = t.down.size * t.channels;
    const T *sample = x + u64(t.sample) * t.rows * t.channels, *from = sample + t.at(t.col);
    Rows<T, E> kept;
    kept.fetch(from, step, rows, packs_are_aligned(x));
    if (rows > 0) p.prefetch(t.col);
    u32 first = quotient(t.first_col, width), tile_groups = quotient(t.end_col - t.first_col, width);
    Slots<T, E> slots(shared, t, width.size, pitch);
    GroupTeam team(tile_groups);
    float each = 1.0f / (float(t.rows) * float(width.size));
    if (rows > 0) {
        Moments<T, E> own(kept.at[0]);
        own.add(kept, rows);
        own.finish(rows, sample, t.col, width);
        slots.put(own, float(rows * Moments<T, E>::EACH));
    }
    __syncthreads();
    team.each(tile_groups, [&](u32 g, bool there) {
        float origin = there ? origin_of(sample, first + g, width.size) : 0.0f;
        float2 own = joined(team, each, there, slots.of(g, team));
        f32* out = stats + 2 * (u64(t.sample) * groups + first + g);
        if (there && team.lane == 0) tile.set(g, origin, own.x, own.y * each, eps, out);
    });
    __syncthreads();
    if (rows == 0) return;
    Finish<T, E> finish{kind};
    Coefficients<T, E> own(p, t.col);
    own.normalise(tile, t.col, width, first, finish.times());
    make(kept, y + (from - x), step, rows, own, finish, packs_are_aligned(y));
}

#define NORM_KERNEL(THREADS, BLOCKS) extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)

#define ENTRY(T, E)                                                                                                    \
    NORM_KERNEL(FLAT_THREADS, 3) group_norm_moments_##E##_##T(const T* x, f32* out, TILE, u32 groups, DIVISOR(width),   \
                                                              u32 pitch) {                                             \
        moments<T, E>(x, out, groups, AS_DIVISOR(width), pitch, AS_TILE(E, false));                                                              \
    }                                                                                                                  \
    NORM_KERNEL(FLAT_THREADS, 3) group_norm_apply_##E##_##T(const T* x, const T* gamma, const T* beta, const T* scale, \
                                           const T* shift, const f32* moments, T* y, f32* stats, TILE, u32 groups,     \
                                           DIVISOR(width), u32 kind, u32 modulate, u32 parts, u32 part_rows, float eps) {              \
        Tile<E> t = AS_TILE(E, true);                                                                                  \
        u64 sample = u64(t.sample) * channels;                                                                         \
        Parameters<T> p{gamma, beta, scale + sample, shift + sample, true, modulate != 0};                             \
        apply<T, E>(x, p, moments, y, stats, groups, AS_DIVISOR(width), kind, parts, part_rows, eps, t);                                  \
    }
ENTRY(f32, 4)
ENTRY(f32, 1)
ENTRY(f16, 8)
ENTRY(f16, 1)
ENTRY(bf16, 8)
ENTRY(bf16, 1)

// Of 16 bits, two blocks of 512 threads fit a multiprocessor.
#define ALONE(T)                                                                                                       \
    NORM_KERNEL(sizeof(T) == 2 ? 1024 : 768, 1) group_norm_held_##T(const T* x, const T* gamma, const T* beta, const T* scale, const T* shift,\
                                             T* y, f32* stats, TILE, u32 groups, DIVISOR(width), u32 kind, u32 modulate, float eps,     \
                                             u32 pitch) {                                                              \
        Tile<WIDE<T>> t = AS_TILE(WIDE<T>, false);                                    \
        u64 sample = u64(t.sample) * channels;                                                                         \
        Parameters<T> p{gamma, beta, scale + sample, shift + sample, true, modulate != 0};                             \
        held<T, WIDE<T>>(x, p, y, stats, groups, AS_DIVISOR(width), kind, eps, pitch, t);                                                        \
    }
FOR_TYPES(ALONE)
