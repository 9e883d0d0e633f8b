//! Group norms by PTX kernels: one launch where blocks or clusters of them hold whole groups, else two.

use super::{GroupNorm, GroupNormGrad};
use crate::graph::{Arg, CudaTarget, Launch, Op, Ptx, ptx};
use crate::ops::Activation;
use crate::ops::lines::divisor;
use crate::ops::norm::{self, Chunks, LEAST, Tiles, parameter_args};
use crate::tensor::DType;

/// Channels of a thread of the PTX kernels, at most: code of activations other than these is long, and there for one alone.
fn widest(dtype: DType, activation: Activation) -> usize {
    if matches!(activation, Activation::Silu | Activation::Identity) { 16 / dtype.size() } else { 1 }
}

/// Of the PTX kernel that holds whole groups: rows of a thread, and groups of a tile, at most.
const HELD: usize = 8;
const HELD_GROUPS: usize = 64;

/// What a launch more takes, in the bytes of [`Tiles::time`].
const LAUNCH: usize = 128 << 10;

impl GroupNorm {
    /// Launches of the PTX kernels: one where blocks hold whole groups, or on Hopper clusters of them do; else the moments of stretches of every group,
    /// then y.
    pub(super) fn kernels(&self, target: &CudaTarget, dtype: DType, c: &Chunks) -> Vec<Launch> {
        let GroupNorm { groups, activation, modulate, .. } = *self;
        let (dims, width, pack) = ([c.samples, c.rows, c.channels], c.channels / groups, 16 / dtype.size());
        let kernel =
            |part: &str| Ptx::new(self.name(), ptx!("group_norm"), dtype).entry(format!("group_norm_{part}_{dtype}"));
        let [gamma, beta, scale, shift] = parameter_args(true, modulate, Arg::Input(1));
        let of_groups = |launch: Launch| launch.scalar(groups).scalars(divisor(width));
        let scalars = |launch: Launch| of_groups(launch).scalar(activation as usize).scalar(modulate);
        // Neighbouring channels of a pack share a slot.
        let pack = if width.is_multiple_of(2) { pack } else { 1 };
        let wide = widest(dtype, activation).min(pack);
        // Threads of a block have as many registers.
        let most = if dtype.size() == 2 { 1024 } else { 768 };
        let held = Tiles::held(dims, width, pack, [LEAST, HELD, most], HELD_GROUPS, target).filter(|_| wide > 1);
        let args = [Arg::Input(0), gamma, beta, scale, shift, Arg::Output(0), Arg::Output(1)];
        if target.compute == (9, 0) && dtype.size() == 2 && wide > 1 {
            let stretches = c.samples * c.rows * c.channels * 3 / target.multiprocessors as usize + LAUNCH;
            let least = held.as_ref().map_or(stretches, |tiles| tiles.time(HELD, target));
            let clusters = Tiles::clustered(dims, width, pack, HELD, HELD_GROUPS, target);
            if let Some(tiles) = clusters.filter(|tiles| tiles.time(HELD, target) < least) {
                let kernel = Ptx::new(self.name(), ptx!("sm_90a", "group_norm"), dtype).shared(tiles.slots());
                let kernel = kernel.entry(format!("group_norm_clusters_{}_{dtype}", tiles.count));
                let launch = scalars(tiles.launch_clusters(kernel, args)).scalar(self.eps);
                return vec![launch.scalar(tiles.slot_pitch())];
            }
        }
        if let Some(tiles) = held {
            let launch = scalars(tiles.launch(kernel("held").shared(tiles.slots()), args)).scalar(self.eps);
            return vec![launch.scalar(tiles.slot_pitch())];
        }
        // As many blocks as run at once.
        let blocks = 3 * target.multiprocessors as usize;
        let parts = Tiles::new(dims, width, pack, HELD, blocks);
        let moments = kernel(&format!("moments_{}", parts.pack)).shared(parts.slots());
        let moments = of_groups(parts.launch(moments, [Arg::Input(0)]));
        let moments = moments.scalar(parts.slot_pitch()).with_scratch(2 * c.samples * groups * parts.count);

        let tiles = Tiles::new(dims, width, wide, HELD, blocks);
        let args = [Arg::Input(0), gamma, beta, scale, shift, Arg::Left(0, 0), Arg::Output(0), Arg::Output(1)];
        let apply = scalars(tiles.launch(kernel(&format!("apply_{}", tiles.pack)), args));
        vec![moments, apply.scalars([parts.count, parts.per]).scalar(self.eps)]
    }
}

impl GroupNormGrad {
    /// Launches of the PTX kernels: the sums of stretches of every channel, those of samples, dx, the parameters' gradients.
    pub(super) fn kernels(&self, target: &CudaTarget, dtype: DType, c: &Chunks) -> Vec<Launch> {
        let GroupNorm { groups, activation, modulate, .. } = self.0;
        let n = self.0.inputs();
        let [x, stats, dy] = [0, n, n + 1].map(Arg::Input);
        let [gamma, beta, scale, shift] = parameter_args(true, modulate, x);
        let kernel = |part: &str, pack: usize| {
            let entry = format!("group_norm_grad{part}_{pack}_{dtype}");
            Ptx::new(self.name(), ptx!("group_norm_grad"), dtype).entry(entry)
        };
        let width = c.channels / groups;
        // Neighbouring channels of a thread are of one group.
        let wide = if width.is_multiple_of(2) { widest(dtype, activation) } else { 1 };
        let scalars =
            |launch: Launch| launch.scalar(groups).scalars(divisor(width)).scalar(activation as usize).scalar(modulate);
        let (dims, mut launches) = ([c.samples, c.rows, c.channels], vec![]);
        let args = [x, gamma, beta, scale, shift, dy, stats];
        let parameters = |sums| norm::parameters_grad_ptx(dtype, [c.samples, c.channels], true, modulate, sums);

        let held = Tiles::held(dims, width, wide, [2, HELD, 512], HELD_GROUPS, target);
        if let Some(tiles) = held.filter(|_| wide > 1 && dtype != DType::F16) {
            let entry = format!("group_norm_grad_held_{dtype}");
            let kernel = Ptx::new(self.name(), ptx!("group_norm_grad"), dtype).entry(entry);
            let args = args.into_iter().chain([Arg::Output(0)]);
            let launch = tiles.launch(kernel.shared(tiles.block_sums()), args);
            let launch = scalars(launch.with_scratch(2 * c.samples * c.channels));
            return vec![launch, parameters(Arg::Left(0, 0))];
        }
        let multiprocessors = target.multiprocessors as usize;
        let parts = Tiles::new(dims, 1, wide, 4, 2 * multiprocessors);
        let launch = scalars(parts.launch(kernel("_sums", parts.pack), args));
        let launch = launch.with_scratch(2 * c.samples * parts.count * c.channels);
        let sums = norm::add_stretches(&mut launches, launch, [c.samples, parts.count, 2 * c.channels]);

        let tiles = Tiles::new(dims, c.channels / groups, wide, 4, 2 * multiprocessors);
        let launch = tiles.launch(kernel("", tiles.pack), args.into_iter().chain([sums, Arg::Output(0)]));
        launches.push(scalars(launch));
        launches.push(parameters(sums));
        launches
    }
}
