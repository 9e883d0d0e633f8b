//! How matrix products are cut into the tiles of `shaders/lib/product.wgsl`.

use crate::graph::Shader;

/// Workgroups that keep a large GPU busy.
pub(super) const BUSY: usize = 128;

/// Invocations of a workgroup of the `direct` entry points, which make a product without tiles.
pub(super) const DIRECT_LANES: usize = 64;

/// A workgroup's invocations along rows and columns, and how many workgroups there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tiling {
    lanes: [usize; 2],
    pub count: usize,
}

impl Tiling {
    /// For `batch` products of `rows` by `columns`. Large tiles read less; small ones keep more of a GPU busy.
    pub fn new(batch: usize, rows: usize, columns: usize) -> Tiling {
        let of = |lanes: [usize; 2]| {
            let count = batch * rows.div_ceil(8 * lanes[0]) * columns.div_ceil(4 * lanes[1]);
            Tiling { lanes, count }
        };
        let large = of([16, 16]);
        if large.count < BUSY { of([8, 8]) } else { large }
    }

    /// For products of `rows` in all by `columns`, in groups of rows whose sizes only the device knows: as many tiles as the
    /// worst case has.
    pub fn grouped(groups: usize, rows: usize, columns: usize) -> Tiling {
        let mean = rows.div_ceil(groups.max(1));
        let lanes = if mean <= 32 { [4, 16] } else { Tiling::new(groups, mean, columns).lanes };
        // Every group may end within a tile.
        let count = (rows / (8 * lanes[0]) + groups) * columns.div_ceil(4 * lanes[1]);
        Tiling { lanes, count }
    }

    /// Sets the overrides of the library.
    pub fn shader(&self, shader: Shader) -> Shader {
        shader.constant("ROW_LANES", self.lanes[0] as u32).constant("COL_LANES", self.lanes[1] as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_the_product() {
        for (batch, rows, columns) in [(1, 1, 1), (3, 65, 33), (1, 4096, 640), (7, 128, 64)] {
            let tiles = Tiling::new(batch, rows, columns);
            let [row_lanes, col_lanes] = tiles.lanes;
            assert!(tiles.count * 8 * row_lanes * 4 * col_lanes >= batch * rows * columns);
            assert!(row_lanes * col_lanes <= 256);
        }
    }
}
