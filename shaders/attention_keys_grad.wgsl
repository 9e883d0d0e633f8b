// dk = dS^T q and dv = P^T dy, by blocks of keys: they are the rows. After: lib/attention, lib/attention_grad.

@group(0) @binding(7) var<storage, read_write> dk: array<f32>;
@group(0) @binding(8) var<storage, read_write> dv: array<f32>;

@compute @workgroup_size(ROW_LANES * COL_LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let blocks = (s.keys + 4u * ROW_LANES - 1u) / (4u * ROW_LANES);
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

    var dk_sums = Sums();
    var dv_sums = Sums();
    for (var query = 0u; query < s.queries; query += 2u * COL_LANES) {
        var scores = dots(k_rows, q_rows, first_row, query, lane);
        var slopes = dots(v_rows, dy_rows, first_row, query, lane);
        for (var j = 0u; j < 2u; j++) {
            let i = pair * s.queries + min(query + lane % COL_LANES + j * COL_LANES, s.queries - 1u);
            scores[j] = exp(s.scale * scores[j] - lse[i]);
            slopes[j] = s.scale * scores[j] * (slopes[j] - delta[i]);
        }
        share_weights(scores, lane);
        add_weighted(&dv_sums, dy_rows, query, lane);
        workgroupBarrier();
        share_weights(slopes, lane);
        add_weighted(&dk_sums, q_rows, query, lane);
        workgroupBarrier();
    }
    for (var r = 0u; r < 4u; r++) {
        let row = first_row + 4u * (lane / COL_LANES) + r;
        if row < s.keys {
            for (var j = 0u; j < 8u; j++) {
                let c = element(lane, j);
                if c < s.d {
                    dk[start(k_rows, row) + c] = dk_sums[j / 4u * 4u + r][j % 4u];
                }
                if c < s.dv {
                    dv[start(v_rows, row) + c] = dv_sums[j / 4u * 4u + r][j % 4u];
                }
            }
        }
    }
}
