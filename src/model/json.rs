//! Bounded reading of the JSON files of a model folder.
//!
//! A model folder comes from strangers: a file is read up to a limit, a byte order mark is
//! accepted, nesting is limited by `serde_json` (128 levels), and a syntax error names its
//! line and column.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

/// Largest JSON file read, bytes. `config.json` is a few KiB; the index of the largest
/// published model is below 1 MiB.
pub const MAX_JSON_BYTES: u64 = 16 << 20;

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// [`Error::Missing`] if it is not there, [`Error::Content`] if it is no regular file or larger
/// than `limit`, [`Error::Io`] if the system refuses.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    // Asked before opening: opening a FIFO would wait for a writer.
    let metadata = fs::metadata(path).map_err(|e| Error::io(path, "read", e))?;
    if !metadata.is_file() {
        return Err(Error::content(path, "is not a regular file"));
    }
    let file = File::open(path).map_err(|e| Error::io(path, "read", e))?;
    let mut bytes = Vec::new();
    // One byte more than allowed, so that a file that grows meanwhile is noticed too.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| Error::io(path, "read", e))?;
    if bytes.len() as u64 > limit {
        let found = metadata.len().max(bytes.len() as u64);
        return Err(Error::content(
            path,
            format!("is {found} bytes long; at most {limit} are read from this file"),
        ));
    }
    Ok(bytes)
}

/// Parses JSON text; `path` is only for the error.
///
/// # Errors
/// [`Error::Content`] with line and column, or with the offset of the first byte that is not UTF-8.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Value> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::content(path, "is empty; a JSON object was expected"));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|e| Error::content(path, format!("is not UTF-8 text (byte {})", e.valid_up_to())))?;
    serde_json::from_str(text).map_err(|e| Error::content(path, format!("is not valid JSON: {e}")))
}

/// Reads and parses one JSON file of at most [`MAX_JSON_BYTES`].
///
/// # Errors
/// Those of [`read_bounded`] and [`parse`].
pub fn read(path: &Path) -> Result<Value> {
    parse(path, &read_bounded(path, MAX_JSON_BYTES)?)
}

/// A value as it stands in the file, cut to a length that fits an error message.
pub(crate) fn shown(value: &Value) -> String {
    const LIMIT: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &[u8]) -> String {
        let error = parse(Path::new("config.json"), bytes).expect_err("must be refused");
        assert_eq!(error.exit_code(), 65);
        error.to_string()
    }

    #[test]
    fn byte_order_mark_is_accepted() {
        let value = parse(Path::new("x"), b"\xef\xbb\xbf{\"a\": 1}").expect("valid");
        assert_eq!(value["a"], 1);
    }

    #[test]
    fn broken_text_is_located() {
        assert!(message(b"{\n  \"a\": 1,\n  oops\n}").contains("line 3 column 3"));
        assert!(message(b"").contains("is empty"));
        assert!(message(b" \n ").contains("is empty"));
        assert!(message(b"{\"a\": \"\xff\"}").contains("byte 7"));
        assert!(message("[".repeat(100_000).as_bytes()).contains("recursion limit"));
    }

    #[test]
    fn a_large_file_is_not_read_whole() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("config.json");
        // Sparse: 200 MB that take no disk.
        File::create(&path).expect("create").set_len(200_000_000).expect("size");
        let error = read(&path).expect_err("too large");
        assert_eq!(error.exit_code(), 65);
        assert!(error.to_string().contains("200000000 bytes"), "{error}");
    }

    #[test]
    fn a_folder_is_no_file() {
        let dir = tempfile::tempdir().expect("temporary folder");
        assert_eq!(read(dir.path()).expect_err("folder").exit_code(), 65);
        assert_eq!(read(&dir.path().join("no.json")).expect_err("absent").exit_code(), 66);
    }
}
