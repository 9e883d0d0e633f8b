// |x| from the sums of squares of its stretches, as grad_norm_squares leaves them. After: lib/reduce.

struct Scalars {
    // Number of stretches.
    count: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> squares: array<f32>;
@group(0) @binding(2) var<storage, read_write> norm: array<f32>;

@compute @workgroup_size(256)
fn main(place: Place) {
    let lane = place.lane;
    var sum = 0.0;
    for (var i = lane; i < s.count; i += 256u) {
        sum += squares[i];
    }
    let total = reduce_sum(sum, place);
    if lane == 0u {
        norm[0] = sqrt(total);
    }
}
