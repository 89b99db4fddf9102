//! JSONL: one JSON object per line, with errors that name file and line.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::open_regular;

/// Longest line that is read unless the caller says otherwise, in bytes: 16 MiB. A line's values take up to some
/// thirty times its bytes in memory.
pub const MAX_LINE_BYTES: usize = 16 << 20;

/// The objects of a JSONL file in its order, each with its line, from 1.
///
/// Blank lines, CRLF line ends, a missing last line end and a byte-order mark are fine. Memory is bounded by the longest
/// line, itself bounded. An item is an error of
/// - `Content`, naming the line, for bad JSON, a value that is not an object, a key given twice at any depth, invalid
///   UTF-8 or an overlong line; the next item is the next line's;
/// - `Io` for a failed read; nothing comes after it.
pub struct Objects {
    path: PathBuf,
    reader: BufReader<File>,
    max_line_bytes: usize,
    line: Vec<u8>,
    number: usize,
    failed: bool,
}

/// Opens the JSONL file at `path`, whose lines may have `max_line_bytes`.
///
/// # Errors
/// `Missing` if there is no such file, `Content` if it is not a regular one, `Io` if it cannot be opened.
pub fn objects(path: &Path, max_line_bytes: usize) -> Result<Objects> {
    let (file, _) = open_regular(path)?;
    let reader = BufReader::with_capacity(1 << 16, file);
    Ok(Objects {
        path: path.to_path_buf(),
        reader,
        max_line_bytes,
        line: Vec::new(),
        number: 0,
        failed: false,
    })
}

impl Iterator for Objects {
    type Item = Result<(usize, Map<String, Value>)>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            let number = self.number + 1;
            let object = match self.read_line() {
                Ok(false) => return None,
                Ok(true) if self.line.len() > self.max_line_bytes => Err(too_long(self.max_line_bytes)),
                Ok(true) => {
                    let line = if number == 1 { without_mark(&self.line) } else { &self.line };
                    if line.iter().all(u8::is_ascii_whitespace) {
                        continue;
                    }
                    parse_line(line)
                }
                Err(error) => {
                    self.failed = true;
                    return Some(Err(Error::io(&self.path, "read", error)));
                }
            };
            return Some(match object {
                Ok(object) => Ok((number, object)),
                Err(reason) => Err(Error::content(&self.path, format!("line {number}{reason}"))),
            });
        }
        None
    }
}

impl Objects {
    /// Reads the next line without its end; of an overlong one, one byte more than allowed. `false` at the end.
    fn read_line(&mut self) -> std::io::Result<bool> {
        self.line.clear();
        let limit = self.max_line_bytes as u64 + 1;
        let taken = Read::by_ref(&mut self.reader).take(limit).read_until(b'\n', &mut self.line)?;
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        } else if self.line.len() > self.max_line_bytes {
            self.reader.skip_until(b'\n')?;
        }
        self.number += usize::from(taken > 0);
        Ok(taken > 0)
    }
}

/// The rest of the message after `line N` for an overlong one.
pub(super) fn too_long(max_line_bytes: usize) -> String {
    format!(": longer than {max_line_bytes} bytes; one row per line?")
}

/// The bytes behind a byte-order mark, if there is one.
pub(super) fn without_mark(line: &[u8]) -> &[u8] {
    line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line)
}

/// The object on one line, or the rest of the message after `line N`.
pub(super) fn parse_line(bytes: &[u8]) -> std::result::Result<Map<String, Value>, String> {
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

/// A JSON text in which no object has a key twice, or why it is none.
pub(super) fn parse_value(text: &str) -> std::result::Result<Value, String> {
    serde_json::from_str::<Unambiguous>(text).map(|value| value.0).map_err(|e| e.to_string())
}

/// A row object.
struct Row(Map<String, Value>);

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct RowVisitor;
        impl<'de> Visitor<'de> for RowVisitor {
            type Value = Row;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object (one row of the dataset)")
            }
            fn visit_map<A: MapAccess<'de>>(self, access: A) -> std::result::Result<Row, A::Error> {
                entries(access, "column").map(Row)
            }
        }
        deserializer.deserialize_map(RowVisitor)
    }
}

/// The entries of an object; unlike in `Map`'s own reading, a key given twice is an error.
fn entries<'de, A: MapAccess<'de>>(
    mut access: A,
    what: &str,
) -> std::result::Result<Map<String, Value>, A::Error> {
    let mut map = Map::new();
    while let Some((key, Unambiguous(value))) = access.next_entry::<String, Unambiguous>()? {
        if map.contains_key(&key) {
            return Err(de::Error::custom(format!("the {what} `{key}` is given twice")));
        }
        map.insert(key, value);
    }
    Ok(map)
}

/// A JSON value in which no object has a key twice.
struct Unambiguous(Value);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct ValueVisitor;
        impl<'de> Visitor<'de> for ValueVisitor {
            type Value = Unambiguous;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_unit<E>(self) -> std::result::Result<Unambiguous, E> {
                Ok(Unambiguous(Value::Null))
            }
            fn visit_bool<E>(self, value: bool) -> std::result::Result<Unambiguous, E> {
                Ok(Unambiguous(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> std::result::Result<Unambiguous, E> {
                Ok(Unambiguous(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> std::result::Result<Unambiguous, E> {
                Ok(Unambiguous(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> std::result::Result<Unambiguous, E> {
                Ok(Unambiguous(value.into()))
            }
            fn visit_str<E>(self, value: &str) -> std::result::Result<Unambiguous, E> {
                Ok(Unambiguous(value.into()))
            }
            fn visit_string<E>(self, value: String) -> std::result::Result<Unambiguous, E> {
                Ok(Unambiguous(value.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut access: A,
            ) -> std::result::Result<Unambiguous, A::Error> {
                let mut list = Vec::new();
                while let Some(Unambiguous(value)) = access.next_element()? {
                    list.push(value);
                }
                Ok(Unambiguous(list.into()))
            }
            fn visit_map<A: MapAccess<'de>>(self, access: A) -> std::result::Result<Unambiguous, A::Error> {
                entries(access, "key").map(|map| Unambiguous(map.into()))
            }
        }
        deserializer.deserialize_any(ValueVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8], limit: usize) -> Vec<Result<(usize, Map<String, Value>)>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        std::fs::write(&path, bytes).unwrap();
        objects(&path, limit).unwrap().collect()
    }

    fn read(bytes: &[u8], limit: usize) -> Result<Vec<(usize, Map<String, Value>)>> {
        all(bytes, limit).into_iter().collect()
    }

    #[test]
    fn case_28_blank_lines_crlf_bom_and_missing_last_newline() {
        let rows = read(b"\xEF\xBB\xBF{\"a\":1}\r\n\r\n  \n{\"a\":2}", 100).unwrap();
        let found: Vec<_> = rows.iter().map(|(line, o)| (*line, o["a"].as_i64().unwrap())).collect();
        assert_eq!(found, [(1, 1), (4, 2)]);
        assert!(read(b"", 100).unwrap().is_empty());
    }

    #[test]
    fn case_28_every_bad_line_is_named() {
        let deep = [b"{\"a\":1}\n{\"a\":".to_vec(), b"[".repeat(100_000)].concat();
        let cases: [(&[u8], &[&str]); 9] = [
            (b"{\"a\":1}\n{\"a\" 2}\n", &["line 2, column 6", "not valid JSON"]),
            (b"{\"a\":1}\n{\"a\": \"tex", &["line 2", "truncated"]),
            (b"{\"a\":1}\n\n[1,2]\n", &["line 3", "a JSON object"]),
            (b"{\"a\":\"\xFF\"}\n", &["line 1", "byte 7", "UTF-8"]),
            (b"{\"a\":1,\"a\":2}\n", &["line 1", "`a` is given twice"]),
            (b"{\"a\":[{\"b\":{\"c\":1,\"c\":1}}]}\n", &["line 1", "the key `c` is given twice"]),
            (b"\xFF\xFE{\0}\0", &["line 1", "byte 1", "save the file as UTF-8"]),
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

    /// Reading goes on behind every kind of bad line, an overlong one included.
    #[test]
    fn case_28_the_lines_behind_a_bad_one_are_read() {
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(200_000));
        let bad = ["{", "[1]", "{\"a\":1,\"a\":2}", &long, "\u{feff}{}"];
        let text: String =
            bad.iter().enumerate().map(|(i, line)| format!("{line}\n{{\"n\":{i}}}\r\n\n")).collect();
        let items = all(text.as_bytes(), 100);
        assert_eq!(items.len(), 10);
        for (i, pair) in items.chunks(2).enumerate() {
            assert!(pair[0].as_ref().unwrap_err().to_string().contains(&format!("line {}", 3 * i + 1)));
            let (line, object) = pair[1].as_ref().unwrap();
            assert_eq!((*line, object["n"].as_u64()), (3 * i + 2, Some(i as u64)));
        }
    }

    /// The values are those of serde_json's own reading.
    #[test]
    fn values_of_every_kind() {
        let text = r#"{"a":[null,true,-1,18446744073709551615,1e-7,0.1,"\u00e9\n",{"b":{}}],"z":1,"y":[]}"#;
        let (_, row) = read(text.as_bytes(), 1000).unwrap().remove(0);
        assert_eq!(Value::Object(row), serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn missing_files_and_folders_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let none = objects(&dir.path().join("no.jsonl"), 10).err().unwrap();
        assert_eq!(none.exit_code(), 66);
        let folder = objects(dir.path(), 10).err().unwrap();
        assert_eq!(folder.exit_code(), 65);
    }
}
