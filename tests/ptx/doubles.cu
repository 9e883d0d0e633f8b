// out[f, n]: functions of x[n].
extern "C" __global__ void doubles(int n, const double *__restrict__ x, double *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    double v = x[i], a = fabs(v);
    out += i;
#define OUT(e) *out = (e), out += n;
    OUT(v + 0.1) OUT(v * v) OUT(v / 7.1) OUT(1.0 / v) OUT(sqrt(a)) OUT(rsqrt(a)) OUT(exp(v)) OUT(log(a)) OUT(sin(v)) OUT(cos(v))
    OUT(tanh(v)) OUT(pow(a, 1.7)) OUT(floor(v)) OUT((float)v) OUT((long long)(v * 1e6)) OUT(fma(v, v, -1.0)) OUT(fmin(v, 0.5))
    OUT(sin(v * 1e10)) OUT(3.0 / (v * v)) OUT((unsigned long long)(a * 1e6)) OUT(ldexp(v, 5)) OUT(rint(v))
}
