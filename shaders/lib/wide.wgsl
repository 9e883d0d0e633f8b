// Numbers of 64 bits, for angles of many turns: f32 would lose the fraction of a turn. After: lib/multiply.

// (high 2^32 + low) / 2^64 * 2^exponent, high's first bit set; or zero, high = low = 0.
struct Wide {
    high: u32,
    low: u32,
    exponent: i32,
    // 0 or 1
    negative: u32,
}

// x, not NaN and not infinite; what is below 2^-126 is zero.
fn wide(x: f32) -> Wide {
    let bits = bitcast<u32>(x);
    let exponent = (bits >> 23u) & 0xffu;
    if exponent == 0u {
        return Wide(0u, 0u, 0, 0u);
    }
    return Wide((bits | 0x800000u) << 8u, 0u, i32(exponent) - 126, bits >> 31u);
}

// The upper 64 bits (high, low) of a product of two numbers of 64 bits, less 3 at most.
fn wide_high(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let first = a.x * b.x + multiply_high(a.x, b.y);
    let carry = u32(first < a.x * b.x);
    let low = first + multiply_high(a.y, b.x);
    return vec2<u32>(multiply_high(a.x, b.x) + carry + u32(low < first), low);
}

fn wide_product(a: Wide, b: Wide) -> Wide {
    var m = wide_high(vec2<u32>(a.high, a.low), vec2<u32>(b.high, b.low));
    var exponent = a.exponent + b.exponent;
    if m.x < 0x80000000u {
        m = vec2<u32>((m.x << 1u) | (m.y >> 31u), m.y << 1u);
        exponent -= 1;
    }
    return Wide(m.x, m.y, exponent, a.negative ^ b.negative);
}

// x^n
fn wide_power(x: Wide, n: u32) -> Wide {
    var result = Wide(0x80000000u, 0u, 1, 0u);
    var square = x;
    for (var k = n; k > 0u; k >>= 1u) {
        if (k & 1u) != 0u {
            result = wide_product(result, square);
        }
        square = wide_product(square, square);
    }
    return result;
}

// ln x of a normal x > 0.
fn wide_log(x: f32) -> Wide {
    let bits = bitcast<u32>(x);
    // log2 x = 48 binary digits behind the point, one after the other: squaring what is left doubles its logarithm.
    var m = vec2<u32>((bits | 0x800000u) << 8u, 0u);
    let whole = i32((bits >> 23u) & 0xffu) - 127;
    var high = u32(whole >> 31u);
    var low = u32(whole);
    for (var i = 0u; i < 48u; i++) {
        m = wide_high(m, m);
        let digit = m.x >> 31u;
        if digit == 0u {
            m = vec2<u32>((m.x << 1u) | (m.y >> 31u), m.y << 1u);
        }
        high = (high << 1u) | (low >> 31u);
        low = (low << 1u) | digit;
    }
    let negative = high >> 31u;
    if negative != 0u {
        high = ~high + u32(low == 0u);
        low = 0u - low;
    }
    var exponent = 16;
    if high == 0u {
        high = low;
        low = 0u;
        exponent -= 32;
    }
    if high == 0u {
        return Wide(0u, 0u, 0, 0u);
    }
    let zeros = countLeadingZeros(high);
    if zeros > 0u {
        high = (high << zeros) | (low >> (32u - zeros));
        low = low << zeros;
    }
    let log2 = Wide(high, low, exponent - i32(zeros), negative);
    return wide_product(log2, Wide(0xB17217F7u, 0xD1CF79ABu, 0, 0u));
}

// x less its whole turns, in units of 2^-32.
fn wide_phase(x: Wide) -> u32 {
    var phase = 0u;
    if x.exponent > -32 && x.exponent <= 0 {
        phase = x.high >> u32(-x.exponent);
    } else if x.exponent > 0 && x.exponent < 32 {
        phase = (x.high << u32(x.exponent)) | (x.low >> u32(32 - x.exponent));
    } else if x.exponent >= 32 && x.exponent < 64 {
        phase = x.low << u32(x.exponent - 32);
    }
    return select(phase, 0u - phase, x.negative != 0u);
}
