//! Kernels in PTX: their text, their parameters, and the machine that plays a GPU.

use crate::graph::{Boxes, CudaTarget, Ptx, PtxFile, Scalar};
use crate::ptx::tensor::{Element, Swizzle, TENSOR_MAP_BYTES};
use crate::ptx::{Counters, Entry, Failure, Launch, Memory, Module, TensorMap};
use crate::tensor::DType;
use crate::{Error, Result};
use std::borrow::Cow;
use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// What the machine offers: compute capability 8.0, or 9.0 for the kernels of Hopper.
pub fn target(compute: (u32, u32)) -> CudaTarget {
    let shared_bytes = if compute.0 >= 9 { 227 * 1024 } else { 99 * 1024 };
    CudaTarget { compute, multiprocessors: 4, shared_bytes, software: true }
}

/// The text of a file of kernels: the file of that name in the folder `LANGEVIN_KERNELS`, laid out as `kernels/ptx`, or if there is none
/// what langevin was built with.
///
/// # Errors
/// [`Error::Io`] if there is a file that cannot be read.
pub fn text(file: &PtxFile) -> Result<Cow<'static, str>> {
    let folder = std::env::var_os("LANGEVIN_KERNELS").map(PathBuf::from);
    match folder.map(|f| f.join(file.folder).join(file.name).with_extension("ptx")).filter(|path| path.exists()) {
        Some(path) => Ok(std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?.into()),
        None => Ok(file.text.into()),
    }
}

/// The bytes of a kernel's parameters: the addresses of its arguments, or what `encode` makes of those that come in boxes, then
/// its scalars.
///
/// # Errors
/// [`Error::TooLarge`] for an integer of more than 32 bits; those of `encode`.
pub fn parameters(
    addresses: &[u64],
    boxes: &[(usize, Boxes)],
    scalars: &[Scalar],
    encode: impl Fn(&TensorMap) -> Result<[u8; TENSOR_MAP_BYTES]>,
) -> Result<Vec<Vec<u8>>> {
    let argument = |(i, address): (usize, &u64)| match boxes.iter().find(|(argument, _)| *argument == i) {
        Some((_, boxes)) => Ok(encode(&tensor_map(*address, boxes))?.to_vec()),
        None => Ok(address.to_le_bytes().to_vec()),
    };
    let scalar = |scalar: &Scalar| match *scalar {
        Scalar::Int(value) => match u32::try_from(value) {
            Ok(value) => Ok(value.to_le_bytes().to_vec()),
            Err(_) => Err(Error::TooLarge { what: "a tensor".into(), bytes: value as u64, limit: u32::MAX.into() }),
        },
        Scalar::Float(value) => Ok(value.to_le_bytes().to_vec()),
    };
    addresses.iter().enumerate().map(argument).chain(scalars.iter().map(scalar)).collect()
}

/// The map of a tensor that comes in boxes.
pub fn tensor_map(address: u64, boxes: &Boxes) -> TensorMap {
    let element = match boxes.dtype {
        DType::F32 => Element::F32,
        DType::F16 => Element::F16,
        DType::Bf16 => Element::Bf16,
        DType::I32 => Element::I32,
    };
    let shape: Vec<u64> = boxes.shape.iter().map(|n| *n as u64).collect();
    let step = |axis: usize| boxes.steps.get(axis).map_or(1, |step| *step as u32);
    // In a map, a box is as long as what it steps over.
    let extent: Vec<u32> = boxes.extent.iter().enumerate().map(|(axis, n)| *n as u32 * step(axis)).collect();
    let swizzle = match boxes.extent.first().map_or(0, |n| n * boxes.dtype.size()) {
        32 => Swizzle::B32,
        64 => Swizzle::B64,
        128 => Swizzle::B128,
        _ => Swizzle::None,
    };
    let steps = (0..shape.len()).map(step).collect();
    TensorMap { steps, ..TensorMap::dense(element, address, &shape, &extent, swizzle) }
}

/// The bytes of each parameter of an entry, as its declaration in the text has them; `None` if there is no such entry.
pub fn parameter_bytes(text: &str, entry: &str) -> Option<Vec<usize>> {
    let declared = |found: &usize| {
        let rest = text[found + ".entry".len()..].trim_start();
        rest.strip_prefix(entry).map(str::trim_start).and_then(|rest| rest.strip_prefix('('))
    };
    let starts = text.match_indices(".entry").map(|(at, _)| at);
    let list = starts.into_iter().find_map(|at| declared(&at))?.split(')').next()?;
    let bytes = |parameter: &str| {
        let array = parameter.rsplit_once('[').and_then(|(_, n)| n.trim_end().strip_suffix(']')?.trim().parse().ok());
        let bits = parameter
            .split_whitespace()
            .find_map(|word| word.strip_prefix(['.'])?.strip_prefix(['b', 'u', 's', 'f'])?.parse::<usize>().ok())?;
        Some(bits / 8 * array.unwrap_or(1))
    };
    list.split(',').map(str::trim).filter(|p| !p.is_empty()).map(bytes).collect()
}

/// Modules of the machine, parsed when a kernel of theirs is first asked for.
#[derive(Debug, Default)]
pub struct Machine {
    modules: HashMap<(&'static str, &'static str), Arc<Module>>,
}

/// The module of a kernel's file. What langevin was built with is parsed once a process, however many machines there are: it is megabytes of text.
fn module(kernel: &Ptx) -> Result<Arc<Module>> {
    static PARSED: Mutex<BTreeMap<(usize, usize), Arc<Module>>> = Mutex::new(BTreeMap::new());
    let parse = |text: &str| Module::parse(text).map(Arc::new).map_err(|e| rejected(kernel, e.to_string()));
    match text(&kernel.file)? {
        Cow::Owned(text) => parse(&text),
        Cow::Borrowed(text) => {
            let mut parsed = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
            let key = (text.as_ptr().addr(), text.len());
            if let Some(module) = parsed.get(&key) {
                return Ok(module.clone());
            }
            let module = parse(text)?;
            parsed.insert(key, module.clone());
            Ok(module)
        }
    }
}

impl Machine {
    /// The entry of a kernel.
    ///
    /// # Errors
    /// [`Error::Kernel`] if its file does not parse or has no such entry.
    pub fn entry(&mut self, kernel: &Ptx) -> Result<Arc<Entry>> {
        let key = (kernel.file.folder, kernel.file.name);
        let module = match self.modules.entry(key) {
            Slot::Occupied(module) => module.into_mut(),
            Slot::Vacant(place) => place.insert(module(kernel)?),
        };
        module
            .entry(&kernel.entry)
            .cloned()
            .ok_or_else(|| rejected(kernel, format!("its file has no entry `{}`", kernel.entry)))
    }

    /// Runs a launch over `memory`.
    ///
    /// # Errors
    /// [`Error::Kernel`] with kernel, block, thread and line of what it does wrong.
    pub fn run(&mut self, kernel: &Ptx, launch: &Launch, memory: &mut Memory) -> Result<Counters> {
        let entry = self.entry(kernel)?;
        entry.launch(memory, launch).map_err(|failure: Failure| rejected(kernel, failure.to_string()))
    }
}

fn rejected(kernel: &Ptx, reason: String) -> Error {
    Error::Kernel { device: "ptx", kernel: kernel.name, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_from_the_declaration() {
        let text = ".version 8.0\n.visible .entry other(\n.param .u64 a\n)\n{\n}\n.visible .entry k(\n\t.param .u64 k_param_0,\n\t.param \
                    .f32 k_param_1,\n\t.param .align 64 .b8 k_param_2[128]\n)\n{\n}\n.entry none()\n{\n}\n";
        assert_eq!(parameter_bytes(text, "k"), Some(vec![8, 4, 128]));
        assert_eq!(parameter_bytes(text, "other"), Some(vec![8]));
        assert_eq!(parameter_bytes(text, "none"), Some(vec![]));
        assert_eq!(parameter_bytes(text, "oth"), None);
        assert_eq!(parameter_bytes("", "k"), None);
    }
}
