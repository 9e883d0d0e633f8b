// The epilogue of lib/epilogue where N is any number. After: lib/activation, lib/epilogue.

@group(0) @binding(6) var<storage, read_write> y: array<real>;

// Stores those of four columns of a row from `col` on that are any of n; a sample has `per_sample` rows.
fn finish(value: vec4<f32>, row: u32, col: u32, n: u32, per_sample: u32, scale: f32) {
    if col < n {
        y[row * n + col] = real(epilogue(value.x, row, col, n, per_sample, scale));
    }
    if col + 1u < n {
        y[row * n + col + 1u] = real(epilogue(value.y, row, col + 1u, n, per_sample, scale));
    }
    if col + 2u < n {
        y[row * n + col + 2u] = real(epilogue(value.z, row, col + 2u, n, per_sample, scale));
    }
    if col + 3u < n {
        y[row * n + col + 3u] = real(epilogue(value.w, row, col + 3u, n, per_sample, scale));
    }
}
