// The right operand of lib/blocks where it is a weight in panels, [ceil(N/16), K, 16].

// A panel's row of 16 columns is four of them.
@group(0) @binding(2) var<storage, read_write> w: array<vec4<real>>;

// Where the first term of four columns is; beyond the last panel they are any others.
alias RightCols = u32;

fn right_cols(sample: u32, col: u32) -> u32 {
    let sizes = product_sizes();
    let quad = min(col / 4u, (sizes.cols + 15u) / 16u * 4u - 1u);
    return quad / 4u * sizes.terms * 4u + quad % 4u;
}

fn right_block(cols: u32, k: u32, end: u32) -> mat4x4<f32> {
    // The left operand has zeros for terms beyond the last.
    let at = vec4<u32>(cols) + 4u * min(vec4<u32>(k) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(end - 1u));
    return mat4x4<f32>(vec4<f32>(w[at.x]), vec4<f32>(w[at.y]), vec4<f32>(w[at.z]), vec4<f32>(w[at.w]));
}
