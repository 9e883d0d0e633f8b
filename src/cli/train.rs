//! `langevin train`

use super::progress::Progress;
use super::{Output, choose};
use crate::collective::{agree, join};
use crate::run::{Key, PRESETS, Run, Settings, parse, preset};
use crate::{Device, Error, Result};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use serde_json::json;
use std::path::PathBuf;
use toml::{Table, Value};

/// Train a network to denoise, in a run folder that can be watched, killed and resumed
///
/// Settings come from a preset, then a TOML file, then flags, each over the one before; `--explain` prints them all with
/// their meanings, as a file to start from. The folder gets the settings, a log, plots, event files for TensorBoard,
/// checkpoints, and the averaged weights as a model folder: `langevin sample --model RUN`.
///
/// Examples:
///   langevin train --network mnist-unet --data t10k-images-idx3-ubyte.gz --steps 2000 --out runs/mnist
///   langevin train --preset mnist-dit-moe --data t10k-images-idx3-ubyte.gz --out runs/experts
///   langevin train --preset edm-cifar10 --data cifar10.zip --out runs/cifar --checkpoint-every 1000
///   langevin train --explain > run.toml && langevin train --config run.toml --out runs/mine
///   langevin train --resume --out runs/mine
///   mpirun -n 4 --bind-to none langevin train --config run.toml --out runs/mine     # a build with the feature `mpi`
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct TrainArgs {
    /// The run's folder
    #[arg(long, required_unless_present = "explain")]
    out: Option<PathBuf>,
    /// Go on with the run in that folder, from its last checkpoint
    #[arg(long)]
    resume: bool,
    /// Settings that ship with langevin
    #[arg(long, value_name = "NAME", value_parser = PRESETS.map(|(name, _)| name))]
    preset: Option<String>,
    /// A TOML file with settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print all settings as they would be, with their meanings, and stop
    #[arg(long)]
    explain: bool,
    #[arg(long, default_value = "auto")]
    device: String,
    #[command(flatten)]
    flags: Flags,
}

/// A flag for every key of the settings.
#[derive(Debug)]
struct Flags(Table);

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        let defaults = Table::try_from(Settings::default()).unwrap_or_default();
        Settings::KEYS.iter().fold(command, |command, key| command.arg(flag(key, defaults.get(key.name))))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Flags::augment_args(command)
    }
}

fn flag(key: &Key, default: Option<&Value>) -> Arg {
    let name = key.name.replace('_', "-");
    let default = default.map(Value::to_string).unwrap_or_default();
    let shown = if matches!(default.as_str(), "\"\"" | "[]" | "false") {
        String::new()
    } else {
        format!(" [default: {default}]")
    };
    let arg = Arg::new(key.name).long(name).help(format!("{}{shown}", key.help.trim())).help_heading(key.group);
    match default.as_str() {
        "false" | "true" => arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL"),
        list if list.starts_with('[') => arg.value_name("LIST").action(ArgAction::Set),
        _ => arg.value_name("VALUE").allow_negative_numbers(true),
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let defaults = Table::try_from(Settings::default()).unwrap_or_default();
        let mut table = Table::new();
        for key in Settings::KEYS {
            if let (Some(text), Some(default)) = (matches.get_one::<String>(key.name), defaults.get(key.name)) {
                let value = value(text, default).map_err(|reason| {
                    let flag = key.name.replace('_', "-");
                    clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("--{flag}: {reason}\n"))
                })?;
                table.insert(key.name.into(), value);
            }
        }
        Ok(Flags(table))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.extend(Flags::from_arg_matches(matches)?.0);
        Ok(())
    }
}

/// A flag's text as a value of the default's type.
fn value(text: &str, default: &Value) -> Result<Value, String> {
    let number = |text: &str| -> Result<Value, String> {
        let plain = text.trim();
        let parsed = plain.parse::<i64>().map(Value::Integer).or_else(|_| plain.parse::<f64>().map(Value::Float));
        parsed.map_err(|_| format!("`{text}` is not a number"))
    };
    match default {
        Value::String(_) => Ok(Value::String(text.into())),
        Value::Boolean(_) => {
            text.parse().map(Value::Boolean).map_err(|_| format!("`{text}` is neither true nor false"))
        }
        Value::Array(defaults) => {
            let words = matches!(defaults.first(), Some(Value::String(_)));
            let item = |t: &str| if words { Ok(Value::String(t.trim().into())) } else { number(t) };
            let items = text.split(',').filter(|t| !t.trim().is_empty()).map(item);
            items.collect::<Result<Vec<_>, _>>().map(Value::Array)
        }
        Value::Integer(_) => match number(text)? {
            Value::Integer(n) if n >= 0 => Ok(Value::Integer(n)),
            _ => Err(format!("`{text}` is not a whole number from 0 up")),
        },
        _ => number(text),
    }
}

pub fn run(args: TrainArgs, output: Output) -> Result<()> {
    if args.explain {
        print!("{}", args.settings(None)?.to_toml()?);
        return Ok(());
    }
    let mut ranks = join()?;
    // Of several processes the first one speaks.
    let (first, size) = (ranks.rank() == 0, ranks.size());
    let output = Output { quiet: output.quiet || !first, json: output.json && first };
    let alone = |_: &Device| match size {
        1 => Ok(()),
        _ => Err(Error::unsupported("a sum over processes", "gradients are not in host memory there")),
    };
    let device = agree(&mut *ranks, choose(&args.device, output, alone))?;
    let Some(out) = &args.out else { return Err(Error::invalid("--out", "is missing")) };
    let mut run = if args.resume {
        Run::resume_among(ranks, out, |before| args.settings(Some(before)), device)?
    } else {
        let settings = agree(&mut *ranks, args.settings(None))?;
        Run::start_among(ranks, out, settings, device)?
    };
    if run.skipped().count > 0 {
        output.note(format!("images: {}", run.skipped()));
    }
    let trainer = run.trainer();
    let (weights, mib) = (trainer.parameters(), trainer.session().arena_bytes() as f64 / 1048576.0);
    output.note(format!("{weights} weights, an arena of {mib:.0} MiB"));
    if size > 1 {
        output.note(format!("{size} processes; this one has {} threads", rayon::current_num_threads()));
    }
    train(&mut run, output)
}

fn train(run: &mut Run, output: Output) -> Result<()> {
    let (steps, first) = (run.settings().steps, run.trainer().steps_done());
    let bar = Progress::new(output, steps as u64, "steps");
    // An interrupt that came before the first step is seen behind it, where all processes hear of it.
    let _ = bar.advance(first as u64);
    let mut smooth = None;
    let every = run.settings().log_every.max(1);
    let result = run.finish(&mut |run, report| {
        let loss = *smooth.insert(smooth.map_or(report.loss, |s: f32| 0.98 * s + 0.02 * report.loss));
        let rate = run.images_per_second();
        bar.message(format!("loss {loss:.4} {rate:.0} img/s"));
        if output.json && (report.step.is_multiple_of(every) || report.step == steps) {
            println!(
                "{}",
                json!({ "step": report.step, "loss": loss, "grad_norm": report.grad_norm, "lr": report.learning_rate, "images_per_second": rate })
            );
        }
        bar.advance(1)
    });
    bar.finish();
    let (done, out) = (run.trainer().steps_done(), run.path().display().to_string());
    match result {
        Err(Error::Cancelled) => {
            output.note(format!("stopped after step {done} with a checkpoint; --resume goes on: {out}"));
            Err(Error::Cancelled)
        }
        Err(e) => {
            output.note(format!("stopped at step {}; checkpoints before it are whole: {out}", done + 1));
            Err(e)
        }
        Ok(()) => {
            let ranks = run.trainer().ranks();
            if ranks.rank() == 0 {
                let json = json!({ "out": out, "steps": done, "ranks": ranks.size() });
                output.result(format!("{done} steps: {out}"), json);
            }
            Ok(())
        }
    }
}

impl TrainArgs {
    /// The settings by preset, file and flags, over those of the run that is resumed.
    fn settings(&self, before: Option<&Settings>) -> Result<Settings> {
        let mut layers: Vec<(PathBuf, Table)> = Vec::new();
        if let Some(before) = before {
            let table = Table::try_from(before).map_err(|e| Error::invalid("--resume", e.to_string()))?;
            layers.push(("config.toml".into(), table));
        }
        if let Some(name) = &self.preset {
            layers.push((name.into(), preset(name)?));
        }
        if let Some(path) = &self.config {
            let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
            layers.push((path.clone(), parse(path, &text)?));
        }
        layers.push(("the command line".into(), self.flags.0.clone()));
        Settings::from_layers(layers.iter().map(|(path, table)| (path.as_path(), table)))
    }
}
