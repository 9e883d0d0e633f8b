//! `langevin devices`

use super::Output;
use crate::{Device, Result};
use clap::Args;

/// List devices, which one `auto` would choose, and why the others are not there
///
/// Example: langevin devices --json
#[derive(Args, Debug)]
pub struct DevicesArgs {}

pub fn run(_: DevicesArgs, output: Output) -> Result<()> {
    let auto = Device::auto().name();
    let reports = Device::report();
    let lines: Vec<String> = reports
        .iter()
        .map(|r| {
            let mark = if r.name == auto { "*" } else { " " };
            let state = if r.available { "" } else { "not available: " };
            format!("{mark} {:<5} {state}{}", r.name, r.detail)
        })
        .collect();
    output.result(lines.join("\n"), serde_json::json!({ "auto": auto, "devices": reports }));
    Ok(())
}
