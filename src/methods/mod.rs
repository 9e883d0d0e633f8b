//! Methods: functions from a configuration to a [`Schedule`](crate::schedule::Schedule). None launches a kernel by itself.

pub mod classify;
pub mod forward;
pub mod sample;
pub mod train;
