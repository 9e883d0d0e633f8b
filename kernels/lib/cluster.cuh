// Blocks of a cluster, which run beside each other on Hopper: where they meet, and how one writes to another one's shared memory.
#pragma once
#include "types.cuh"

// All threads of the cluster come to an arrival and a wait in turn. Behind the wait all of its blocks have begun, and what they wrote before
// `cluster_release` is there; `cluster_arrive` promises nothing of that, and costs less.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_release() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Writes to where `to`, of this block's shared memory, is in that of block `rank`.
__device__ __forceinline__ void store_in_cluster(const float2* to, u32 rank, float2 v) {
    u32 there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(u32(__cvta_generic_to_shared(to))), "r"(rank));
    asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(there), "f"(v.x), "f"(v.y) : "memory");
}
