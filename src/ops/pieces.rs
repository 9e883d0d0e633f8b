//! Ops on the wgpu device whose arguments are larger than an adapter can bind: pieces of them, one after the other.

use crate::Result;
use crate::graph::{Arg, Launch, PLACES, Signature, WgpuTarget};
use crate::tensor::TensorType;

/// The launches of an op that makes each row of its outputs of the same row of its inputs, but for inputs that are `shared` by all rows.
/// Rows are counted along `axis` of all tensors, before which there are dimensions of 1 only; a tensor may have several for each of the
/// first output's. In as few pieces as the adapter can see, each lowered as if it were all.
pub(super) fn along(
    axis: usize,
    shared: &[usize],
    io: &Signature,
    target: &WgpuTarget,
    lower: impl Fn(&Signature) -> Result<Vec<Launch>>,
) -> Result<Vec<Launch>> {
    let count = io.outputs[0].shape[axis];
    let inputs = (0..io.inputs.len()).filter(|i| !shared.contains(i)).map(|i| (Arg::Input(i), &io.inputs[i]));
    let outputs = io.outputs.iter().enumerate().map(|(i, ty)| (Arg::Output(i), ty));
    let widths: Vec<(Arg, usize)> = inputs.chain(outputs).map(|(arg, ty)| (arg, ty.bytes() / count.max(1))).collect();
    let bytes: Vec<usize> = widths.iter().map(|w| w.1).collect();
    // A row that is too large alone may be cut along another axis.
    let one = || bytes.iter().all(|bytes| bytes.is_multiple_of(PLACES)).then_some(1);
    let seen = target.rows(count, &bytes).or_else(one).unwrap_or(count);
    if seen >= count {
        return lower(io);
    }
    let mut launches = Vec::new();
    for first in (0..count).step_by(seen) {
        let rows = seen.min(count - first);
        let piece = |ty: &TensorType| {
            let mut shape = ty.shape.clone();
            shape[axis] = shape[axis] / count * rows;
            ty.with_shape(shape)
        };
        let of = |i: usize| if shared.contains(&i) { io.inputs[i].clone() } else { piece(&io.inputs[i]) };
        let inputs = (0..io.inputs.len()).map(of).collect();
        let own = lower(&Signature { inputs, outputs: io.outputs.iter().map(piece).collect() })?;
        let part = |launch: Launch| {
            widths.iter().fold(launch, |l, (arg, bytes)| l.part(*arg, first * bytes..(first + rows) * bytes))
        };
        append(&mut launches, own.into_iter().map(part));
    }
    Ok(launches)
}

/// Adds launches to those of an op. What they leave to each other is numbered from there on.
pub(super) fn append(launches: &mut Vec<Launch>, more: impl IntoIterator<Item = Launch>) {
    let first = launches.len();
    launches.extend(more.into_iter().map(|mut launch| {
        for arg in &mut launch.args {
            if let Arg::Left(launch, _) = arg {
                *launch += first;
            }
        }
        launch
    }));
}
