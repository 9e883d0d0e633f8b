// y[b] = x[b, index[b]]   x [B, count, inner], index [B] -> y [B, inner]; NaN where an index is out of range. Words of 4
// bytes. After: lib/flat.

struct Scalars {
    n: u32,
    first: u32,
    count: u32,
    inner: u32,
    x_at: u32,
    index_at: u32,
    y_at: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<u32>;
// Negative ones are larger than any count.
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
            let b = (s.first + i) / s.inner;
            let at = index[s.index_at + b];
            var v = 0x7fc00000u;
            if at < s.count {
                v = x[s.x_at + (b * s.count + at) * s.inner + (s.first + i) % s.inner];
            }
            y[s.y_at + i] = v;
        }
    }
}
