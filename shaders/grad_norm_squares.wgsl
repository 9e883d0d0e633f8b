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

// An invocation makes short sums of 16, so that rounding does not grow with the length of a stretch.
const BLOCK: u32 = 256u * 16u;
const STRETCH: u32 = 4u * BLOCK;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    place: Place,
) {
    let lane = place.lane;
    let start = (wg.x + wg.y * wgs.x) * STRETCH;
    if start >= s.n {
        return;
    }
    var sum = 0.0;
    for (var block = start; block < start + STRETCH; block += BLOCK) {
        var part = 0.0;
        let end = min(block + BLOCK, s.n);
        for (var i = block + lane; i < end; i += 256u) {
            let v = x[s.x_at + i];
            part += v * v;
        }
        sum += part;
    }
    let total = reduce_sum(sum, place);
    if lane == 0u {
        squares[(s.first + start) / STRETCH] = total;
    }
}
