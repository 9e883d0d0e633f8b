//! Training runs of a reproduction: begun once, gone on with, and then used.

use super::{Event, Request, Watch};
use crate::Result;
use crate::run::{Run, Settings, is_run};
use std::path::PathBuf;

/// Trains a run in the folder of that name, or goes on with the one that is there; where it is.
///
/// # Errors
/// [`crate::Error::Invalid`] if there is a run with other settings or data.
pub(super) fn train(request: &Request, name: &str, settings: Settings, watch: &mut Watch) -> Result<PathBuf> {
    let folder = request.out.join(name);
    let mut run = match is_run(&folder) {
        true => Run::resume(&folder, |_| Ok(settings), request.device.clone())?,
        false => Run::start(&folder, settings, request.device.clone())?,
    };
    let left = run.settings().steps.saturating_sub(run.trainer().steps_done());
    if left > 0 {
        watch(Event::Begin { what: &format!("training {name}"), steps: left as u64 })?;
    }
    run.finish(&mut |_, _| watch(Event::Step(1)))?;
    Ok(folder)
}
