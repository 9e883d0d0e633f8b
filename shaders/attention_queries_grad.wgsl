// dq = dS k, by blocks of queries: they are the rows. After: lib/attention, lib/attention_grad.

@group(0) @binding(7) var<storage, read_write> dq: array<f32>;

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
    let q_rows = rows_of(Q, pair);
    let k_rows = rows_of(K, pair);
    let v_rows = rows_of(V, pair);
    let dy_rows = rows_of(DY, pair);
    var row_lse = vec4<f32>();
    var row_delta = vec4<f32>();
    for (var r = 0u; r < 4u; r++) {
        let i = pair * s.queries + min(first_row + 4u * (lane / COL_LANES) + r, s.queries - 1u);
        row_lse[r] = lse[i];
        row_delta[r] = delta[i];
    }

    var sums = Sums();
    for (var key = 0u; key < s.keys; key += 2u * COL_LANES) {
        let scores = dots(q_rows, k_rows, first_row, key, lane);
        var slopes = dots(dy_rows, v_rows, first_row, key, lane);
        slopes[0] = s.scale * exp(s.scale * scores[0] - row_lse) * (slopes[0] - row_delta);
        slopes[1] = s.scale * exp(s.scale * scores[1] - row_lse) * (slopes[1] - row_delta);
        share_weights(slopes, lane);
        add_weighted(&sums, k_rows, key, lane);
        workgroupBarrier();
    }
    for (var r = 0u; r < 4u; r++) {
        let row = first_row + 4u * (lane / COL_LANES) + r;
        if row < s.queries {
            for (var j = 0u; j < 8u; j++) {
                let c = element(lane, j);
                if c < s.d {
                    dq[start(q_rows, row) + c] = sums[j / 4u * 4u + r][j % 4u];
                }
            }
        }
    }
}
