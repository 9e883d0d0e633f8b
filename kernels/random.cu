// Random numbers y [B, per sample], normal or uniform: element e of a sample comes from word e mod 4 of Philox with the sample's seed as key
// and (e / 4, draw, stream, 0) as counter. Floor: y once; about 100 integer instructions for four numbers.
#include "lib/philox.cuh"

// Cosine and sine of 2π · phase / 2³²: the reduction to an eighth of a turn is exact, Taylor series after it, as on every device.
__device__ __forceinline__ float2 cos_sin_turn(u32 phase) {
    u32 quarters = (phase + 0x20000000u) >> 30;
    float a = float(int(phase - (quarters << 30))) * 1.4629180792671596e-9f, b = a * a;
    float sine = a + a * b * (-1.0f / 6 + b * (1.0f / 120 + b * (-1.0f / 5040 + b * (1.0f / 362880))));
    float cosine = 1.0f + b * (-0.5f + b * (1.0f / 24 + b * (-1.0f / 720 + b * (1.0f / 40320 - b * (1.0f / 3628800)))));
    float c = quarters & 1 ? sine : cosine, s = quarters & 1 ? cosine : sine;
    return {(quarters + 1) & 2 ? -c : c, quarters & 2 ? -s : s};
}

// r cos a and r sin a of a word for r and a word for the angle (Box & Muller 1958).
__device__ __forceinline__ float2 normal_pair(u32 radius, u32 angle) {
    float r = sqrtf(-2.0f * logf(uniform(radius) + 1.0f / 16777216.0f));
    float2 turn = cos_sin_turn(angle & 0xffffff00u);
    return {r * turn.x, r * turn.y};
}

FLAT_KERNEL random_f32(const u32* seeds, const f32* draw, f32* y, u32 n, DIVISOR(sample), u32 stream, u32 normal) {
    Divisor sample = AS_DIVISOR(sample);
    auto make = [&](u32 number, u32 block) {
        uint4 w = random_words(seeds, draw, stream, number, block);
        Pack<f32, 4> out;
        if (normal) {
            float2 a = normal_pair(w.x, w.y), b = normal_pair(w.z, w.w);
            out.at[0] = a.x, out.at[1] = a.y, out.at[2] = b.x, out.at[3] = b.y;
        } else {
            out.at[0] = uniform(w.x), out.at[1] = uniform(w.y), out.at[2] = uniform(w.z), out.at[3] = uniform(w.w);
        }
        return out;
    };
    if (sample.size % 4 == 0 && is_aligned(y)) {
        u64 start = flat_start(4);
        if (start >= n) return;
        Divided at = divide(u32(start), sample);
        *(Pack<f32, 4>*)(y + start) = make(at.quotient, at.rest / 4);
        return;
    }
    by_four(n, sample, make, [&](u32 i, float v) { y[i] = v; });
}
