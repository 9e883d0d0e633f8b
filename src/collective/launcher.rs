//! What launchers of several processes leave in the environment.

use super::{Alone, Collective};
use crate::Result;

/// Open MPI and launchers that speak PMI say how many processes they started.
const SIZES: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

/// Open MPI and MPICH say how many of them are on this machine.
const LOCAL_SIZES: [&str; 2] = ["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"];

fn first(names: &[&str], read: impl Fn(&str) -> Option<String>) -> Option<usize> {
    names.iter().find_map(|name| read(name)?.parse().ok())
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The processes that this one was started with; [`Alone`] if a launcher did not start several. Once a process.
///
/// # Errors
/// [`crate::Error::Unsupported`] if there are several and langevin was built without MPI: each would train all of it.
pub fn join() -> Result<Box<dyn Collective>> {
    match first(&SIZES, environment) {
        Some(size) if size > 1 => several(size),
        _ => Ok(Box::new(Alone)),
    }
}

#[cfg(feature = "mpi")]
fn several(_: usize) -> Result<Box<dyn Collective>> {
    Ok(Box::new(super::Mpi::new()?))
}

#[cfg(not(feature = "mpi"))]
fn several(size: usize) -> Result<Box<dyn Collective>> {
    let reason =
        "this langevin was built without the feature `mpi`; build it with `cargo build --release --features mpi`";
    Err(crate::Error::unsupported(format!("training by {size} processes"), reason))
}

/// Threads that a process may use by default: its share of the cores that it may run on, if a launcher started several on this
/// machine; else `None`, which is all of them. A launcher that binds processes to cores has made shares already, and these are
/// divided again: more than was given is never taken.
pub fn threads() -> Option<usize> {
    let processes = first(&LOCAL_SIZES, environment).filter(|n| *n > 1)?;
    let cores = std::thread::available_parallelism().ok()?.get();
    Some((cores / processes).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_counts() {
        let read = |name: &str| match name {
            "OMPI_COMM_WORLD_SIZE" => Some("many".to_string()),
            "PMI_SIZE" => Some("4".to_string()),
            _ => None,
        };
        assert_eq!(first(&SIZES, read), Some(4));
        assert_eq!(first(&LOCAL_SIZES, read), None);
    }
}
