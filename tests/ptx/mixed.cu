// Calls, structures by value, arrays in local memory, constants, vectors, votes, shuffles, atomics and barriers that reduce.
struct Pair {
    float a;
    int b;
    float4 c;
};

__constant__ float table[4] = {1, 2, 3, 4};
__device__ int launches;

template <int N> __device__ float pick(float x, int which) {
    float c[N];
    for (int i = 0; i < N; i++) c[i] = x * i;
    float s = 0;
    for (int i = 0; i <= which && i < N; i++) s += c[(i * 3 + which) % N];
    return s;
}

__device__ __noinline__ float horner(float a, int n) {
    float s = 0;
    for (int i = 0; i < n; i++) s = s * a + 1;
    return s;
}

__device__ __noinline__ Pair swap(Pair p) {
    Pair q = {p.a + 1, p.b * 2, make_float4(p.c.y, p.c.x, p.c.w, p.c.z)};
    return q;
}

extern "C" __global__ __launch_bounds__(128, 4) void mixed(int n, const float4 *x, float4 *y, uint4 *z, float *sum, int *count, int which, Pair p) {
    extern __shared__ float parts[];
    __shared__ int any;
    int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    if (t == 0) any = 0;
    __syncthreads();
    float4 v = i < n ? x[i] : make_float4(0, 0, 0, 0);
    Pair q = swap(p);
    v = make_float4(pick<7>(v.x, which), horner(v.y, which + t % 3), v.z * table[which & 3], v.w + q.a + q.b + q.c.x);
    if (i < n) y[i] = v, z[i] = make_uint4(t, i, ~0u, __float_as_uint(v.x));
    float s = i < n ? v.w : 0;
    for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
    unsigned vote = __ballot_sync(~0u, v.x > 0.5f);
    if (t % 32 == 0) parts[t / 32] = s, atomicAdd(count, __popc(vote)), atomicOr(&any, vote != 0), atomicMax(count + 1, t);
    __syncthreads();
    if (t == 0) {
        float r = 0;
        for (int j = 0; j < blockDim.x / 32; j++) r += parts[j];
        atomicAdd(sum, r);
        __threadfence();
        if (any) atomicAdd(&launches, 1);
        atomicCAS(count + 2, 0, 5);
    }
    int positive = __syncthreads_count(v.y > 1), large = __syncthreads_or(v.y > 100), all = __syncthreads_and(t < 128);
    if (t == 1 && blockIdx.x == 0) count[3] = positive, count[4] = large, count[5] = all, count[6] = __reduce_add_sync(2, 5);
}
