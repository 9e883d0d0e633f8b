// x [rows, C] -> y = x · rstd, times gamma if there is one, rstd = 1 / sqrt(mean(x²) + eps) over each row; rstds [rows].
// Floor: x read once, y written once. The row stays in registers, as in layer_norm.cu.
#include "lib/norm.cuh"

template <class Row, class T>
__device__ __forceinline__ void normalise(const Row& x, RowTeam team, const T* gamma, bool affine, T* y, f32* rstds,
                                          bool there, u32 channels, float eps) {
    constexpr int E = Row::EACH;
    float sum[1] = {0.0f};
    x.each([&](u32, const float (&v)[E]) {
#pragma unroll
        for (int k = 0; k < E; k++) sum[0] = fmaf(v[k], v[k], sum[0]);
    });
    team.sum(sum);
    // To 2 ulp.
    float rstd = rsqrtf(sum[0] / float(channels) + eps);
    if (there && team.lane == 0) rstds[team.row] = rstd;
    x.each([&](u32 i, const float (&v)[E]) {
        float out[E];
#pragma unroll
        for (int k = 0; k < E; k++) out[k] = v[k] * rstd;
        if (opaque(affine)) {
            float g[E];
            widen_all<T>(g, *(const Pack<T, E>*)(gamma + i));
#pragma unroll
            for (int k = 0; k < E; k++) out[k] *= g[k];
        }
        *(Pack<T, E>*)(y + i) = narrow_all<T>(out);
    });
}

#define ENTRY(FOURS, T)                                                                                          \
    FLAT_KERNEL rms_norm_##FOURS##_##T(const T* x, const T* gamma, T* y, f32* rstds, u32 lanes, u32 rows, u32 channels,  \
                                                u32 affine, float eps) {                                               \
        RowTeam team(lanes);                                                                                           \
        bool there = team.row < rows, aligned = is_aligned(x) && is_aligned(y) && (!affine || is_aligned(gamma));      \
        u32 n = there ? channels : 0;                                                                                  \
        u64 start = u64(team.row) * channels;                                                                          \
        if (can_hold<T, FOURS>(channels, lanes) && aligned)                                                             \
            normalise(HeldRow<T, FOURS>(x + start, team, n), team, gamma, affine != 0, y + start, rstds,    \
                      there, channels, eps);                                                                           \
        else                                                                                                           \
            normalise(AnyRow<T>(x + start, team, n), team, gamma, affine != 0, y + start, rstds, there,    \
                      channels, eps);                                                                                  \
    }
#define ROWS(T) FOR_ROWS(ENTRY, T)
FOR_TYPES(ROWS)
