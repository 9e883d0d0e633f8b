// Cosine and sine; the built-in ones may be off by 5e-4.

// Of 2 pi phase / 2^32, to 1e-7: the reduction to an eighth of a turn is exact, Taylor series after it.
fn cos_sin_turn(phase: u32) -> vec2<f32> {
    let quarters = (phase + 0x20000000u) >> 30u;
    let a = f32(bitcast<i32>(phase - (quarters << 30u))) * 1.4629180792671596e-9;
    let a2 = a * a;
    let sine = a + a * a2 * (-1.0 / 6.0 + a2 * (1.0 / 120.0 + a2 * (-1.0 / 5040.0 + a2 * (1.0 / 362880.0))));
    let cosine =
        1.0 + a2 * (-0.5 + a2 * (1.0 / 24.0 + a2 * (-1.0 / 720.0 + a2 * (1.0 / 40320.0 - a2 * (1.0 / 3628800.0)))));
    let swapped = (quarters & 1u) != 0u;
    let c = select(cosine, sine, swapped);
    let s = select(sine, cosine, swapped);
    return vec2<f32>(select(c, -c, ((quarters + 1u) & 2u) != 0u), select(s, -s, (quarters & 2u) != 0u));
}
