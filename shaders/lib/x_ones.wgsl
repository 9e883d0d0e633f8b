// The left operand of lib/blocks where its rows are of any length.

@group(0) @binding(1) var<storage, read_write> x: array<real>;

// Four numbers from number `at` on; zeros after the first `count`, which are not 0.
fn x_four(at: u32, count: u32) -> vec4<f32> {
    var v = vec4<f32>(f32(x[at]), 0.0, 0.0, 0.0);
    if count > 1u {
        v.y = f32(x[at + 1u]);
    }
    if count > 2u {
        v.z = f32(x[at + 2u]);
    }
    if count > 3u {
        v.w = f32(x[at + 3u]);
    }
    return v;
}
