// Matrix instructions of four warps (`wgmma`): descriptors of what lies in shared memory, and lists of sums.
#pragma once
#include "types.cuh"

// Of a matrix in shared memory: where it begins, the length of the swizzle's rows, and the distances of neighbouring blocks, in bytes. Blocks are eight
// rows; across them where lines run, along them is the first distance.
template <int SPAN, int LEADING, int STRIDE>
__device__ __forceinline__ u64 matrix_descriptor(u32 at) {
    constexpr u64 SWIZZLE = SPAN == 128 ? 1 : SPAN == 64 ? 2 : 3;
    return u64((at & 0x3ffff) >> 4) | u64(LEADING >> 4) << 16 | u64(STRIDE >> 4) << 32 | SWIZZLE << 62;
}

// Sums as operands, and what the first of them are called.
#define FOUR(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define EIGHT(d, i) FOUR(d, i), FOUR(d, i + 4)
#define SIXTEEN(d, i) EIGHT(d, i), EIGHT(d, i + 8)
#define THIRTY_TWO(d, i) SIXTEEN(d, i), SIXTEEN(d, i + 16)
#define SIXTY_FOUR(d, i) THIRTY_TWO(d, i), THIRTY_TWO(d, i + 32)
#define NAMES_12 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11"
#define NAMES_16 NAMES_12 ", %12, %13, %14, %15"
#define NAMES_20 NAMES_16 ", %16, %17, %18, %19"
#define NAMES_32 NAMES_20 ", %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_36 NAMES_32 ", %32, %33, %34, %35"
#define NAMES_40 NAMES_36 ", %36, %37, %38, %39"
#define NAMES_48 NAMES_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define NAMES_64 NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_80 NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define NAMES_96 NAMES_80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define NAMES_128 \
    NAMES_96 \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
    ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// A warpgroup keeps so many registers a thread, or waits for so many that others gave.
template <int COUNT>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
