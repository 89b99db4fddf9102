//! JSON lines: one object per line, on disk as soon as it is written.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::appended::{Appended, open_regular};
use super::console::escape_json;
use crate::disk::Disk;
use crate::error::{Error, Result};

/// One object of a JSON-lines file, its keys in the file's order.
pub type Row = serde_json::Map<String, Value>;

/// Appends objects to a file, one per line.
#[derive(Debug)]
pub struct JsonLines {
    file: Arc<Appended>,
}

impl JsonLines {
    /// Starts an empty file, replacing what was there.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Missing`] when the file cannot be created.
    pub fn create(disk: &dyn Disk, path: impl AsRef<Path>) -> Result<Self> {
        Ok(JsonLines { file: Arc::new(Appended::create(disk, path.as_ref())?) })
    }

    /// Continues a file at `first_step`: rows of that step and later ones, and a last line that a crash cut short, are
    /// dropped first. A file that is not there is created.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read or written.
    pub fn resume(disk: &dyn Disk, path: impl AsRef<Path>, first_step: u64) -> Result<Self> {
        let path = path.as_ref();
        let length = match open_regular(path)? {
            Some(file) => rows_before(file, first_step).map_err(|error| Error::io(path, "read", error))?,
            None => return Self::create(disk, path),
        };
        Ok(JsonLines { file: Arc::new(Appended::go_on(disk, path, length)?) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The file, to be flushed and forced to disk.
    pub fn file(&self) -> &Arc<Appended> {
        &self.file
    }

    /// Writes one record as one line. When the disk refuses, the line is kept and goes first the next time, so that
    /// a caller may go on; nothing of it stands half in the file.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk refuses; [`Error::Internal`] when the record is not JSON-like.
    pub fn append(&mut self, record: &impl Serialize) -> Result<()> {
        let json = serde_json::to_string(record)
            .map_err(|error| Error::Internal(format!("a record is not JSON: {error}")))?;
        self.file.append(&[escape_json(&json).as_bytes(), b"\n"].concat())
    }
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
