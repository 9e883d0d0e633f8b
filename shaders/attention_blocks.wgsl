// `attention` by blocks in workgroup memory. A workgroup of ROW_LANES * 8 invocations has 4 * ROW_LANES queries of a head, which lie in `tile` with 64 keys,
// 32 terms at a time. An invocation makes the scores of four queries with eight keys, and adds to VALUE_FOURS times four columns of their y.
// Scores are logarithms to the base 2. Where there are few workgroups each has a part of the keys, and attention_join puts together what
// they found. All widths are multiples of 4. Arrays of sums are indexed by literals, see lib/blocks.

struct Scalars {
    queries: u32,
    keys: u32,
    heads: u32,
    d: u32,
    dv: u32,
    // B * heads
    pairs: u32,
    scale: f32,
    // Keys of a part.
    part: u32,
    parts: u32,
}

override ROW_LANES: u32;
// Fours of an invocation's columns of v, 8 apart: 1 to 8.
override VALUE_FOURS: u32;
override PARTS: bool;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> q: array<vec4<real>>;
@group(0) @binding(2) var<storage, read_write> k: array<vec4<real>>;
@group(0) @binding(3) var<storage, read_write> v: array<vec4<real>>;
// Where there are no parts. [B, Tq, heads * dv], [B, heads, Tq]
@group(0) @binding(4) var<storage, read_write> y: array<vec4<real>>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;
// Where there are. [parts, B * heads, Tq, dv], [parts, B * heads, Tq]
@group(0) @binding(6) var<storage, read_write> part_y: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> part_lse: array<f32>;

const LOWEST: f32 = -1e30;
const LOG2_E: f32 = 1.44269504;
const LN_2: f32 = 0.693147181;
const COL_LANES: u32 = 8u;
const KEYS: u32 = 64u;
// Fours of terms that `tile` holds. Lines are one longer, so that neighbouring rows begin in other banks.
const DEPTH: u32 = 8u;
const LINE: u32 = 9u;

// Sizes have names, see lib/product.
override LANES: u32 = 8u * ROW_LANES;
override QUERIES: u32 = 4u * ROW_LANES;
override WEIGHT_LINE: u32 = ROW_LANES + 1u;
override TILE_FOURS: u32 = max((4u * ROW_LANES + 64u) * 9u, 64u * (ROW_LANES + 1u));
override SHARE_FOURS: u32 = 9u * ROW_LANES;

// Queries, then keys, [row, LINE]; later the weights of the keys for four queries at a time, [KEYS, WEIGHT_LINE].
var<workgroup> tile: array<vec4<f32>, TILE_FOURS>;
// What the invocations of a row tell each other.
var<workgroup> shared_fours: array<vec4<f32>, SHARE_FOURS>;

// Of a key: the scores of four queries.
alias Scores = array<vec4<f32>, 8>;
// Of four columns: four queries.
alias Sums = array<vec4<f32>, 32>;
// The columns of one query.
alias Row = array<vec4<f32>, 8>;

// Where a workgroup works.
struct Head {
    pair: u32,
    part: u32,
    first_row: u32,
}

// Where a head begins in an array with so many fours a head, and how far its rows are apart.
fn begin_of(pair: u32, rows: u32, fours: u32) -> u32 {
    return (pair / s.heads * rows * s.heads + pair % s.heads) * fours;
}

// Brings `depth` fours of terms of the queries and of the keys from `key` on, all that an invocation reads before what it writes. Rows beyond the
// last are the last.
fn bring(at: Head, key: u32, first: u32, depth: u32, lane: u32) {
    let line = lane / DEPTH;
    let c = lane % DEPTH;
    if c >= depth {
        return;
    }
    let fours = s.d / 4u;
    let pitch = s.heads * fours;
    let each = ROW_LANES * vec4<u32>(0u, 1u, 2u, 3u) + vec4<u32>(line);
    let queries = min(at.first_row + each, vec4<u32>(s.queries - 1u)) * pitch + (begin_of(at.pair, s.queries, fours) + first + c);
    let factor = s.scale * LOG2_E;
    let q_0 = factor * vec4<f32>(q[queries.x]);
    let q_1 = factor * vec4<f32>(q[queries.y]);
    let q_2 = factor * vec4<f32>(q[queries.z]);
    let q_3 = factor * vec4<f32>(q[queries.w]);
    for (var more = 0u; more < KEYS; more += QUERIES) {
        let keys = min(key + more + each, vec4<u32>(s.keys - 1u)) * pitch + (begin_of(at.pair, s.keys, fours) + first + c);
        let k_0 = vec4<f32>(k[keys.x]);
        let k_1 = vec4<f32>(k[keys.y]);
        let k_2 = vec4<f32>(k[keys.z]);
        let k_3 = vec4<f32>(k[keys.w]);
        let put = (QUERIES + more + line) * LINE + c;
        tile[put] = k_0;
        tile[put + ROW_LANES * LINE] = k_1;
        tile[put + 2u * ROW_LANES * LINE] = k_2;
        tile[put + 3u * ROW_LANES * LINE] = k_3;
    }
    let put = line * LINE + c;
    tile[put] = q_0;
    tile[put + ROW_LANES * LINE] = q_1;
    tile[put + 2u * ROW_LANES * LINE] = q_2;
    tile[put + 3u * ROW_LANES * LINE] = q_3;
}

// Adds the products of four terms of a key with those of four queries, a term a column of x.
fn add_dots(sums: vec4<f32>, key: vec4<f32>, x: mat4x4<f32>) -> vec4<f32> {
    let low = fma(vec4<f32>(key.y), x[1], fma(vec4<f32>(key.x), x[0], sums));
    return fma(vec4<f32>(key.w), x[3], fma(vec4<f32>(key.z), x[2], low));
}

fn multiply_keys(scores: ptr<function, Scores>, queries: u32, keys: u32) {
    let x = transpose(mat4x4<f32>(
        tile[queries],
        tile[queries + ROW_LANES * LINE],
        tile[queries + 2u * ROW_LANES * LINE],
        tile[queries + 3u * ROW_LANES * LINE],
    ));
    (*scores)[0] = add_dots((*scores)[0], tile[keys], x);
    (*scores)[1] = add_dots((*scores)[1], tile[keys + 8u * LINE], x);
    (*scores)[2] = add_dots((*scores)[2], tile[keys + 16u * LINE], x);
    (*scores)[3] = add_dots((*scores)[3], tile[keys + 24u * LINE], x);
    (*scores)[4] = add_dots((*scores)[4], tile[keys + 32u * LINE], x);
    (*scores)[5] = add_dots((*scores)[5], tile[keys + 40u * LINE], x);
    (*scores)[6] = add_dots((*scores)[6], tile[keys + 48u * LINE], x);
    (*scores)[7] = add_dots((*scores)[7], tile[keys + 56u * LINE], x);
}

// Number `j` of the fours of an invocation in the row of v that begins at `at`. Beyond the width stands its begin: those sums are not stored.
fn value(at: u32, j: u32, col: u32, last: u32) -> vec4<f32> {
    return vec4<f32>(v[at + select(col + COL_LANES * j, last, j + 1u == VALUE_FOURS)]);
}

// Adds a row of v, weighed for four queries.
fn add_values(sums: ptr<function, Sums>, w: vec4<f32>, at: u32, col: u32, last: u32) {
    let x_0 = value(at, 0u, col, last);
    (*sums)[0] = fma(vec4<f32>(w.x), x_0, (*sums)[0]);
    (*sums)[1] = fma(vec4<f32>(w.y), x_0, (*sums)[1]);
    (*sums)[2] = fma(vec4<f32>(w.z), x_0, (*sums)[2]);
    (*sums)[3] = fma(vec4<f32>(w.w), x_0, (*sums)[3]);
    if VALUE_FOURS > 1u {
        let x = value(at, 1u, col, last);
        (*sums)[4] = fma(vec4<f32>(w.x), x, (*sums)[4]);
        (*sums)[5] = fma(vec4<f32>(w.y), x, (*sums)[5]);
        (*sums)[6] = fma(vec4<f32>(w.z), x, (*sums)[6]);
        (*sums)[7] = fma(vec4<f32>(w.w), x, (*sums)[7]);
    }
    if VALUE_FOURS > 2u {
        let x = value(at, 2u, col, last);
        (*sums)[8] = fma(vec4<f32>(w.x), x, (*sums)[8]);
        (*sums)[9] = fma(vec4<f32>(w.y), x, (*sums)[9]);
        (*sums)[10] = fma(vec4<f32>(w.z), x, (*sums)[10]);
        (*sums)[11] = fma(vec4<f32>(w.w), x, (*sums)[11]);
    }
    if VALUE_FOURS > 3u {
        let x = value(at, 3u, col, last);
        (*sums)[12] = fma(vec4<f32>(w.x), x, (*sums)[12]);
        (*sums)[13] = fma(vec4<f32>(w.y), x, (*sums)[13]);
        (*sums)[14] = fma(vec4<f32>(w.z), x, (*sums)[14]);
        (*sums)[15] = fma(vec4<f32>(w.w), x, (*sums)[15]);
    }
    if VALUE_FOURS > 4u {
        let x = value(at, 4u, col, last);
        (*sums)[16] = fma(vec4<f32>(w.x), x, (*sums)[16]);
        (*sums)[17] = fma(vec4<f32>(w.y), x, (*sums)[17]);
        (*sums)[18] = fma(vec4<f32>(w.z), x, (*sums)[18]);
        (*sums)[19] = fma(vec4<f32>(w.w), x, (*sums)[19]);
    }
    if VALUE_FOURS > 5u {
        let x = value(at, 5u, col, last);
        (*sums)[20] = fma(vec4<f32>(w.x), x, (*sums)[20]);
        (*sums)[21] = fma(vec4<f32>(w.y), x, (*sums)[21]);
        (*sums)[22] = fma(vec4<f32>(w.z), x, (*sums)[22]);
        (*sums)[23] = fma(vec4<f32>(w.w), x, (*sums)[23]);
    }
    if VALUE_FOURS > 6u {
        let x = value(at, 6u, col, last);
        (*sums)[24] = fma(vec4<f32>(w.x), x, (*sums)[24]);
        (*sums)[25] = fma(vec4<f32>(w.y), x, (*sums)[25]);
        (*sums)[26] = fma(vec4<f32>(w.z), x, (*sums)[26]);
        (*sums)[27] = fma(vec4<f32>(w.w), x, (*sums)[27]);
    }
    if VALUE_FOURS > 7u {
        let x = value(at, 7u, col, last);
        (*sums)[28] = fma(vec4<f32>(w.x), x, (*sums)[28]);
        (*sums)[29] = fma(vec4<f32>(w.y), x, (*sums)[29]);
        (*sums)[30] = fma(vec4<f32>(w.z), x, (*sums)[30]);
        (*sums)[31] = fma(vec4<f32>(w.w), x, (*sums)[31]);
    }
}

fn scale_sums(sums: ptr<function, Sums>, factor: vec4<f32>) {
    (*sums)[0] *= factor.x;
    (*sums)[1] *= factor.y;
    (*sums)[2] *= factor.z;
    (*sums)[3] *= factor.w;
    if VALUE_FOURS > 1u {
        (*sums)[4] *= factor.x;
        (*sums)[5] *= factor.y;
        (*sums)[6] *= factor.z;
        (*sums)[7] *= factor.w;
    }
    if VALUE_FOURS > 2u {
        (*sums)[8] *= factor.x;
        (*sums)[9] *= factor.y;
        (*sums)[10] *= factor.z;
        (*sums)[11] *= factor.w;
    }
    if VALUE_FOURS > 3u {
        (*sums)[12] *= factor.x;
        (*sums)[13] *= factor.y;
        (*sums)[14] *= factor.z;
        (*sums)[15] *= factor.w;
    }
    if VALUE_FOURS > 4u {
        (*sums)[16] *= factor.x;
        (*sums)[17] *= factor.y;
        (*sums)[18] *= factor.z;
        (*sums)[19] *= factor.w;
    }
    if VALUE_FOURS > 5u {
        (*sums)[20] *= factor.x;
        (*sums)[21] *= factor.y;
        (*sums)[22] *= factor.z;
        (*sums)[23] *= factor.w;
    }
    if VALUE_FOURS > 6u {
        (*sums)[24] *= factor.x;
        (*sums)[25] *= factor.y;
        (*sums)[26] *= factor.z;
        (*sums)[27] *= factor.w;
    }
    if VALUE_FOURS > 7u {
        (*sums)[28] *= factor.x;
        (*sums)[29] *= factor.y;
        (*sums)[30] *= factor.z;
        (*sums)[31] *= factor.w;
    }
}

// The sum or the largest of what the invocations of a row have.
fn sum_of_row(mine: vec4<f32>, row: u32, col: u32) -> vec4<f32> {
    shared_fours[row * LINE + col] = mine;
    workgroupBarrier();
    var sum = vec4<f32>();
    for (var j = 0u; j < COL_LANES; j++) {
        sum += shared_fours[row * LINE + j];
    }
    return sum;
}

fn largest_of_row(mine: vec4<f32>, row: u32, col: u32) -> vec4<f32> {
    shared_fours[row * LINE + col] = mine;
    workgroupBarrier();
    var largest = mine;
    for (var j = 0u; j < COL_LANES; j++) {
        largest = max(largest, shared_fours[row * LINE + j]);
    }
    return largest;
}

fn store_four(at: Head, row: u32, c: u32, four: vec4<f32>) {
    let fours = s.dv / 4u;
    if c < fours {
        if PARTS {
            part_y[((at.part * s.pairs + at.pair) * s.queries + row) * fours + c] = four;
        } else {
            y[begin_of(at.pair, s.queries, fours) + row * s.heads * fours + c] = vec4<real>(four);
        }
    }
}

// Number `number` of the workgroup's queries.
fn store_row(at: Head, number: u32, col: u32, total: f32, top: f32, fours: Row) {
    let line = at.first_row + number;
    if line >= s.queries {
        return;
    }
    if col == 0u {
        let logarithm = (top + log2(total)) * LN_2;
        if PARTS {
            part_lse[(at.part * s.pairs + at.pair) * s.queries + line] = logarithm;
        } else {
            lse[at.pair * s.queries + line] = logarithm;
        }
    }
    let share = 1.0 / total;
    store_four(at, line, col, share * fours[0]);
    if VALUE_FOURS > 1u {
        store_four(at, line, col + 8u, share * fours[1]);
    }
    if VALUE_FOURS > 2u {
        store_four(at, line, col + 16u, share * fours[2]);
    }
    if VALUE_FOURS > 3u {
        store_four(at, line, col + 24u, share * fours[3]);
    }
    if VALUE_FOURS > 4u {
        store_four(at, line, col + 32u, share * fours[4]);
    }
    if VALUE_FOURS > 5u {
        store_four(at, line, col + 40u, share * fours[5]);
    }
    if VALUE_FOURS > 6u {
        store_four(at, line, col + 48u, share * fours[6]);
    }
    if VALUE_FOURS > 7u {
        store_four(at, line, col + 56u, share * fours[7]);
    }
}

@compute @workgroup_size(LANES)
fn blocked(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let blocks = (s.queries + QUERIES - 1u) / QUERIES;
    let number = wg.x + wg.y * wgs.x;
    let at = Head(number / blocks % s.pairs, number / blocks / s.pairs, number % blocks * QUERIES);
    if at.part >= s.parts {
        return;
    }
    let row = lane / COL_LANES;
    let col = lane % COL_LANES;
    let begin = at.part * s.part;
    let end = min(begin + s.part, s.keys);
    let fours = s.dv / 4u;
    let values = begin_of(at.pair, s.keys, fours);
    let last = select(0u, col + COL_LANES * (VALUE_FOURS - 1u), col + COL_LANES * (VALUE_FOURS - 1u) < fours);
    let weights = col * WEIGHT_LINE + row;

    var top = vec4<f32>(LOWEST);
    var total = vec4<f32>();
    var sums = Sums();
    for (var key = begin; key < end; key += KEYS) {
        var scores = Scores();
        for (var c = 0u; c < s.d / 4u; c += DEPTH) {
            let depth = min(DEPTH, s.d / 4u - c);
            bring(at, key, c, depth, lane);
            workgroupBarrier();
            for (var i = 0u; i < depth; i++) {
                multiply_keys(&scores, row * LINE + i, (QUERIES + col) * LINE + i);
            }
            workgroupBarrier();
        }
        let mine = key + col;
        scores[0] = select(vec4<f32>(LOWEST), scores[0], mine < end);
        scores[1] = select(vec4<f32>(LOWEST), scores[1], mine + 8u < end);
        scores[2] = select(vec4<f32>(LOWEST), scores[2], mine + 16u < end);
        scores[3] = select(vec4<f32>(LOWEST), scores[3], mine + 24u < end);
        scores[4] = select(vec4<f32>(LOWEST), scores[4], mine + 32u < end);
        scores[5] = select(vec4<f32>(LOWEST), scores[5], mine + 40u < end);
        scores[6] = select(vec4<f32>(LOWEST), scores[6], mine + 48u < end);
        scores[7] = select(vec4<f32>(LOWEST), scores[7], mine + 56u < end);
        let low = max(max(scores[0], scores[1]), max(scores[2], scores[3]));
        let high = max(max(scores[4], scores[5]), max(scores[6], scores[7]));
        let largest = largest_of_row(max(top, max(low, high)), row, col);
        let factor = exp2(top - largest);
        top = largest;
        scores[0] = exp2(scores[0] - largest);
        scores[1] = exp2(scores[1] - largest);
        scores[2] = exp2(scores[2] - largest);
        scores[3] = exp2(scores[3] - largest);
        scores[4] = exp2(scores[4] - largest);
        scores[5] = exp2(scores[5] - largest);
        scores[6] = exp2(scores[6] - largest);
        scores[7] = exp2(scores[7] - largest);
        let low_sum = (scores[0] + scores[1]) + (scores[2] + scores[3]);
        let high_sum = (scores[4] + scores[5]) + (scores[6] + scores[7]);
        // Each adds its own keys; those of the others follow at the end.
        total = fma(total, factor, low_sum + high_sum);
        tile[weights] = scores[0];
        tile[weights + 8u * WEIGHT_LINE] = scores[1];
        tile[weights + 16u * WEIGHT_LINE] = scores[2];
        tile[weights + 24u * WEIGHT_LINE] = scores[3];
        tile[weights + 32u * WEIGHT_LINE] = scores[4];
        tile[weights + 40u * WEIGHT_LINE] = scores[5];
        tile[weights + 48u * WEIGHT_LINE] = scores[6];
        tile[weights + 56u * WEIGHT_LINE] = scores[7];
        scale_sums(&sums, factor);
        workgroupBarrier();
        // Keys beyond the last weigh nothing.
        let count = min(KEYS, end - key);
        for (var i = 0u; i < count; i += 4u) {
            let rows = values + min(vec4<u32>(key + i) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(end - 1u)) * (s.heads * fours);
            add_values(&sums, tile[i * WEIGHT_LINE + row], rows.x, col, last);
            add_values(&sums, tile[(i + 1u) * WEIGHT_LINE + row], rows.y, col, last);
            add_values(&sums, tile[(i + 2u) * WEIGHT_LINE + row], rows.z, col, last);
            add_values(&sums, tile[(i + 3u) * WEIGHT_LINE + row], rows.w, col, last);
        }
        workgroupBarrier();
    }
    total = sum_of_row(total, row, col);
    store_row(at, row, col, total.x, top.x, Row(sums[0], sums[4], sums[8], sums[12], sums[16], sums[20], sums[24], sums[28]));
    store_row(at, row + ROW_LANES, col, total.y, top.y, Row(sums[1], sums[5], sums[9], sums[13], sums[17], sums[21], sums[25], sums[29]));
    store_row(at, row + 2u * ROW_LANES, col, total.z, top.z, Row(sums[2], sums[6], sums[10], sums[14], sums[18], sums[22], sums[26], sums[30]));
    store_row(at, row + 3u * ROW_LANES, col, total.w, top.w, Row(sums[3], sums[7], sums[11], sums[15], sums[19], sums[23], sums[27], sums[31]));
}
