//! `langevin kernels`

use super::{Output, lab};
use crate::cpu::philox;
use crate::device::ptx::tensor_map;
use crate::files::write_atomic;
use crate::graph::Boxes;
use crate::ptx::module::Type;
use crate::ptx::tensor::TENSOR_MAP_BYTES;
use crate::ptx::{Counters, Entry, Failure, Launch, Memory, Module};
use crate::tensor::DType;
use crate::weights::{Dtype, Weights};
use crate::{Error, Result};
use clap::{Args, Subcommand};
use half::{bf16, f16};
use safetensors::tensor::{TensorView, serialize};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Most elements of an array argument.
const MAX_ELEMENTS: usize = 1 << 28;

/// The kernel lab: list, check and time kernels; run a kernel of a PTX file without a GPU
#[derive(Args, Debug)]
pub struct KernelsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    List(lab::ListArgs),
    Check(lab::CheckArgs),
    Bench(lab::BenchArgs),
    Run(RunArgs),
}

/// Run a kernel of a PTX file on the CPU, look for its bugs, and count what makes it slow
///
/// It stops at the first access out of bounds, read of what nothing wrote, race in shared memory or divergent barrier, and says
/// in which thread and line. Numbers are as the hardware's, but for approximate functions and the order of sums in matrix products.
///
/// Arguments, one --arg for each parameter in order:
///   u32:5, i32:-1, u64:7, i64:7, f32:1.5, f64:1.5     a number
///   f32[1024]=iota | zeros | random | random:7        the address of an array; also f16, bf16 and i32
///   f32[1024]=x.safetensors:name                      likewise, from a file
///   out:f32[1024]                                     likewise, and reading it before the kernel has written it is an error
///   bf16[64x300/64x128]=random                        the map of a tensor, axes from the innermost, and the box that a copy brings
///
/// Example:
///   langevin kernels run saxpy.ptx --entry saxpy --grid 8 --block 128 \
///       --arg u32:1000 --arg f32:3 --arg f32[1000]=iota --arg f32[1000]=random --print 3
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct RunArgs {
    /// File of PTX text: ISA 8.8 or older
    file: PathBuf,
    /// The kernel
    #[arg(long)]
    entry: String,
    /// Blocks
    #[arg(long, value_name = "X[,Y,Z]")]
    grid: String,
    /// Threads of a block
    #[arg(long, value_name = "X[,Y,Z]")]
    block: String,
    /// Bytes of dynamic shared memory
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    shared: u32,
    /// An argument, see above
    #[arg(long = "arg", value_name = "ARG", allow_hyphen_values = true)]
    arguments: Vec<String>,
    /// Print an array afterwards: the argument's number, from 0, or its parameter's name
    #[arg(long, value_name = "ARG")]
    print: Vec<String>,
    /// Write all arrays afterwards, named as their parameters
    #[arg(long, value_name = "FILE.safetensors")]
    save: Option<PathBuf>,
    /// Instructions of warps after which it is an endless loop
    #[arg(long, value_name = "N", default_value_t = 1_000_000_000)]
    max_instructions: u64,
}

pub fn run(args: KernelsArgs, output: Output) -> Result<()> {
    match args.command {
        Command::List(args) => lab::list(&args, output),
        Command::Check(args) => lab::check_all(&args, output),
        Command::Bench(args) => lab::bench(&args, output),
        Command::Run(args) => run_file(args, output),
    }
}

fn run_file(args: RunArgs, output: Output) -> Result<()> {
    let text = std::fs::read_to_string(&args.file).map_err(|e| Error::io(&args.file, e))?;
    let module = Module::parse(&text).map_err(|e| Error::format(&args.file, e.to_string()))?;
    let entry = module.entry(&args.entry).ok_or_else(|| {
        let names: Vec<&str> = module.entries.iter().map(|e| e.name.as_str()).collect();
        let has = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Error::invalid("--entry", format!("{} has no `{}`; it has: {has}", args.file.display(), args.entry))
    })?;
    let mut memory = Memory::new();
    let mut launch = Launch::new(sizes("--grid", &args.grid)?, sizes("--block", &args.block)?);
    launch.shared_bytes = args.shared;
    launch.budget = args.max_instructions;
    let arrays = bind(entry, &args.arguments, &mut memory, &mut launch)?;
    let shown = args.print.iter().map(|name| find(&arrays, name)).collect::<Result<Vec<&Array>>>()?;
    let counters = entry.launch(&mut memory, &launch).map_err(|failure| match failure {
        Failure::Request(reason) => Error::invalid("the launch", reason),
        fault => fault.into_error(),
    })?;
    if let Some(path) = &args.save {
        save(path, &arrays, &memory)?;
    }
    report(&counters, &shown, &memory, output);
    Ok(())
}

/// `X`, `X,Y` or `X,Y,Z`.
fn sizes(option: &str, text: &str) -> Result<[u32; 3]> {
    let parts: Vec<Option<u32>> = text.split(',').map(|p| p.trim().parse().ok().filter(|n| *n > 0)).collect();
    let mut out = [1; 3];
    if parts.len() > 3 {
        return Err(Error::invalid(option, format!("`{text}` has more than three sizes")));
    }
    for (out, part) in out.iter_mut().zip(parts) {
        *out = part.ok_or_else(|| {
            Error::invalid(option, format!("`{text}` is not of the form X, X,Y or X,Y,Z, each 1 or more"))
        })?;
    }
    Ok(out)
}

/// An array argument in the machine's memory.
struct Array {
    /// The argument's number.
    index: usize,
    /// The parameter's name.
    name: String,
    dtype: Dtype,
    elements: usize,
    address: u64,
}

/// Turns the arguments into those of the launch.
fn bind(entry: &Entry, arguments: &[String], memory: &mut Memory, launch: &mut Launch) -> Result<Vec<Array>> {
    if arguments.len() != entry.parameters.len() {
        let expected: Vec<String> = entry.parameters.iter().map(|p| p.to_string()).collect();
        let (name, wanted, given) = (&entry.name, entry.parameters.len(), arguments.len());
        let expected = if expected.is_empty() { "none".to_owned() } else { expected.join(", ") };
        return Err(Error::invalid("--arg", format!("`{name}` takes {wanted} ({expected}), and {given} are given")));
    }
    let mut arrays = Vec::new();
    for (index, (text, parameter)) in arguments.iter().zip(&entry.parameters).enumerate() {
        let name = &parameter.name;
        let misfit = |what: &str| {
            Error::invalid(
                "--arg",
                format!("`{text}` is {what}, and parameter {index} of `{}` is `{parameter}`", entry.name),
            )
        };
        if !text.contains('[') {
            let (ty, value) = scalar(text)?;
            if value.len() as u64 != parameter.bytes
                || ty.is_float() != parameter.ty.is_float() && !matches!(parameter.ty, Type::B(_))
            {
                return Err(misfit("a number of another type"));
            }
            launch.arguments.push(value);
            continue;
        }
        let (dtype, shape, extent, data) = array(text)?;
        if extent.is_none() && (parameter.bytes != 8 || parameter.ty.is_float()) {
            return Err(misfit("an array, whose address has 64 bits"));
        }
        if extent.is_some() && parameter.bytes != TENSOR_MAP_BYTES as u64 {
            return Err(misfit("a tensor, whose map has 128 bytes"));
        }
        let elements = shape.iter().product();
        let address = match data {
            Some(data) => memory.allocate_with(name, &data)?,
            None => memory.allocate(name, elements * dtype.bitsize() / 8)?,
        };
        launch.arguments.push(match extent {
            Some(extent) => {
                let boxes = Boxes { dtype: stored(dtype), shape, extent, steps: vec![] };
                tensor_map(address, &boxes).encode()?.to_vec()
            }
            None => address.to_le_bytes().to_vec(),
        });
        arrays.push(Array { index, name: name.clone(), dtype, elements, address });
    }
    Ok(arrays)
}

/// `u32:5`
fn scalar(text: &str) -> Result<(Type, Vec<u8>)> {
    let wrong = |reason: &str| Error::invalid("--arg", format!("`{text}` {reason}"));
    let (ty, value) = text.split_once(':').ok_or_else(|| wrong("is neither TYPE:VALUE nor an array TYPE[N]=…"))?;
    macro_rules! number {
        ($ty:ty, $kind:expr) => {
            value.parse::<$ty>().ok().map(|v| ($kind, v.to_le_bytes().to_vec()))
        };
    }
    let parsed = match ty {
        "u32" => number!(u32, Type::U(32)),
        "i32" => number!(i32, Type::S(32)),
        "u64" => number!(u64, Type::U(64)),
        "i64" => number!(i64, Type::S(64)),
        "f32" => number!(f32, Type::F(32)),
        "f64" => number!(f64, Type::F(64)),
        _ => return Err(wrong("has none of the types u32, i32, u64, i64, f32, f64")),
    };
    parsed.ok_or_else(|| wrong(&format!("is not a number of the type {ty}")))
}

/// A type, a shape, the extent of a box, and bytes.
type ArrayText = (Dtype, Vec<usize>, Option<Vec<usize>>, Option<Vec<u8>>);

/// `f32[1024]=iota`, `out:f32[1024]`, `bf16[64x300/64x128]=random`: the type, the shape, the box if it is a tensor, and the bytes of what
/// is written.
fn array(text: &str) -> Result<ArrayText> {
    let wrong = |reason: &str| Error::invalid("--arg", format!("`{text}` {reason}"));
    let (out, rest) = match text.strip_prefix("out:") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let form = "is neither TYPE[N]=VALUES nor out:TYPE[N]";
    let (ty, rest) = rest.split_once('[').ok_or_else(|| wrong(form))?;
    let (count, rest) = rest.split_once(']').ok_or_else(|| wrong(form))?;
    let dtype = match ty {
        "f32" => Dtype::F32,
        "f16" => Dtype::F16,
        "bf16" => Dtype::BF16,
        "i32" => Dtype::I32,
        _ => return Err(wrong("has none of the types f32, f16, bf16, i32")),
    };
    let axes = |list: &str| list.split('x').map(|n| n.parse::<usize>().ok()).collect::<Option<Vec<usize>>>();
    let (shape, extent) = match count.split_once('/') {
        Some((shape, extent)) => (axes(shape), Some(axes(extent).ok_or_else(|| wrong("has a box that is none"))?)),
        None => (axes(count), None),
    };
    let product = |shape: &[usize]| shape.iter().try_fold(1, |all: usize, n| all.checked_mul(*n));
    let fits = |shape: &Vec<usize>| product(shape).is_some_and(|n| (1..=MAX_ELEMENTS).contains(&n));
    let shape = shape.filter(fits).ok_or_else(|| wrong(&format!("must have 1 to {MAX_ELEMENTS} elements")))?;
    let elements = shape.iter().product();
    if out {
        let taken = rest.is_empty().then_some((dtype, shape, extent, None));
        return taken.ok_or_else(|| wrong("is unwritten and has values"));
    }
    let source = rest.strip_prefix('=').ok_or_else(|| wrong(form))?;
    let data = match (source, source.split_once(':')) {
        ("zeros", _) => encode(dtype, (0..elements).map(|_| 0.0)),
        ("iota", _) => encode(dtype, (0..elements).map(|i| i as f64)),
        ("random", _) => random(dtype, elements, 0),
        (_, Some(("random", seed))) => {
            random(dtype, elements, seed.parse().map_err(|_| wrong("has a seed that is no number"))?)
        }
        _ => {
            let (file, name) = source
                .rsplit_once(':')
                .ok_or_else(|| wrong("has values that are none of zeros, iota, random, FILE:NAME"))?;
            read(Path::new(file), name, dtype, elements)?
        }
    };
    Ok((dtype, shape, extent, Some(data)))
}

/// The type of an array's numbers as tensors have it.
fn stored(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::Bf16,
        Dtype::I32 => DType::I32,
        _ => DType::F32,
    }
}

/// Numbers as the type stores them.
fn encode(dtype: Dtype, values: impl Iterator<Item = f64>) -> Vec<u8> {
    match dtype {
        Dtype::F16 => values.flat_map(|v| f16::from_f64(v).to_le_bytes()).collect(),
        Dtype::BF16 => values.flat_map(|v| bf16::from_f64(v).to_le_bytes()).collect(),
        Dtype::I32 => values.flat_map(|v| (v as i32).to_le_bytes()).collect(),
        _ => values.flat_map(|v| (v as f32).to_le_bytes()).collect(),
    }
}

/// Uniform numbers of [-1, 1), or integers of [-128, 128).
fn random(dtype: Dtype, elements: usize, seed: u64) -> Vec<u8> {
    let key = [seed as u32, (seed >> 32) as u32];
    let blocks =
        (0..elements.div_ceil(philox::LANES)).flat_map(|b| philox::block(key, (b * philox::LANES) as u32, [0; 3])[0]);
    let numbers = blocks.map(|word| 2.0 * f64::from(philox::uniform(word)) - 1.0).take(elements);
    // Integers take the floor, so that each is equally likely.
    if dtype == Dtype::I32 { encode(dtype, numbers.map(|v| (128.0 * v).floor())) } else { encode(dtype, numbers) }
}

fn read(path: &Path, name: &str, dtype: Dtype, elements: usize) -> Result<Vec<u8>> {
    let weights = Weights::open(path)?;
    let bytes = weights.bytes(name)?;
    match weights.info(name) {
        Some(info) if info.dtype == dtype && info.element_count() == elements => Ok(bytes.to_vec()),
        Some(info) => {
            let reason =
                format!("is {}{:?}, where {dtype} of {elements} elements is asked for", info.dtype, info.shape);
            Err(Error::tensor(path, name, reason))
        }
        None => Err(Error::tensor(path, name, "is missing")),
    }
}

/// The array of an argument's number or a parameter's name.
fn find<'a>(arrays: &'a [Array], name: &str) -> Result<&'a Array> {
    let matches = |a: &&Array| a.name == name || name.parse() == Ok(a.index);
    arrays.iter().find(matches).ok_or_else(|| {
        let names: Vec<String> = arrays.iter().map(|a| format!("{} ({})", a.index, a.name)).collect();
        let has = if names.is_empty() { "there are none".to_owned() } else { names.join(", ") };
        Error::invalid("--print", format!("`{name}` is not an array among the arguments: {has}"))
    })
}

fn save(path: &Path, arrays: &[Array], memory: &Memory) -> Result<()> {
    let mut views = Vec::new();
    for array in arrays {
        let (bytes, _) = memory.bytes(array.address).unwrap_or_default();
        let view = TensorView::new(array.dtype, vec![array.elements], bytes);
        views.push((array.name.as_str(), view.map_err(|e| Error::tensor(path, &array.name, e.to_string()))?));
    }
    let file = serialize(views, None).map_err(|e| Error::format(path, e.to_string()))?;
    write_atomic(path, &file)
}

/// Stored elements as numbers.
fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        Dtype::F16 => bytemuck::pod_collect_to_vec::<u8, f16>(bytes).iter().map(|v| v.to_f64()).collect(),
        Dtype::BF16 => bytemuck::pod_collect_to_vec::<u8, bf16>(bytes).iter().map(|v| v.to_f64()).collect(),
        Dtype::I32 => bytemuck::pod_collect_to_vec::<u8, i32>(bytes).iter().map(|v| f64::from(*v)).collect(),
        _ => bytemuck::pod_collect_to_vec::<u8, f32>(bytes).iter().map(|v| f64::from(*v)).collect(),
    }
}

fn report(counters: &Counters, shown: &[&Array], memory: &Memory, output: Output) {
    let mut text = counters.to_string();
    let mut arrays = serde_json::Map::new();
    for array in shown {
        let (bytes, written) = memory.bytes(array.address).unwrap_or_default();
        let values = decode(array.dtype, bytes);
        // Shortest digits that give the f32 again.
        let words: Vec<String> = values.iter().map(|v| (*v as f32).to_string()).collect();
        let remark = if written { "" } else { " (not all of it was written)" };
        let dtype = array.dtype.to_string().to_lowercase();
        text += &format!("\n{} {dtype}[{}]{remark}\n  {}", array.name, array.elements, words.join(" "));
        arrays.insert(array.name.clone(), json!({ "written": written, "values": values }));
    }
    let mut json = to_json(counters);
    json["arrays"] = arrays.into();
    output.result(text, json);
}

/// Counters as they are printed with `--json`.
pub(super) fn to_json(counters: &Counters) -> serde_json::Value {
    let instructions: serde_json::Map<_, _> =
        counters.instructions.iter().map(|(class, n)| (class.name().to_owned(), json!(n))).collect();
    let traffic = |t: &crate::ptx::count::Traffic| {
        json!({ "requests": t.requests, "sectors": t.sectors, "least_sectors": t.least_sectors, "bytes": t.bytes,
                "distinct_bytes": t.distinct_bytes })
    };
    json!({
        "instructions": instructions, "issued": counters.issued(), "lanes": counters.lanes,
        "divergent_branches": counters.divergent_branches, "flops": counters.flops,
        "loads": traffic(&counters.loads), "stores": traffic(&counters.stores),
        "shared_wavefronts": counters.shared_wavefronts, "bank_conflicts": counters.bank_conflicts,
    })
}
