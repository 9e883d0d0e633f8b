// `matmul` by cooperative matrices. After: matmul, lib/matrix_product.

fn product_sizes() -> ProductSizes {
    return ProductSizes(s.batch, s.m, s.n, s.k);
}

fn prepare(tile: MatrixTile, lane: u32) {}

fn put_left(tile: MatrixTile, k: u32, lane: u32) {
    for (var i = lane; i < TILE_EDGE * PART_DEPTH; i += MATRIX_LANES) {
        // Neighbours read neighbours.
        let row = select(i / PART_DEPTH, i % TILE_EDGE, TRANSPOSE_A);
        let depth = select(i % PART_DEPTH, i / TILE_EDGE, TRANSPOSE_A);
        left_part[row * LEFT_LINE + depth] = real(left(tile.sample, tile.row + row, k + depth));
    }
}

fn put_right(tile: MatrixTile, k: u32, lane: u32) {
    for (var i = lane; i < TILE_EDGE * PART_DEPTH; i += MATRIX_LANES) {
        let col = select(i % TILE_EDGE, i / PART_DEPTH, TRANSPOSE_B);
        let depth = select(i / TILE_EDGE, i % PART_DEPTH, TRANSPOSE_B);
        right_part[depth * RIGHT_LINE + col] = real(right(tile.sample, k + depth, tile.col + col));
    }
}

fn store_sums(sample: u32, row: u32, col: u32, sums: vec4<f32>) {
    store(sample, row, col, sums);
}
