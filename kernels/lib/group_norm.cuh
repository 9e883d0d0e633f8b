// Group norms of tiles: moments of a thread's channels, of a block's groups, and what makes y. Kernels are `group_norm.cu` and `sm_90a/group_norm.cu`.
#pragma once
#include "activation.cuh"
#include "norm.cuh"

// What means of parts are less: the first number of a sample's group, so that large means cost no digits. Numbers of 16 bits have fewer than they
// would lose.
template <class T>
__device__ __forceinline__ float origin_of(const T* sample, u32 group, u32 width) {
    return sizeof(T) == 2 ? 0.0f : widen(sample[u64(group) * width]);
}

// Mean and squared differences of a thread's numbers, two neighbouring channels, which are of one group, in one slot. Numbers are summed less the
// slot's first one: large means cost no digits, and a first number far from n others costs no more than a factor of n of the rounding.
template <class T, int E>
struct Moments {
    static constexpr int EACH = E == 1 ? 1 : 2, SLOTS = E / EACH;
    float first[SLOTS], mean[SLOTS], square[SLOTS];

    __device__ __forceinline__ Moments(Pack<T, E> row) {
        float x[E];
        widen_all<T>(x, row);
#pragma unroll
        for (int k = 0; k < SLOTS; k++) first[k] = x[k * EACH], mean[k] = square[k] = 0.0f;
    }

    __device__ __forceinline__ void add(Pack<T, E> row) {
        float x[E];
        widen_all<T>(x, row);
#pragma unroll
        for (int k = 0; k < E; k++) {
            float d = x[k] - first[k / EACH];
            mean[k / EACH] += d;
            square[k / EACH] = fmaf(d, d, square[k / EACH]);
        }
    }

    __device__ __forceinline__ void add(const Rows<T, E>& kept, u32 rows) {
#pragma unroll
        for (int r = 0; r < HELD<E>; r++)
            if (r < rows) add(kept.at[r]);
    }

    // Means, of `rows` rows in channels from c on, less their groups' origins.
    __device__ __forceinline__ void finish(u32 rows, const T* sample, u32 c, Divisor width) {
        float each = 1.0f / float(rows * EACH);
        each_group<SLOTS, EACH>(c, width, [&](int k, u32 g) {
            float own = mean[k] * each;
            square[k] = fmaxf(fmaf(-own, mean[k], square[k]), 0.0f);
            mean[k] = (first[k] - origin_of(sample, g, width.size)) + own;
        });
    }

    // Joins neighbouring slots, of `numbers` each, into the first ones.
    template <int INTO>
    __device__ __forceinline__ void join(float numbers) {
#pragma unroll
        for (int k = 0; k < INTO; k++) {
            float apart = mean[2 * k + 1] - mean[2 * k];
            square[k] = fmaf(apart * apart, 0.5f * numbers, square[2 * k] + square[2 * k + 1]);
            mean[k] = fmaf(0.5f, apart, mean[2 * k]);
        }
    }
};

// Moments of weighted parts, of which parts.each(f) calls f(weight, mean, square) for this thread's: mean, and the sum of squares in y. `each`
// is one over the sum of weights.
template <class Parts>
__device__ __forceinline__ float2 joined(const GroupTeam& team, float each, bool there, const Parts& parts) {
    float mean = 0.0f, square = 0.0f;
    if (there) parts.each([&](float n, float m, float) { mean = fmaf(n, m, mean); });
    mean = team.total(mean) * each;
    if (there) parts.each([&](float n, float m, float s) { square += fmaf(n * (m - mean), m - mean, s); });
    return make_float2(mean, team.total(square));
}

// The slots of a block's threads in shared memory: neighbours of a group are joined in the thread first, as many as divide both a group and a
// pack. A plane has one slot of each thread: columns of `pitch` lines, which is such that a warp's are in different banks both where threads put theirs
// and where a team reads below each other.
template <class T, int E>
struct Slots {
    using Own = Moments<T, E>;
    const Tile<E>& tile;
    float *means, *squares;
    // Channels of a slot and slots of a thread, as powers of two.
    u32 channels, own, pitch, plane, lines, width;

    __device__ __forceinline__ Slots(float* at, const Tile<E>& t, u32 width, u32 pitch) : tile(t), pitch(pitch), width(width) {
        channels = E == 1 ? 0 : 1;
        if (E >= 4 && width % 4 == 0) channels = 2;
        if (E == 8 && width % 8 == 0) channels = 3;
        own = (E == 1 ? 0 : E == 4 ? 2 : 3) - channels;
        lines = min(t.down.size, t.end - t.start), plane = pitch * t.across;
        means = at, squares = at + (plane << own);
    }

    // Slots of `numbers` numbers each.
    __device__ __forceinline__ void put(Own& v, float numbers) const {
        if (E >= 4 && channels >= 2) v.template join<E / 4>(numbers);
        if (E == 8 && channels == 3) v.template join<E / 8>(2.0f * numbers);
        u32 at = (tile.col - tile.first_col) / E * pitch + tile.line();
#pragma unroll
        for (int k = 0; k < Own::SLOTS; k++, at += plane) {
            if (k >= 1 << own) continue;
            means[at] = v.mean[k];
            squares[at] = v.square[k];
        }
    }

    // Those of a group of the tile.
    struct Group {
        const Slots& slots;
        u32 group, shift, lane;

        template <class F>
        __device__ __forceinline__ void each(F f) const {
            const Slots& s = slots;
            u32 line_slots = s.tile.across << s.own, all = s.width >> s.channels, span = min(all, line_slots), first = group * all;
            // Lanes lie along lines, the more of them than there are lines beside each other.
            u32 down = min(shift, 32 - __clz(s.lines - 1)), from = lane & ((1 << down) - 1);
            // Rows of the first `more` lines, and of the others.
            u32 rows = s.tile.end - s.tile.start, fewer = max(quotient(rows, s.tile.down), 1), more = rows - fewer * s.lines;
            float few = float(fewer), many = few + 1.0f;
#pragma unroll 1
            for (u32 i = lane >> down; i < span; i += 1 << (shift - down)) {
                u32 slot = first + i, at = (slot & ((1 << s.own) - 1)) * s.plane + (slot >> s.own) * s.pitch + from;
                // Of a group wider than a line, some of its channels share a slot.
                float numbers = float((all > line_slots ? (all - i + line_slots - 1) / line_slots : 1) << s.channels);
#pragma unroll 2
                for (u32 line = from; line < s.lines; line += 1 << down, at += 1 << down)
                    f(numbers * (line < more ? many : few), s.means[at], s.squares[at]);
            }
        }
    };

    __device__ __forceinline__ Group of(u32 group, const GroupTeam& team) const { return Group{*this, group, team.shift, team.lane}; }
};

// What is known of a group: moments of its stretches of `part_rows` rows.
template <u32 AHEAD>
struct Parts {
    const float2* moments;
    u32 parts, part_rows, rows, width, lane, lanes;

    // AHEAD at a time: their loads do not wait for each other.
    template <class F>
    __device__ __forceinline__ void each(F f) const {
#pragma unroll 1
        for (u32 first = lane; first < parts; first += AHEAD * lanes) {
            float2 m[AHEAD];
#pragma unroll
            for (u32 k = 0; k < AHEAD; k++)
                if (first + k * lanes < parts) m[k] = moments[first + k * lanes];
#pragma unroll
            for (u32 k = 0; k < AHEAD; k++) {
                u32 i = first + k * lanes;
                if (i < parts) f(float(min(rows - i * part_rows, part_rows)) * float(width), m[k].x, m[k].y);
            }
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

    // Of numbers that are normalised.
    __device__ __forceinline__ Coefficients(const Parameters<T>& p, u32 c) { p.linear(c, factor, offset); }

    // Of those of groups. `first`: the tile's first one; `times`: a factor of what the activation is of.
    template <int GROUPS>
    __device__ __forceinline__ void normalise(const GroupStats<GROUPS>& s, u32 c, Divisor width, u32 first, float times) {
        constexpr int EACH = Moments<T, N>::EACH;
        each_group<N / EACH, EACH>(c, width, [&](int slot, u32 g) {
            float m = s.mean[g - first], rstd = s.rstd[g - first] * times, less = FOLDED ? m : s.rest[g - first];
#pragma unroll
            for (int k = slot * EACH; k < (slot + 1) * EACH; k++) {
                mean[k] = m;
                factor[k] *= rstd;
                offset[k] = fmaf(offset[k], times, -less * factor[k]);
            }
        });
    }

    __device__ __forceinline__ float of(float v, int k) const {
        return fmaf(FOLDED ? v : v - mean[k], factor[k], offset[k]);
    }
};

// The activation. Entries of one channel a thread know all of them, whose code is long, the others SiLU and the identity. In 16 bits SiLU takes half
// of its argument, h / 2 + h / 2 · tanh(h / 2), to 2^-11: one slow instruction in place of two, of which a multiprocessor has time for some
// two a number.
template <class T, int E>
struct Finish {
    u32 kind;

    __device__ __forceinline__ float times() const { return E > 1 && sizeof(T) == 2 && kind == SILU ? 0.5f : 1.0f; }

    __device__ __forceinline__ void operator()(float (&v)[E]) const {
        if constexpr (E == 1) {
            v[0] = act(kind, v[0]);
        } else if constexpr (sizeof(T) == 4) {
            Gated gated(kind == SILU);
#pragma unroll
            for (int k = 0; k < E; k++) v[k] = gated.value(v[k]);
        } else if (opaque(kind == SILU)) {
#pragma unroll
            for (int k = 0; k < E; k++) v[k] = fmaf(v[k], tanh_near(v[k]), v[k]);
        }
    }
};

// y of a thread's rows.
template <class T, int E, bool ALIGNED>
__device__ __forceinline__ void make(const Rows<T, E>& kept, T* to, u32 step, u32 rows, const Coefficients<T, E>& p, Finish<T, E> finish) {
#pragma unroll
    for (int r = 0; r < HELD<E>; r++, to += step) {
        if (r >= rows) continue;
        float out[E];
        widen_all<T>(out, kept.at[r]);
#pragma unroll
        for (int k = 0; k < E; k++) out[k] = p.of(out[k], k);
        finish(out);
        write<T, E, ALIGNED>(to, narrow_all<T>(out));
    }
}

template <class T, int E>
__device__ __forceinline__ void make(const Rows<T, E>& kept, T* to, u32 step, u32 rows, const Coefficients<T, E>& p, Finish<T, E> finish,
                                     bool aligned) {
    if (E == 1 || sizeof(T) == 2 || aligned) make<T, E, true>(kept, to, step, rows, p, finish);
    else make<T, E, false>(kept, to, step, rows, p, finish);
}
