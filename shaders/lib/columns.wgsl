// Workgroups over x [B, R, C] by four channels: each takes up to COLUMN_ROWS rows of a sample in up to 64 channels, an invocation
// eight rows of four channels. C is a multiple of 4.

const COLUMN_LANES: u32 = 256u;
const COLUMN_ACROSS: u32 = 16u;
const COLUMN_DOWN: u32 = 16u;
const COLUMN_ROWS: u32 = 128u;

// What an invocation takes: eight rows from `row` on, COLUMN_DOWN apart, before `end`.
struct Column {
    sample: u32,
    // Number of the stretch of rows in its sample.
    stretch: u32,
    // In fours.
    quad: u32,
    row: u32,
    end: u32,
}

// For a tensor of `rows` rows a sample and `quads` fours of channels. Samples beyond the last are for the shader to leave.
fn column(number: u32, lane: u32, rows: u32, quads: u32) -> Column {
    let tiles = (quads + COLUMN_ACROSS - 1u) / COLUMN_ACROSS;
    let stretches = (rows + COLUMN_ROWS - 1u) / COLUMN_ROWS;
    let stretch = number / tiles % stretches;
    let quad = number % tiles * COLUMN_ACROSS + lane % COLUMN_ACROSS;
    let row = stretch * COLUMN_ROWS + lane / COLUMN_ACROSS;
    let end = select(0u, min(rows, (stretch + 1u) * COLUMN_ROWS), quad < quads);
    return Column(number / tiles / stretches, stretch, min(quad, quads - 1u), row, end);
}
