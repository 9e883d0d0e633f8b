//! `langevin devices`

use super::Output;
use crate::{Device, Result};
use clap::Args;

/// List devices, which one `auto` would choose, and why the others are not there
///
/// A star marks the device that `auto` takes if that has all that is to run. LANGEVIN_ADAPTER=NAME chooses among the adapters
/// of the wgpu device by a part of their names.
///
/// Example: langevin devices --json
#[derive(Args, Debug)]
pub struct DevicesArgs {}

pub fn run(_: DevicesArgs, output: Output) -> Result<()> {
    let auto = Device::auto_for(|_| Ok(()), |passed| output.note(passed)).name();
    let reports = Device::report();
    let lines: Vec<String> = reports
        .iter()
        .map(|r| {
            let mark = if r.name == auto { "*" } else { " " };
            let state = if r.available { "" } else { "not available: " };
            let adapters = r.adapters.iter().map(|a| format!("\n{}", indented(&a.to_string())));
            format!("{mark} {:<5} {state}{}{}", r.name, r.detail, adapters.collect::<String>())
        })
        .collect();
    output.result(lines.join("\n"), serde_json::json!({ "auto": auto, "devices": reports }));
    Ok(())
}

fn indented(text: &str) -> String {
    text.lines()
        .enumerate()
        .map(|(i, line)| format!("{:w$}{line}", "", w = if i == 0 { 10 } else { 12 }))
        .collect::<Vec<_>>()
        .join("\n")
}
