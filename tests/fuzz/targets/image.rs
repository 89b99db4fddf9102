//! Images: decoded, resized and cut into patches.

use std::io::Cursor;
use std::sync::Arc;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder};
use othink::data::{ImageSource, MAX_IMAGE_SIDE};
use othink::processor::ImageConfig;
use othink::processor::decode::{load_for_model, load_image};
use othink::processor::patches::patches_of;
use othink::processor::resize::MAX_ASPECT_RATIO;
use othink::train::plan::image_tokens_at_most;

use super::{Outcome, Target, refused};

pub const TARGET: Target = Target {
    name: "image",
    body,
    seeds,
    dictionary: &[
        b"\x89PNG\r\n\x1a\n",
        b"IHDR",
        b"IDAT",
        b"IEND",
        b"PLTE",
        b"tRNS",
        b"eXIf",
        b"iTXtXML:com.adobe.xmp\0\0\0\0\0",
        b"tiff:Orientation=\"6\"",
        b"iCCP",
        b"acTL",
        b"fcTL",
        b"fdAT",
        b"gAMA",
        b"\xff\xd8",
        b"\xff\xd9",
        b"\xff\xc0\x00\x11\x08",
        b"\xff\xc2\x00\x11\x08",
        b"\xff\xc4",
        b"\xff\xda",
        b"\xff\xdb",
        b"\xff\xdd\x00\x04\x00\x01",
        b"\xff\xd0",
        b"\xff\xe0\x00\x10JFIF\0",
        b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\x02",
        b"\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0",
        b"RIFF",
        b"WEBPVP8 ",
        b"WEBPVP8L",
        b"WEBPVP8X",
        b"ALPH",
        b"ANIM",
        b"ANMF",
        b"EXIF",
        b"XMP ",
        b"\x9d\x01\x2a",
        b"\x2f",
        b"GIF89a",
        b"BM",
        b"<svg",
        b"ftypavif",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x00",
        b"\x7f\xff\xff\xff",
        b"\x40\x00",
    ],
    repair: |bytes| repair(bytes),
    max_bytes: 1 << 12,
};

fn body(input: &[u8]) -> Outcome {
    let source = ImageSource::Bytes(Arc::from(input));
    let name = "row 0, image 0";
    let image = match load_for_model(&source, name) {
        Ok(image) => image,
        Err(error) => {
            assert!(load_image(&source, name).is_err());
            return refused(&error, &[65]);
        }
    };
    assert!(
        (1..=MAX_IMAGE_SIDE as usize).contains(&image.width)
            && (1..=MAX_IMAGE_SIDE as usize).contains(&image.height)
    );
    assert_eq!(image.pixels.len(), image.width * image.height * 3);
    let mut outcome = Outcome::of((input.first(), image.width.min(9), image.height.min(9)));

    let small = ImageConfig { min_pixels: 28 * 28, max_pixels: 4 * 28 * 28, ..ImageConfig::default() };
    let odd = ImageConfig { patch_size: 3, merge_size: 1, temporal_patch_size: 1, ..small.clone() };
    for config in [small, odd] {
        let patches = match patches_of(&image, &config) {
            Ok(patches) => patches,
            Err(error) => {
                let (long, short) = (image.width.max(image.height), image.width.min(image.height));
                assert!(long as f64 / short as f64 > MAX_ASPECT_RATIO, "{error}");
                outcome = outcome.and(refused(&error, &[65]));
                continue;
            }
        };
        let [frames, high, wide] = patches.grid_thw;
        assert_eq!(frames, 1);
        assert!(
            high > 0
                && wide > 0
                && high.is_multiple_of(config.merge_size)
                && wide.is_multiple_of(config.merge_size)
        );
        assert_eq!(patches.bytes.len(), high * wide * config.patch_bytes(), "the grid is not the data's");
        assert_eq!(patches.merged_tokens(config.merge_size) * config.merge_size.pow(2), high * wide);
        assert!(patches.merged_tokens(config.merge_size) <= image_tokens_at_most(&config));
        let input = patches.normalised(&config.normalisation);
        assert!(input.len() == patches.bytes.len() && input.iter().all(|level| level.is_finite()));
    }
    // The same file gives the same pixels.
    if input.len().is_multiple_of(8) {
        assert!(load_for_model(&source, name).is_ok_and(|again| again == image));
    }
    outcome
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = [
        include_bytes!("../../bundles/image_kinds/images/grey.png").as_slice(),
        include_bytes!("../../bundles/image_kinds/images/grey_alpha.png"),
        include_bytes!("../../bundles/image_kinds/images/one_bit.png"),
        include_bytes!("../../bundles/image_kinds/images/palette.png"),
        include_bytes!("../../bundles/image_kinds/images/rgba.png"),
        include_bytes!("../../bundles/image_kinds/images/grey.jpg"),
        include_bytes!("../../bundles/image_kinds/images/turned.jpg"),
        include_bytes!("../../bundles/image_kinds/images/lossy.webp"),
        include_bytes!("../../bundles/image_kinds/images/lossless_alpha.webp"),
        b"<html>not found</html>",
        b"GIF89a\x01\0\x01\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;",
    ]
    .into_iter()
    .map(<[u8]>::to_vec)
    .collect();
    for (width, height) in [(1, 1), (5, 3), (40, 1)] {
        let pixels = |channels: usize| -> Vec<u8> {
            (0..width as usize * height as usize * channels).map(|i| (i * 37 % 256) as u8).collect()
        };
        let mut add = |encode: &dyn Fn(&mut Cursor<&mut Vec<u8>>) -> image::ImageResult<()>| {
            let mut file = Vec::new();
            encode(&mut Cursor::new(&mut file)).expect("a small image can be encoded");
            seeds.push(file);
        };
        let colours = [
            (1, ExtendedColorType::L8),
            (2, ExtendedColorType::La8),
            (3, ExtendedColorType::Rgb8),
            (4, ExtendedColorType::Rgba8),
            (2, ExtendedColorType::L16),
            (6, ExtendedColorType::Rgb16),
            (8, ExtendedColorType::Rgba16),
        ];
        for (bytes, colour) in colours {
            add(&|file| {
                let encoder = PngEncoder::new_with_quality(file, CompressionType::Fast, FilterType::Adaptive);
                encoder.write_image(&pixels(bytes), width, height, colour)
            });
        }
        for (bytes, colour) in [(1, ExtendedColorType::L8), (3, ExtendedColorType::Rgb8)] {
            add(&|file| {
                JpegEncoder::new_with_quality(file, 60).write_image(&pixels(bytes), width, height, colour)
            });
        }
        for (bytes, colour) in [(3, ExtendedColorType::Rgb8), (4, ExtendedColorType::Rgba8)] {
            add(&|file| WebPEncoder::new_lossless(file).write_image(&pixels(bytes), width, height, colour));
        }
    }
    // A narrow one, which shrinks.
    let mut narrow = Vec::new();
    let encoder = PngEncoder::new_with_quality(&mut narrow, CompressionType::Fast, FilterType::Up);
    encoder
        .write_image(&[200; 900 * 15], 900, 15, ExtendedColorType::L8)
        .expect("a small image can be encoded");
    seeds.push(narrow);
    seeds.extend(golden_jpegs());
    seeds
}

/// The small files of `tests/golden/jpeg.bin` (its layout stands in `tools/reference/make_jpeg_golden.py`): progressive,
/// subsampled, CMYK and the like.
fn golden_jpegs() -> Vec<Vec<u8>> {
    let mut rest: &[u8] = include_bytes!("../../golden/jpeg.bin");
    let mut take = |n: usize| {
        let (head, tail) = rest.split_at(n);
        rest = tail;
        head
    };
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("4 bytes")) as usize;
    let count = number(take(4));
    let mut files = Vec::new();
    for _ in 0..count {
        let [name, width, height, file] = [(); 4].map(|()| number(take(4)));
        take(name);
        files.push(take(file).to_vec());
        take(width * height * 3);
    }
    files.retain(|file| file.len() <= 1500);
    files
}

/// Writes the checksums of a PNG's chunks, and the length of a RIFF file.
fn repair(bytes: &mut [u8]) {
    if bytes.starts_with(b"RIFF") && bytes.len() >= 12 {
        let length = (bytes.len() - 8) as u32;
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
    }
    if !bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        return;
    }
    let mut at = 8;
    while let Some(length) = bytes.get(at..at + 4) {
        let length = u32::from_be_bytes(length.try_into().expect("4 bytes")) as usize;
        let end = at.saturating_add(8).saturating_add(length);
        let Some(chunk) = bytes.get(at + 4..end) else { return };
        let sum = crc32(chunk).to_be_bytes();
        let Some(place) = bytes.get_mut(end..end + 4) else { return };
        place.copy_from_slice(&sum);
        at = end + 4;
    }
}

/// The checksum of PNG (ISO 3309), bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}
