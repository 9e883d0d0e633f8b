// y[n] = table[index[n]]   table [rows, width], index [N] -> y [N, width]; NaN where an index is out of range. Words of 4
// bytes. After: lib/flat.

struct Scalars {
    n: u32,
    first: u32,
    rows: u32,
    width: u32,
    table_at: u32,
    index_at: u32,
    y_at: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> table: array<u32>;
// Negative ones are larger than any number of rows.
@group(0) @binding(2) var<storage, read_write> index: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

@compute @workgroup_size(FLAT_LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = flat_start(group, groups, lane);
    for (var k = 0u; k < FLAT_EACH; k++) {
        let i = start + k * FLAT_LANES;
        if i < s.n {
            let row = index[s.index_at + (s.first + i) / s.width];
            var v = 0x7fc00000u;
            if row < s.rows {
                v = table[s.table_at + row * s.width + (s.first + i) % s.width];
            }
            y[s.y_at + i] = v;
        }
    }
}
