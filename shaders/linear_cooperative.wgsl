// `linear` by cooperative matrices. After: linear, lib/matrix_product, lib/matrix_panels.

fn product_sizes() -> ProductSizes {
    return ProductSizes(1u, s.m, s.n, s.k);
}

fn prepare(tile: MatrixTile, lane: u32) {}

fn put_left(tile: MatrixTile, k: u32, lane: u32) {
    for (var i = lane; i < TILE_EDGE * PART_DEPTH; i += MATRIX_LANES) {
        let row = tile.row + i / PART_DEPTH;
        let term = k + i % PART_DEPTH;
        var v = real(0.0);
        if row < s.m && term < s.k {
            v = x[row * s.k + term];
        }
        left_part[i / PART_DEPTH * LEFT_LINE + i % PART_DEPTH] = v;
    }
}

fn store_sums(sample: u32, row: u32, col: u32, sums: vec4<f32>) {
    store(row, col, sums);
}
