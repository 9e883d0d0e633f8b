// out[f, n]: functions of x[n].
extern "C" __global__ void math(int n, const float *__restrict__ x, float *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = __ldg(x + i), a = fabsf(v);
    out += i;
#define OUT(e) *out = (e), out += n;
    OUT(expf(v)) OUT(logf(a)) OUT(sinf(v)) OUT(cosf(v)) OUT(erff(v)) OUT(tanhf(v)) OUT(powf(a, 1.7f)) OUT(rsqrtf(a))
    OUT(__fdividef(v, 3.0f)) OUT(v / 7.1f) OUT(sqrtf(a)) OUT(exp2f(v)) OUT(log1pf(a)) OUT(expm1f(v)) OUT(floorf(v)) OUT(rintf(v))
    OUT(fmodf(v, 0.7f)) OUT(atan2f(v, 0.3f)) OUT(copysignf(1.5f, v)) OUT(__expf(v)) OUT(__logf(a)) OUT(__sinf(v)) OUT(1.0f / v)
    OUT(log2f(a)) OUT(cbrtf(v)) OUT(fminf(v, 0.0f)) OUT(normcdff(v)) OUT(hypotf(v, 2.0f)) OUT(sinf(v * 1e6f)) OUT(roundf(v))
}
