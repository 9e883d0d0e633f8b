// Copies from global to shared memory that run beside the threads (`cp.async`), by groups.
#pragma once
#include "types.cuh"

__device__ __forceinline__ u32 shared_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }

// 16 bytes past L1, to a place that is a multiple of 16; zeros if not `valid`, and nothing is read then.
__device__ __forceinline__ void copy_16(u32 to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

// As `copy_16`, of 4 bytes.
__device__ __forceinline__ void copy_4(u32 to, const void* from, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "r"(valid ? 4 : 0)
                 : "memory");
}

// Makes a group of the copies that this thread issued since the last one.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all of this thread's groups but the last `N`.
template <int N>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Has this thread arrive at a barrier of `boxes.cuh` when all its copies have come, as one of those that it was told to wait for.
__device__ __forceinline__ void arrive_behind_copies(u32 barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// W floats of shared memory in one access, as below of global memory. Packs that are put together where they are written, or taken apart where
// they are read, may become several accesses. Reads stay between barriers.
template <int W>
__device__ __forceinline__ Pack<float, W> read_floats(u32 at) {
    Pack<float, W> v;
    if constexpr (W == 4) {
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(v.at[0]), "=f"(v.at[1]), "=f"(v.at[2]), "=f"(v.at[3])
                     : "r"(at));
    } else if constexpr (W == 2) {
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.at[0]), "=f"(v.at[1]) : "r"(at));
    } else {
        asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v.at[0]) : "r"(at));
    }
    return v;
}

template <int W>
__device__ __forceinline__ void write_floats(float* to, const Pack<float, W>& v) {
    if constexpr (W == 4) {
        asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "f"(v.at[0]),
                     "f"(v.at[1]), "f"(v.at[2]), "f"(v.at[3])
                     : "memory");
    } else if constexpr (W == 2) {
        asm volatile("st.global.v2.f32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "f"(v.at[0]), "f"(v.at[1])
                     : "memory");
    } else {
        *to = v.at[0];
    }
}
