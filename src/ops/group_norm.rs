//! Group normalisation over channels-last tensors, with an activation and a modulation by sample.

use super::lanes::{Stretches, add_sums, by_row};
use super::lines::divisor;
use super::norm::{
    self, Chunks, LEAST, Parameters, Tiles, expect_parameters, parameter_args, parameter_count, parameters_grad,
};
use super::product::BUSY;
use super::{Activation, expect_inputs, expect_real, expect_shape, expect_typed};
use crate::cpu::gemm::with_buffers;
use crate::cpu::simd::LANES;
use crate::cpu::threads::{Ptr, tasks};
use crate::graph::{
    Arg, Args, Cost, CudaTarget, Flat, Graph, Launch, Node, Op, PLACES, Ptx, Shader, Signature, Target, Value,
    WgpuTarget, ptx, wgsl, wgsl_with_sums,
};
use crate::simd;
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// y = act(n·gamma + beta), or with `modulate` act((n·gamma + beta)·(1 + scale) + shift), where n = (x − mean)·rstd and
/// mean, rstd = 1/√(variance + eps) are those of each sample's group of C/groups neighbouring channels (Wu & He 2018).
/// x `[B, …, C]`, gamma `[C]`, beta `[C]` (scale `[B, C]`, shift `[B, C]`) → y like x, stats `[B, groups, 2]`: mean, rstd
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNorm {
    pub groups: usize,
    pub eps: f32,
    pub activation: Activation,
    pub modulate: bool,
}

impl GroupNorm {
    fn inputs(&self) -> usize {
        1 + parameter_count(true, self.modulate)
    }

    /// Checks x and the parameters; the type of the statistics.
    fn check(&self, op: &str, inputs: &[&TensorType]) -> Result<TensorType> {
        let x = inputs[0];
        expect_real(op, "x", x)?;
        if x.shape.len() < 2 || x.cols() == 0 || self.groups == 0 || !x.cols().is_multiple_of(self.groups) {
            return Err(Error::shape(
                op,
                format!("x must be [B, .., C], C a multiple of {} groups, is {x}", self.groups),
            ));
        }
        expect_parameters(op, inputs, true, self.modulate, None)?;
        Ok(TensorType::f32([x.shape[0], self.groups, 2]))
    }

    fn chunks(&self, x: &TensorType) -> Chunks {
        let samples = x.shape[0];
        Chunks::new(samples, x.rows() / samples.max(1), x.cols())
    }

    /// FLOPs of the activation (or its derivative) an element.
    fn activation_flops(&self) -> u64 {
        if self.activation == Activation::Identity { 0 } else { 8 }
    }

    fn scalars(&self, launch: Launch, c: &Chunks) -> Launch {
        let launch = launch.scalars([c.samples, c.rows, c.channels, self.groups, self.activation as usize]);
        launch.scalar(self.modulate).scalar(self.eps)
    }
}

impl Op for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, self.inputs())?;
        let stats = self.check(self.name(), inputs)?;
        Ok(vec![inputs[0].clone(), stats])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: io.out_elements() * (7 + self.activation_flops()), bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None; node.inputs.len()]) };
        let inputs = [&node.inputs[..], &[node.outputs[1], dy]].concat();
        Ok(g.apply_all(GroupNormGrad(*self), &inputs)?.into_iter().map(Some).collect())
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let c = self.chunks(&io.inputs[0]);
        if let Target::Wgpu(target) = target
            && let Some(rows) = self.stretch(target, io.inputs[0].dtype, &c)
        {
            return Ok(self.large(target, io.inputs[0].dtype, &c, rows));
        }
        if let Target::Wgpu(target) = target
            && let Some(launch) = self.held(target, io.inputs[0].dtype, &c)
        {
            return Ok(vec![launch]);
        }
        if let Target::Wgpu(target) = target
            && !target.software
            && c.channels.is_multiple_of(4)
            && self.spreads(&c)
        {
            return Ok(self.spread(target, io.inputs[0].dtype, &c));
        }
        Ok(vec![match target {
            Target::Cuda(target) => return Ok(self.kernels(target, io.inputs[0].dtype, &c)),
            Target::Cpu => {
                // Mean and squared deviations of every group of every chunk in f64; three coefficients a channel.
                let launch = Launch::cpu(self.name(), forward, self.inputs(), 2)
                    .with_scratch(4 * c.samples * c.count * self.groups)
                    .with_scratch(3 * c.samples * c.channels);
                self.scalars(launch, &c)
            }
            Target::Wgpu(target) => {
                let text = wgsl_with_sums!(target, io.inputs[0].dtype; "lib/activation", "group_norm");
                let shader = Shader::new(self.name(), text)
                    .entry(if (c.channels / self.groups).is_multiple_of(4) { "quads" } else { "main" })
                    .flag("MODULATE", self.modulate)
                    .constant("ACTIVATION", self.activation as u32)
                    // Barriers among few invocations are cheap for a processor.
                    .constant("REDUCE_LANES", if target.software { 8 } else { 256 });
                let modulation = if self.modulate { [3, 4] } else { [0, 0] };
                let inputs = [0, 1, 2].into_iter().chain(modulation).map(Arg::Input);
                let groups = c.samples * self.groups;
                Launch::wgsl(shader, target.grid(groups), inputs.chain([Arg::Output(0), Arg::Output(1)]))
                    .scalars([c.rows, c.channels, self.groups, groups])
                    .scalar(self.eps)
            }
        }])
    }
}

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
    fn kernels(&self, target: &CudaTarget, dtype: DType, c: &Chunks) -> Vec<Launch> {
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

/// Numbers of a stretch, at most, where x is too large to be seen whole.
const STRETCH: usize = 1 << 16;

/// Numbers of x from which on a GPU may make three launches, so that it reads x in its order and by workgroups enough: the moments of every
/// channel and stretch, those of the groups, and y. From [`MOST_WHOLE`] on it does, and below where a group has [`MOST_GROUP`] of them.
const SPREAD: usize = 1 << 19;
const MOST_WHOLE: usize = 1 << 23;
const MOST_GROUP: usize = 1 << 13;
/// Rows and channels of a workgroup of `shaders/lib/columns.wgsl`.
const COLUMN: [usize; 2] = [128, 64];

/// Fours of channels and groups of a workgroup of `shaders/group_norm_held.wgsl` at most, and the fours of channels that it should have: whole
/// lines of a cache. Then the rows of an invocation, and its workgroup's memory beside 16 bytes an invocation.
const HELD_SHADER: [usize; 2] = [64, 64];
const HELD_LINE: usize = 8;
const HELD_ROWS: usize = 8;
const HELD_BYTES: usize = 64 * 16 + 64 * 4;

impl GroupNorm {
    /// One launch of a GPU whose workgroups hold whole groups, if that is possible and there is no reason to make [three](GroupNorm::spread).
    fn held(&self, target: &WgpuTarget, dtype: DType, c: &Chunks) -> Option<Launch> {
        if target.software || c.samples * c.rows == 0 || !c.channels.is_multiple_of(4) {
            return None;
        }
        let memory = (target.workgroup_bytes as usize).saturating_sub(HELD_BYTES) / 16;
        let most = memory.min(target.workgroup_size as usize).checked_ilog2().map(|bits| 1 << bits.min(10))?;
        let width = c.channels / self.groups;
        // Groups of a workgroup: whole fours of channels, of which all workgroups have as many.
        let fits = |groups: &usize| {
            let fours = groups * width / 4;
            let whole = self.groups.is_multiple_of(*groups) && (groups * width).is_multiple_of(4);
            let small = fours <= HELD_SHADER[0] && *groups <= HELD_SHADER[1];
            whole && small && fours > 0 && c.rows.div_ceil(HELD_ROWS) * fours <= most
        };
        let count = |groups: usize| c.samples * self.groups / groups;
        let all: Vec<usize> = (1..=self.groups).filter(fits).collect();
        let whole_lines = |groups: &usize| groups * width / 4 >= HELD_LINE;
        // A line for all if there are workgroups enough, or else what makes the most workgroups.
        let line = all.iter().copied().find(whole_lines).or(all.last().copied()).filter(|g| count(*g) >= BUSY);
        let groups = line.or(all.first().copied())?;
        let across = groups * width / 4;
        let rows = if count(groups) >= 2 * BUSY { HELD_ROWS } else { 2 };
        let down = c.rows.div_ceil(rows).min(most / across);
        let shader = Shader::new(self.name(), wgsl!(dtype; "lib/activation", "group_norm_held")).entry("held");
        let shader = shader.flag("MODULATE", self.modulate).constant("ACTIVATION", self.activation as u32);
        let shader = shader.constant("HELD_LANES", (across * down).next_power_of_two().max(64) as u32);
        // What is absent is not read; gamma stands for it.
        let [scale, shift] = if self.modulate { [3, 4] } else { [1, 1] }.map(Arg::Input);
        let args = [Arg::Input(0), Arg::Input(1), Arg::Input(2), scale, shift, Arg::Output(0), Arg::Output(1)];
        let launch = Launch::wgsl(shader, target.grid(count(groups)), args);
        Some(launch.scalars([c.samples, c.rows, c.channels, self.groups, across, down]).scalar(self.eps))
    }

    /// True if a GPU makes three launches.
    fn spreads(&self, c: &Chunks) -> bool {
        let group = c.rows * c.channels / self.groups;
        c.samples * group * self.groups >= if group >= MOST_GROUP { SPREAD } else { MOST_WHOLE }
    }

    /// The launches of x from [`SPREAD`] on.
    fn spread(&self, target: &WgpuTarget, dtype: DType, c: &Chunks) -> Vec<Launch> {
        let GroupNorm { groups, activation, modulate, .. } = *self;
        let (count, stretches, name) = (c.samples * groups, c.rows.div_ceil(COLUMN[0]), self.name());
        let columns = target.grid(c.samples * stretches * c.channels.div_ceil(COLUMN[1]));
        let sizes = [c.samples, c.rows, c.channels];
        let shader = Shader::new(name, wgsl!(dtype; "lib/columns", "group_norm_columns"));
        let moments = Launch::wgsl(shader, columns, [Arg::Input(0)]).scalars(sizes);
        let moments = moments.with_scratch(3 * c.samples * stretches * c.channels);

        let shader = Shader::new(name, wgsl_with_sums!(target, dtype; "group_norm_coefficients"));
        let shader = shader.flag("MODULATE", modulate).constant("REDUCE_LANES", 128u32);
        // What is absent is not read; gamma stands for it.
        let [scale, shift] = if modulate { [3, 4] } else { [1, 1] }.map(Arg::Input);
        let args = [Arg::Left(0, 0), Arg::Input(1), Arg::Input(2), scale, shift, Arg::Output(1)];
        let coefficients = Launch::wgsl(shader, target.grid(count), args);
        let coefficients = coefficients.scalars([count, groups, c.rows, c.channels, stretches, COLUMN[0]]);
        let coefficients = coefficients.scalar(self.eps).with_scratch(4 * c.samples * c.channels);

        let shader = Shader::new(name, wgsl!(dtype; "lib/activation", "lib/columns", "group_norm_scale"));
        let shader = shader.constant("ACTIVATION", activation as u32);
        let y = Launch::wgsl(shader, columns, [Arg::Input(0), Arg::Left(1, 0), Arg::Output(0)]);
        vec![moments, coefficients, y.scalars(sizes)]
    }

    /// Rows of a stretch of a sample, if x is too large for a launch; none too if no stretch could be seen.
    fn stretch(&self, target: &WgpuTarget, dtype: DType, c: &Chunks) -> Option<usize> {
        let (all, line) = (c.samples * c.rows, c.channels * dtype.size());
        let seen = target.rows(all, &[line]).filter(|seen| *seen < all)?;
        let most = (STRETCH / c.channels).min(seen);
        // Stretches are of one sample, all of one size, and begin where an argument may begin.
        let fits = |rows: &usize| c.rows.is_multiple_of(*rows) && (rows * line).is_multiple_of(PLACES);
        (1..=most).rev().find(fits)
    }

    /// The launches where x is too large for one: the moments of stretches of `rows` rows, those of the groups, and y.
    fn large(&self, target: &WgpuTarget, dtype: DType, c: &Chunks, rows: usize) -> Vec<Launch> {
        let GroupNorm { groups, activation, modulate, .. } = *self;
        let (elements, count) = (c.samples * c.rows * c.channels, c.samples * groups);
        let (stretches, per_group) = (c.rows / rows, rows * c.channels);
        let shader = Shader::new("group_norm_moments", wgsl_with_sums!(target, dtype; "group_norm_moments"));
        let shader = shader.constant("REDUCE_LANES", if target.software { 8 } else { 256 });
        let moments = Launch::wgsl(shader, target.grid(elements / per_group), [Arg::Input(0)]);
        let moments = moments.scalars([elements, 0, rows, c.channels, groups]).anywhere([0]);
        let flat = Some(Flat { elements, per_group, arguments: vec![0] });
        let moments = Launch { flat, ..moments.with_scratch(3 * count * stretches) };

        let shader = Shader::new("group_norm_stats", wgsl!("group_norm_stats"));
        let stats = Launch::wgsl(shader, target.grid(count.div_ceil(64)), [Arg::Left(0, 0), Arg::Output(1)]);
        let stats = stats.scalars([count, groups, stretches, rows * c.channels / groups]).scalar(self.eps);
        let stats = stats.with_scratch(2 * count);

        let shader = Shader::new("group_norm_apply", wgsl!(dtype; "lib/flat", "lib/activation", "group_norm_apply"));
        let shader = shader.flag("MODULATE", modulate).constant("ACTIVATION", activation as u32);
        // What is absent is not read; gamma stands for it.
        let modulation = if modulate { [3, 4] } else { [1, 1] };
        let inputs = [0, 1, 2].into_iter().chain(modulation).map(Arg::Input);
        let args = inputs.chain([Arg::Output(0), Arg::Output(1), Arg::Left(1, 0)]);
        let apply = Launch::over(shader, target, elements, args, [0, 5]).scalars([c.rows, c.channels, groups]);
        vec![moments, stats, apply]
    }
}

const GROUP_NORM_GRAD: &str = wgsl!("lib/activation", "lib/lanes", "lib/stretch", "group_norm_grad");

/// The backward of [`GroupNorm`]: its inputs, its stats, dy → the gradients of its inputs, in their order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNormGrad(pub GroupNorm);

impl Op for GroupNormGrad {
    fn name(&self) -> &'static str {
        "group_norm_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let n = self.0.inputs();
        expect_inputs(self.name(), inputs, n + 2)?;
        let stats = self.0.check(self.name(), inputs)?;
        expect_shape(self.name(), "stats", inputs[n], &stats.shape)?;
        expect_typed(self.name(), "dy", inputs[n + 1], inputs[0].dtype, &inputs[0].shape)?;
        Ok(norm::gradient_types(&inputs[..n], true))
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: io.out_elements() * (13 + self.0.activation_flops()), bytes: io.bytes() }
    }

    fn takes(&self, _: DType, target: &Target) -> bool {
        matches!(target, Target::Cuda(_))
    }

    fn stays_f32(&self, input: usize) -> bool {
        input == self.0.inputs()
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let c = self.0.chunks(&io.inputs[0]);
        let n = self.0.inputs();
        if let Target::Cuda(target) = target {
            return Ok(self.kernels(target, io.inputs[0].dtype, &c));
        }
        if let Target::Wgpu(target) = target {
            return Ok(self.shaders(target, &c));
        }
        // Two sums a channel: of every chunk, of every sample; five coefficients a channel.
        let launch = Launch::cpu(self.name(), backward, n + 2, n)
            .with_scratch(2 * c.samples * c.count * c.channels)
            .with_scratch(2 * c.samples * c.channels)
            .with_scratch(5 * c.samples * c.channels);
        Ok(vec![self.0.scalars(launch, &c)])
    }
}

impl GroupNormGrad {
    /// Launches of the PTX kernels: the sums of stretches of every channel, those of samples, dx, the parameters' gradients.
    fn kernels(&self, target: &CudaTarget, dtype: DType, c: &Chunks) -> Vec<Launch> {
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

    fn shaders(&self, target: &WgpuTarget, c: &Chunks) -> Vec<Launch> {
        let GroupNorm { groups, activation, modulate, .. } = self.0;
        let n = self.0.inputs();
        let [x, stats, dy] = [0, n, n + 1].map(Arg::Input);
        let [gamma, beta, scale, shift] = parameter_args(true, modulate, x);
        let shader = Shader::new(self.name(), GROUP_NORM_GRAD);
        let shader = shader.flag("MODULATE", modulate).constant("ACTIVATION", activation as u32);
        let stretches = Stretches::new([c.samples, c.rows, c.channels]);
        let dims = [c.samples, stretches.count, 2 * c.channels];
        let args = [x, gamma, beta, scale, shift, dy, stats];
        let launch = stretches.launch(shader.clone().entry("sum_rows"), target, args, groups, 1.0);
        let mut launches = vec![launch.with_scratch(dims.iter().product())];
        let sums = add_sums(&mut launches, target, Arg::Left(0, 0), dims, 1.0, None);

        let (count, width) = (c.samples * groups, c.channels / groups);
        let means = Shader::new("group_norm_grad_means", wgsl!("lib/lanes", "group_norm_grad_means"));
        let means = means.flag("MODULATE", modulate);
        let launch = by_row(means, target, [count, width], [sums, gamma, scale, stats]);
        launches.push(launch.scalars([count, width, groups, c.rows]).with_scratch(4 * count));
        let means = Arg::Left(launches.len() - 1, 0);

        let args = [x, gamma, beta, scale, shift, dy, means, Arg::Output(0)];
        launches.push(stretches.launch(shader, target, args, groups, 1.0));
        launches.push(parameters_grad(target, [c.samples, c.channels], true, modulate, sums));
        launches
    }
}

/// Runs `first` on all chunks of a sample, `between` on the sample, `second` on its chunks: a sample a task where there are
/// enough of them, so that it stays in cache, or else a chunk a task.
fn phases(
    c: &Chunks,
    first: impl Fn(usize, usize) + Sync,
    between: impl Fn(usize) + Sync,
    second: impl Fn(usize, usize) + Sync,
) {
    if c.samples >= rayon::current_num_threads() {
        tasks(c.samples, c.elements(), |b| {
            (0..c.count).for_each(|i| first(b, i));
            between(b);
            (0..c.count).for_each(|i| second(b, i));
        });
    } else {
        tasks(c.samples * c.count, c.elements(), |t| first(t / c.count, t % c.count));
        (0..c.samples).for_each(between);
        tasks(c.samples * c.count, c.elements(), |t| second(t / c.count, t % c.count));
    }
}

/// What both kernels are told.
struct Setting<'a> {
    chunks: Chunks,
    groups: usize,
    activation: Activation,
    eps: f32,
    parameters: Parameters<'a>,
}

impl<'a> Setting<'a> {
    fn of(args: &'a Args) -> Self {
        let [samples, rows, channels, groups, activation] = [0, 1, 2, 3, 4].map(|i| args.int(i));
        Setting {
            chunks: Chunks::new(samples, rows, channels),
            groups,
            activation: Activation::from_code(activation),
            eps: args.float(6),
            parameters: Parameters::of(args, channels, true, args.flag(5)),
        }
    }
}

fn forward(args: &Args) {
    let s = Setting::of(args);
    let (c, channels, groups) = (s.chunks, s.chunks.channels, s.groups);
    let at = 1 + parameter_count(true, s.parameters.modulate.is_some());
    let x = args.slice::<f32>(0);
    let (y, stats) = (Ptr::new(args.slice_mut::<f32>(at)), Ptr::new(args.slice_mut::<f32>(at + 1)));
    let (moments, coefficients) = (Ptr::new(args.slice_mut::<f64>(at + 2)), Ptr::new(args.slice_mut::<f32>(at + 3)));
    let first = |b: usize, i: usize| {
        let (start, len) = c.elements_of(b, i);
        // SAFETY: one chunk a call.
        let out = unsafe { moments.part((b * c.count + i) * groups * 2, groups * 2) };
        with_buffers(3 * channels, 0, |work, _| chunk_moments(&x[start..start + len], channels, work, out));
    };
    let between = |b: usize| {
        // SAFETY: one sample a call, after all its chunks.
        let (moments, stats, coefficients) = unsafe {
            let moments = moments.part(b * c.count * groups * 2, c.count * groups * 2);
            (moments, stats.part(b * groups * 2, groups * 2), coefficients.part(b * 3 * channels, 3 * channels))
        };
        let width = channels / groups;
        let elements = (c.rows * width) as f64;
        for g in 0..groups {
            let chunk = |i: usize| {
                let weight = (c.rows_of(i).1 * width) as f64;
                (weight, moments[(i * groups + g) * 2], moments[(i * groups + g) * 2 + 1])
            };
            let mean = (0..c.count).map(chunk).map(|(n, mean, _)| n * mean).sum::<f64>() / elements;
            let squares: f64 =
                (0..c.count).map(chunk).map(|(n, m, squares)| squares + n * (m - mean) * (m - mean)).sum();
            let rstd = 1.0 / (squares / elements + s.eps as f64).sqrt();
            let rounded = mean as f32;
            (stats[2 * g], stats[2 * g + 1]) = (rounded, rstd as f32);
            for k in g * width..(g + 1) * width {
                let (factor, offset) = s.parameters.linear(b, k);
                let a = factor as f64 * rstd;
                // What rounding took from the mean goes into the offset: large means cost no digits.
                let offset = offset as f64 + (rounded as f64 - mean) * a;
                (coefficients[k], coefficients[channels + k], coefficients[2 * channels + k]) =
                    (rounded, a as f32, offset as f32);
            }
        }
    };
    let second = |b: usize, i: usize| {
        let (start, len) = c.elements_of(b, i);
        // SAFETY: one chunk a call; the sample's coefficients are complete and only read.
        let (coefficients, y) = unsafe { (coefficients.part(b * 3 * channels, 3 * channels), y.part(start, len)) };
        let x = &x[start..start + len];
        match s.activation {
            Activation::Identity => apply(x, coefficients, y, |v| v),
            Activation::Silu => apply(x, coefficients, y, |v| Activation::Silu.eval(v)),
            Activation::Gelu => apply(x, coefficients, y, |v| Activation::Gelu.eval(v)),
            Activation::GeluTanh => apply(x, coefficients, y, |v| Activation::GeluTanh.eval(v)),
            Activation::Relu => apply(x, coefficients, y, |v| Activation::Relu.eval(v)),
        }
    };
    phases(&c, first, between, second);
}

simd! {
    /// Mean and sum of squared deviations of every group over the rows of `x`, two numbers a group. Sums run over x less the
    /// group's mean over the first rows: an estimate does, as it is corrected for, and nothing large is subtracted.
    fn chunk_moments(x: &[f32], channels: usize, work: &mut [f32], out: &mut [f64]) {
        let width = channels / (out.len() / 2);
        let (shift, work) = work.split_at_mut(channels);
        let (sum, square) = work.split_at_mut(channels);
        let head = &x[..x.len().min(8 * channels)];
        sum.fill(0.0);
        for row in head.chunks_exact(channels) {
            for (s, v) in sum.iter_mut().zip(row) { *s += v; }
        }
        for (shift, sum) in shift.chunks_exact_mut(width).zip(sum.chunks_exact(width)) {
            shift.fill(sum.iter().sum::<f32>() / (head.len() / channels * width) as f32);
        }
        sum.fill(0.0);
        square.fill(0.0);
        deviations(x, shift, sum, square);
        let elements = (x.len() / channels * width) as f64;
        for (g, out) in out.chunks_exact_mut(2).enumerate() {
            let of = |v: &[f32]| v[g * width..(g + 1) * width].iter().map(|v| *v as f64).sum::<f64>();
            let (sum, square) = (of(sum), of(square));
            out[0] = shift[g * width] as f64 + sum / elements;
            out[1] = (square - sum * sum / elements).max(0.0);
        }
    }
}

/// Adds the rows of x − shift, and their squares, four rows at a time.
#[inline(always)]
fn deviations(x: &[f32], shift: &[f32], sum: &mut [f32], square: &mut [f32]) {
    let c = shift.len();
    let (sum, square) = (&mut sum[..c], &mut square[..c]);
    let fours = x.chunks_exact(4 * c);
    for row in fours.remainder().chunks_exact(c) {
        for i in 0..c {
            let d = row[i] - shift[i];
            sum[i] += d;
            square[i] += d * d;
        }
    }
    for rows in fours {
        // Written out: closures over arrays are not inlined here, and then nothing vectorises.
        let (r0, rest) = rows.split_at(c);
        let (r1, rest) = rest.split_at(c);
        let (r2, r3) = rest.split_at(c);
        for i in 0..c {
            let d = [r0[i] - shift[i], r1[i] - shift[i], r2[i] - shift[i], r3[i] - shift[i]];
            sum[i] += (d[0] + d[1]) + (d[2] + d[3]);
            square[i] += (d[0] * d[0] + d[1] * d[1]) + (d[2] * d[2] + d[3] * d[3]);
        }
    }
}

simd! {
    /// y = f((x − mean)·a + b), coefficients `[3, C]`: mean, a, b.
    fn apply[F: Fn(f32) -> f32](x: &[f32], coefficients: &[f32], y: &mut [f32], f: F) {
        let c = coefficients.len() / 3;
        let (mean, a, b) = (&coefficients[..c], &coefficients[c..2 * c], &coefficients[2 * c..3 * c]);
        for (x, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
            let whole = x.as_chunks::<LANES>().0.iter().zip(y.as_chunks_mut::<LANES>().0);
            let coefficients = mean.as_chunks::<LANES>().0.iter().zip(a.as_chunks::<LANES>().0).zip(b.as_chunks::<LANES>().0);
            for ((x, y), ((mean, a), b)) in whole.zip(coefficients) {
                for i in 0..LANES {
                    y[i] = f((x[i] - mean[i]) * a[i] + b[i]);
                }
            }
            for i in c - c % LANES..c {
                y[i] = f((x[i] - mean[i]) * a[i] + b[i]);
            }
        }
    }
}

/// With h the argument of the activation and e = dy · act'(h), both computed again: dshift = Σ e and dn = Σ e·n over the rows;
/// with factor = gamma·(1 + scale), dx = rstd·(e·factor − mean(e·factor) − n·mean(e·factor·n)), the means over the group.
/// The first phase leaves e in dx.
fn backward(args: &Args) {
    let s = Setting::of(args);
    let (c, channels, groups) = (s.chunks, s.chunks.channels, s.groups);
    let n = 1 + parameter_count(true, s.parameters.modulate.is_some());
    let (x, stats, dy) = (args.slice::<f32>(0), args.slice::<f32>(n), args.slice::<f32>(n + 1));
    let (dx, scratch) = (Ptr::new(args.slice_mut::<f32>(n + 2)), 2 * n + 2);
    let partial = Ptr::new(args.slice_mut::<f32>(scratch));
    let sums = Ptr::new(args.slice_mut::<f32>(scratch + 1));
    let coefficients = Ptr::new(args.slice_mut::<f32>(scratch + 2));
    let width = channels / groups;
    // Mean, a, b as in the forward; the last two follow from the sums.
    for (b, stats) in stats.chunks_exact(2 * groups).enumerate() {
        // SAFETY: nothing else runs yet.
        let coefficients = unsafe { coefficients.part(b * 5 * channels, 5 * channels) };
        for k in 0..channels {
            let (mean, rstd) = (stats[k / width * 2], stats[k / width * 2 + 1]);
            let (factor, offset) = s.parameters.linear(b, k);
            (coefficients[k], coefficients[channels + k], coefficients[2 * channels + k]) =
                (mean, factor * rstd, offset);
        }
    }
    let first = |b: usize, i: usize| {
        let (start, len) = c.elements_of(b, i);
        // SAFETY: one chunk a call; the first three coefficients of each channel are only read.
        let (coefficients, dx, sums) = unsafe {
            let sums = partial.part((b * c.count + i) * 2 * channels, 2 * channels);
            (coefficients.part(b * 5 * channels, 3 * channels), dx.part(start, len), sums)
        };
        let (x, dy) = (&x[start..start + len], &dy[start..start + len]);
        match s.activation {
            Activation::Identity => upstream(x, dy, coefficients, dx, sums, |_| 1.0),
            Activation::Silu => upstream(x, dy, coefficients, dx, sums, |h| Activation::Silu.derivative(h)),
            Activation::Gelu => upstream(x, dy, coefficients, dx, sums, |h| Activation::Gelu.derivative(h)),
            Activation::GeluTanh => upstream(x, dy, coefficients, dx, sums, |h| Activation::GeluTanh.derivative(h)),
            Activation::Relu => upstream(x, dy, coefficients, dx, sums, |h| Activation::Relu.derivative(h)),
        }
    };
    let between = |b: usize| {
        // SAFETY: one sample a call, after all its chunks.
        let (partial, sums, coefficients) = unsafe {
            let partial = partial.part(b * c.count * 2 * channels, c.count * 2 * channels);
            (partial, sums.part(b * 2 * channels, 2 * channels), coefficients.part(b * 5 * channels, 5 * channels))
        };
        sums.fill(0.0);
        for part in partial.chunks_exact(2 * channels) {
            sums.iter_mut().zip(part).for_each(|(s, v)| *s += v);
        }
        let elements = (c.rows * width) as f64;
        for g in 0..groups {
            let rstd = stats[(b * groups + g) * 2 + 1];
            let (mut mean, mut slope) = (0.0, 0.0);
            for k in g * width..(g + 1) * width {
                sums[channels + k] *= rstd;
                let (factor, _) = s.parameters.linear(b, k);
                mean += (factor * sums[k]) as f64;
                slope += (factor * sums[channels + k]) as f64;
            }
            let rstd = rstd as f64;
            let (constant, slope) = ((-rstd * mean / elements) as f32, (-rstd * rstd * slope / elements) as f32);
            coefficients[3 * channels + g * width..3 * channels + (g + 1) * width].fill(constant);
            coefficients[4 * channels + g * width..4 * channels + (g + 1) * width].fill(slope);
        }
    };
    let second = |b: usize, i: usize| {
        let (start, len) = c.elements_of(b, i);
        // SAFETY: one chunk a call; the sample's coefficients are complete and only read.
        let (coefficients, dx) = unsafe { (coefficients.part(b * 5 * channels, 5 * channels), dx.part(start, len)) };
        downstream(&x[start..start + len], coefficients, dx);
    };
    phases(&c, first, between, second);
    // SAFETY: all tasks are done.
    let sums = unsafe { sums.part(0, c.samples * 2 * channels) };
    s.parameters.gradients(sums, args, n + 3);
}

simd! {
    /// e = dy · f((x − mean)·a + b), and its sums over the rows: Σ e, Σ e·(x − mean), `[2, C]`.
    fn upstream[F: Fn(f32) -> f32](x: &[f32], dy: &[f32], coefficients: &[f32], e: &mut [f32], sums: &mut [f32], f: F) {
        let c = coefficients.len() / 3;
        let (mean, a, b) = (&coefficients[..c], &coefficients[c..2 * c], &coefficients[2 * c..3 * c]);
        sums.fill(0.0);
        let (sum, product) = sums.split_at_mut(c);
        let product = &mut product[..c];
        for ((x, dy), e) in x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(e.chunks_exact_mut(c)) {
            for i in 0..c {
                let d = x[i] - mean[i];
                let v = dy[i] * f(d * a[i] + b[i]);
                e[i] = v;
                sum[i] += v;
                product[i] += v * d;
            }
        }
    }
}

simd! {
    /// dx = e·a + constant + (x − mean)·slope, e read from `dx`.
    fn downstream(x: &[f32], coefficients: &[f32], dx: &mut [f32]) {
        let c = coefficients.len() / 5;
        let [mean, a, _, constant, slope]: [&[f32]; 5] = std::array::from_fn(|k| &coefficients[k * c..(k + 1) * c]);
        for (x, dx) in x.chunks_exact(c).zip(dx.chunks_exact_mut(c)) {
            for i in 0..c {
                dx[i] = dx[i] * a[i] + constant[i] + (x[i] - mean[i]) * slope[i];
            }
        }
    }
}
