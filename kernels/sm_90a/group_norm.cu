// As `../group_norm.cu`, on Hopper: x [B, R, C] -> y, stats [B, groups, 2] in one launch of clusters, whose blocks share a tile's rows out among them.
// Floor: x read once, y written once. A block has rows in registers from the first load to the last store, HELD of them a thread; of more, all but the
// last ones are read again, from the L2: blocks that run at once are worth more than what they hold. Each block leaves moments of its rows of every group
// with all blocks of its cluster, and each of them joins them.
#include "lib/cluster.cuh"
#include "lib/group_norm.cuh"

template <class T, int E, u32 SIZE>
__device__ __forceinline__ void clustered(const T* x, Parameters<T> p, T* y, f32* stats, u32 groups, Divisor width, u32 kind, float eps, u32 pitch,
                                          const Tile<E>& t) {
    extern __shared__ float shared[];
    __shared__ GroupStats<HELD_GROUPS> tile;
    __shared__ float2 moments[HELD_GROUPS * SIZE];
    cluster_arrive();
    u32 rows = t.col < t.end_col ? t.own_rows() : 0, step = t.down.size * t.channels, last = rows > 0 ? (rows - 1) / HELD<E> * HELD<E> : 0;
    const T *sample = x + u64(t.sample) * t.rows * t.channels, *from = sample + t.at(t.col);
    bool reads = packs_are_aligned(x), writes = packs_are_aligned(y);
    Rows<T, E> kept;
    kept.fetch(from, step, rows, reads);
    // Nobody writes to a block that has not begun. A wait empties the L1, so parameters are asked for after it.
    cluster_wait();
    if (rows > 0) p.prefetch(t.col);
    u32 first = quotient(t.first_col, width), tile_groups = quotient(t.end_col - t.first_col, width);
    Slots<T, E> slots(shared, t, width.size, pitch);
    GroupTeam team(tile_groups);
    u64 on = u64(HELD<E>) * step;
    if (rows > 0) {
        Moments<T, E> own(kept.at[0]);
        own.add(kept, rows);
#pragma unroll 1
        for (u32 row = HELD<E>; row < rows; row += HELD<E>) {
            from += on;
            kept.fetch(from, step, rows - row, reads);
            own.add(kept, rows - row);
        }
        own.finish(rows, sample, t.col, width);
        slots.put(own, float(rows * Moments<T, E>::EACH));
    }
    __syncthreads();
    float each = 1.0f / (float(t.end - t.start) * float(width.size));
    team.each(tile_groups, [&](u32 g, bool there) {
        float2 own = joined(team, each, there, slots.of(g, team));
#pragma unroll 1
        for (u32 rank = team.lane; there && rank < SIZE; rank += team.lanes) store_in_cluster(moments + g * SIZE + t.stretch, rank, own);
    });
    cluster_release();
    Finish<T, E> finish{kind};
    // Threads without channels read those of others.
    Coefficients<T, E> own(p, min(t.col, t.end_col - E));
    each = 1.0f / (float(t.rows) * float(width.size));
    cluster_wait();
    team.each(tile_groups, [&](u32 g, bool there) {
        float origin = there ? origin_of(sample, first + g, width.size) : 0.0f;
        Parts<1> of{moments + g * SIZE, SIZE, t.per, t.rows, width.size, team.lane, team.lanes};
        float2 own = joined(team, each, there, of);
        f32* out = t.stretch == 0 ? stats + 2 * (u64(t.sample) * groups + first + g) : nullptr;
        if (there && team.lane == 0) tile.set(g, origin, own.x, own.y * each, eps, out);
    });
    __syncthreads();
    if (rows == 0) return;
    own.normalise(tile, t.col, width, first, finish.times());
#pragma unroll 1
    for (u32 row = last;; row -= HELD<E>) {
        make(kept, y + (from - x), step, rows - row, own, finish, writes);
        if (row == 0) break;
        from -= on;
        kept.fetch(from, step, HELD<E>, reads);
    }
}

// Of 80 registers, three blocks a multiprocessor; `ops/norm.rs` has it too.
constexpr u32 CLUSTER_THREADS = 256;

// x of the grid is the block's place in its cluster, y the tile, z the sample.
#define CLUSTERED(T, SIZE)                                                                                                                      \
    extern "C" __global__ void __cluster_dims__(SIZE, 1, 1) __launch_bounds__(CLUSTER_THREADS, 3)                                   \
        group_norm_clusters_##SIZE##_##T(const T* x, const T* gamma, const T* beta, const T* scale, const T* shift, T* y, f32* stats, u32 rows, \
                                         u32 channels, u32 cols, DIVISOR(across), DIVISOR(down), u32 per, u32 groups, DIVISOR(width), u32 kind, \
                                         u32 modulate, float eps, u32 pitch) {                                                                  \
        Tile<WIDE<T>> t(rows, channels, cols, AS_DIVISOR(across), AS_DIVISOR(down), SIZE, per, blockIdx.z, blockIdx.x, blockIdx.y);              \
        u64 sample = u64(t.sample) * channels;                                                                                                  \
        Parameters<T> p{gamma, beta, scale + sample, shift + sample, true, modulate != 0};                                                      \
        clustered<T, WIDE<T>, SIZE>(x, p, y, stats, groups, AS_DIVISOR(width), kind, eps, pitch, t);                                            \
    }
#define CLUSTERS(SIZE) CLUSTERED(f16, SIZE) CLUSTERED(bf16, SIZE)

CLUSTERS(4)
CLUSTERS(8)
