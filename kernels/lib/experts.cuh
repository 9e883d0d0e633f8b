// Rows sorted by expert: those of expert e are offsets[e] <= r < offsets[e + 1].
#pragma once
#include "types.cuh"

// The first row of an expert and the one behind its last, inside the rows whatever the offsets are.
struct ExpertRows {
    u32 first, end;

    __device__ __forceinline__ ExpertRows(const i32* offsets, u32 expert, u32 rows) {
        first = min(u32(max(offsets[expert], 0)), rows);
        end = max(first, min(u32(max(offsets[expert + 1], 0)), rows));
    }
};

// Which of the weights is an expert's.
__device__ __forceinline__ u32 slot_of(u32 expert, u32 experts, u32 reversed) { return reversed ? experts - 1 - expert : expert; }
