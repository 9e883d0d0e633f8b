// What the normalisations share: threads of a row, the row in registers, what follows a normalisation, and tiles over columns;
// `ops/norm.rs` lowers them.
#pragma once
#include "fragments.cuh"
#include "lines.cuh"

// The numbers of a pack in f32. Two of bf16 are a word's halves, an instruction each.
template <class T, int N>
__device__ __forceinline__ void widen_all(float (&out)[N], Pack<T, N> v) {
#pragma unroll
    for (int k = 0; k < N; k++) {
        if constexpr (IS_BF16<T> && N % 2 == 0) {
            u32 word = ((const u32*)&v)[k / 2];
            out[k] = __uint_as_float(k % 2 ? word & 0xffff0000u : word << 16);
        } else {
            out[k] = widen(v.at[k]);
        }
    }
}

// A pack of numbers: two of 16 bits come of one instruction.
template <class T, int N>
__device__ __forceinline__ Pack<T, N> narrow_all(const float (&v)[N]) {
    Pack<T, N> out;
    if constexpr (sizeof(T) == 2 && N % 2 == 0) {
#pragma unroll
        for (int k = 0; k < N / 2; k++) ((u32*)&out)[k] = pack<T>(v[2 * k], v[2 * k + 1]);
    } else {
#pragma unroll
        for (int k = 0; k < N; k++) out.at[k] = narrow<T>(v[k]);
    }
    return out;
}

// v becomes the sums over neighbouring lanes of a warp, a power of two of them or all.
template <int N>
__device__ __forceinline__ void sum_in_warp(float (&v)[N], u32 lanes) {
    // Without branches for whole warps.
    if (lanes >= 32) {
#pragma unroll
        for (u32 distance = 16; distance > 0; distance /= 2)
#pragma unroll
            for (int k = 0; k < N; k++) v[k] += __shfl_xor_sync(~0u, v[k], distance);
        return;
    }
#pragma unroll 1
    for (u32 distance = lanes / 2; distance > 0; distance /= 2) {
#pragma unroll
        for (int k = 0; k < N; k++) v[k] += __shfl_xor_sync(~0u, v[k], distance);
    }
}

// Neighbouring threads of a block, of 256 where nothing else is said, that share a row: a power of two of them.
struct RowTeam {
    u32 lanes, row, lane;

    __device__ __forceinline__ RowTeam(u32 lanes) : lanes(lanes), lane(threadIdx.x & (lanes - 1)) {
        // No division: it takes some twenty instructions.
        u32 shift = __popc(lanes - 1);
        row = blockIdx.x * (FLAT_THREADS >> shift) + (threadIdx.x >> shift);
    }

    // v becomes the sums over all lanes, the same on every one. All threads of the block must come here.
    template <u32 THREADS = FLAT_THREADS, int N>
    __device__ __forceinline__ void sum(float (&v)[N]) const {
        sum_in_warp(v, lanes);
        if (lanes <= 32) return;
        __shared__ float parts[N][THREADS / 32];
        __syncthreads();
        if (threadIdx.x % 32 == 0) {
#pragma unroll
            for (int k = 0; k < N; k++) parts[k][threadIdx.x / 32] = v[k];
        }
        __syncthreads();
        u32 first = threadIdx.x / lanes * (lanes / 32);
#pragma unroll
        for (int k = 0; k < N; k++) v[k] = parts[k][first];
#pragma unroll 1
        for (u32 w = 1; w < lanes / 32; w++) {
#pragma unroll
            for (int k = 0; k < N; k++) v[k] += parts[k][first + w];
        }
    }
};

// A row of n numbers in registers, FOURS times four a lane: read once. n is a multiple of a pack, the row begins at 16 bytes.
template <class T, int FOURS>
struct HeldRow {
    static constexpr int EACH = WIDE<T>, HELD = 4 * FOURS / EACH;
    Wide<T> packs[HELD];
    const T* from;
    RowTeam team;
    u32 n;

    __device__ __forceinline__ HeldRow(const T* from, RowTeam team, u32 n) : from(from), team(team), n(n) {
#pragma unroll
        for (int k = 0; k < HELD; k++)
            if (place(k) < n) packs[k] = *(const Wide<T>*)(from + place(k));
    }

    __device__ __forceinline__ u32 place(int k) const { return (k * team.lanes + team.lane) * EACH; }

    // f(i) for the first numbers of this lane's packs.
    template <class F>
    __device__ __forceinline__ void each_place(F f) const {
#pragma unroll
        for (int k = 0; k < HELD; k++)
            if (place(k) < n) f(place(k));
    }

    // f(i, numbers) for the packs of this lane, i being a pack's first number.
    template <class F>
    __device__ __forceinline__ void each(F f) const {
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            if (place(k) >= n) continue;
            float v[EACH];
            widen_all<T>(v, packs[k]);
            f(place(k), v);
        }
    }
};

// Any row: read again, number by number, whenever it is gone through.
template <class T>
struct AnyRow {
    static constexpr int EACH = 1;
    const T* from;
    RowTeam team;
    u32 n;

    __device__ __forceinline__ AnyRow(const T* from, RowTeam team, u32 n) : from(from), team(team), n(n) {}

    // Too many to ask for.
    template <class F>
    __device__ __forceinline__ void each_place(F) const {}

    template <class F>
    __device__ __forceinline__ void each(F f) const {
#pragma unroll 1
        for (u32 i = team.lane; i < n; i += team.lanes) {
            float v[1] = {widen(from[i])};
            f(i, v);
        }
    }
};

// Whether rows of n numbers fit HeldRow.
template <class T, int FOURS>
__device__ __forceinline__ bool can_hold(u32 n, u32 lanes) {
    return n % WIDE<T> == 0 && n <= 4 * lanes * FOURS;
}

// A flag of which the compiler knows nothing: it makes no loop of its own for each value.
__device__ __forceinline__ bool opaque(bool flag) {
    u32 bits = flag;
    asm("" : "+r"(bits));
    return bits != 0;
}

// A number of which the compiler knows nothing: what it made of it before is not kept in registers, but made again.
__device__ __forceinline__ u32 afresh(u32 n) {
    asm("" : "+r"(n));
    return n;
}

// What follows a normalisation: n -> (n · gamma + beta) · (1 + scale) + shift, each pair there or not.
template <class T>
struct Parameters {
    // [C]; of one sample [C]
    const T *gamma, *beta, *scale, *shift;
    bool affine, modulate;

    __device__ __forceinline__ bool aligned() const {
        return (!affine || (is_aligned(gamma) && is_aligned(beta))) && (!modulate || (is_aligned(scale) && is_aligned(shift)));
    }

    // Brings those from c on to the L1 beside whatever comes until they are used: of a small batch nobody has read them yet.
    __device__ __forceinline__ void prefetch(u32 c) const {
        if (affine) fetch_line(gamma + c), fetch_line(beta + c);
        if (modulate) fetch_line(scale + c), fetch_line(shift + c);
    }

    static __device__ __forceinline__ void fetch_line(const T* p) {
        asm volatile("prefetch.global.L1 [%0];" ::"l"(__cvta_generic_to_global(p)));
    }

    // v of N neighbouring channels from c on.
    template <int N>
    __device__ __forceinline__ void follow(float (&v)[N], u32 c) const {
        follow((float (&)[1][N])v, c);
    }

    // Of ROWS rows.
    template <int ROWS, int N>
    __device__ __forceinline__ void follow(float (&v)[ROWS][N], u32 c) const {
        using P = Pack<T, N>;
        if (opaque(affine)) {
            float g[N], b[N];
            widen_all<T>(g, *(const P*)(gamma + c));
            widen_all<T>(b, *(const P*)(beta + c));
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int k = 0; k < N; k++) v[r][k] = fmaf(v[r][k], g[k], b[k]);
        }
        if (opaque(modulate)) {
            float g[N], b[N];
            widen_all<T>(g, *(const P*)(scale + c));
            widen_all<T>(b, *(const P*)(shift + c));
#pragma unroll
            for (int k = 0; k < N; k++) g[k] += 1.0f;
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int k = 0; k < N; k++) v[r][k] = fmaf(v[r][k], g[k], b[k]);
        }
    }

    // factor · v + offset is the same for N neighbouring channels from c on.
    template <int N>
    __device__ __forceinline__ void linear(u32 c, float (&factor)[N], float (&offset)[N]) const {
#pragma unroll
        for (int k = 0; k < N; k++) factor[k] = 1.0f, offset[k] = 0.0f;
        if (affine) {
            widen_all<T>(factor, channels<N>(gamma + c));
            widen_all<T>(offset, channels<N>(beta + c));
        }
        if (modulate) {
            float v[N];
            widen_all<T>(v, channels<N>(scale + c));
#pragma unroll
            for (int k = 0; k < N; k++) factor[k] = fmaf(factor[k], v[k], factor[k]), offset[k] = fmaf(offset[k], v[k], offset[k]);
            widen_all<T>(v, channels<N>(shift + c));
#pragma unroll
            for (int k = 0; k < N; k++) offset[k] += v[k];
        }
    }

    // Of 16 bits, packs of several channels lie at 16 bytes.
    template <int N>
    static __device__ __forceinline__ Pack<T, N> channels(const T* p) {
        if constexpr (sizeof(T) == 2) return *(const Pack<T, N>*)p;
        else return load<T, N>(p);
    }
};

// f(k, g) for N neighbouring channels from c on, or N times EACH of which all are of one group, g being the group of k.
template <int N, int EACH = 1, class F>
__device__ __forceinline__ void each_group(u32 c, Divisor width, F f) {
    u32 g = quotient(c, width), left = (g + 1) * width.size - c;
#pragma unroll
    for (int k = 0; k < N; k++) {
        f(k, g);
        left -= EACH;
        if (left == 0) g++, left = width.size;
    }
}

// Entries for rows of up to 16 and 40 numbers a lane; longer ones are read again.
#define FOR_ROWS(ENTRY, T) ENTRY(4, T) ENTRY(10, T)

// The threads of a block shared out among the groups of a tile: a power of two to each, 4 at least; of a block of 512, 128 at most, as more would wait
// for each other longer than they had less to add up.
template <u32 THREADS = FLAT_THREADS>
struct GroupTeams : RowTeam {
    u32 groups, teams, team;

    __device__ __forceinline__ GroupTeams(u32 groups) : RowTeam(THREADS >> shift(groups)), groups(groups) {
        teams = 1 << shift(groups);
        team = threadIdx.x * teams / THREADS;
    }

    static __device__ __forceinline__ u32 shift(u32 groups) {
        return groups > 32 ? 6 : max(32 - __clz(groups - 1), THREADS == 512 ? 2 : 0);
    }

    // f(g, there) for this team's groups; all threads of the block come to it as often.
    template <class F>
    __device__ __forceinline__ void each(F f) const {
#pragma unroll 1
        for (u32 first = 0; first < groups; first += teams) f(first + team, first + team < groups);
    }

    // The sum of one number of each lane.
    __device__ __forceinline__ float total(float v) const {
        float all[1] = {v};
        RowTeam::sum<THREADS>(all);
        return all[0];
    }
};

// A part of x [B, rows, channels] for a block: tile of `cols` channels, stretch of `per` rows of a sample. `across` threads lie beside
// each other, E channels each, the others on `down` lines. Where a tile has more channels than they take, they come again further right.
template <int E>
struct Tile {
    u32 rows, channels, across, count, per;
    Divisor down;
    u32 sample, stretch, first_col, end_col, start, end;
    // The first row and channel of this thread; threads that fill no line have no channels.
    u32 row, col;

    // Stretch `stretch` of `count` of a sample, and tile `tile` of its channels.
    __device__ __forceinline__ Tile(u32 rows, u32 channels, u32 cols, Divisor across, Divisor down, u32 count, u32 per, u32 sample, u32 stretch,
                                    u32 tile)
        : rows(rows), channels(channels), across(across.size), count(count), per(per), down(down), sample(sample), stretch(stretch) {
        first_col = tile * cols;
        end_col = first_col + cols < channels ? first_col + cols : channels;
        start = stretch * per;
        end = start + per < rows ? start + per : rows;
        Divided line = divide(threadIdx.x, across);
        row = start + line.quotient;
        col = line.quotient < down.size ? first_col + line.rest * E : end_col;
    }

    // Of block `block` of a grid along x: tiles first, then stretches, then samples.
    static __device__ __forceinline__ Tile of(u32 rows, u32 channels, u32 cols, Divisor across, Divisor down, Divisor tiles, Divisor count, u32 per,
                                              u32 block) {
        Divided tile = divide(block, tiles), part = divide(tile.quotient, count);
        return Tile(rows, channels, cols, across, down, count.size, per, part.quotient, part.rest, tile.rest);
    }

    __device__ __forceinline__ u32 line() const { return row - start; }
    __device__ __forceinline__ u32 rows_of(u32 line) const {
        return start + line < end ? quotient(end - start - line + down.size - 1, down) : 0;
    }
    __device__ __forceinline__ u32 own_rows() const { return rows_of(line()); }
    // Elements from one of its rows to the next.
    __device__ __forceinline__ u64 step() const { return u64(down.size) * channels; }
    // Its first row in channel c, from the sample's first number on.
    __device__ __forceinline__ u64 at(u32 c) const { return u64(row) * channels + c; }
};

#define TILE                                                                                                                           \
    u32 rows, u32 channels, u32 cols, DIVISOR(across), DIVISOR(down), DIVISOR(tiles), DIVISOR(count), u32 per
// `backwards`: later blocks have earlier stretches.
#define AS_TILE(E, backwards)                                                                                                          \
    Tile<E>::of(rows, channels, cols, AS_DIVISOR(across), AS_DIVISOR(down), AS_DIVISOR(tiles), AS_DIVISOR(count), per,                 \
                backwards ? gridDim.x - 1 - blockIdx.x : blockIdx.x)

// Whether packs of E numbers may be read at once from all of these: numbers of 16 bits, of which views begin at multiples of 256 bytes,
// always.
template <class T, class... Others>
__device__ __forceinline__ bool packs_are_aligned(const T* first, const Others*... others) {
    return sizeof(T) == 2 || (is_aligned(first) && ... && is_aligned(others));
}

// A pack in one access, or by number. The choice is made outside of loops, or else loads would wait for each other.
template <class T, int E, bool ALIGNED>
__device__ __forceinline__ Pack<T, E> read(const T* p) {
    Pack<T, E> out;
    if constexpr (ALIGNED) {
        out = *(const Pack<T, E>*)p;
    } else {
#pragma unroll
        for (int k = 0; k < E; k++) out.at[k] = p[k];
    }
    return out;
}

// Sixteen bytes in one access, also where the compiler would rather store what it has made of them piece by piece.
template <class T>
__device__ __forceinline__ void write_whole(T* p, Wide<T> v) {
    uint4 w = v.whole;
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)), "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w));
}

template <class T, int E, bool ALIGNED>
__device__ __forceinline__ void write(T* p, Pack<T, E> v) {
    if constexpr (ALIGNED) {
        *(Pack<T, E>*)p = v;
    } else {
#pragma unroll
        for (int k = 0; k < E; k++) p[k] = v.at[k];
    }
}

// Rows of a thread that are under way at once; `HELD` of `ops/group_norm`. Entries of one channel a thread, whose code is long, have fewer.
template <int E>
constexpr int HELD = E == 1 ? 2 : 8;

// Groups of a tile of which a block has all rows, at most; `ops/group_norm` has it too.
constexpr u32 HELD_GROUPS = 64;

// E neighbouring channels of HELD rows of a thread, in registers.
template <class T, int E>
struct Rows {
    Pack<T, E> at[HELD<E>];

    // The first `rows` of them, from `from` on.
    __device__ __forceinline__ void fetch(const T* from, u32 step, u32 rows, bool aligned) {
        if (E == 1 || sizeof(T) == 2 || aligned) read_all<true>(from, step, rows);
        else read_all<false>(from, step, rows);
    }

    template <bool ALIGNED>
    __device__ __forceinline__ void read_all(const T* from, u32 step, u32 rows) {
#pragma unroll
        for (int r = 0; r < HELD<E>; r++, from += step)
            if (r < rows) at[r] = read<T, E, ALIGNED>(from);
    }
};

// Threads of a block that join the parts of a group: a power of two of them, a warp at most.
struct GroupTeam {
    u32 shift, lanes, teams, team, lane;

    __device__ __forceinline__ GroupTeam(u32 groups) : shift(5) {
        while (shift > 0 && blockDim.x >> shift < groups) shift--;
        lanes = 1 << shift, teams = blockDim.x >> shift, team = threadIdx.x >> shift, lane = threadIdx.x & (lanes - 1);
    }

    // f(g, there) for this team's groups; all threads come to it as often.
    template <class F>
    __device__ __forceinline__ void each(u32 groups, F f) const {
#pragma unroll 1
        for (u32 first = 0; first < groups; first += teams) f(first + team, first + team < groups);
    }

    __device__ __forceinline__ float total(float v) const {
        float all[1] = {v};
        sum_in_warp(all, lanes);
        return all[0];
    }
};

// f(i, x, dy) for a column's rows i = 0.. of x and dy, `step` apart. ROWS loads of both are under way, also while f runs: where a row was,
// the one that is ROWS further is on its way.
template <int E, int ROWS, bool ALIGNED, class T, class F>
__device__ __forceinline__ void each_row(const T* x, const T* dy, u32 rows, u64 step, F f) {
    Pack<T, E> a[ROWS], b[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (r < rows) {
            a[r] = read<T, E, ALIGNED>(x + r * step);
            b[r] = read<T, E, ALIGNED>(dy + r * step);
        }
    }
#pragma unroll 1
    for (u32 row = 0; row < rows; row += ROWS) {
        x += ROWS * step, dy += ROWS * step;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (row + r >= rows) continue;
            Pack<T, E> own = a[r], other = b[r];
            if (row + r + ROWS < rows) {
                a[r] = read<T, E, ALIGNED>(x + r * step);
                b[r] = read<T, E, ALIGNED>(dy + r * step);
            }
            f(row + r, own, other);
        }
    }
}

// VALUES sums over a tile's rows for each of a thread's channels. Tiles have no more channels than a line of threads.
template <int E, int VALUES>
struct ColumnSums {
    float at[VALUES][E];

    __device__ __forceinline__ ColumnSums() {
#pragma unroll
        for (int v = 0; v < VALUES; v++)
#pragma unroll
            for (int k = 0; k < E; k++) at[v][k] = 0.0f;
    }

    // In shared memory a thread's numbers are in pieces of 16 bytes, neighbours' beside each other.
    static constexpr int P = E < 4 ? E : 4;

    // Those of all lines, joined in pairs, become those of the first line. All threads of the block must come here. `lines`: VALUES · E floats
    // a thread.
    __device__ __forceinline__ void join(f32* lines, const Tile<E>& t) {
        u32 line = t.line(), half, piece_floats = blockDim.x * P;
        f32* own = lines + threadIdx.x * P;
        for (u32 rest = t.down.size; rest > 1; rest = half) {
            half = (rest + 1) / 2;
            if (line >= half && line < rest) {
#pragma unroll
                for (int v = 0; v < VALUES; v++)
#pragma unroll
                    for (int i = 0; i < E / P; i++) *(Pack<f32, P>*)(own + (v * (E / P) + i) * piece_floats) = piece(v, i);
            }
            __syncthreads();
            if (line + half < rest) {
#pragma unroll
                for (int v = 0; v < VALUES; v++) {
#pragma unroll
                    for (int i = 0; i < E / P; i++) {
                        const f32* from = own + (v * (E / P) + i) * piece_floats + half * t.across * P;
                        Pack<f32, P> other = *(const Pack<f32, P>*)from;
#pragma unroll
                        for (int k = 0; k < P; k++) at[v][i * P + k] += other.at[k];
                    }
                }
            }
        }
    }

    // Those of all lines -> out [samples, count, VALUES, channels]. All threads of the block must come here.
    __device__ __forceinline__ void store(f32* out, const Tile<E>& t) {
        __shared__ alignas(16) f32 lines[VALUES * E * FLAT_THREADS];
        join(lines, t);
        put(out, t);
    }

    // Those of the first line.
    __device__ __forceinline__ void put(f32* out, const Tile<E>& t) const {
        if (t.line() > 0 || t.col >= t.end_col) return;
        // Scratch memory begins at a multiple of 16 bytes; of gradients that are views this is not sure.
        f32* to = out + (u64(t.sample) * t.count + t.stretch) * VALUES * t.channels + t.col;
#pragma unroll
        for (int v = 0; v < VALUES; v++)
#pragma unroll
            for (int i = 0; i < E / P; i++) ::store<f32, P>(to + u64(v) * t.channels + i * P, piece(v, i));
    }

    __device__ __forceinline__ Pack<f32, P> piece(int v, int i) const {
        Pack<f32, P> out;
#pragma unroll
        for (int k = 0; k < P; k++) out.at[k] = at[v][i * P + k];
        return out;
    }
};
