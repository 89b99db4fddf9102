//! JSONL: one JSON object per line, with errors that name file and line.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Longest line that is read unless the caller says otherwise, in bytes: 64 MiB.
pub const MAX_LINE_BYTES: usize = 64 << 20;

/// Calls `each(line, object)` for every object of the JSONL file at `path`; lines count from 1.
///
/// Blank lines, CRLF line ends, a missing last line end and a byte-order mark are fine.
/// Memory is bounded by the longest line, itself bounded by `max_line_bytes`.
///
/// # Errors
/// `Missing` if there is no such file; `Content` naming the line for bad JSON, a value that
/// is not an object, a key given twice, invalid UTF-8 or an overlong line; `Io` for a failed
/// read; and whatever `each` returns.
pub fn read_objects(
    path: &Path,
    max_line_bytes: usize,
    mut each: impl FnMut(usize, Map<String, Value>) -> Result<()>,
) -> Result<()> {
    // Asked before opening: opening a pipe would wait for a writer.
    let meta = fs::metadata(path).map_err(|e| Error::io(path, "read", e))?;
    if !meta.is_file() {
        return Err(Error::content(path, "is not a regular file; a JSONL file was expected"));
    }
    let file = File::open(path).map_err(|e| Error::io(path, "read", e))?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let limit = u64::try_from(max_line_bytes).unwrap_or(u64::MAX).saturating_add(1);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let taken = Read::by_ref(&mut reader)
            .take(limit)
            .read_until(b'\n', &mut line)
            .map_err(|e| Error::io(path, "read", e))?;
        if taken == 0 {
            break;
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if line.len() > max_line_bytes {
            let message = format!("line {number}: longer than {max_line_bytes} bytes; one row per line?");
            return Err(Error::content(path, message));
        }
        let bytes = if number == 1 { line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&line) } else { &line };
        if bytes.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let object = parse_line(bytes).map_err(|m| Error::content(path, format!("line {number}{m}")))?;
        each(number, object)?;
    }
    Ok(())
}

/// The object on one line, or the rest of the message after `line N`.
fn parse_line(bytes: &[u8]) -> std::result::Result<Map<String, Value>, String> {
    let text = std::str::from_utf8(bytes)
        .map_err(|e| format!(": byte {} is not valid UTF-8; save the file as UTF-8", e.valid_up_to() + 1))?;
    serde_json::from_str::<Row>(text).map(|row| row.0).map_err(|e| {
        // serde_json counts lines from the start of its input, which here is one line.
        let full = e.to_string();
        let reason = full.rsplit_once(" at line ").map_or(full.as_str(), |(reason, _)| reason);
        let column = e.column();
        if e.is_eof() {
            format!(", column {column}: not valid JSON: {reason}; the line is cut short (truncated file?)")
        } else if e.is_data() {
            format!(": {reason}")
        } else {
            format!(", column {column}: not valid JSON: {reason}")
        }
    })
}

/// A row object; unlike `Map`'s own reading, a key given twice is an error.
struct Row(Map<String, Value>);

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct RowVisitor;
        impl<'de> Visitor<'de> for RowVisitor {
            type Value = Row;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object (one row of the dataset)")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> std::result::Result<Row, A::Error> {
                let mut map = Map::new();
                while let Some((key, value)) = access.next_entry::<String, Value>()? {
                    if map.contains_key(&key) {
                        return Err(de::Error::custom(format!("the column `{key}` is given twice")));
                    }
                    map.insert(key, value);
                }
                Ok(Row(map))
            }
        }
        deserializer.deserialize_map(RowVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], limit: usize) -> Result<Vec<(usize, Map<String, Value>)>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        fs::write(&path, bytes).unwrap();
        let mut rows = Vec::new();
        read_objects(&path, limit, |line, object| {
            rows.push((line, object));
            Ok(())
        })?;
        Ok(rows)
    }

    #[test]
    fn blank_lines_crlf_bom_and_missing_last_newline() {
        let rows = read(b"\xEF\xBB\xBF{\"a\":1}\r\n\r\n  \n{\"a\":2}", 100).unwrap();
        let found: Vec<_> = rows.iter().map(|(line, o)| (*line, o["a"].as_i64().unwrap())).collect();
        assert_eq!(found, [(1, 1), (4, 2)]);
        assert!(read(b"", 100).unwrap().is_empty());
    }

    #[test]
    fn every_bad_line_is_named() {
        let deep = [b"{\"a\":1}\n{\"a\":".to_vec(), b"[".repeat(100_000)].concat();
        let cases: [(&[u8], &[&str]); 7] = [
            (b"{\"a\":1}\n{\"a\" 2}\n", &["line 2, column 6", "not valid JSON"]),
            (b"{\"a\":1}\n{\"a\": \"tex", &["line 2", "truncated"]),
            (b"{\"a\":1}\n\n[1,2]\n", &["line 3", "a JSON object"]),
            (b"{\"a\":\"\xFF\"}\n", &["line 1", "byte 7", "UTF-8"]),
            (b"{\"a\":1,\"a\":2}\n", &["line 1", "`a` is given twice"]),
            (b"{\"a\":1}{\"a\":2}\n", &["line 1", "not valid JSON"]),
            (&deep, &["line 2", "recursion"]),
        ];
        for (bytes, wanted) in cases {
            let error = read(bytes, 1 << 20).unwrap_err();
            assert_eq!(error.exit_code(), 65);
            let message = error.to_string();
            assert!(message.contains("data.jsonl"), "{message}");
            assert!(wanted.iter().all(|w| message.contains(w)), "{message}");
        }
    }

    #[test]
    fn line_length_is_bounded() {
        // 20 bytes is allowed exactly; one more is not, newline or none.
        let line = |n: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(n - 8));
        assert_eq!(read(line(20).as_bytes(), 20).unwrap().len(), 1);
        assert_eq!(read(format!("{}\n{}\n", line(20), line(20)).as_bytes(), 20).unwrap().len(), 2);
        let message = read(format!("{}\n{}\n", line(20), line(21)).as_bytes(), 20).unwrap_err().to_string();
        assert!(message.contains("line 2") && message.contains("20 bytes"), "{message}");
    }

    #[test]
    fn missing_files_and_folders_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let none = read_objects(&dir.path().join("no.jsonl"), 10, |_, _| Ok(())).unwrap_err();
        assert_eq!(none.exit_code(), 66);
        let folder = read_objects(dir.path(), 10, |_, _| Ok(())).unwrap_err();
        assert_eq!(folder.exit_code(), 65);
    }
}
