// The column matrix of conv2d_blocks number by number, for any number of channels. After: lib/window.

fn under(rows: LeftRows, tap: vec3<u32>) -> vec4<f32> {
    return vec4<f32>(column(rows.a, tap), column(rows.b, tap), column(rows.c, tap), column(rows.d, tap));
}

fn left_block(rows: LeftRows, k: u32, end: u32) -> mat4x4<f32> {
    return mat4x4<f32>(under(rows, tap(k)), under(rows, tap(k + 1u)), under(rows, tap(k + 2u)), under(rows, tap(k + 3u)));
}
