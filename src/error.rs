//! One error type for the whole crate. Every variant says what went wrong, where, and with which shapes or names.

use std::path::{Path, PathBuf};

/// `Result` with langevin's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, grouped by who can mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // --- files -------------------------------------------------------------------------------------------------
    /// Reading or writing a file failed.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// A file is not what its format says it must be.
    #[error("{}: {reason}", path.display())]
    Format { path: PathBuf, reason: String },
    /// A tensor in a file is missing, unexpected, or of the wrong shape or dtype.
    #[error("{}: tensor `{tensor}`: {reason}", path.display())]
    Tensor { path: PathBuf, tensor: String, reason: String },
    /// A configuration field has a value that cannot be used.
    #[error("{}: field `{field}`: {reason}", path.display())]
    Config { path: PathBuf, field: String, reason: String },

    // --- requests ----------------------------------------------------------------------------------------------
    /// An option or argument is out of range or contradicts another.
    #[error("{option}: {reason}")]
    Invalid { option: String, reason: String },
    /// Asked for something that this build or this device does not have.
    #[error("{what} is not supported: {reason}")]
    Unsupported { what: String, reason: String },

    // --- graphs ------------------------------------------------------------------------------------------------
    /// An op was given inputs whose shapes or dtypes it cannot take.
    #[error("{op}: {reason}")]
    Shape { op: String, reason: String },
    /// A pass produced a graph, plan or program that breaks an invariant: a bug in langevin.
    #[error("verification after {pass}: {reason}")]
    Verify { pass: &'static str, reason: String },

    // --- running -----------------------------------------------------------------------------------------------
    /// The device cannot be used, or failed.
    #[error("device {device}: {reason}")]
    Device { device: &'static str, reason: String },
    /// The device went away while it ran: a driver's reset, or the hardware was taken out.
    #[error("device {device} was lost: {reason}")]
    DeviceLost { device: &'static str, reason: String },
    /// The device has no memory left for something.
    #[error("device {device}: no memory for the {what} of {:.1} MiB", *bytes as f64 / 1048576.0)]
    OutOfMemory { device: &'static str, what: String, bytes: u64 },
    /// The device's compiler rejected a kernel: a bug in langevin or in the driver.
    #[error("device {device}: the kernel {kernel} was rejected: {reason}")]
    Kernel { device: &'static str, kernel: &'static str, reason: String },
    /// Something is larger than the device can address at once.
    #[error("{what} has {bytes} bytes, at most {limit} are possible there")]
    TooLarge { what: String, bytes: u64, limit: u64 },
    /// A thread of langevin's ended early: a bug in langevin.
    #[error("the thread of {what} ended: {reason}")]
    Thread { what: &'static str, reason: String },
    /// Another of the processes that train together stopped, and with it all of them.
    #[error("process {rank}: {reason}")]
    Rank { rank: usize, reason: String },
    /// A NaN or an infinity appeared where there must be none.
    #[error("{what} became {value} at step {step}")]
    NotFinite { what: String, value: f32, step: usize },
    /// The caller asked for the run to stop.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// An I/O error with the path it happened on.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_owned(), source }
    }

    /// A malformed file.
    pub fn format(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Error::Format { path: path.as_ref().to_owned(), reason: reason.into() }
    }

    /// A tensor of a file that does not fit.
    pub fn tensor(path: impl AsRef<Path>, tensor: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Tensor { path: path.as_ref().to_owned(), tensor: tensor.into(), reason: reason.into() }
    }

    /// A configuration field that does not fit.
    pub fn config(path: impl AsRef<Path>, field: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Config { path: path.as_ref().to_owned(), field: field.into(), reason: reason.into() }
    }

    /// An option that cannot be used as given.
    pub fn invalid(option: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Invalid { option: option.into(), reason: reason.into() }
    }

    /// Something this build or device lacks.
    pub fn unsupported(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Unsupported { what: what.into(), reason: reason.into() }
    }

    /// Inputs that an op cannot take.
    pub fn shape(op: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Shape { op: op.into(), reason: reason.into() }
    }
}
