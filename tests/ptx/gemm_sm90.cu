// c[m, n] = a[m, k] b[n, k]^T: bf16 to f32, in tiles of 64 x 64 x 64 that tensor maps of a and b bring, two at a time, with a
// swizzle of 128 bytes. m, n and k may be any; c's rows end at n.
struct alignas(64) Map {
    char bytes[128];
};
typedef unsigned int u32;
typedef unsigned long long u64;

#define TILE 8192  // bytes of 64 x 64 elements

__device__ void fetch(u32 to, const Map *map, int x, int y, u32 full) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(full)
                 : "memory");
}

__device__ void wait(u32 full, u32 parity) {
    asm volatile("{\n.reg .pred p;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra AGAIN;\n}" ::"r"(full), "r"(parity)
                 : "memory");
}

// Rows of 128 bytes, eight of which are 1024 bytes.
__device__ u64 descriptor(u32 address) { return (u64)((address & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62; }

__device__ void multiply(float (&d)[32], u64 a, u64 b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, p, 1, 1, 0, 0;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]),
          "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),
          "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
          "+f"(d[30]), "+f"(d[31])
        : "l"(a), "l"(b), "r"(add));
}

extern "C" __global__ __launch_bounds__(128) void gemm(const __grid_constant__ Map a, const __grid_constant__ Map b, int m, int n, int k, float *c) {
    extern __shared__ __align__(1024) char tiles[];
    __shared__ __align__(8) u64 objects[2];
    u32 data = __cvta_generic_to_shared(tiles), full = __cvta_generic_to_shared(objects);
    int t = threadIdx.x, row = blockIdx.y * 64, col = blockIdx.x * 64, steps = (k + 63) / 64;
    if (t == 0) {
        for (int i = 0; i < 2; i++) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(full + 8 * i));
        asm volatile("fence.mbarrier_init.release.cluster;");
    }
    __syncthreads();
    auto bring = [&](int step) {
        u32 stage = step % 2, to = data + stage * 2 * TILE, object = full + 8 * stage;
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(object), "r"(2 * TILE) : "memory");
        fetch(to, &a, step * 64, row, object);
        fetch(to + TILE, &b, step * 64, col, object);
    };
    if (t == 0)
        for (int step = 0; step < 2 && step < steps; step++) bring(step);
    float d[32];
    for (int i = 0; i < 32; i++) d[i] = 0;
    for (int step = 0; step < steps; step++) {
        u32 from = data + step % 2 * 2 * TILE;
        wait(full + 8 * (step % 2), step / 2 % 2);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        for (int i = 0; i < 4; i++) multiply(d, descriptor(from + 32 * i), descriptor(from + TILE + 32 * i), 1);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        __syncthreads();
        if (t == 0 && step + 2 < steps) bring(step + 2);
    }
    int y = row + t / 32 * 16 + t % 32 / 4, x = col + t % 4 * 2;
    for (int i = 0; i < 32; i++) {
        int yy = y + i / 2 % 2 * 8, xx = x + i / 4 * 8 + i % 2;
        if (yy < m && xx < n) c[yy * n + xx] = d[i];
    }
}
