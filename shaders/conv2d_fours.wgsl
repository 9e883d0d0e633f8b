// The column matrix of conv2d_blocks by four channels of a pixel, whose number is a multiple of 4. After: lib/x_fours.

fn under(corner: vec3<u32>, tap: vec3<u32>) -> vec4<f32> {
    let at = corner.yz + tap.xy;
    let pixel = at / DILATION;
    let inside = pixel.x < s.height && pixel.y < s.width && (DILATION == 1u || all(at % DILATION == vec2<u32>(0u)));
    let begin = ((corner.x + pixel.x) * s.width + pixel.y) * s.channels + tap.z;
    // No branch: four pixels are read at a time.
    return select(vec4<f32>(), x_four(select(0u, begin, inside), 4u), inside);
}

fn left_block(rows: LeftRows, k: u32, end: u32) -> mat4x4<f32> {
    let tap = tap(k);
    return transpose(mat4x4<f32>(under(rows.a, tap), under(rows.b, tap), under(rows.c, tap), under(rows.d, tap)));
}
