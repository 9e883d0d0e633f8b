// y[row, n] = softmax(x[row, n]) in f16, one block per row, sums in f32.
#include <cuda_fp16.h>
#define INFINITY __int_as_float(0x7f800000)
__device__ float reduce(float v, float *shared, bool max) {
    for (int d = 16; d; d /= 2) {
        float o = __shfl_xor_sync(0xffffffffu, v, d);
        v = max ? fmaxf(v, o) : v + o;
    }
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
    __syncthreads();
    v = shared[0];
    for (int i = 1; i < blockDim.x / 32; i++) v = max ? fmaxf(v, shared[i]) : v + shared[i];
    __syncthreads();
    return v;
}
extern "C" __global__ void softmax_row(int n, const __half *x, __half *y) {
    __shared__ float shared[32];
    x += (long long)blockIdx.x * n;
    y += (long long)blockIdx.x * n;
    float most = -INFINITY, sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) most = fmaxf(most, __half2float(x[i]));
    most = reduce(most, shared, true);
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += __expf(__half2float(x[i]) - most);
    sum = reduce(sum, shared, false);
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = __float2half(__expf(__half2float(x[i]) - most) / sum);
}
