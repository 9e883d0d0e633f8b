// The right operand of lib/matrix_product where it is a weight in panels, `w`.

fn put_right(tile: MatrixTile, k: u32, lane: u32) {
    let sizes = product_sizes();
    let quads = (sizes.cols + 15u) / 16u * 4u;
    for (var i = lane; i < PART_DEPTH * TILE_EDGE / 4u; i += MATRIX_LANES) {
        // Neighbours read neighbouring columns of one row of a panel.
        let depth = i / (TILE_EDGE / 4u);
        let quad = tile.col / 4u + i % (TILE_EDGE / 4u);
        var v = vec4<real>();
        if quad < quads && k + depth < sizes.terms {
            v = w[(quad / 4u * sizes.terms + k + depth) * 4u + quad % 4u];
        }
        let to = depth * RIGHT_LINE + i % (TILE_EDGE / 4u) * 4u;
        right_part[to] = v.x;
        right_part[to + 1u] = v.y;
        right_part[to + 2u] = v.z;
        right_part[to + 3u] = v.w;
    }
}

