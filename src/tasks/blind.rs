//! What accuracy is worth without eyes: the majority answer, and blanked images.

use std::collections::HashMap;
use std::io::Cursor;

use image::{ImageDecoder, ImageReader, Rgb, RgbImage};

use super::encode_png;
use crate::data::{ImageSource, MAX_IMAGE_BYTES, MAX_IMAGE_SIDE, Sample};
use crate::error::{Error, Result};

/// The accuracy of the best constant answer: the share of the most frequent one; 0 for none.
pub fn majority_accuracy<S: AsRef<str>>(answers: &[S]) -> f64 {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for answer in answers {
        *counts.entry(answer.as_ref().trim()).or_default() += 1;
    }
    let most = counts.values().copied().max().unwrap_or(0);
    most as f64 / answers.len().max(1) as f64
}

/// Level of all channels of a blanked image: an empty sheet, the nearest thing without content to what the tasks draw on.
const BLANK: u8 = 255;

/// A plain white PNG of the same size as `source` is shown (EXIF orientation applied), so that
/// it takes as many tokens. White is the same for all: an image's own mean may tell.
///
/// # Errors
/// Those of reading `source`; `Content` (or `Input`, if it has no file) if it is not an image
/// that can be read or is larger than any that is decoded.
pub fn blank_image(source: &ImageSource) -> Result<ImageSource> {
    let encoded = source.encoded()?;
    let wrong = |reason: String| match source {
        ImageSource::File(path) => Error::content(path, reason),
        ImageSource::Bytes(_) => Error::Input(format!("image in memory: {reason}")),
    };
    let unreadable = |e: image::ImageError| wrong(format!("cannot be read as an image: {e}"));
    let mut decoder = ImageReader::new(Cursor::new(encoded.as_ref()))
        .with_guessed_format()
        .map_err(|e| wrong(format!("cannot be read as an image: {e}")))?
        .into_decoder()
        .map_err(unreadable)?;
    let (mut width, mut height) = decoder.dimensions();
    let bytes = 3 * u64::from(width) * u64::from(height);
    if width.max(height) > MAX_IMAGE_SIDE || bytes > MAX_IMAGE_BYTES {
        return Err(wrong(format!(
            "is {width} x {height} pixels; the longest side may be {MAX_IMAGE_SIDE}, the whole {MAX_IMAGE_BYTES} bytes; \
             scale the image down first"
        )));
    }
    // Orientations 5 to 8 of EXIF are quarter turns.
    if decoder.orientation().map_err(unreadable)?.to_exif() >= 5 {
        std::mem::swap(&mut width, &mut height);
    }
    let png = encode_png(&RgbImage::from_pixel(width, height, Rgb([BLANK; 3])))?;
    Ok(ImageSource::Bytes(png.into()))
}

/// `sample` with every image blanked.
///
/// # Errors
/// As [`blank_image`], with the row's file and line.
pub fn blank_sample(sample: &Sample) -> Result<Sample> {
    let mut blanked = sample.clone();
    let images = sample.images.iter().map(blank_image).collect::<Result<_>>();
    blanked.images = images.map_err(|error| sample.blame(error))?;
    Ok(blanked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majority_is_the_largest_share() {
        assert_eq!(majority_accuracy(&["3", "4", " 3 ", "5"]), 0.5);
        assert_eq!(majority_accuracy::<&str>(&[]), 0.0);
    }

    #[test]
    fn blanks_keep_the_size_and_nothing_else() {
        let picture = RgbImage::from_fn(30, 20, |x, y| Rgb([x as u8, y as u8, 7]));
        let source = ImageSource::Bytes(encode_png(&picture).unwrap().into());
        let blank = blank_image(&source).unwrap();
        let decoded = image::load_from_memory(&blank.encoded().unwrap()).unwrap().to_rgb8();
        assert_eq!(decoded.dimensions(), (30, 20));
        assert!(decoded.as_raw().iter().all(|b| *b == BLANK));
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("page.jpg");
        std::fs::write(&path, "<html>").unwrap();
        let error = blank_image(&ImageSource::File(path)).unwrap_err();
        assert!(error.exit_code() == 65 && error.to_string().contains("page.jpg"), "{error}");
        let bytes = ImageSource::Bytes(std::sync::Arc::from(&b"xx"[..]));
        assert_eq!(blank_image(&bytes).unwrap_err().exit_code(), 65);
    }
}
