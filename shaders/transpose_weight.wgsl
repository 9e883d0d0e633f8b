// W [taps, C, N] -> W' [taps, N, C] with W'[t, n, c] = W[taps - 1 - t, c, n], both in panels of 16 columns; zeros beyond C.

struct Scalars {
    taps: u32,
    c: u32,
    n: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
// [ceil(N/16), taps * C, 16]
@group(0) @binding(1) var<storage, read_write> w: array<f32>;
// [ceil(C/16), taps * N, 16]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

// Its row, 17 apart, so that a column lies in different banks.
var<workgroup> square: array<f32, 272>;

// One 16 x 16 square a workgroup: of panel p of y, tap t, the rows n from 16 q on.
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let squares = (s.n + 15u) / 16u;
    let number = wg.x + wg.y * wgs.x;
    let q = number % squares;
    let t = number / squares % s.taps;
    let p = number / squares / s.taps;
    let i = lane / 16u;
    let j = lane % 16u;
    let c = 16u * p + i;
    if c < s.c {
        square[17u * i + j] = w[(q * s.taps * s.c + (s.taps - 1u - t) * s.c + c) * 16u + j];
    }
    workgroupBarrier();
    let n = 16u * q + i;
    if 16u * p < s.c && n < s.n {
        var v = 0.0;
        if 16u * p + j < s.c {
            v = square[17u * j + i];
        }
        y[((p * s.taps + t) * s.n + n) * 16u + j] = v;
    }
}
