template <int N> __device__ float poly(float x, int which) {
  float c[N];
  for (int i = 0; i < N; i++) c[i] = x * i;
  float s = 0; for (int i = 0; i <= which && i < N; i++) s += c[(i * 3 + which) % N];
  return s;
}
__device__ float cell;
__constant__ float table[4] = {1.f, 2.f, 3.f, 4.f};
__device__ __noinline__ float slow(float a, int n) { float s = 0; for (int i = 0; i < n; i++) s = s * a + 1.f; return s; }
struct P { float a; int b; float4 c; };
__device__ __noinline__ P spread(P p) { P q; q.a = p.a + 1; q.b = p.b * 2; q.c = make_float4(p.c.y, p.c.x, p.c.w, p.c.z); return q; }
__device__ __noinline__ int fact(int n) { return n <= 1 ? 1 : n * fact(n - 1); }
extern "C" __global__ __launch_bounds__(128, 4) void misc(int n, const float4* x, float4* y, uint4* z, float* sums, int* count, int which, P p) {
  extern __shared__ float dyn[];
  __shared__ int any;
  int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
  if (t == 0) any = 0;
  dyn[t] = 0;
  __syncthreads();
  float4 v = i < n ? x[i] : make_float4(0, 0, 0, 0);
  v.x = poly<7>(v.x, which); v.y = slow(v.y, which + t % 3); v.z *= table[which & 3];
  P q = spread(p); v.w += q.a + q.b + q.c.x; 
  if (i < n) { y[i] = v; z[i] = make_uint4(t, i, fact(t % 7), __float_as_uint(v.x)); }
  float s = v.x + v.y;
  for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
  unsigned b = __ballot_sync(~0u, v.x > 0.5f);
  if (t % 32 == 0) { dyn[t / 32] = s; atomicAdd(count, __popc(b)); atomicOr(&any, b != 0); atomicMax(count + 1, t); }
  __syncwarp();
  __syncthreads();
  if (t == 0) { float r = 0; for (int j = 0; j < blockDim.x / 32; j++) r += dyn[j]; atomicAdd(sums, r); __threadfence(); if (any) atomicAdd(&cell, 1.f); atomicCAS(count + 2, 0, 5); atomicExch(count + 3, 9); }
  int c = __syncthreads_count(v.y > 0); int d = __syncthreads_or(v.y > 100); int e = __syncthreads_and(1);
  if (t == 1 && blockIdx.x == 0) { count[4] = c; count[5] = d; count[6] = e; count[7] = __reduce_add_sync(2u, 5); }
}
