//! Who has a run folder, and what of a run before is in it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::run::{COMPLETIONS, EVAL_METRICS, METRICS, SKIPPED_DIR};
use crate::checkpoint::{checkpoint_dir, create_dir_all, list_checkpoints, sweep};
use crate::disk::Disk;
use crate::error::{Error, Result};

const LOCK: &str = "run.lock";

/// What a run leaves beside checkpoints; a run that overwrites it must not be taken for it.
const LEFT_BY_A_RUN: [&str; 6] =
    [METRICS, COMPLETIONS, EVAL_METRICS, "sft_metrics.jsonl", "report.html", "result.json"];

/// Removes what a run before has left: its checkpoints, the newest first, then its logs and its report. Cut short at any
/// point, it leaves a shorter run, and what is gone does not come back after a power cut.
///
/// # Errors
/// [`Error::Io`] for what cannot be removed.
pub fn clear(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let force = || disk.sync(dir).map_err(|e| Error::io(dir, "force to disk", e));
    for path in list_checkpoints(dir)?.into_iter().rev().map(|step| checkpoint_dir(dir, step)) {
        disk.remove_dir_all(&path)
            .map_err(|e| Error::io(&path, "remove the checkpoint of the run before", e))?;
        force()?;
    }
    let skipped = dir.join(SKIPPED_DIR);
    if skipped.is_dir() {
        disk.remove_dir_all(&skipped)
            .map_err(|e| Error::io(&skipped, "remove the batches of the run before", e))?;
    }
    for path in LEFT_BY_A_RUN.map(|name| dir.join(name)) {
        match disk.remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(Error::io(&path, "remove the file of the run before", e));
            }
            _ => {}
        }
    }
    force()
}

/// Whether a run folder holds anything but a lock.
///
/// # Errors
/// [`Error::Io`] for a folder that cannot be listed.
pub fn is_occupied(dir: &Path) -> Result<bool> {
    match std::fs::read_dir(dir) {
        Ok(entries) => Ok(entries.flatten().any(|entry| entry.file_name() != LOCK)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io(dir, "list the folder", e)),
    }
}

/// Refuses a folder that a run has.
///
/// # Errors
/// [`Error::Busy`] with process, machine and time.
pub fn refuse_in_use(dir: &Path) -> Result<()> {
    match File::open(dir.join(LOCK)) {
        Ok(file) if matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) => {
            Err(in_use(dir, &file))
        }
        _ => Ok(()),
    }
}

fn in_use(dir: &Path, lock: &File) -> Error {
    Error::Busy(format!(
        "{} is in use by another run ({}); wait for it, stop it, or name another --output_dir",
        dir.display(),
        owner(lock)
    ))
}

/// A run folder that belongs to this process alone, until it is dropped.
#[derive(Debug)]
pub struct RunLock {
    path: PathBuf,
    file: File,
    /// What to tell of a run that had the folder and did not end in order.
    pub note: Option<String>,
}

impl RunLock {
    /// Takes the folder, which is created if it is not there, and removes what an unfinished save has left in it.
    ///
    /// The system itself gives the lock back when a process ends, however it ends; the file only says whose it was.
    ///
    /// # Errors
    /// [`Error::Busy`] with process, machine and time when another run has it; [`Error::Io`].
    pub fn take(disk: &dyn Disk, dir: &Path) -> Result<RunLock> {
        create_dir_all(disk, dir)?;
        let path = dir.join(LOCK);
        let io = |e| Error::io(&path, "lock", e);
        let mut file = loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(io)?;
            match file.try_lock() {
                Ok(()) if is_at(&file, &path) => break file,
                // It was removed by the run that had it, between opening and locking.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(in_use(dir, &file)),
                Err(TryLockError::Error(e)) => return Err(io(e)),
            }
        };
        let before = owner(&file);
        let note = (!before.is_empty())
            .then(|| format!("{}: the run before ({before}) did not end in order", dir.display()));
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let text = format!("process {} on {}, started {}", std::process::id(), host.trim(), utc(seconds));
        file.set_len(0).and_then(|()| file.write_all(text.as_bytes())).map_err(io)?;
        sweep(disk, dir)?;
        Ok(RunLock { path, file, note })
    }
}

/// A time in seconds after 1970 as `2026-11-24 15:20:07 UTC`.
fn utc(seconds: u64) -> String {
    let (mut days, second) = (seconds / 86_400, seconds % 86_400);
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year}-{:02}-{:02} {hour:02}:{minute:02}:{second:02} UTC", month + 1, days + 1)
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // While it is still locked, so that nobody finds an empty one. What cannot be removed is only a note.
        let _ = std::fs::remove_file(&self.path);
        let _ = self.file.unlock();
    }
}

fn owner(mut file: &File) -> String {
    let mut text = String::new();
    let _ = file.take(200).read_to_string(&mut text);
    let _ = std::io::Seek::rewind(&mut file);
    text
}

/// Whether `path` still names this open file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), path.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        // From `date -u -d @N`.
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_709_164_800, "2024-02-29 00:00:00 UTC"),
            (1_795_539_878, "2026-11-24 17:04:38 UTC"),
        ] {
            assert_eq!(utc(seconds), expected);
        }
    }
}
