//! What shaders over rows and columns share: how a workgroup lies over them, and sums of columns in several launches.

use crate::graph::{Arg, FLAT_THREADS, Launch, Ptx, Shader, WgpuTarget, wgsl};

/// Invocations of a workgroup.
const LANES: usize = 256;
/// Rows that a lane adds up: sums stay short, and a tall column has many workgroups.
const ROWS: usize = 32;
/// Elements of a stretch of a sample where whole samples are summed.
const STRETCH: usize = 1 << 14;

/// A workgroup as a tile of lanes; `shaders/lib/lanes.wgsl`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
    across: usize,
    down: usize,
}

impl Tile {
    /// Lines of lanes that run along rows of `cols` numbers.
    fn of_rows(cols: usize, target: &WgpuTarget) -> Self {
        // Barriers among few lanes are cheap for a processor.
        let most = if target.software { 8 } else { LANES };
        let across = cols.div_ceil(8).next_power_of_two().min(most);
        Tile { across, down: LANES / across }
    }

    /// Lanes that run down columns of `rows` numbers.
    fn of_columns(rows: usize, cols: usize) -> Self {
        let across = cols.next_power_of_two().min(32);
        Tile { across, down: rows.next_power_of_two().min(LANES / across) }
    }

    fn shader(self, shader: Shader) -> Shader {
        shader.constant("ACROSS", self.across as u32).constant("DOWN", self.down as u32)
    }
}

/// The launch of a shader that takes a line of lanes for each of `rows` rows of `cols` numbers.
pub(crate) fn by_row(
    shader: Shader,
    target: &WgpuTarget,
    [rows, cols]: [usize; 2],
    args: impl IntoIterator<Item = Arg>,
) -> Launch {
    let tile = Tile::of_rows(cols, target);
    Launch::wgsl(tile.shader(shader), target.grid(rows.div_ceil(tile.down)), args)
}

/// Workgroups over x `[samples, rows, cols]`, each a stretch of rows of one sample in some columns;
/// `shaders/lib/stretch.wgsl`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretches {
    samples: usize,
    rows: usize,
    cols: usize,
    /// Stretches of a sample.
    pub count: usize,
}

impl Stretches {
    pub fn new([samples, rows, cols]: [usize; 3]) -> Self {
        let count = rows.div_ceil(Tile::of_columns(rows, cols).down * ROWS).max(1);
        Stretches { samples, rows, cols, count }
    }

    /// The launch of a shader; `groups` and `scale` are for its own use.
    pub fn launch(
        &self,
        shader: Shader,
        target: &WgpuTarget,
        args: impl IntoIterator<Item = Arg>,
        groups: usize,
        scale: f32,
    ) -> Launch {
        let tile = Tile::of_columns(self.rows, self.cols);
        let tiles = self.cols.div_ceil(tile.across).max(1);
        let launch = Launch::wgsl(tile.shader(shader), target.grid(self.samples * self.count * tiles), args);
        let launch = launch.scalars([self.samples, self.rows, self.cols, tile.down * ROWS, self.count, tiles]);
        launch.scalar(groups).scalar(scale)
    }
}

/// Adds launches to those of an op that sum `from` `[outer, middle, inner]` over the middle, times `scale`, into `to`, or else
/// into scratch memory; where the sums are then.
pub(crate) fn add_sums(
    launches: &mut Vec<Launch>,
    target: &WgpuTarget,
    mut from: Arg,
    [outer, mut middle, inner]: [usize; 3],
    scale: f32,
    to: Option<Arg>,
) -> Arg {
    loop {
        let stretches = Stretches::new([outer, middle, inner]);
        let last = stretches.count == 1;
        let shader = Shader::new("reduce", wgsl!("lib/lanes", "lib/stretch", "reduce"));
        let args = [Some(from), to.filter(|_| last)].into_iter().flatten();
        let launch = stretches.launch(shader, target, args, 1, if last { scale } else { 1.0 });
        let stored = last && to.is_some();
        launches.push(if stored { launch } else { launch.with_scratch(outer * stretches.count * inner) });
        from = Arg::Left(launches.len() - 1, 0);
        match to {
            Some(to) if last => return to,
            None if last => return from,
            _ => middle = stretches.count,
        }
    }
}

/// Workgroups over x `[samples, n]`, each a stretch of one sample.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Samples {
    samples: usize,
    n: usize,
    /// Stretches of a sample.
    count: usize,
}

impl Samples {
    pub fn new(samples: usize, n: usize) -> Self {
        Samples { samples, n, count: n.div_ceil(STRETCH) }
    }

    /// Stretches of all samples.
    pub fn all(&self) -> usize {
        self.samples * self.count
    }

    /// The launch of a shader with so many workgroups.
    pub fn launch(
        &self,
        shader: Shader,
        target: &WgpuTarget,
        groups: usize,
        args: impl IntoIterator<Item = Arg>,
    ) -> Launch {
        Launch::wgsl(shader, target.grid(groups), args).scalars([self.samples, self.n, STRETCH, self.count])
    }

    /// The launch of a PTX kernel with so many blocks, see `kernels/lib/samples.cuh`.
    pub fn ptx(&self, kernel: Ptx, blocks: usize, args: impl IntoIterator<Item = Arg>) -> Launch {
        Launch::ptx(kernel, [blocks.max(1), 1, 1], FLAT_THREADS, args).scalars([self.n, STRETCH, self.count])
    }
}
