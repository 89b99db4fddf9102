//! The images of a row: paths, bytes, and texts that hold bytes.

use std::sync::Arc;

use serde_json::Value;

use super::RowResult;
use crate::data::MAX_IMAGE_FILE_BYTES;
use crate::data::base64::{base64, data_uri};
use crate::data::cells::{Cell, Cells, ImageCell};

/// An image as a row names it.
#[derive(Debug, PartialEq)]
pub(super) enum Picture {
    /// A path, not yet looked for.
    Path(String),
    /// The encoded image.
    Bytes(Arc<[u8]>),
}

/// Takes the image column out of the row.
pub(super) fn take_pictures(cells: &mut Cells) -> RowResult<Vec<Picture>> {
    let mut given = Vec::new();
    for column in ["image", "images", "file_name"] {
        if let Some(cell) = cells.take(column)
            && !cell.is_null()
        {
            given.push((column, cell));
        }
    }
    if let [(a, _), (b, _), ..] = given.as_slice() {
        return Err(format!("the row has both `{a}` and `{b}`; keep one"));
    }
    let Some((column, cell)) = given.pop() else { return Ok(Vec::new()) };
    let pictures = match cell.into_items() {
        Ok(items) => items.into_iter().map(picture).collect(),
        Err(one) => picture(one).map(|picture| vec![picture]),
    };
    pictures.map_err(|reason| format!("`{column}`: {reason}"))
}

/// A path, a `data:` URI, bytes, or Hugging Face's struct of `bytes` and `path`.
pub(super) fn picture(cell: Cell) -> RowResult<Picture> {
    match cell {
        Cell::Json(Value::String(text)) => match text.strip_prefix("data:") {
            Some(uri) => data_uri(uri).map(Arc::from).and_then(bounded),
            None => Ok(Picture::Path(text)),
        },
        Cell::Bytes(bytes) | Cell::Image(ImageCell { bytes: Some(bytes), .. }) => bounded(bytes),
        Cell::Image(ImageCell { path: Some(path), .. }) => Ok(Picture::Path(path)),
        Cell::Image(_) => Err("an image has neither bytes nor a path".into()),
        other => match other.into_entries() {
            Ok(mut image) => match (image.take("bytes"), image.take("path")) {
                (Some(Cell::Bytes(bytes)), _) => bounded(bytes),
                (_, Some(Cell::Json(Value::String(name)))) => Ok(Picture::Path(name)),
                _ => Err("an image object needs a string `path`; save image bytes as a file, or the rows as parquet"
                    .into()),
            },
            Err(other) => Err(format!("an image has to be a path or bytes, not {}", other.kind())),
        },
    }
}

/// Bytes in base64, as a part of a message may hold them under that name.
pub(super) fn from_base64(cell: Cell) -> RowResult<Picture> {
    match cell {
        Cell::Json(Value::String(text)) => match text.strip_prefix("data:") {
            Some(uri) => data_uri(uri).map(Arc::from).and_then(bounded),
            None => base64(&text).map(Arc::from).and_then(bounded),
        },
        other => Err(format!("`base64` has to be a string, not {}", other.kind())),
    }
}

fn bounded(bytes: Arc<[u8]>) -> RowResult<Picture> {
    match bytes.len() as u64 > MAX_IMAGE_FILE_BYTES {
        true => Err(format!("an image of {} bytes; at most {MAX_IMAGE_FILE_BYTES} are read", bytes.len())),
        false => Ok(Picture::Bytes(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bytes(of: &[u8]) -> Picture {
        Picture::Bytes(of.into())
    }

    #[test]
    fn every_form_of_an_image() {
        let image = |bytes: Option<&[u8]>, path: Option<&str>| {
            Cell::Image(ImageCell { bytes: bytes.map(Arc::from), path: path.map(str::to_owned) })
        };
        assert_eq!(picture(json!("a.png").into()), Ok(Picture::Path("a.png".into())));
        assert_eq!(
            picture(json!({"path": "a.png", "bytes": null}).into()),
            Ok(Picture::Path("a.png".into()))
        );
        assert_eq!(picture(image(Some(b"x"), Some("a.png"))), Ok(bytes(b"x")));
        assert_eq!(picture(image(None, Some("a.png"))), Ok(Picture::Path("a.png".into())));
        assert_eq!(picture(Cell::Bytes(b"x"[..].into())), Ok(bytes(b"x")));
        let only_bytes = Cell::object(vec![("bytes".into(), Cell::Bytes(b"x"[..].into()))]);
        assert_eq!(picture(only_bytes), Ok(bytes(b"x")));
        assert_eq!(picture(json!("data:image/png;base64,Zm8=").into()), Ok(bytes(b"fo")));
        assert_eq!(from_base64(json!("Zm8=").into()), Ok(bytes(b"fo")));
        for (cell, wanted) in [
            (image(None, None), "neither bytes nor a path"),
            (json!("data:text/plain;base64,Zm8=").into(), "text/plain"),
            (json!("data:image/png,Zm8=").into(), "image/png"),
            (json!("data:image/png").into(), "comma"),
            (json!({"bytes": "Zm8="}).into(), "`path`"),
            (json!(3).into(), "not a number"),
        ] {
            let message = picture(cell).unwrap_err();
            assert!(message.contains(wanted), "{message}");
        }
    }
}
