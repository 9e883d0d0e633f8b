// out[f, n]: integer arithmetic on the four words of Philox-4x32-10 of (i, 0, 0, 0) by the key (seed, 7).
typedef unsigned int u32;
typedef unsigned long long u64;

extern "C" __global__ void integers(int n, u32 seed, int d, u64 m, u64 *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    u32 c[4] = {(u32)i, 0, 0, 0}, k0 = seed, k1 = 7;
    for (int round = 0; round < 10; round++) {
        u32 h0 = __umulhi(0xD2511F53u, c[0]), l0 = 0xD2511F53u * c[0];
        u32 h1 = __umulhi(0xCD9E8D57u, c[2]), l1 = 0xCD9E8D57u * c[2];
        c[0] = h1 ^ c[1] ^ k0, c[1] = l1, c[2] = h0 ^ c[3] ^ k1, c[3] = l0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    int a = c[0], b = c[1];
    u64 w = (u64)c[2] << 32 | c[3];
    long long s = w;
    out += i;
#define OUT(e) *out = (u64)(e), out += n;
    OUT(c[0]) OUT(c[1]) OUT(c[2]) OUT(c[3]) OUT(a / d) OUT(a % d) OUT(c[0] / (u32)d) OUT(c[0] % (u32)d) OUT(w / m) OUT(w % m)
    OUT(s / (long long)m) OUT(s % (long long)m) OUT(__umul64hi(w, m)) OUT(__mul64hi(s, -(long long)m)) OUT(__popc(a)) OUT(__clz(a))
    OUT(__ffs(a)) OUT(__brev(a)) OUT(__byte_perm(a, b, 0x1735)) OUT(__funnelshift_l(a, b, 13)) OUT(__funnelshift_r(a, b, d))
    OUT(c[0] >> 5 & 0x3ff) OUT(w >> (d & 63)) OUT(s >> (d & 63)) OUT(min(a, b)) OUT(abs(a)) OUT(__clzll(w)) OUT(w * m + 3)
    OUT(__usad(a, b, 5)) OUT(__mulhi(a, b)) OUT((short)a) OUT((signed char)b) OUT(__float_as_uint((float)a)) OUT(a * (long long)b)
    OUT(w / 10) OUT(a / 7) OUT(c[0] % 1000)
}
