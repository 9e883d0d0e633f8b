// Rows of a and b, one behind the other, into columns from `start` on of y [.., width]. After: lib/flat.

struct Scalars {
    n: u32,
    first: u32,
    a_run: u32,
    b_run: u32,
    start: u32,
    width: u32,
    a_at: u32,
    b_at: u32,
    y_at: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
// [.., a_run]
@group(0) @binding(1) var<storage, read_write> a: array<word>;
// [.., b_run]
@group(0) @binding(2) var<storage, read_write> b: array<word>;
@group(0) @binding(3) var<storage, read_write> y: array<word>;

@compute @workgroup_size(FLAT_LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = flat_start(group, groups, lane);
    let run = s.a_run + s.b_run;
    for (var k = 0u; k < FLAT_EACH; k++) {
        let i = start + k * FLAT_LANES;
        if i < s.n {
            let row = (s.first + i) / run;
            let col = (s.first + i) % run;
            var v = word();
            if col < s.a_run {
                v = a[s.a_at + row * s.a_run + col];
            } else {
                v = b[s.b_at + row * s.b_run + col - s.a_run];
            }
            // Only a launch that makes all of y is cut.
            y[s.y_at + row * s.width + s.start + col - s.first] = v;
        }
    }
}
