//! Group norms by shaders: one launch where workgroups hold whole groups, else three.

use super::{GroupNorm, GroupNormGrad};
use crate::graph::{Arg, Flat, Launch, Op, PLACES, Shader, WgpuTarget, wgsl, wgsl_with_sums};
use crate::ops::lanes::{Stretches, add_sums, by_row};
use crate::ops::norm::{Chunks, parameter_args, parameters_grad};
use crate::ops::product::BUSY;
use crate::tensor::DType;

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
    pub(super) fn held(&self, target: &WgpuTarget, dtype: DType, c: &Chunks) -> Option<Launch> {
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
    pub(super) fn spreads(&self, c: &Chunks) -> bool {
        let group = c.rows * c.channels / self.groups;
        c.samples * group * self.groups >= if group >= MOST_GROUP { SPREAD } else { MOST_WHOLE }
    }

    /// The launches of x from [`SPREAD`] on.
    pub(super) fn spread(&self, target: &WgpuTarget, dtype: DType, c: &Chunks) -> Vec<Launch> {
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
    pub(super) fn stretch(&self, target: &WgpuTarget, dtype: DType, c: &Chunks) -> Option<usize> {
        let (all, line) = (c.samples * c.rows, c.channels * dtype.size());
        let seen = target.rows(all, &[line]).filter(|seen| *seen < all)?;
        let most = (STRETCH / c.channels).min(seen);
        // Stretches are of one sample, all of one size, and begin where an argument may begin.
        let fits = |rows: &usize| c.rows.is_multiple_of(*rows) && (rows * line).is_multiple_of(PLACES);
        (1..=most).rev().find(fits)
    }

    /// The launches where x is too large for one: the moments of stretches of `rows` rows, those of the groups, and y.
    pub(super) fn large(&self, target: &WgpuTarget, dtype: DType, c: &Chunks, rows: usize) -> Vec<Launch> {
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

impl GroupNormGrad {
    pub(super) fn shaders(&self, target: &WgpuTarget, c: &Chunks) -> Vec<Launch> {
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
