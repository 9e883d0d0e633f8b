// y = softmax(scale q k^T) v in each head, and lse, the logarithm of the softmax's denominator, over blocks of keys: what
// earlier blocks left is scaled to the largest score so far.   -> y [B, Tq, heads * dv], lse [B, heads, Tq]
// After: lib/attention.

@group(0) @binding(4) var<storage, read_write> y: array<real>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;

override MAXIMA: u32 = ROW_LANES * COL_LANES;

// Largest scores of each invocation's columns, [COL_LANES, ROW_LANES].
var<workgroup> maxima: array<vec4<f32>, MAXIMA>;

fn read(name: u32, i: u32) -> vec4<f32> {
    if name == Q {
        return vec4<f32>(q[i]);
    }
    if name == K {
        return vec4<f32>(k[i]);
    }
    return vec4<f32>(v[i]);
}

@compute @workgroup_size(ROW_LANES * COL_LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let blocks = (s.queries + 4u * ROW_LANES - 1u) / (4u * ROW_LANES);
    let number = wg.x + wg.y * wgs.x;
    if number >= blocks * s.pairs {
        return;
    }
    let pair = number / blocks;
    let first_row = number % blocks * 4u * ROW_LANES;
    let lane_row = lane / COL_LANES;
    let lane_col = lane % COL_LANES;
    let q_rows = rows_of(Q, pair);
    let k_rows = rows_of(K, pair);
    let v_rows = rows_of(V, pair);

    var top = vec4<f32>(LOWEST);
    var total = vec4<f32>();
    var sums = Sums();
    for (var key = 0u; key < s.keys; key += 2u * COL_LANES) {
        var scores = dots(q_rows, k_rows, first_row, key, lane);
        let has_0 = key + lane_col < s.keys;
        let has_1 = key + lane_col + COL_LANES < s.keys;
        scores[0] = select(vec4<f32>(LOWEST), s.scale * scores[0], has_0);
        scores[1] = select(vec4<f32>(LOWEST), s.scale * scores[1], has_1);
        maxima[lane_col * ROW_LANES + lane_row] = max(scores[0], scores[1]);
        workgroupBarrier();
        var largest = top;
        for (var j = 0u; j < COL_LANES; j++) {
            largest = max(largest, maxima[j * ROW_LANES + lane_row]);
        }
        let factor = exp(top - largest);
        top = largest;
        scores[0] = select(vec4<f32>(), exp(scores[0] - largest), has_0);
        scores[1] = select(vec4<f32>(), exp(scores[1] - largest), has_1);
        // Each adds its own columns; those of the others follow at the end.
        total = factor * total + (scores[0] + scores[1]);
        share_weights(scores, lane);
        for (var r = 0u; r < 4u; r++) {
            sums[r] *= factor[r];
            sums[4u + r] *= factor[r];
        }
        add_weighted(&sums, v_rows, key, lane);
    }
    workgroupBarrier();
    maxima[lane_col * ROW_LANES + lane_row] = total;
    workgroupBarrier();
    total = vec4<f32>();
    for (var j = 0u; j < COL_LANES; j++) {
        total += maxima[j * ROW_LANES + lane_row];
    }
    let logarithm = top + log(total);
    for (var r = 0u; r < 4u; r++) {
        let row = first_row + 4u * lane_row + r;
        if row < s.queries {
            let at = (pair / s.heads * s.queries + row) * s.heads * s.dv + pair % s.heads * s.dv;
            for (var j = 0u; j < 8u; j++) {
                let c = (lane_col + j / 4u * COL_LANES) * 4u + j % 4u;
                if c < s.dv {
                    y[at + c] = real(sums[j / 4u * 4u + r][j % 4u] / total[r]);
                }
            }
            if lane_col == 0u {
                lse[pair * s.queries + row] = logarithm[r];
            }
        }
    }
}
