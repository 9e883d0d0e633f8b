// Elements of the column matrix of lib/corners, one at a time. x is argument 1. After: lib/corners.

@group(0) @binding(1) var<storage, read_write> x: array<real>;

// The element of a row with this corner and a column with this tap.
fn column(corner: vec3<u32>, tap: vec3<u32>) -> f32 {
    let at = corner.yz + tap.xy;
    let pixel = at / DILATION;
    let inside = pixel.x < s.height && pixel.y < s.width;
    if inside && (DILATION == 1u || all(at % DILATION == vec2<u32>(0u))) {
        return f32(x[((corner.x + pixel.x) * s.width + pixel.y) * s.channels + tap.z]);
    }
    return 0.0;
}
