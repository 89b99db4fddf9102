//! The bundle's images: our decoder against the reference's.
//!
//! Decoders of lossy formats differ by a grey level, which would hide what the resizing and the model do. So where the
//! bundle has the reference's pixels of a JPEG or lossy WebP file, the model is given those (as a lossless image in
//! memory), and our own decoding of the file is compared beside it.

use super::bundle::{Bundle, ExampleInput, images_key};
use super::compare::Values;
use super::{Context, Sink};
use crate::data::{ImageSource, Message, Part, Sample};
use crate::error::{Error, Result};
use crate::parity::bundle::{ContentInput, PartInput};
use crate::processor::decode::load_image;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use std::collections::BTreeSet;

/// Whether decoders of this file may differ: JPEG, and WebP whose picture is in a `VP8 ` chunk (lossless is `VP8L`).
pub fn is_lossy(encoded: &[u8]) -> bool {
    if encoded.starts_with(&[0xFF, 0xD8]) {
        return true;
    }
    if !encoded.starts_with(b"RIFF") || encoded.get(8..12) != Some(b"WEBP") {
        return false;
    }
    let mut rest = &encoded[12..];
    while let Some((header, body)) = rest.split_first_chunk::<8>() {
        let [a, b, c, d, size @ ..] = *header;
        if [a, b, c, d] == *b"VP8 " {
            return true;
        }
        let size = u32::from_le_bytes(size) as usize;
        rest = body.get(size.next_multiple_of(2)..).unwrap_or_default();
    }
    false
}

/// The same for an image of the bundle.
pub(super) fn is_lossy_file(bundle: &Bundle, image: &str) -> Result<bool> {
    Ok(is_lossy(&bundle.image(image)?.encoded()?))
}

/// Compares our decoding of every image whose pixels the bundle has.
pub(super) fn check(sink: &mut Sink<'_>) -> Result<()> {
    let bundle = sink.bundle;
    let mut seen = BTreeSet::new();
    for name in bundle.examples().iter().flat_map(images_of) {
        let key = images_key(name);
        if seen.insert(name) && sink.wants(&key) {
            let image = load_image(&bundle.image(name)?, name)?;
            sink.emit(&key, &[image.height, image.width, 3], Values::U8(image.pixels))?;
        }
    }
    Ok(())
}

/// Image paths of an example, in reading order.
fn images_of(example: &ExampleInput) -> impl Iterator<Item = &str> {
    let parts = example.messages.iter().flat_map(|message| match &message.content {
        ContentInput::Text(_) => &[][..],
        ContentInput::Parts(parts) => parts,
    });
    parts.filter_map(|part| match part {
        PartInput::Image { image } => Some(image.as_str()),
        PartInput::Text { .. } => None,
    })
}

/// What the model is to see of an image.
fn source(bundle: &Bundle, name: &str) -> Result<ImageSource> {
    let file = bundle.image(name)?;
    if !is_lossy(&file.encoded()?) {
        return Ok(file);
    }
    match bundle.decoded(name)? {
        Some(([height, width, _], pixels)) => as_png(bundle, name, height, width, &pixels),
        None => Ok(file),
    }
}

/// Pixels `[height, width, 3]` as a lossless image.
fn as_png(bundle: &Bundle, name: &str, height: usize, width: usize, pixels: &[u8]) -> Result<ImageSource> {
    let refuse = |reason: String| {
        Error::content(
            bundle.expected_path(),
            format!("{}: {width} x {height} pixels: {reason}", images_key(name)),
        )
    };
    let side = |n: usize| u32::try_from(n).map_err(|_| refuse("too large".to_owned()));
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(pixels, side(width)?, side(height)?, ExtendedColorType::Rgb8)
        .map_err(|e| refuse(e.to_string()))?;
    Ok(ImageSource::Bytes(png.into()))
}

impl Context<'_> {
    /// An example's conversation with its images.
    pub(super) fn sample(&self, index: usize, example: &ExampleInput) -> Result<Sample> {
        let images = images_of(example).map(|name| source(self.bundle, name)).collect::<Result<_>>()?;
        let mut next = 0;
        let mut part = |part: &PartInput| match part {
            PartInput::Text { text } => Part::Text(text.clone()),
            PartInput::Image { .. } => {
                next += 1;
                Part::Image(next - 1)
            }
        };
        let messages = example
            .messages
            .iter()
            .map(|message| Message {
                role: message.role.clone(),
                content: match &message.content {
                    ContentInput::Text(text) => vec![Part::Text(text.clone())],
                    ContentInput::Parts(parts) => parts.iter().map(&mut part).collect(),
                },
            })
            .collect();
        Ok(Sample { row: index, messages, images, ..Sample::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webp(chunks: &[(&[u8; 4], usize)]) -> Vec<u8> {
        let mut bytes = b"RIFF\0\0\0\0WEBP".to_vec();
        for (name, size) in chunks {
            bytes.extend_from_slice(*name);
            bytes.extend_from_slice(&(*size as u32).to_le_bytes());
            bytes.resize(bytes.len() + size.next_multiple_of(2), 0);
        }
        bytes
    }

    #[test]
    fn lossy_files_are_told_by_their_content() {
        assert!(is_lossy(&[0xFF, 0xD8, 0xFF, 0xE0]));
        assert!(is_lossy(&webp(&[(b"VP8 ", 3)])));
        // An odd chunk is padded; the alpha of a lossy picture stands before it.
        assert!(is_lossy(&webp(&[(b"VP8X", 10), (b"ALPH", 5), (b"VP8 ", 4)])));
        assert!(!is_lossy(&webp(&[(b"VP8X", 10), (b"VP8L", 4)])));
        assert!(!is_lossy(b"\x89PNG\r\n\x1a\n"));
        // Broken files are for the decoder to refuse.
        assert!(!is_lossy(b"RIFF"));
        assert!(!is_lossy(b"RIFF\0\0\0\0WEBPABCD\xff\xff\xff\xff1"));
        assert!(!is_lossy(&[]));
    }
}
