//! `OTHINK_TRACE=FILE`: one line per launch, product by a library, choice of how, copy and allocation, in the order in which they were asked for.

use super::{Grid, Purpose};
use crate::error::{Error, Result};
use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// Where the log goes, if there is one.
pub(super) struct Trace(Option<Mutex<File>>);

impl Trace {
    pub(super) fn from_environment() -> Result<Trace> {
        let Some(path) = std::env::var_os("OTHINK_TRACE").filter(|path| !path.is_empty()) else {
            return Ok(Trace(None));
        };
        let file = File::options().create(true).append(true).open(&path);
        Ok(Trace(Some(Mutex::new(file.map_err(|e| Error::io(path, "write the trace", e))?))))
    }

    fn line(&self, text: impl FnOnce() -> String) {
        if let Trace(Some(file)) = self {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            // A trace that cannot be written is no reason to stop what it watches; one write keeps the lines of processes apart.
            let _ = file.write_all((text() + "\n").as_bytes());
        }
    }

    pub(super) fn launch(&self, kernel: &str, grid: Grid) {
        self.line(|| {
            let [bx, by, bz] = grid.blocks;
            let [tx, ty, tz] = grid.threads;
            format!(
                "launch {kernel} blocks {bx}x{by}x{bz} threads {tx}x{ty}x{tz} shared {}",
                grid.shared_bytes
            )
        });
    }

    /// A product that a library computes, by kernels of its own.
    pub(super) fn product(&self, text: impl FnOnce() -> String) {
        self.line(|| format!("product {}", text()));
    }

    /// What was chosen to compute products with.
    pub(super) fn choice(&self, text: impl FnOnce() -> String) {
        self.line(|| format!("choice {}", text()));
    }

    /// `route` is `host to device`, `device to host` or `device to device`.
    pub(super) fn copy(&self, route: &str, bytes: usize) {
        self.line(|| format!("copy {route} {bytes} bytes"));
    }

    pub(super) fn zero(&self, bytes: usize) {
        self.line(|| format!("zero {bytes} bytes"));
    }

    pub(super) fn allocation(&self, purpose: Purpose, bytes: usize) {
        self.line(|| format!("allocate {bytes} bytes for {purpose}"));
    }
}
