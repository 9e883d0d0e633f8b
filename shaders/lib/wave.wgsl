// Sinusoids of times. After: lib/multiply, lib/wide, lib/turn.

// False for NaN and infinity.
fn is_finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}

// (NaN, NaN): what has no sine.
fn no_wave() -> vec2<f32> {
    // No constant, which a shader's text may not make NaN.
    var bits = vec2<u32>(0x7fc00000u);
    return bitcast<vec2<f32>>(bits);
}

// (cos, sin) of 2 pi frequency f(t), f being ln if `log`.
fn wave(t: f32, frequency: Wide, log: bool) -> vec2<f32> {
    if !is_finite(t) || (log && !(t > 0.0)) {
        return no_wave();
    }
    var time = wide(t);
    if log {
        time = wide_log(t);
    }
    return cos_sin_turn(wide_phase(wide_product(time, frequency)));
}
