//! A row's columns as they were read: JSON, and bytes where the file holds bytes.

use std::sync::Arc;

use serde_json::{Map, Value};

/// The columns of one row, in the file's order; no name occurs twice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cells(Vec<(String, Cell)>);

/// The value of one column, or a part of it.
///
/// Bytes have a kind of their own: no text of a JSON file can be taken for them.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// A value without bytes in it.
    Json(Value),
    /// Bytes as the file holds them.
    Bytes(Arc<[u8]>),
    /// The struct of an image, as Hugging Face's `datasets` writes it.
    Image(ImageCell),
    /// A list with bytes or images in it.
    List(Vec<Cell>),
    /// A struct with bytes or images in it.
    Object(Vec<(String, Cell)>),
}

/// An image's bytes, its path, or both: then the bytes count.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageCell {
    /// The encoded image.
    pub bytes: Option<Arc<[u8]>>,
    /// A file, or with bytes the name that the image once had.
    pub path: Option<String>,
}

impl Cells {
    /// Adds a column behind the others.
    ///
    /// # Errors
    /// The name, if it is there already.
    pub fn push(&mut self, name: String, cell: Cell) -> Result<(), String> {
        match self.contains(&name) {
            true => Err(name),
            false => {
                self.0.push((name, cell));
                Ok(())
            }
        }
    }

    /// The value of a column.
    pub fn get(&self, name: &str) -> Option<&Cell> {
        self.0.iter().find(|(column, _)| column == name).map(|(_, cell)| cell)
    }

    /// Whether there is such a column, be it null.
    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Takes a column out.
    pub fn take(&mut self, name: &str) -> Option<Cell> {
        let place = self.0.iter().position(|(column, _)| column == name)?;
        Some(self.0.remove(place).1)
    }

    /// The columns in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Cell)> {
        self.0.iter().map(|(name, cell)| (name.as_str(), cell))
    }

    /// The columns as JSON, as rewards get them; see [`Cell::into_json`].
    pub fn into_json(self) -> Map<String, Value> {
        self.0.into_iter().map(|(name, cell)| (name, cell.into_json())).collect()
    }
}

impl From<Map<String, Value>> for Cells {
    fn from(object: Map<String, Value>) -> Self {
        Cells(object.into_iter().map(|(name, value)| (name, Cell::Json(value))).collect())
    }
}

impl From<Value> for Cell {
    fn from(value: Value) -> Self {
        Cell::Json(value)
    }
}

impl Cell {
    /// JSON's null, or an image of nothing.
    pub fn is_null(&self) -> bool {
        match self {
            Cell::Json(value) => value.is_null(),
            Cell::Image(image) => image.bytes.is_none() && image.path.is_none(),
            _ => false,
        }
    }

    /// The value as JSON; bytes become null, and an image `{"path": ..}`.
    pub fn into_json(self) -> Value {
        match self {
            Cell::Json(value) => value,
            Cell::Bytes(_) => Value::Null,
            Cell::Image(image) => serde_json::json!({ "path": image.path }),
            Cell::List(items) => items.into_iter().map(Cell::into_json).collect(),
            Cell::Object(entries) => {
                Value::Object(entries.into_iter().map(|(name, cell)| (name, cell.into_json())).collect())
            }
        }
    }

    /// A list of `items`: JSON if all are.
    pub fn list(items: Vec<Cell>) -> Cell {
        match items.iter().all(|item| matches!(item, Cell::Json(_))) {
            true => Cell::Json(items.into_iter().map(Cell::into_json).collect()),
            false => Cell::List(items),
        }
    }

    /// A struct of `entries`: JSON if all are.
    pub fn object(entries: Vec<(String, Cell)>) -> Cell {
        match entries.iter().all(|(_, item)| matches!(item, Cell::Json(_))) {
            true => Cell::Json(Cell::Object(entries).into_json()),
            false => Cell::Object(entries),
        }
    }

    /// The items of a list, or the cell again if it is none.
    pub fn into_items(self) -> Result<Vec<Cell>, Cell> {
        match self {
            Cell::Json(Value::Array(items)) => Ok(items.into_iter().map(Cell::Json).collect()),
            Cell::List(items) => Ok(items),
            other => Err(other),
        }
    }

    /// The entries of an object or struct, or the cell again if it is none.
    pub fn into_entries(self) -> Result<Cells, Cell> {
        match self {
            Cell::Json(Value::Object(object)) => Ok(object.into()),
            Cell::Object(entries) => Ok(Cells(entries)),
            other => Err(other),
        }
    }

    /// A number, or a list of numbers (a box), as JSON spells it.
    pub fn spelled(&self) -> Option<String> {
        match self {
            Cell::Json(number @ Value::Number(_)) => Some(number.to_string()),
            Cell::Json(list @ Value::Array(items))
                if !items.is_empty() && items.iter().all(Value::is_number) =>
            {
                Some(list.to_string())
            }
            _ => None,
        }
    }

    /// What the cell is, in words.
    pub fn kind(&self) -> &'static str {
        match self {
            Cell::Json(Value::Null) => "null",
            Cell::Json(Value::Bool(_)) => "a boolean",
            Cell::Json(Value::Number(_)) => "a number",
            Cell::Json(Value::String(_)) => "a string",
            Cell::Json(Value::Array(_)) | Cell::List(_) => "a list",
            Cell::Json(Value::Object(_)) | Cell::Object(_) => "an object",
            Cell::Bytes(_) => "bytes",
            Cell::Image(_) => "an image",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_and_structs_are_json_unless_they_hold_bytes() {
        let bytes = || Cell::Bytes(Arc::from(&b"x"[..]));
        assert_eq!(Cell::list(vec![json!(1).into(), json!("a").into()]), Cell::Json(json!([1, "a"])));
        assert_eq!(Cell::object(vec![("a".into(), json!(1).into())]), Cell::Json(json!({"a": 1})));
        let mixed = Cell::list(vec![json!(1).into(), bytes()]);
        assert!(matches!(&mixed, Cell::List(items) if items.len() == 2));
        assert_eq!(mixed.into_json(), json!([1, null]));
        let image = Cell::Image(ImageCell { bytes: Some(Arc::from(&b"x"[..])), path: Some("a.png".into()) });
        assert!(!image.is_null());
        let object = Cell::object(vec![("i".into(), image), ("t".into(), json!("q").into())]);
        assert_eq!(object.kind(), "an object");
        assert_eq!(object.into_json(), json!({"i": {"path": "a.png"}, "t": "q"}));
        assert!(Cell::Image(ImageCell::default()).is_null());
    }

    #[test]
    fn a_column_is_there_once() {
        let mut cells = Cells::from(json!({"b": 1, "a": null}).as_object().cloned().unwrap());
        assert_eq!(cells.push("a".into(), json!(2).into()), Err("a".into()));
        cells.push("c".into(), json!(3).into()).unwrap();
        assert_eq!(cells.take("b"), Some(json!(1).into()));
        assert_eq!(cells.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "c"]);
        assert!(cells.contains("a") && cells.get("a").unwrap().is_null() && !cells.contains("b"));
        assert_eq!(Value::Object(cells.into_json()), json!({"a": null, "c": 3}));
    }
}
