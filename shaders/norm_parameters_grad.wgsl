// Gradients of a normalisation's parameters from the sums over each sample's rows of e and of e * n, where e is the gradient
// of n * gamma * (1 + scale) + ..: sums [samples, 2, C] -> dgamma, dbeta [C] with AFFINE, dscale, dshift [samples, C] with
// MODULATE; an invocation a channel.

struct Scalars {
    samples: u32,
    channels: u32,
}

override AFFINE: bool;
override MODULATE: bool;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> sums: array<f32>;
@group(0) @binding(2) var<storage, read_write> gamma: array<f32>;
@group(0) @binding(3) var<storage, read_write> beta: array<f32>;
@group(0) @binding(4) var<storage, read_write> scale: array<f32>;
@group(0) @binding(5) var<storage, read_write> dgamma: array<f32>;
@group(0) @binding(6) var<storage, read_write> dbeta: array<f32>;
@group(0) @binding(7) var<storage, read_write> dscale: array<f32>;
@group(0) @binding(8) var<storage, read_write> dshift: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let c = (wg.x + wg.y * wgs.x) * 64u + lane;
    if c >= s.channels {
        return;
    }
    var g = 1.0;
    var b = 0.0;
    if AFFINE {
        g = gamma[c];
        b = beta[c];
    }
    // Of gamma, of beta.
    var total = vec2<f32>();
    for (var k = 0u; k < s.samples; k++) {
        let e = sums[2u * k * s.channels + c];
        let en = sums[(2u * k + 1u) * s.channels + c];
        var factor = 1.0;
        if MODULATE {
            let at = k * s.channels + c;
            factor += scale[at];
            dscale[at] = en * g + e * b;
            dshift[at] = e;
        }
        total += vec2<f32>(en, e) * factor;
    }
    if AFFINE {
        dgamma[c] = total.x;
        dbeta[c] = total.y;
    }
}
