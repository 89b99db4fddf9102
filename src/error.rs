//! The one error type of the crate.
//!
//! Every error names the thing that is wrong and the mend, and belongs to one
//! class; the class decides the exit code of the binary.

use std::path::{Path, PathBuf};

/// Result with the crate's error.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, by who has to act.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A wrong option, config key or value. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// A file whose content is not what it has to be (model, dataset, image). Exit code 65.
    #[error("{}: {message}", path.display())]
    Content {
        /// The offending file or folder.
        path: PathBuf,
        /// What was expected, what came, and how to mend it.
        message: String,
    },
    /// A value that does not fit the loaded model or data, with no file to blame. Exit code 65.
    #[error("{0}")]
    Input(String),
    /// An input that is not there. Exit code 66.
    #[error("{}: {message}", path.display())]
    Missing {
        /// The path that was looked for.
        path: PathBuf,
        /// What it should hold and how to get it.
        message: String,
    },
    /// The requested device cannot be used. Exit code 69.
    #[error("{0}")]
    Device(String),
    /// Another run has the folder. Exit code 69.
    #[error("{0}")]
    Busy(String),
    /// A reward that a process of the user's computes cannot be had. Exit code 69.
    #[error("{0}")]
    Reward(String),
    /// The run stopped to protect itself (NaN loss, failed self-check). Exit code 70.
    #[error("{0}")]
    Protect(String),
    /// There is not enough memory. Exit code 71.
    #[error("{0}")]
    Memory(String),
    /// The operating system refused a read or write. Exit code 74.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a verb phrase ("read", "create the folder").
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A signal asked to stop; what was done is saved, and the run can go on. Exit code 75.
    #[error("{0}")]
    Interrupted(String),
    /// A broken promise inside the program: always a bug of ours. Exit code 1.
    #[error("internal error: {0} (this is a bug in othink-train; please report it)")]
    Internal(String),
}

impl Error {
    /// Exit code 65, with the file to blame.
    pub fn content(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::Content { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// Exit code 66.
    pub fn missing(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::Missing { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// Exit code 74, or 66 when what is to be read simply is not there.
    pub fn io(path: impl AsRef<Path>, action: &'static str, source: std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        let reads = ["read", "open", "list"].iter().any(|verb| action.starts_with(verb));
        if reads && source.kind() == std::io::ErrorKind::NotFound {
            return Error::Missing { path, message: format!("cannot {action}: not found") };
        }
        Error::Io { path, action, source }
    }

    /// The process exit code for this class (see the README's table).
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Internal(_) => 1,
            Error::Usage(_) => 2,
            Error::Content { .. } | Error::Input(_) => 65,
            Error::Missing { .. } => 66,
            Error::Device(_) | Error::Busy(_) | Error::Reward(_) => 69,
            Error::Protect(_) => 70,
            Error::Memory(_) => 71,
            Error::Io { .. } => 74,
            Error::Interrupted(_) => 75,
        }
    }
}
