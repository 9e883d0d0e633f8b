// Rows of the column matrix of `conv2d` for lib/matrix_blocks, by four of a multiple of 8 channels. After: conv2d_blocks, lib/x_fours.

alias LeftRow = vec3<u32>;

fn left_row(sample: u32, row: u32) -> vec3<u32> {
    return corner(row);
}

fn left_eight(corner: vec3<u32>, k: u32) -> Eight {
    let tap = tap(k);
    let at = corner.yz + tap.xy;
    let pixel = at / DILATION;
    let inside = pixel.x < s.height && pixel.y < s.width && (DILATION == 1u || all(at % DILATION == vec2<u32>(0u)));
    let begin = (((corner.x + pixel.x) * s.width + pixel.y) * s.channels + tap.z) / 4u;
    let seen = select(0u, begin, inside);
    // No branch: all pixels are read at a time.
    let zero = vec4<real>();
    return Eight(select(zero, x[seen], inside), select(zero, x[seen + 1u], inside));
}
