// The coefficients of one optimiser step from its hyperparameters, see `ops::Optimizer`; one invocation. Corrections keep their
// digits where 1 - beta is small: nothing is subtracted from what it nearly equals.

struct Scalars {
    hyper_at: u32,
    norm_at: u32,
}

// 0 AdamW, 1 Adam, 2 RAdam
override KIND: u32;
override AVERAGES: u32;

@group(0) @binding(0) var<uniform> s: Scalars;
// lr, beta1, beta2, eps, decay, step, gradient scale, largest norm, then a decay for each average
@group(0) @binding(1) var<storage, read_write> hyper: array<f32>;
@group(0) @binding(2) var<storage, read_write> norm: array<f32>;
// 11 of the step as optimizer.wgsl names them, then what each average moves by
@group(0) @binding(3) var<storage, read_write> coefficients: array<f32>;

// x = 1 - beta^t and y = t r - x, where r = 1 - beta, by doubling t: all terms are positive.
fn correction(r: f32, step: f32) -> vec2<f32> {
    let t = u32(step);
    var c = vec2<f32>();
    for (var bit = 32u - countLeadingZeros(t); bit > 0u; bit--) {
        c = vec2<f32>(c.x * (2.0 - c.x), 2.0 * c.y + c.x * c.x);
        if ((t >> (bit - 1u)) & 1u) == 1u {
            c = vec2<f32>(c.x + (1.0 - c.x) * r, c.y + c.x * r);
        }
    }
    return c;
}

// The number of steps that the average of squares is worth, less 4; `c` is beta2's correction.
fn excess_length(r: f32, step: f32, c: vec2<f32>) -> f32 {
    if c.x > 0.5 {
        return 2.0 / r - 5.0 - 2.0 * step * (1.0 - c.x) / c.x;
    }
    return 2.0 * step - 5.0 - 2.0 * c.y / (r * c.x);
}

@compute @workgroup_size(1)
fn main() {
    let h = s.hyper_at;
    let lr = hyper[h];
    let r1 = 1.0 - hyper[h + 1u];
    let r2 = 1.0 - hyper[h + 2u];
    let eps = hyper[h + 3u];
    let decay = hyper[h + 4u];
    let step = hyper[h + 5u];
    let largest = hyper[h + 7u];
    let c1 = correction(r1, step).x;
    let c2 = correction(r2, step);

    var scale = hyper[h + 6u];
    if largest > 0.0 {
        scale *= min(largest / (abs(scale) * norm[s.norm_at] + 1e-6), 1.0);
    }
    var rate = lr / c1;
    var root = 1.0 / sqrt(c2.x);
    var floor = eps;
    if KIND == 2u {
        let excess = excess_length(r2, step, c2);
        if excess > 1.0 {
            let limit = 2.0 / r2 - 1.0;
            let ratio = excess * (excess + 2.0) * limit / ((limit - 4.0) * (limit - 2.0) * (excess + 4.0));
            rate *= sqrt(ratio) * sqrt(c2.x);
            root = 1.0;
        } else {
            root = 0.0;
            floor = 1.0;
        }
    }
    // Told by the bits: a compiler may assume that all numbers are finite.
    let finite = (bitcast<u32>(norm[s.norm_at]) & 0x7f800000u) != 0x7f800000u;
    coefficients[0] = select(0.0, 1.0, finite);
    coefficients[1] = scale;
    coefficients[2] = select(decay, 0.0, KIND == 0u);
    coefficients[3] = select(1.0, 1.0 - lr * decay, KIND == 0u);
    coefficients[4] = hyper[h + 1u];
    coefficients[5] = hyper[h + 2u];
    coefficients[6] = r1;
    coefficients[7] = r2;
    coefficients[8] = rate;
    coefficients[9] = root;
    coefficients[10] = floor;
    for (var i = 0u; i < AVERAGES; i++) {
        coefficients[11u + i] = 1.0 - hyper[h + 8u + i];
    }
}
