// Rows of x [.., run] with zeros before and behind them -> y [.., width]. After: lib/flat.

struct Scalars {
    n: u32,
    first: u32,
    before: u32,
    run: u32,
    width: u32,
    x_at: u32,
    y_at: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<word>;
@group(0) @binding(2) var<storage, read_write> y: array<word>;

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
            let row = (s.first + i) / s.width;
            let col = (s.first + i) % s.width;
            var v = word();
            if col >= s.before && col - s.before < s.run {
                v = x[s.x_at + row * s.run + col - s.before];
            }
            y[s.y_at + i] = v;
        }
    }
}
