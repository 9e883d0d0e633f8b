// y = act(n * gamma + beta), or with MODULATE act((n * gamma + beta) * (1 + scale) + shift), n being x [B, R, C] less its group's
// mean and times its rstd. After: lib/flat, lib/activation.

struct Scalars {
    n: u32,
    first: u32,
    rows: u32,
    channels: u32,
    groups: u32,
    x_at: u32,
    gamma_at: u32,
    beta_at: u32,
    scale_at: u32,
    shift_at: u32,
    y_at: u32,
    stats_at: u32,
    means_at: u32,
}

override MODULATE: bool;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<real>;
@group(0) @binding(2) var<storage, read_write> gamma: array<real>;
@group(0) @binding(3) var<storage, read_write> beta: array<real>;
// [B, C]
@group(0) @binding(4) var<storage, read_write> scale: array<real>;
@group(0) @binding(5) var<storage, read_write> shift: array<real>;
@group(0) @binding(6) var<storage, read_write> y: array<real>;
// [B, groups, 2]: mean, rstd
@group(0) @binding(7) var<storage, read_write> stats: array<f32>;
// [B, groups, 2]: the mean in two parts
@group(0) @binding(8) var<storage, read_write> means: array<f32>;

@compute @workgroup_size(FLAT_LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = flat_start(wg, wgs, lane);
    for (var k = 0u; k < FLAT_EACH; k++) {
        let i = start + k * FLAT_LANES;
        if i < s.n {
            let c = (s.first + i) % s.channels;
            let sample = (s.first + i) / (s.rows * s.channels);
            let group = 2u * (sample * s.groups + c / (s.channels / s.groups));
            let centred = (f32(x[s.x_at + i]) - means[s.means_at + group]) - means[s.means_at + group + 1u];
            var v = centred * stats[s.stats_at + group + 1u] * f32(gamma[s.gamma_at + c]) + f32(beta[s.beta_at + c]);
            if MODULATE {
                let at = sample * s.channels + c;
                v = v * (1.0 + f32(scale[s.scale_at + at])) + f32(shift[s.shift_at + at]);
            }
            y[s.y_at + i] = real(act(v));
        }
    }
}
