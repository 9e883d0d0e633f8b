// The gradients of attention. P = exp(scale q k^T - lse), made again tile by tile; dS = scale P (dy v^T - delta);
// dv = P^T dy, dk = dS^T q, dq = dS k. Two entry points: dk and dv, rows are keys; dq, rows are queries.
// dy [B, Tq, heads * dv]; lse and delta [B, heads, Tq], delta the products of the rows of y and dy. After: lib/attention.

@group(0) @binding(4) var<storage, read_write> dy: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;
@group(0) @binding(6) var<storage, read_write> delta: array<f32>;
// dq, or dk and dv.
@group(0) @binding(7) var<storage, read_write> first_gradient: array<f32>;
@group(0) @binding(8) var<storage, read_write> second_gradient: array<f32>;

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

@compute @workgroup_size(ROW_LANES * COL_LANES)
fn keys(
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

    var dk = Sums();
    var dv = Sums();
    for (var query = 0u; query < s.queries; query += 2u * COL_LANES) {
        var scores = dots(k_rows, q_rows, first_row, query, lane);
        var slopes = dots(v_rows, dy_rows, first_row, query, lane);
        for (var j = 0u; j < 2u; j++) {
            let i = pair * s.queries + min(query + lane % COL_LANES + j * COL_LANES, s.queries - 1u);
            scores[j] = exp(s.scale * scores[j] - lse[i]);
            slopes[j] = s.scale * scores[j] * (slopes[j] - delta[i]);
        }
        share_weights(scores, lane);
        add_weighted(&dv, dy_rows, query, lane);
        workgroupBarrier();
        share_weights(slopes, lane);
        add_weighted(&dk, q_rows, query, lane);
        workgroupBarrier();
    }
    for (var r = 0u; r < 4u; r++) {
        let row = first_row + 4u * (lane / COL_LANES) + r;
        if row < s.keys {
            for (var j = 0u; j < 8u; j++) {
                let c = element(lane, j);
                if c < s.d {
                    first_gradient[start(k_rows, row) + c] = dk[j / 4u * 4u + r][j % 4u];
                }
                if c < s.dv {
                    second_gradient[start(v_rows, row) + c] = dv[j / 4u * 4u + r][j % 4u];
                }
            }
        }
    }
}

@compute @workgroup_size(ROW_LANES * COL_LANES)
fn queries(
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

    var dq = Sums();
    for (var key = 0u; key < s.keys; key += 2u * COL_LANES) {
        let scores = dots(q_rows, k_rows, first_row, key, lane);
        var slopes = dots(dy_rows, v_rows, first_row, key, lane);
        slopes[0] = s.scale * exp(s.scale * scores[0] - row_lse) * (slopes[0] - row_delta);
        slopes[1] = s.scale * exp(s.scale * scores[1] - row_lse) * (slopes[1] - row_delta);
        share_weights(slopes, lane);
        add_weighted(&dq, k_rows, key, lane);
        workgroupBarrier();
    }
    for (var r = 0u; r < 4u; r++) {
        let row = first_row + 4u * (lane / COL_LANES) + r;
        if row < s.queries {
            for (var j = 0u; j < 8u; j++) {
                let c = element(lane, j);
                if c < s.d {
                    first_gradient[start(q_rows, row) + c] = dq[j / 4u * 4u + r][j % 4u];
                }
            }
        }
    }
}
