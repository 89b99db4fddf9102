//! JSON lines: one object per line, on disk as soon as it is written.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::console::escape_json;
use crate::disk::{Disk, DiskFile};
use crate::error::{Error, Result};

/// One object of a JSON-lines file, its keys in the file's order.
pub type Row = serde_json::Map<String, Value>;

/// Appends objects to a file, one per line.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    /// Bytes of whole lines in the file.
    length: u64,
    /// Lines that could not be written yet.
    pending: Vec<u8>,
    /// Whether a refused write may have left half a line behind them.
    torn: bool,
}

impl JsonLines {
    /// Most bytes that wait for a disk that refuses them.
    const MAX_PENDING_BYTES: usize = 64 << 20;

    /// Starts an empty file, replacing what was there.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Missing`] when the file cannot be created.
    pub fn create(disk: &dyn Disk, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = disk.create(path).map_err(|error| Error::io(path, "create", error))?;
        Ok(JsonLines { path: path.to_path_buf(), file, length: 0, pending: Vec::new(), torn: false })
    }

    /// Continues a file at `first_step`: rows of that step and later ones, and a last line that a crash cut short, are
    /// dropped first. A file that is not there is created.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read or written.
    pub fn resume(disk: &dyn Disk, path: impl AsRef<Path>, first_step: u64) -> Result<Self> {
        let path = path.as_ref();
        // Asked before opening: a device may never end, a pipe would wait for a writer.
        let length = match path.metadata() {
            Ok(metadata) if !metadata.is_file() => {
                return Err(Error::content(path, "is no regular file, so no run can go on with it"));
            }
            Ok(_) => File::open(path).and_then(|file| rows_before(file, first_step)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Self::create(disk, path),
            Err(error) => Err(error),
        };
        let length = length.map_err(|error| Error::io(path, "read", error))?;
        let file = disk.append(path, length).map_err(|error| Error::io(path, "open", error))?;
        Ok(JsonLines { path: path.to_path_buf(), file, length, pending: Vec::new(), torn: false })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one record as one line. When the disk refuses, the line is kept and goes first the next time, so that
    /// a caller may go on; nothing of it stands half in the file.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk refuses; [`Error::Internal`] when the record is not JSON-like.
    pub fn append(&mut self, record: &impl Serialize) -> Result<()> {
        let json = serde_json::to_string(record)
            .map_err(|error| Error::Internal(format!("a record is not JSON: {error}")))?;
        self.pending.extend_from_slice(escape_json(&json).as_bytes());
        self.pending.push(b'\n');
        self.flush()
    }

    /// Writes the lines that were refused before.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk still refuses.
    pub fn flush(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let io = |error| Error::io(&self.path, "append to", error);
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

    /// Whether lines wait that the disk has refused, and whether they have become too many to wait on.
    pub fn backlog(&self) -> Backlog {
        match self.pending.len() {
            0 => Backlog::None,
            n if n <= Self::MAX_PENDING_BYTES => Backlog::Some,
            _ => Backlog::TooMuch,
        }
    }
}

/// Lines that the disk has refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backlog {
    /// Everything is written.
    None,
    /// Some lines wait in memory.
    Some,
    /// So many wait that it is better to stop.
    TooMuch,
}

/// Length in bytes of the leading whole rows whose `step` is below `first_step`.
fn rows_before(file: File, first_step: u64) -> std::io::Result<u64> {
    let mut reader = BufReader::new(file);
    let (mut kept, mut line) = (0, Vec::new());
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)?;
        let step = serde_json::from_slice::<Row>(&line).ok().and_then(|row| row.get("step")?.as_u64());
        match step {
            Some(step) if line.ends_with(b"\n") && step < first_step => kept += length as u64,
            _ => return Ok(kept),
        }
    }
}

/// Reads every line of a JSON-lines file, empty lines aside.
///
/// # Errors
/// [`Error::Missing`] or [`Error::Io`] when it cannot be read; [`Error::Content`] with the line number when a line is
/// not such an object.
pub fn read_rows<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<Vec<T>> {
    let mut rows = Vec::new();
    for_each_row(path, |row| rows.push(row))?;
    Ok(rows)
}

/// As [`read_rows`], one row at a time.
///
/// # Errors
/// As [`read_rows`].
pub fn for_each_row<T: DeserializeOwned>(path: impl AsRef<Path>, mut visit: impl FnMut(T)) -> Result<()> {
    let path = path.as_ref();
    let file = File::open(path).map_err(|error| Error::io(path, "read", error))?;
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|error| Error::io(path, "read", error))?;
        if line.trim().is_empty() {
            continue;
        }
        let row = serde_json::from_str(&line)
            .map_err(|error| Error::content(path, format!("line {}: {error}", index + 1)))?;
        visit(row);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SystemDisk;

    fn row(step: u64) -> Row {
        [("step".to_owned(), Value::from(step))].into_iter().collect()
    }

    #[test]
    fn rows_are_on_disk_at_once_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut lines = JsonLines::create(&SystemDisk, &path).unwrap();
        lines.append(&row(0)).unwrap();
        lines.append(&row(1)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"step\":0}\n{\"step\":1}\n");
        assert_eq!(read_rows::<Row>(&path).unwrap(), [row(0), row(1)]);
    }

    #[test]
    fn resuming_drops_later_steps_and_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        for (text, first_step, expected) in [
            ("{\"step\":0}\n{\"step\":1}\n{\"step\":2}\n", 2, vec![row(0), row(1), row(2)]),
            ("{\"step\":0}\n{\"step\":1}\n{\"st", 2, vec![row(0), row(1), row(2)]),
            ("{\"step\":0}\n{\"step\":1}", 1, vec![row(0), row(1)]),
        ] {
            std::fs::write(&path, text).unwrap();
            let mut lines = JsonLines::resume(&SystemDisk, &path, first_step).unwrap();
            lines.append(&row(first_step)).unwrap();
            assert_eq!(read_rows::<Row>(&path).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn broken_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, "{}\n\nnonsense\n").unwrap();
        let error = read_rows::<Row>(&path).unwrap_err();
        assert_eq!(error.exit_code(), 65);
        assert!(error.to_string().contains("rows.jsonl: line 3: "), "{error}");
        assert_eq!(read_rows::<Row>(folder.path().join("none")).unwrap_err().exit_code(), 66);
    }
}
