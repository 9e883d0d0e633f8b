//! The command line: every subcommand is a thin layer over the library.

mod bench;
mod compare;
mod compare_methods;
mod devices;
mod eval;
mod forward;
mod inspect;
mod kernels;
mod lab;
mod lora;
mod plan;
mod progress;
mod reflect;
mod reproduce;
mod sample;
mod train;
mod train_classifier;

use crate::collective;
use crate::graph::{replace_kernel, unused_replacement};
use crate::tensor::DType;
use crate::{Device, Error, Result};
use clap::{CommandFactory, Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// A diffusion engine whose kernels are its own.
#[derive(Parser, Debug)]
#[command(name = "langevin", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print nothing but results and errors
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Print results as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Threads of the CPU device [default: all; a share of them where a launcher started several processes]
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    /// Run another kernel in the place of one: its name, and a .ptx or .wgsl file with the same entries and parameters
    #[arg(long, global = true, value_name = "KERNEL=FILE")]
    replace: Vec<String>,
}

#[derive(Subcommand, Debug)]
enum Command {
    Sample(Box<sample::SampleArgs>),
    Train(train::TrainArgs),
    Eval(Box<eval::EvalArgs>),
    TrainClassifier(train_classifier::TrainClassifierArgs),
    Compare(Box<compare::CompareArgs>),
    Reproduce(reproduce::ReproduceArgs),
    Forward(forward::ForwardArgs),
    Plan(plan::PlanArgs),
    Inspect(inspect::InspectArgs),
    Kernels(kernels::KernelsArgs),
    Bench(bench::BenchArgs),
    Devices(devices::DevicesArgs),
    /// Print a completion script for a shell
    ///
    /// Example: langevin completions bash > ~/.local/share/bash-completion/completions/langevin
    Completions {
        shell: clap_complete::Shell,
    },
}

/// How results are shown.
#[derive(Clone, Copy, Debug)]
struct Output {
    quiet: bool,
    json: bool,
}

impl Output {
    /// A remark for people: neither in JSON nor if quiet.
    fn note(&self, text: impl std::fmt::Display) {
        if !self.quiet && !self.json {
            eprintln!("{text}");
        }
    }

    /// The result: text for people, or JSON.
    fn result(&self, text: impl std::fmt::Display, json: serde_json::Value) {
        let text = if self.json { json.to_string() } else { text.to_string() };
        // A closed pipe is the reader's choice.
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}

/// The device of that name; `auto` is the best one that `fits`: it lowers what is to run, where an op from elsewhere may be in it.
fn choose(name: &str, output: Output, fits: impl Fn(&Device) -> Result<()>) -> Result<Device> {
    match name {
        "auto" => Ok(Device::auto_for(fits, |passed| output.note(passed))),
        name => name.parse(),
    }
}

/// What `--dtype` names: how weights and activations lie in memory.
fn storage_type(name: &str) -> Result<DType> {
    match name {
        "f32" => Ok(DType::F32),
        "f16" => Ok(DType::F16),
        "bf16" => Ok(DType::Bf16),
        _ => Err(Error::invalid("--dtype", format!("`{name}` is none of f32, f16, bf16"))),
    }
}

/// Set by Ctrl-C.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// [`Error::Cancelled`] once Ctrl-C was pressed.
fn check_interrupt() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
}

/// Parses the arguments and runs the command. The exit code is 0, 1 for an error, 130 after Ctrl-C, 2 for wrong usage.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let output = Output { quiet: cli.quiet, json: cli.json };
    let result = set_up(&cli).and_then(|()| match cli.command {
        Command::Sample(args) => sample::run(*args, output),
        Command::Train(args) => train::run(args, output),
        Command::Eval(args) => eval::run(*args, output),
        Command::TrainClassifier(args) => train_classifier::run(args, output),
        Command::Compare(args) => compare::run(*args, output),
        Command::Reproduce(args) => reproduce::run(args, output),
        Command::Forward(args) => forward::run(args, output),
        Command::Plan(args) => plan::run(args, output),
        Command::Inspect(args) => inspect::run(args, output),
        Command::Kernels(args) => kernels::run(args, output),
        Command::Bench(args) => bench::run(args, output),
        Command::Devices(args) => devices::run(args, output),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "langevin", &mut std::io::stdout());
            Ok(())
        }
    });
    match result.and_then(|()| all_replaced()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Cancelled) => {
            eprintln!("langevin: stopped");
            ExitCode::from(130)
        }
        Err(e) => {
            eprintln!("langevin: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Fails if something was to be replaced that did not run.
fn all_replaced() -> Result<()> {
    match unused_replacement() {
        Some(kernel) => {
            Err(Error::invalid("--replace", format!("nothing that ran has a kernel `{kernel}` of that kind")))
        }
        None => Ok(()),
    }
}

fn set_up(cli: &Cli) -> Result<()> {
    for replacement in &cli.replace {
        let Some((kernel, file)) = replacement.split_once('=') else {
            return Err(Error::invalid("--replace", format!("`{replacement}` is not of the form KERNEL=FILE")));
        };
        replace_kernel(kernel, file.as_ref())?;
    }
    // A second Ctrl-C ends the process at once. Without a handler Ctrl-C still ends it, only less cleanly.
    let _ = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    });
    let Some(threads) = cli.threads.or_else(collective::threads) else { return Ok(()) };
    if threads == 0 {
        return Err(Error::invalid("--threads", "must be at least 1"));
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    pool.map_err(|e| Error::invalid("--threads", e.to_string()))
}
