// dx: for every pixel the sum over those that it went to   dy [B, H', W', C] -> dx [B, H, W, C]. After: lib/line.

struct Scalars {
    // B * H
    lines: u32,
    // H', W'
    height: u32,
    width: u32,
    channels: u32,
    // H, W
    out_height: u32,
    out_width: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> dy: array<f32>;
@group(0) @binding(2) var<storage, read_write> dx: array<f32>;

// Pixel i of n went to those from this on, up to that of i + 1, of m.
fn first_covered(i: u32, n: u32, m: u32) -> u32 {
    return (i * m + n - 1u) / n;
}

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
    let image = line / s.out_height;
    let top = first_covered(line % s.out_height, s.out_height, s.height);
    let bottom = first_covered(line % s.out_height + 1u, s.out_height, s.height);
    for (var k = 0u; k < LINE_EACH; k++) {
        let e = place.y + k * LINE_LANES;
        if e < s.out_width * s.channels {
            let pixel = e / s.channels;
            let left = first_covered(pixel, s.out_width, s.width);
            let right = first_covered(pixel + 1u, s.out_width, s.width);
            var sum = 0.0;
            for (var i = top; i < bottom; i++) {
                for (var j = left; j < right; j++) {
                    sum += dy[((image * s.height + i) * s.width + j) * s.channels + e % s.channels];
                }
            }
            dx[line * s.out_width * s.channels + e] = sum;
        }
    }
}
