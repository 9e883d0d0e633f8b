// `conv2d` by cooperative matrices. After: conv2d, lib/matrix_product, lib/matrix_panels.

var<workgroup> tile_corners: array<vec3<u32>, TILE_EDGE>;

fn product_sizes() -> ProductSizes {
    return ProductSizes(1u, s.pixels, s.n, s.terms);
}

fn prepare(tile: MatrixTile, lane: u32) {
    for (var i = lane; i < TILE_EDGE; i += MATRIX_LANES) {
        tile_corners[i] = corner(tile.row + i);
    }
}

fn put_left(tile: MatrixTile, k: u32, lane: u32) {
    // Neighbours read neighbouring channels; MATRIX_LANES is a multiple of PART_DEPTH.
    let depth = lane % PART_DEPTH;
    let column_tap = tap(k + depth);
    for (var row = lane / PART_DEPTH; row < TILE_EDGE; row += MATRIX_LANES / PART_DEPTH) {
        left_part[row * LEFT_LINE + depth] = real(column(tile_corners[row], column_tap));
    }
}

fn store_sums(sample: u32, row: u32, col: u32, sums: vec4<f32>) {
    store(row, col, sums);
}
