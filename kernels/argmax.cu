// x [rows, n] -> the first index of the largest number of each row. NaN is never larger; a row of NaN gives 0.
// Floor: x read once. A warp a row, or a block where rows are long.
#include "lib/lines.cuh"

// A number and where it stands, in one word of 64 bits, so that shuffles take it: larger is better.
struct Best {
    float value;
    u32 at;
    __device__ __forceinline__ bool beats(const Best& other) const {
        return value > other.value || (value == other.value && at < other.at);
    }
};

__device__ __forceinline__ u64 bits(Best best) { return u64(__float_as_uint(best.value)) << 32 | best.at; }
__device__ __forceinline__ Best best(u64 bits) { return {__uint_as_float(u32(bits >> 32)), u32(bits)}; }

#define ENTRY(WARPS)                                                                                                   \
    FLAT_KERNEL argmax_##WARPS(const f32* x, i32* y, u32 rows, u32 n) {                                                \
        Team<WARPS> team;                                                                                              \
        Best own = {__uint_as_float(0xff800000), ~0u};                                                                 \
        if (team.row < rows)                                                                                           \
            team.each(x + u64(team.row) * n, n, [&](u32 i, float v) {                                                  \
                Best other = {v, i};                                                                                   \
                if (other.beats(own)) own = other;                                                                     \
            });                                                                                                        \
        u64 all = team.join(bits(own), [](u64 a, u64 b) { return best(b).beats(best(a)) ? b : a; });                   \
        if (team.row < rows && team.lane == 0) y[team.row] = best(all).at == ~0u ? 0 : i32(best(all).at);              \
    }
FOR_TEAMS(ENTRY)
