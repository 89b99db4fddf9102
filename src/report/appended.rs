//! Files that a run appends to: on disk as soon as something is written, whole whatever the disk does.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::checkpoint::Log;
use crate::disk::{Disk, DiskFile};
use crate::error::{Error, Result};

/// A file of records, which one thread appends while the saving thread forces it to disk.
#[derive(Debug)]
pub struct Appended {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: Box<dyn DiskFile>,
    /// Bytes of whole records in the file.
    length: u64,
    /// Of these, what was forced to disk.
    forced: u64,
    /// Records that could not be written yet.
    pending: Vec<u8>,
    /// Whether a refused write may have left half a record behind them.
    torn: bool,
    /// Whether forcing to disk has failed: the system may have dropped what is not forced, and call it written.
    in_doubt: bool,
}

/// Records that the disk has refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backlog {
    /// Everything is written.
    None,
    /// Some records wait in memory.
    Some,
    /// So many wait that it is better to stop.
    TooMuch,
}

impl Appended {
    /// Most bytes that wait for a disk that refuses them.
    const MAX_PENDING_BYTES: usize = 64 << 20;

    /// Starts an empty file, replacing what was there.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Missing`] when the file cannot be created.
    pub fn create(disk: &dyn Disk, path: &Path) -> Result<Appended> {
        let file = disk.create(path).map_err(|error| Error::io(path, "create", error))?;
        Ok(Appended::of(path, file, 0))
    }

    /// Goes on behind the first `length` bytes of a file that is there; the rest goes.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened or cut.
    pub fn go_on(disk: &dyn Disk, path: &Path, length: u64) -> Result<Appended> {
        let file = disk.append(path, length).map_err(|error| Error::io(path, "open", error))?;
        Ok(Appended::of(path, file, length))
    }

    fn of(path: &Path, file: Box<dyn DiskFile>, length: u64) -> Appended {
        let state = State { file, length, forced: length, pending: Vec::new(), torn: false, in_doubt: false };
        Appended { path: path.to_path_buf(), state: Mutex::new(state) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one record. When the disk refuses, it is kept and goes first the next time, so that a caller may go on;
    /// nothing of it stands half in the file.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk refuses.
    pub fn append(&self, record: &[u8]) -> Result<()> {
        let mut state = self.lock();
        state.pending.extend_from_slice(record);
        state.flush(&self.path)
    }

    /// Writes the records that were refused before.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk still refuses.
    pub fn flush(&self) -> Result<()> {
        self.lock().flush(&self.path)
    }

    /// Whether records wait that the disk has refused, and whether they have become too many to wait on.
    pub fn backlog(&self) -> Backlog {
        match self.lock().pending.len() {
            0 => Backlog::None,
            n if n <= Self::MAX_PENDING_BYTES => Backlog::Some,
            _ => Backlog::TooMuch,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic between two of its changes leaves records that are written again.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for Appended {
    fn force(&self, disk: &dyn Disk) -> Result<()> {
        let length = {
            let mut state = self.lock();
            if state.in_doubt {
                state.take_back(&self.path)?;
            }
            state.flush(&self.path)?;
            state.length
        };
        // Without the lock: a step that appends a record does not wait for the disk.
        let forced = match disk.sync(&self.path) {
            // Somebody has removed it while the run goes on: nothing is left to be kept.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        let mut state = self.lock();
        match forced {
            Ok(()) => state.forced = length,
            Err(_) => state.in_doubt = true,
        }
        forced.map_err(|error| Error::io(&self.path, "force to disk", error))
    }
}

impl State {
    fn flush(&mut self, path: &Path) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let io = |error| Error::io(path, "append to", error);
        if self.torn {
            self.file.truncate(self.length).map_err(io)?;
            self.torn = false;
        }
        if let Err(error) = self.file.write_all(&self.pending) {
            // When the cut is refused as well, the next try begins with it.
            self.torn = self.file.truncate(self.length).is_err();
            return Err(io(error));
        }
        self.length += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Takes what may have been dropped out of the file, to be written again.
    fn take_back(&mut self, path: &Path) -> Result<()> {
        let mut records = Vec::new();
        File::open(path)
            .and_then(|mut file| {
                file.seek(SeekFrom::Start(self.forced))?;
                file.take(self.length - self.forced).read_to_end(&mut records)
            })
            .map_err(|error| Error::io(path, "read", error))?;
        records.append(&mut self.pending);
        (self.pending, self.length) = (records, self.forced);
        (self.torn, self.in_doubt) = (true, false);
        Ok(())
    }
}

/// Opens a file that a run is to go on with; `None` where there is none.
///
/// # Errors
/// [`Error::Content`] for what is no regular file; [`Error::Io`] when it cannot be opened.
pub(super) fn open_regular(path: &Path) -> Result<Option<File>> {
    // Asked before opening: a device may never end, a pipe would wait for a writer.
    match path.metadata() {
        Ok(metadata) if !metadata.is_file() => {
            Err(Error::content(path, "is no regular file, so no run can go on with it"))
        }
        Ok(_) => File::open(path).map(Some).map_err(|error| Error::io(path, "read", error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path, "read", error)),
    }
}
