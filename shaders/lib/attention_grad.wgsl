// What the gradients of attention read: dy [B, Tq, heads * dv]; lse and delta [B, heads, Tq], delta the products of the rows of y
// and dy. P = exp(scale q k^T - lse) is made again tile by tile; dS = scale P (dy v^T - delta). After: lib/attention.

@group(0) @binding(4) var<storage, read_write> dy: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;
@group(0) @binding(6) var<storage, read_write> delta: array<f32>;

fn read(name: u32, i: u32) -> vec4<f32> {
    if name == Q {
        return q[i];
    }
    if name == K {
        return k[i];
    }
    if name == V {
        return v[i];
    }
    return dy[i];
}

// Number `j` of the 8 elements of an invocation's sums.
fn element(lane: u32, j: u32) -> u32 {
    return (lane % COL_LANES + j / 4u * COL_LANES) * 4u + j % 4u;
}
