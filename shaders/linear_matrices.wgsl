// Rows of `linear` for lib/matrix_blocks, by four numbers. After: linear_blocks, lib/x_fours.

// Where a row begins; those beyond the last are the last.
alias LeftRow = u32;

fn left_row(sample: u32, row: u32) -> u32 {
    return min(row, s.m - 1u) * s.k;
}

fn left_eight(row: u32, k: u32) -> Eight {
    let at = (row + k) / 4u;
    return Eight(x[at], x[at + 1u]);
}
