// Boxes of tensors, brought to shared memory by one instruction each on Hopper, and the barriers at which they arrive.
#pragma once
#include "types.cuh"

// A tensor and the box of it that one copy brings: `CUtensorMap`.
struct alignas(64) TensorMap {
    char bytes[128];
};

// Has a map near before its first use.
__device__ __forceinline__ void fetch_map(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

// Begins to bring the box at these coordinates to shared memory; its bytes arrive at `barrier`.
__device__ __forceinline__ void copy_box(u32 to, const TensorMap& map, int a, int b, int c, int d, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
                 "l"(&map), "r"(a), "r"(b), "r"(c), "r"(d), "r"(barrier)
                 : "memory");
}

// Begins to bring `bytes` bytes as they lie, a multiple of 16 as both addresses are.
__device__ __forceinline__ void copy_line(u32 to, const void* from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "r"(bytes), "r"(barrier)
                 : "memory");
}

// Barriers in shared memory: a phase ends when as many have arrived as were told, and the bytes that were announced.
__device__ __forceinline__ void make_barrier(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void arrive(u32 barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory"); }

__device__ __forceinline__ void arrive_and_announce(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Waits for the end of a phase, the first of which has parity 0; that of parity 1 before it counts as ended.
__device__ __forceinline__ void await(u32 barrier, u32 parity) {
    u32 ended;
    do {
        asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                     : "=r"(ended)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    } while (!ended);
}
