// c[m, n] = a[m, k] b[k, n]: bf16 in, f32 out. One warp per tile of 16 x 8, k in steps of 16 through cp.async, two stages.
#include <cuda_bf16.h>
__device__ unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ void copy16(void *to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ void fetch(__nv_bfloat16 (*a)[16], __nv_bfloat16 (*b)[8], const __nv_bfloat16 *ga, const __nv_bfloat16 *gb,
                      int n, int k) {
    int t = threadIdx.x;
    copy16(&a[t / 2][t % 2 * 8], ga + t / 2 * k + t % 2 * 8);
    if (t < 16) copy16(&b[t][0], gb + t * n);
    asm volatile("cp.async.commit_group;" ::: "memory");
}
extern "C" __global__ void mma_bf16(int n, int k, const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c) {
    __shared__ __align__(16) __nv_bfloat16 sa[2][16][16], sb[2][16][8];
    int t = threadIdx.x;
    a += blockIdx.y * 16 * k;
    b += blockIdx.x * 8;
    float d[4] = {0, 0, 0, 0};
    fetch(sa[0], sb[0], a, b, n, k);
    for (int i = 0; i < k / 16; i++) {
        if (i + 1 < k / 16) {
            fetch(sa[(i + 1) % 2], sb[(i + 1) % 2], a + (i + 1) * 16, b + (i + 1) * 16 * n, n, k);
            asm volatile("cp.async.wait_group 1;" ::: "memory");
        } else {
            asm volatile("cp.async.wait_group 0;" ::: "memory");
        }
        __syncthreads();
        unsigned fa[4], fb[2];
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3])
                     : "r"(shared_address(&sa[i % 2][t % 16][t / 16 * 8])));
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(fb[0]), "=r"(fb[1])
                     : "r"(shared_address(&sb[i % 2][t % 16][0])));
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
        __syncthreads();
    }
    c += (blockIdx.y * 16 + t / 4) * n + blockIdx.x * 8 + t % 4 * 2;
    c[0] = d[0], c[1] = d[1], c[8 * n] = d[2], c[8 * n + 1] = d[3];
}
