// f16 and bf16, one by one and in pairs: out[f, n].
#include <cuda_bf16.h>
#include <cuda_fp16.h>

extern "C" __global__ void halves(int n, const __half *x, const __nv_bfloat16 *y, float *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    __half a = x[i];
    __nv_bfloat16 b = y[i];
    out += i;
#define OUT(e) *out = (e), out += n;
    OUT(a) OUT(__hadd(a, a)) OUT(__hmul(a, a)) OUT(__hfma(a, a, a)) OUT(__hmax(a, __half(0.25f))) OUT(__hgt(a, __half(0.25f)))
    OUT(__hdiv(a, __half(3.0f))) OUT(hsqrt(__habs(a))) OUT(hexp(a)) OUT(__half2int_rn(a)) OUT(__half(__half2float(a) * 1.1f))
    OUT(b) OUT(__hadd(b, b)) OUT(__hmul(b, b)) OUT(__hfma(b, b, b)) OUT(__hmax(b, __nv_bfloat16(0.25f))) OUT(__hneg(b)) OUT(hexp(b))
    OUT(__nv_bfloat16(__bfloat162float(b) * 1.1f))
}

extern "C" __global__ void pairs(int n, const __half2 *x, const __nv_bfloat162 *y, __half2 *u, __nv_bfloat162 *v) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float2 f = __half22float2(x[i]), g = __bfloat1622float2(y[i]);
    u[i] = __hfma2(x[i], __float2half2_rn(2.0f), __floats2half2_rn(f.y, f.x));
    v[i] = __hfma2(y[i], __float2bfloat162_rn(2.0f), __floats2bfloat162_rn(g.y, g.x));
}
