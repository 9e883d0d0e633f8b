// `attention` by cooperative matrices: y = softmax(scale q k^T) v in each head, and lse, the logarithm of the softmax's denominator.
// A workgroup has QUERIES queries of a head, each subgroup EDGE of them, and goes over the keys twice, 32 at a time: nothing can be done to a
// matrix by rows, so sums could not be scaled to a larger score. The first time it finds lse, the second time it weighs v by
// exp(scale q k - lse), which is never too large. Where v has more columns than WIDTH_V, other workgroups have those. After: lib/matrices_8 or lib/matrices_16.

struct Scalars {
    queries: u32,
    keys: u32,
    heads: u32,
    d: u32,
    dv: u32,
    // B * heads
    pairs: u32,
    scale: f32,
}

// Widths of heads and of what a workgroup has of v, rounded up to multiples of 16.
override WIDTH: u32;
override WIDTH_V: u32;
override QUERIES: u32;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> q: array<vec4<real>>;
@group(0) @binding(2) var<storage, read_write> k: array<vec4<real>>;
@group(0) @binding(3) var<storage, read_write> v: array<vec4<real>>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<real>>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;

const KEYS: u32 = 32u;
const LOWEST: f32 = -3.4028234e38;

// Lines are longer by 16 bytes than need be, so that rows of a matrix begin in different banks. All in fours; see lib/product for names.
override LINE: u32 = max(WIDTH, WIDTH_V) / 4u + 2u;
override QUERY_FOURS: u32;
override KEY_FOURS: u32;
override LANES: u32 = 2u * QUERIES;
override SCORE_FOURS: u32 = 9u * QUERIES;
override WEIGHT_FOURS: u32 = 10u * QUERIES;
const SCORE_LINE: u32 = 9u;
const WEIGHT_LINE: u32 = 10u;

var<workgroup> query_part: array<vec4<real>, QUERY_FOURS>;
// Keys, then their values.
var<workgroup> key_part: array<vec4<real>, KEY_FOURS>;
var<workgroup> scores: array<vec4<f32>, SCORE_FOURS>;
var<workgroup> weights: array<vec4<real>, WEIGHT_FOURS>;
// The largest score and the denominator of each half of a row's keys.
var<workgroup> halves: array<vec2<f32>, LANES>;

// Matrices along a row of scores, and of y.
alias Scores = array<SumMatrix, 4>;
alias Sums = array<SumMatrix, 10>;

struct Head {
    sample: u32,
    head: u32,
    first_row: u32,
    // Of v and y, in fours.
    first_col: u32,
}

// Puts queries in their place; zeros behind their width. Rows beyond the last are the last.
fn put_queries(at: Head, lane: u32) {
    for (var i = lane; i < QUERIES * WIDTH / 4u; i += LANES) {
        let row = i / (WIDTH / 4u);
        let c = i % (WIDTH / 4u);
        let begin = ((at.sample * s.queries + min(at.first_row + row, s.queries - 1u)) * s.heads + at.head) * s.d / 4u;
        query_part[row * LINE + c] = select(vec4<real>(), q[begin + min(c, s.d / 4u - 1u)], 4u * c < s.d);
    }
}

fn put_keys(at: Head, first: u32, lane: u32) {
    for (var i = lane; i < KEYS * WIDTH / 4u; i += LANES) {
        let row = i / (WIDTH / 4u);
        let c = i % (WIDTH / 4u);
        let begin = ((at.sample * s.keys + min(first + row, s.keys - 1u)) * s.heads + at.head) * s.d / 4u;
        key_part[row * LINE + c] = select(vec4<real>(), k[begin + min(c, s.d / 4u - 1u)], 4u * c < s.d);
    }
}

fn put_values(at: Head, first: u32, lane: u32) {
    for (var i = lane; i < KEYS * WIDTH_V / 4u; i += LANES) {
        let row = i / (WIDTH_V / 4u);
        let c = i % (WIDTH_V / 4u);
        let begin = ((at.sample * s.keys + min(first + row, s.keys - 1u)) * s.heads + at.head) * s.dv / 4u;
        let col = at.first_col + c;
        key_part[row * LINE + c] = select(vec4<real>(), v[begin + min(col, s.dv / 4u - 1u)], 4u * col < s.dv);
    }
}

// Scores of a strip of EDGE queries with the keys in `key_part`, not scaled, to `scores`.
fn multiply_keys(strip: u32) {
    var sums = Scores();
    for (var c = 0u; c < WIDTH; c += EDGE) {
        let left = coopLoadT<LeftMatrix>(&query_part[strip * EDGE * LINE + c / 4u], LINE);
        // Columns of the right matrix are keys.
        sums[0] = coopMultiplyAdd(left, coopLoad<RightMatrix>(&key_part[c / 4u], LINE), sums[0]);
        sums[1] = coopMultiplyAdd(left, coopLoad<RightMatrix>(&key_part[EDGE * LINE + c / 4u], LINE), sums[1]);
        if EDGE == 8u {
            sums[2] = coopMultiplyAdd(left, coopLoad<RightMatrix>(&key_part[2u * EDGE % KEYS * LINE + c / 4u], LINE), sums[2]);
            sums[3] = coopMultiplyAdd(left, coopLoad<RightMatrix>(&key_part[3u * EDGE % KEYS * LINE + c / 4u], LINE), sums[3]);
        }
    }
    let to = strip * EDGE * SCORE_LINE;
    coopStoreT(sums[0], &scores[to], SCORE_LINE);
    coopStoreT(sums[1], &scores[to + EDGE / 4u], SCORE_LINE);
    if EDGE == 8u {
        coopStoreT(sums[2], &scores[to + 2u * EDGE % KEYS / 4u], SCORE_LINE);
        coopStoreT(sums[3], &scores[to + 3u * EDGE % KEYS / 4u], SCORE_LINE);
    }
}

// Adds the values in `key_part`, as `weights` has them for a strip.
fn add_values(sums: ptr<function, Sums>, strip: u32) {
    for (var key = 0u; key < KEYS; key += EDGE) {
        let left = coopLoadT<LeftMatrix>(&weights[strip * EDGE * WEIGHT_LINE + key / 4u], WEIGHT_LINE);
        let begin = key * LINE;
        (*sums)[0] = coopMultiplyAdd(left, coopLoadT<RightMatrix>(&key_part[begin], LINE), (*sums)[0]);
        if WIDTH_V > EDGE {
            (*sums)[1] = coopMultiplyAdd(left, coopLoadT<RightMatrix>(&key_part[begin + EDGE / 4u], LINE), (*sums)[1]);
        }
        if WIDTH_V > 2u * EDGE {
            (*sums)[2] = coopMultiplyAdd(left, coopLoadT<RightMatrix>(&key_part[begin + 2u * EDGE / 4u], LINE), (*sums)[2]);
        }
        if WIDTH_V > 3u * EDGE {
            (*sums)[3] = coopMultiplyAdd(left, coopLoadT<RightMatrix>(&key_part[begin + 3u * EDGE / 4u], LINE), (*sums)[3]);
        }
        if WIDTH_V > 4u * EDGE {
            (*sums)[4] = coopMultiplyAdd(left, coopLoadT<RightMatrix>(&key_part[begin + 4u * EDGE / 4u], LINE), (*sums)[4]);
        }
        if WIDTH_V > 5u * EDGE {
            (*sums)[5] = coopMultiplyAdd(left, coopLoadT<RightMatrix>(&key_part[begin + 5u * EDGE / 4u], LINE), (*sums)[5]);
        }
        if WIDTH_V > 6u * EDGE {
            (*sums)[6] = coopMultiplyAdd(left, coopLoadT<RightMatrix>(&key_part[begin + 6u * EDGE / 4u], LINE), (*sums)[6]);
        }
        if WIDTH_V > 7u * EDGE {
            (*sums)[7] = coopMultiplyAdd(left, coopLoadT<RightMatrix>(&key_part[begin + 7u * EDGE / 4u], LINE), (*sums)[7]);
        }
        if WIDTH_V > 8u * EDGE {
            (*sums)[8] = coopMultiplyAdd(left, coopLoadT<RightMatrix>(&key_part[begin + 8u * EDGE / 4u], LINE), (*sums)[8]);
        }
        if WIDTH_V > 9u * EDGE {
            (*sums)[9] = coopMultiplyAdd(left, coopLoadT<RightMatrix>(&key_part[begin + 9u * EDGE / 4u], LINE), (*sums)[9]);
        }
    }
}

// Scores of four keys from `key` on, scaled; those beyond the last are the lowest.
fn four_scores(at: u32, key: u32) -> vec4<f32> {
    let keys = vec4<u32>(key) + vec4<u32>(0u, 1u, 2u, 3u);
    return select(vec4<f32>(LOWEST), s.scale * scores[at], keys < vec4<u32>(s.keys));
}

// The larger score of two, and the sum of exp(score - it), of what two such pairs stand for.
fn join(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let top = max(a.x, b.x);
    return vec2<f32>(top, a.y * exp(a.x - top) + b.y * exp(b.x - top));
}

// Puts EDGE columns of y of every strip, of two matrices, in their place.
fn store_columns(at: Head, first_row: u32, rows: u32, col: u32, lane: u32) {
    workgroupBarrier();
    let line = 2u * EDGE / 4u;
    for (var i = lane; i < rows * line; i += LANES) {
        let row = first_row + i / line;
        let c = at.first_col + col / 4u + i % line;
        if at.first_row + row < s.queries && 4u * c < s.dv {
            let to = ((at.sample * s.queries + at.first_row + row) * s.heads + at.head) * s.dv / 4u + c;
            y[to] = vec4<real>(scores[row * SCORE_LINE + i % line]);
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(LANES)
fn matrices(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    let blocks = (s.queries + QUERIES - 1u) / QUERIES;
    let slices = (s.dv + WIDTH_V - 1u) / WIDTH_V;
    let number = wg.x + wg.y * wgs.x;
    let slice = number / blocks % slices;
    let pair = number / blocks / slices;
    if pair >= s.pairs {
        return;
    }
    let at = Head(pair / s.heads, pair % s.heads, number % blocks * QUERIES, slice * WIDTH_V / 4u);
    // Of scores an invocation has half of a row's keys.
    let row = lane / 2u;
    let half = lane % 2u;
    let mine = row * SCORE_LINE + 4u * half;

    put_queries(at, lane);
    var found = vec2<f32>(LOWEST, 0.0);
    for (var key = 0u; key < s.keys; key += KEYS) {
        put_keys(at, key, lane);
        workgroupBarrier();
        for (var strip = subgroup; strip < QUERIES / EDGE; strip += subgroups) {
            multiply_keys(strip);
        }
        workgroupBarrier();
        let first = key + 16u * half;
        let a = four_scores(mine, first);
        let b = four_scores(mine + 1u, first + 4u);
        let c = four_scores(mine + 2u, first + 8u);
        let d = four_scores(mine + 3u, first + 12u);
        let m = max(max(a, b), max(c, d));
        let top = max(found.x, max(max(m.x, m.y), max(m.z, m.w)));
        let e = (exp(a - top) + exp(b - top)) + (exp(c - top) + exp(d - top));
        // Keys beyond the last count for nothing where there is any other; where a half has none, its top is the lowest.
        let sum = select((e.x + e.y) + (e.z + e.w), 0.0, first >= s.keys);
        found = vec2<f32>(top, found.y * exp(found.x - top) + sum);
    }
    halves[lane] = found;
    workgroupBarrier();
    let both = join(halves[2u * row], halves[2u * row + 1u]);
    let logarithm = both.x + log(both.y);
    if slice == 0u && half == 0u && at.first_row + row < s.queries {
        lse[pair * s.queries + at.first_row + row] = logarithm;
    }

    // Where a driver makes subgroups too few for all strips, they go over the keys several times.
    for (var first_strip = 0u; first_strip < QUERIES / EDGE; first_strip += subgroups) {
        let strip = first_strip + subgroup;
        let works = strip < QUERIES / EDGE;
        var sums = Sums();
        for (var key = 0u; key < s.keys; key += KEYS) {
            put_keys(at, key, lane);
            workgroupBarrier();
            if works {
                multiply_keys(strip);
            }
            workgroupBarrier();
            let first = key + 16u * half;
            let to = row * WEIGHT_LINE + 4u * half;
            weights[to] = vec4<real>(exp(four_scores(mine, first) - logarithm));
            weights[to + 1u] = vec4<real>(exp(four_scores(mine + 1u, first + 4u) - logarithm));
            weights[to + 2u] = vec4<real>(exp(four_scores(mine + 2u, first + 8u) - logarithm));
            weights[to + 3u] = vec4<real>(exp(four_scores(mine + 3u, first + 12u) - logarithm));
            put_values(at, key, lane);
            workgroupBarrier();
            if works {
                add_values(&sums, strip);
            }
            workgroupBarrier();
        }
        let first_row = first_strip * EDGE;
        let rows = min(subgroups, QUERIES / EDGE - first_strip) * EDGE;
        let put = strip * EDGE * SCORE_LINE;
        if works {
            coopStoreT(sums[0], &scores[put], SCORE_LINE);
            coopStoreT(sums[1], &scores[put + EDGE / 4u], SCORE_LINE);
        }
        store_columns(at, first_row, rows, 0u, lane);
        if WIDTH_V > 2u * EDGE {
            if works {
                coopStoreT(sums[2], &scores[put], SCORE_LINE);
                coopStoreT(sums[3], &scores[put + EDGE / 4u], SCORE_LINE);
            }
            store_columns(at, first_row, rows, 2u * EDGE, lane);
        }
        if WIDTH_V > 4u * EDGE {
            if works {
                coopStoreT(sums[4], &scores[put], SCORE_LINE);
                coopStoreT(sums[5], &scores[put + EDGE / 4u], SCORE_LINE);
            }
            store_columns(at, first_row, rows, 4u * EDGE, lane);
        }
        if WIDTH_V > 6u * EDGE {
            if works {
                coopStoreT(sums[6], &scores[put], SCORE_LINE);
                coopStoreT(sums[7], &scores[put + EDGE / 4u], SCORE_LINE);
            }
            store_columns(at, first_row, rows, 6u * EDGE, lane);
        }
        if WIDTH_V > 8u * EDGE {
            if works {
                coopStoreT(sums[8], &scores[put], SCORE_LINE);
                coopStoreT(sums[9], &scores[put + EDGE / 4u], SCORE_LINE);
            }
            store_columns(at, first_row, rows, 8u * EDGE, lane);
        }
    }
}
