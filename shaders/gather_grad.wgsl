// dx[b, k] = dy[b] where k = index[b], zero elsewhere   dy [B, inner], index [B] -> dx [B, count, inner]. Words of 4 bytes.
// After: lib/flat.

struct Scalars {
    n: u32,
    first: u32,
    count: u32,
    inner: u32,
    dy_at: u32,
    index_at: u32,
    dx_at: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> dy: array<u32>;
@group(0) @binding(2) var<storage, read_write> index: array<u32>;
@group(0) @binding(3) var<storage, read_write> dx: array<u32>;

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
            let row = (s.first + i) / s.inner;
            let b = row / s.count;
            var v = 0u;
            if index[s.index_at + b] == row - b * s.count {
                v = dy[s.dy_at + b * s.inner + (s.first + i) % s.inner];
            }
            dx[s.dx_at + i] = v;
        }
    }
}
