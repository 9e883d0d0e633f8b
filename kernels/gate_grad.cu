// dx = gate · dy, dgate = Σ dy · x over a sample's rows   x, dy, dx [B, R, C], gate, dgate [B, C]
// Floor: x and dy once, dx once. A block has 32 channels of a sample, a warp one row in eight of them: whole sectors of 32 bytes,
// and sums in a fixed order.
#include "lib/flat.cuh"

constexpr u32 COLS = 32, ROWS = 8;

FLAT_KERNEL gate_grad_f32(
    const f32* x, const f32* gate, const f32* dy, f32* dx, f32* dgate, u32 rows, u32 channels, u32 parts) {
    __shared__ float sums[ROWS][COLS];
    u32 sample = blockIdx.x / parts, column = threadIdx.x % COLS, line = threadIdx.x / COLS;
    u32 channel = blockIdx.x % parts * COLS + column;
    float sum = 0.0f;
    if (channel < channels) {
        float factor = gate[u64(sample) * channels + channel];
        u64 at = (u64(sample) * rows + line) * channels + channel;
#pragma unroll 4
        for (u32 row = line; row < rows; row += ROWS, at += u64(ROWS) * channels) {
            float d = dy[at];
            sum += d * x[at];
            dx[at] = d * factor;
        }
    }
    sums[line][column] = sum;
    __syncthreads();
    if (line > 0 || channel >= channels) return;
    for (u32 k = 1; k < ROWS; k++) sum += sums[k][column];
    dgate[u64(sample) * channels + channel] = sum;
}
