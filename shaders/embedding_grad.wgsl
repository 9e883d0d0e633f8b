// dtable[r] = sum of dy[n] over the n whose index is r, in their order   dy [N, width], index [N] -> dtable [rows, width].
// A workgroup makes 1024 columns of a row.

struct Scalars {
    rows: u32,
    width: u32,
    // N
    count: u32,
    // Workgroups a row.
    parts: u32,
    dy_at: u32,
    index_at: u32,
    dtable_at: u32,
}

const LANES: u32 = 256u;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> dy: array<f32>;
@group(0) @binding(2) var<storage, read_write> index: array<u32>;
@group(0) @binding(3) var<storage, read_write> dtable: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = group.x + group.y * groups.x;
    let row = number / s.parts;
    let col = (number % s.parts) * 4u * LANES + lane;
    if row >= s.rows {
        return;
    }
    var sum = vec4<f32>();
    for (var n = 0u; n < s.count; n++) {
        if index[s.index_at + n] == row {
            for (var k = 0u; k < 4u; k++) {
                if col + k * LANES < s.width {
                    sum[k] += dy[s.dy_at + n * s.width + col + k * LANES];
                }
            }
        }
    }
    for (var k = 0u; k < 4u; k++) {
        if col + k * LANES < s.width {
            dtable[s.dtable_at + row * s.width + col + k * LANES] = sum[k];
        }
    }
}
