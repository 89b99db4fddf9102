//! JSON files from strangers.
//!
//! A file is read up to a limit, a byte order mark is accepted, nesting is limited by `serde_json`
//! (128 levels), a key that is given twice is refused (one reader would take the first, another the
//! last), and an error names its line and column.

use std::cell::Cell;
use std::fmt;
use std::path::Path;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::read_bounded;
use crate::error::{Error, Result};

/// Largest JSON file read, bytes. A `config.json` is a few KiB; the index of the largest published
/// model is below 1 MiB.
pub const MAX_JSON_BYTES: u64 = 4 << 20;
/// Most values in one JSON file: in memory each takes many times its bytes.
const MAX_VALUES: usize = 500_000;

/// Parses JSON text; `path` is only for the error.
///
/// # Errors
/// [`Error::Content`] with line and column, or with the offset of the first byte that is not UTF-8.
pub fn parse_json(path: &Path, bytes: &[u8]) -> Result<Value> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::content(path, "is empty; a JSON object was expected"));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|e| Error::content(path, format!("is not UTF-8 text (byte {})", e.valid_up_to())))?;
    let mut json = serde_json::Deserializer::from_str(text);
    Values(&Cell::new(0))
        .deserialize(&mut json)
        .and_then(|value| json.end().map(|()| value))
        .map_err(|e| Error::content(path, format!("is not valid JSON: {e}")))
}

/// Reads and parses one JSON file of at most [`MAX_JSON_BYTES`].
///
/// # Errors
/// Those of [`read_bounded`] and [`parse_json`].
pub fn read_json(path: &Path) -> Result<Value> {
    parse_json(path, &read_bounded(path, MAX_JSON_BYTES)?)
}

/// [`read_json`] of a file that holds an object.
///
/// # Errors
/// Those of [`read_json`]; [`Error::Content`] for any other JSON.
pub fn read_json_object(path: &Path) -> Result<Map<String, Value>> {
    match read_json(path)? {
        Value::Object(object) => Ok(object),
        other => Err(Error::content(path, format!("must be a JSON object, got {}", shown(&other)))),
    }
}

/// Reads a [`Value`] of at most [`MAX_VALUES`] in which no object has a key twice; holds how many there were.
#[derive(Clone, Copy)]
struct Values<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for Values<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> std::result::Result<Value, D::Error> {
        self.0.set(self.0.get() + 1);
        if self.0.get() > MAX_VALUES {
            return Err(D::Error::custom(format!("more than {MAX_VALUES} values")));
        }
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Values<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("{} is given twice", shown(&Value::String(key)))));
            }
            map.insert(key, entries.next_value_seed(self)?);
        }
        Ok(Value::Object(map))
    }
}

/// A value as it stands in the file, cut to a length that fits an error message.
pub fn shown(value: &Value) -> String {
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
        let error = parse_json(Path::new("config.json"), bytes).expect_err("must be refused");
        assert_eq!(error.exit_code(), 65);
        error.to_string()
    }

    #[test]
    fn byte_order_mark_is_accepted() {
        let value = parse_json(Path::new("x"), b"\xef\xbb\xbf{\"a\": 1}").expect("valid");
        assert_eq!(value["a"], 1);
    }

    #[test]
    fn broken_text_is_located() {
        assert!(message(b"{\n  \"a\": 1,\n  oops\n}").contains("line 3 column 3"));
        assert!(message(b"").contains("is empty"));
        assert!(message(b" \n ").contains("is empty"));
        assert!(message(b"{\"a\": \"\xff\"}").contains("byte 7"));
        assert!(message("[".repeat(100_000).as_bytes()).contains("recursion limit"));
        assert!(message(b"{\"a\": 1} x").contains("trailing characters"));
    }

    #[test]
    fn many_values_in_a_small_file_are_refused() {
        let list = |count: usize| format!("[{}0]", "0,".repeat(count));
        assert!(parse_json(Path::new("x"), list(400_000).as_bytes()).is_ok());
        assert!(message(list(500_000).as_bytes()).contains("more than 500000 values"));
    }

    #[test]
    fn a_key_given_twice_is_refused_and_all_else_is_kept() {
        let error = message(b"{\"a\": {\"b\": 1,\n \"b\": 2}}");
        assert!(error.contains("\"b\" is given twice") && error.contains("line 2"), "{error}");
        let text = r#"{"z": [1, -2, 18446744073709551615, 0.1, 1e300], "a": {"n": null, "t": true, "s": "\u00e9\n"}}"#;
        let value = parse_json(Path::new("x"), text.as_bytes()).expect("valid");
        assert_eq!(value, serde_json::from_str::<Value>(text).expect("valid"));
        assert_eq!(value.to_string(), serde_json::from_str::<Value>(text).expect("valid").to_string());
    }
}
