//! Images small enough to carry inside a report.

use std::io::Cursor;

use image::{DynamicImage, ImageFormat, RgbImage};

use crate::data::ImageSource;
use crate::error::{Error, Result};
use crate::processor::decode::load_for_model;

/// Longer side of a thumbnail, in pixels: twice the width it is shown at.
const SIDE: u32 = 460;

/// A small image.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// The file, as PNG.
    pub png: Vec<u8>,
}

impl Picture {
    /// What the model saw of the image, upright and shrunk to [`SIDE`].
    ///
    /// # Errors
    /// Those of reading the image, within the same bounds as for the model.
    pub fn of(source: &ImageSource) -> Result<Picture> {
        let unfit = |what: &str| Error::Internal(format!("an image of the report: {what}"));
        let decoded = load_for_model(source, "")?;
        let image = RgbImage::from_raw(decoded.width as u32, decoded.height as u32, decoded.pixels);
        let mut image = DynamicImage::from(image.ok_or_else(|| unfit("fewer pixels than its size tells"))?);
        if image.width().max(image.height()) > SIDE {
            image = image.thumbnail(SIDE, SIDE);
        }
        let mut png = Cursor::new(Vec::new());
        image.write_to(&mut png, ImageFormat::Png).map_err(|error| unfit(&error.to_string()))?;
        Ok(Picture { width: image.width(), height: image.height(), png: png.into_inner() })
    }

    /// The image as a `data:` address.
    pub fn data_uri(&self) -> String {
        format!("data:image/png;base64,{}", base64(&self.png))
    }
}

/// RFC 4648 base64, padded.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let index = (bits >> (18 - 6 * place)) as usize & 63;
            text.push(if place > chunk.len() { '=' } else { char::from(ALPHABET[index]) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_test_vectors_of_rfc_4648() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn large_images_shrink_and_broken_ones_say_why() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wide.png");
        image::RgbImage::new(920, 10).save(&path).unwrap();
        let picture = Picture::of(&ImageSource::File(path.clone())).unwrap();
        assert_eq!((picture.width, picture.height), (460, 5));
        assert!(picture.data_uri().starts_with("data:image/png;base64,iVBORw0KGgo"));
        std::fs::write(&path, "not an image").unwrap();
        assert!(Picture::of(&ImageSource::File(path.clone())).is_err());
        assert!(Picture::of(&ImageSource::File(folder.path().join("none.png"))).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_in_an_images_place_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert!(Picture::of(&ImageSource::File(path.clone())).unwrap_err().to_string().contains("a pipe"));
    }
}
