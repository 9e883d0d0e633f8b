// y[o, p] = x[o H / H', p W / W'], rounded down   x [B, H, W, C] -> y [B, H', W', C]. After: lib/line.

struct Scalars {
    // B * H'
    lines: u32,
    height: u32,
    width: u32,
    channels: u32,
    out_height: u32,
    out_width: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<word>;
@group(0) @binding(2) var<storage, read_write> y: array<word>;

@compute @workgroup_size(LINE_LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = line_start(group, groups, lane, s.out_width * s.channels);
    let line = place.x;
    if line >= s.lines {
        return;
    }
    let row = (line / s.out_height) * s.height + (line % s.out_height) * s.height / s.out_height;
    for (var k = 0u; k < LINE_EACH; k++) {
        let e = place.y + k * LINE_LANES;
        if e < s.out_width * s.channels {
            let col = e / s.channels * s.width / s.out_width;
            y[line * s.out_width * s.channels + e] = x[(row * s.width + col) * s.channels + e % s.channels];
        }
    }
}
