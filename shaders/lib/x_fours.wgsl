// The left operand of lib/blocks where its rows are multiples of 4 numbers.

@group(0) @binding(1) var<storage, read_write> x: array<vec4<real>>;

// Four numbers from number `at` on, a multiple of 4.
fn x_four(at: u32, count: u32) -> vec4<f32> {
    return vec4<f32>(x[at / 4u]);
}
