//! JPEG samples within a rounding error of libjpeg-turbo's, which is what PIL decodes with.
//!
//! jpeg-decoder's portable path (no vector instructions, so the same bytes on every machine) has an accurate integer DCT
//! and libjpeg's triangle filter for subsampled chroma, edges included. Two of libjpeg's rules are added here: which
//! colour model a file has, and the way from CMYK to RGB, which is PIL's.

use image::error::{DecodingError, ImageError};
use image::{DynamicImage, ImageFormat, ImageResult};
use jpeg_decoder::{ColorTransform, Decoder, PixelFormat};

/// Most pixels times scans of a JPEG. Each scan goes over the whole picture, and takes ten bytes of the file: a progressive
/// JPEG has some ten scans (libjpeg's default), one made to waste time has millions. This is a few seconds.
const MAX_SCANNED_PIXELS: u64 = 3 << 30;

/// Samples of a baseline or progressive JPEG of `width` by `height` pixels, not yet turned upright: `ImageLuma8` or
/// `ImageRgb8`. The caller has held the size against its limits; a frame of another size is refused before anything is
/// allocated for it. May panic: the decoder asserts some of what it expects of a file.
///
/// # Errors
/// [`ImageError::Decoding`] where the file is truncated or broken, has too many scans, or uses what the decoder does not
/// know (arithmetic coding, 12-bit samples, lossless and hierarchical frames).
pub(super) fn decode_jpeg(encoded: &[u8], width: u32, height: u32) -> ImageResult<DynamicImage> {
    let scans = segments(encoded).filter(|&(marker, _)| marker == START_OF_SCAN).count() as u64;
    if scans * u64::from(width) * u64::from(height) > MAX_SCANNED_PIXELS {
        return Err(broken(format!("{scans} scans are too many for {width} x {height} pixels")));
    }
    let mut decoder = Decoder::new(encoded);
    if let Some(transform) = colour_transform(encoded) {
        decoder.set_color_transform(transform);
    }
    decoder.read_info().map_err(broken)?;
    let info = decoder.info().ok_or_else(|| broken("no frame header"))?;
    if (u32::from(info.width), u32::from(info.height)) != (width, height) {
        return Err(broken("two frame headers of different size"));
    }
    let samples = decoder.decode().map_err(broken)?;
    let image = match info.pixel_format {
        PixelFormat::L8 => image::GrayImage::from_raw(width, height, samples).map(DynamicImage::ImageLuma8),
        PixelFormat::RGB24 => image::RgbImage::from_raw(width, height, samples).map(DynamicImage::ImageRgb8),
        PixelFormat::CMYK32 => {
            image::RgbImage::from_raw(width, height, rgb_of_cmyk(&samples)).map(DynamicImage::ImageRgb8)
        }
        PixelFormat::L16 => return Err(broken("samples of more than 8 bits are not supported")),
    };
    image.ok_or_else(|| broken("fewer samples than the frame header tells"))
}

fn broken(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ImageError {
    ImageError::Decoding(DecodingError::new(ImageFormat::Jpeg.into(), reason))
}

/// The marker that begins a scan: its header, then coded data.
const START_OF_SCAN: u8 = 0xda;

/// The marker segments of a JPEG, up to its end or the first that is cut short: marker, and what it holds. Coded data
/// stands between them; in it, a 0xff that is not a marker is followed by 0.
fn segments(encoded: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = encoded;
    std::iter::from_fn(move || {
        loop {
            rest = &rest[rest.iter().position(|&b| b == 0xff)?..];
            let start = rest.iter().position(|&b| b != 0xff)?;
            let marker = rest[start];
            rest = &rest[start + 1..];
            match marker {
                // Stuffing, TEM, restarts and the start of the image stand alone.
                0x00 | 0x01 | 0xd0..=0xd8 => continue,
                0xd9 => return None,
                _ => {}
            }
            let length = usize::from(u16::from_be_bytes(rest.first_chunk().copied()?));
            let segment = rest.get(2..length)?;
            rest = &rest[length..];
            return Some((marker, segment));
        }
    })
}

/// The colour model by libjpeg's rule: a JFIF marker means YCbCr; else an Adobe marker tells; else three components are
/// YCbCr unless their identifiers spell RGB, and four are CMYK. (The decoder would look at the identifiers first.)
/// `None` for grey and for what has no readable frame header.
fn colour_transform(encoded: &[u8]) -> Option<ColorTransform> {
    let (mut has_jfif, mut adobe, mut identifiers) = (false, None, Vec::new());
    for (marker, segment) in segments(encoded).take_while(|&(marker, _)| marker != START_OF_SCAN) {
        match marker {
            0xe0 => has_jfif |= segment.starts_with(b"JFIF\0") && segment.len() >= 14,
            0xee if segment.starts_with(b"Adobe") => adobe = segment.get(11).copied().or(adobe),
            // Frame headers, among which DHT, JPG and DAC have their numbers.
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                identifiers = segment.get(6..)?.chunks_exact(3).map(|component| component[0]).collect();
            }
            _ => {}
        }
    }
    match (identifiers.as_slice(), adobe) {
        ([_, _, _], _) if has_jfif => Some(ColorTransform::YCbCr),
        ([_, _, _], Some(0)) | (b"RGB", None) => Some(ColorTransform::RGB),
        ([_, _, _], _) => Some(ColorTransform::YCbCr),
        ([_, _, _, _], None | Some(0)) => Some(ColorTransform::CMYK),
        ([_, _, _, _], _) => Some(ColorTransform::YCCK),
        _ => None,
    }
}

/// RGB of ink amounts as PIL converts: `(255 - k) - c (255 - k) / 255`, the quotient rounded.
fn rgb_of_cmyk(samples: &[u8]) -> Vec<u8> {
    let light = |ink: u8, black: u8| {
        let paper = 255 - u32::from(black);
        let product = u32::from(ink) * paper + 128;
        (paper - (((product >> 8) + product) >> 8)) as u8
    };
    let pixels = samples.chunks_exact(4);
    pixels.flat_map(|p| [light(p[0], p[3]), light(p[1], p[3]), light(p[2], p[3])]).collect()
}
