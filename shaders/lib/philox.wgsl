// Philox 4x32-10 (Salmon, Moraes, Dror & Shaw 2011), bit for bit that of `cpu::philox`. After: lib/multiply.

fn philox(seed: vec2<u32>, counter: vec4<u32>) -> vec4<u32> {
    var c = counter;
    var key = seed;
    for (var round = 0u; round < 10u; round++) {
        c = vec4<u32>(
            multiply_high(0xCD9E8D57u, c.z) ^ c.y ^ key.x,
            0xCD9E8D57u * c.z,
            multiply_high(0xD2511F53u, c.x) ^ c.w ^ key.y,
            0xD2511F53u * c.x,
        );
        key += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
    }
    return c;
}

// Words as numbers of [0, 1): their upper 24 bits, exact.
fn uniforms(words: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(words >> vec4<u32>(8u)) * (1.0 / 16777216.0);
}
