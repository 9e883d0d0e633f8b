// The sum of squares of every stretch of STRETCH numbers of x. After: lib/reduce.

struct Scalars {
    n: u32,
    first: u32,
    x_at: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
// Of all stretches, even where x is seen in pieces.
@group(0) @binding(2) var<storage, read_write> squares: array<f32>;

// What an invocation takes: BLOCKS short sums of 16, so that rounding does not grow with their number.
const BLOCKS: u32 = 4u;
const STRETCH: u32 = 256u * BLOCKS * 16u;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = (wg.x + wg.y * wgs.x) * STRETCH;
    if start >= s.n {
        return;
    }
    let end = min(start + STRETCH, s.n);
    var total = 0.0;
    var i = start + lane;
    for (var block = 0u; block < BLOCKS; block++) {
        var sum = 0.0;
        for (var k = 0u; k < 16u; k++) {
            if i < end {
                let v = x[s.x_at + i];
                sum += v * v;
            }
            i += 256u;
        }
        total += sum;
    }
    total = reduce_sum(total, lane);
    if lane == 0u {
        squares[(s.first + start) / STRETCH] = total;
    }
}
