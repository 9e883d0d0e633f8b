// Tiles of attention over q [B, Tq, heads * d], k [B, Tk, heads * d], v [B, Tk, heads * dv] and what has their shapes.
//
// A workgroup of ROW_LANES * COL_LANES invocations has 4 * ROW_LANES rows (queries, say) of one head and meets 2 * COL_LANES
// columns (keys) at a time. An invocation has 4 rows. It makes their dot products with two columns, `lane % COL_LANES` and
// COL_LANES more, and sums of 8 elements: the four at `lane % COL_LANES` and the four at COL_LANES more, in units of four.
// The shader defines `read`, four numbers of an array.

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

override ROW_LANES: u32 = 16u;
override COL_LANES: u32 = 16u;
// Widths are multiples of 4, so that four numbers are read at a time.
override QUADS: bool = false;
// Dot products go through workgroup memory. It saves reads on a GPU; a processor that plays one has no other memory for it.
override STAGED: bool = true;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> q: array<vec4<real>>;
@group(0) @binding(2) var<storage, read_write> k: array<vec4<real>>;
@group(0) @binding(3) var<storage, read_write> v: array<vec4<real>>;

const Q: u32 = 0u;
const K: u32 = 1u;
const V: u32 = 2u;
const DY: u32 = 3u;

const LOWEST: f32 = -3.4028234e38;
// Terms of a dot product that workgroup memory holds.
const DOT_DEPTH: u32 = 8u;

// Sizes have names: naga 30 fails where an `override` follows an array whose size is an expression of others. Lines are one
// longer than they need be, so that neighbours who write to neighbouring lines use different banks.
override ROW_LINE: u32 = ROW_LANES + 1u;
override COL_LINE: u32 = 2u * COL_LANES + 1u;
override ROW_QUADS: u32 = ROW_LINE * DOT_DEPTH;
override COL_NUMBERS: u32 = COL_LINE * DOT_DEPTH;
override WEIGHTS: u32 = 2u * COL_LANES * ROW_LANES;

var<workgroup> row_tile: array<vec4<f32>, ROW_QUADS>;
var<workgroup> col_tile: array<f32, COL_NUMBERS>;
// What the columns weigh for the rows, [2 * COL_LANES, ROW_LANES].
var<workgroup> weights: array<vec4<f32>, WEIGHTS>;

// Of two columns: the dot products with 4 rows.
alias Dots = array<vec4<f32>, 2>;
// Of 4 rows: the first four elements; then of 4 rows: the others.
alias Sums = array<vec4<f32>, 8>;

// The rows of one head of one sample.
struct Rows {
    name: u32,
    count: u32,
    width: u32,
    first: u32,
    stride: u32,
}

fn rows_of(name: u32, pair: u32) -> Rows {
    let count = select(s.queries, s.keys, name == K || name == V);
    let width = select(s.d, s.dv, name == V || name == DY);
    let first = (pair / s.heads * count * s.heads + pair % s.heads) * width;
    return Rows(name, count, width, first, s.heads * width);
}

// Where row `i` begins; rows beyond the last stand for the last.
fn start(rows: Rows, i: u32) -> u32 {
    return rows.first + min(i, rows.count - 1u) * rows.stride;
}

// Four numbers of the row that begins at `at`; zeros beyond its end.
fn quad(rows: Rows, at: u32, c: u32) -> vec4<f32> {
    if QUADS {
        return read(rows.name, at / 4u + c);
    }
    var numbers = vec4<f32>();
    for (var j = 0u; j < 4u; j++) {
        if 4u * c + j < rows.width {
            let place = at + 4u * c + j;
            numbers[j] = read(rows.name, place / 4u)[place % 4u];
        }
    }
    return numbers;
}

// Dot products of rows from `first_row` on with columns from `first_col` on.
fn dots(rows: Rows, cols: Rows, first_row: u32, first_col: u32, lane: u32) -> Dots {
    if STAGED {
        return staged_dots(rows, cols, first_row, first_col, lane);
    }
    let row = first_row + 4u * (lane / COL_LANES);
    let row_0 = start(rows, row);
    let row_1 = start(rows, row + 1u);
    let row_2 = start(rows, row + 2u);
    let row_3 = start(rows, row + 3u);
    let col_0 = start(cols, first_col + lane % COL_LANES);
    let col_1 = start(cols, first_col + lane % COL_LANES + COL_LANES);
    var sums = Dots();
    for (var c = 0u; c < (rows.width + 3u) / 4u; c++) {
        let x = mat4x4<f32>(quad(rows, row_0, c), quad(rows, row_1, c), quad(rows, row_2, c), quad(rows, row_3, c));
        sums[0] += quad(cols, col_0, c) * x;
        sums[1] += quad(cols, col_1, c) * x;
    }
    return sums;
}

fn staged_dots(rows: Rows, cols: Rows, first_row: u32, first_col: u32, lane: u32) -> Dots {
    let lanes = ROW_LANES * COL_LANES;
    var sums = Dots();
    for (var c = 0u; c < rows.width; c += DOT_DEPTH) {
        // Four rows by four terms, or a column's four terms, at a time; zeros beyond the width.
        for (var i = lane; i < ROW_LANES * 2u; i += lanes) {
            let row = first_row + i / 2u * 4u;
            let at = c / 4u + i % 2u;
            var x = mat4x4<f32>();
            if 4u * at < rows.width {
                x = transpose(mat4x4<f32>(
                    quad(rows, start(rows, row), at),
                    quad(rows, start(rows, row + 1u), at),
                    quad(rows, start(rows, row + 2u), at),
                    quad(rows, start(rows, row + 3u), at),
                ));
            }
            let place = i % 2u * 4u * ROW_LINE + i / 2u;
            row_tile[place] = x[0];
            row_tile[place + ROW_LINE] = x[1];
            row_tile[place + 2u * ROW_LINE] = x[2];
            row_tile[place + 3u * ROW_LINE] = x[3];
        }
        for (var i = lane; i < COL_LANES * 4u; i += lanes) {
            let at = c / 4u + i % 2u;
            var x = vec4<f32>();
            if 4u * at < rows.width {
                x = quad(cols, start(cols, first_col + i / 2u), at);
            }
            let place = i % 2u * 4u * COL_LINE + i / 2u;
            col_tile[place] = x[0];
            col_tile[place + COL_LINE] = x[1];
            col_tile[place + 2u * COL_LINE] = x[2];
            col_tile[place + 3u * COL_LINE] = x[3];
        }
        workgroupBarrier();
        for (var d = 0u; d < DOT_DEPTH; d++) {
            let x = row_tile[d * ROW_LINE + lane / COL_LANES];
            sums[0] += x * col_tile[d * COL_LINE + lane % COL_LANES];
            sums[1] += x * col_tile[d * COL_LINE + COL_LANES + lane % COL_LANES];
        }
        workgroupBarrier();
    }
    return sums;
}

// Hands the weights of two columns to the others with these rows. None may read earlier ones any longer.
fn share_weights(mine: Dots, lane: u32) {
    weights[lane % COL_LANES * ROW_LANES + lane / COL_LANES] = mine[0];
    weights[(lane % COL_LANES + COL_LANES) * ROW_LANES + lane / COL_LANES] = mine[1];
    workgroupBarrier();
}

// Adds the columns from `first` on, by their weights.
fn add_weighted(sums: ptr<function, Sums>, cols: Rows, first: u32, lane: u32) {
    let count = min(2u * COL_LANES, cols.count - first);
    // Beyond the width stands its begin: those sums are not stored.
    let quads = (cols.width + 3u) / 4u;
    let c_0 = select(0u, lane % COL_LANES, lane % COL_LANES < quads);
    let c_1 = select(0u, lane % COL_LANES + COL_LANES, lane % COL_LANES + COL_LANES < quads);
    var at = start(cols, first);
    for (var i = 0u; i < count; i++) {
        let w = weights[i * ROW_LANES + lane / COL_LANES];
        let x_0 = quad(cols, at, c_0);
        let x_1 = quad(cols, at, c_1);
        (*sums)[0] += w.x * x_0;
        (*sums)[1] += w.y * x_0;
        (*sums)[2] += w.z * x_0;
        (*sums)[3] += w.w * x_0;
        (*sums)[4] += w.x * x_1;
        (*sums)[5] += w.y * x_1;
        (*sums)[6] += w.z * x_1;
        (*sums)[7] += w.w * x_1;
        at += cols.stride;
    }
}
