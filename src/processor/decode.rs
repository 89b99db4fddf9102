//! Encoded images to upright RGB bytes, as `transformers.image_utils.load_image` gives them for a path.
//!
//! That is PIL's `exif_transpose` followed by `convert("RGB")`: the orientation tag is applied, alpha and `tRNS`
//! transparency are *dropped* (not blended with a background), palettes are looked up, grey is repeated, and 16-bit
//! colour samples keep their high byte. 16-bit *grey* (PIL's mode `I;16`) saturates at 255, because that is what PIL's
//! `convert` does with it: rescale such images to 8 bits first if they shall not come out white.
//!
//! [`load_for_model`] adds the one step that transformers' image processor takes before it resizes: a PNG's transparent
//! colour turns white. (It blends alpha channels over white too, but only of images handed over as PIL objects; this
//! program takes paths and encoded bytes, and treats both as paths.)
//!
//! PNG and WebP decode to the same bytes as in PIL. JPEG decoders differ by rounding: jpeg-decoder (here) and libjpeg-turbo
//! (in PIL) give neighbouring grey levels; at the worst seen, some 0.1 % of the bytes are 3 apart. Not so in pictures at
//! most 4 pixels wide with subsampled chroma, where libjpeg repeats the chroma samples and jpeg-decoder interpolates.
//! libjpeg patches over some damage to the coded data; here a damaged or truncated JPEG is an error.

use std::io::Cursor;
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use regex::bytes::Regex;

use crate::data::{ImageSource, MAX_IMAGE_BYTES, MAX_IMAGE_FILE_BYTES, MAX_IMAGE_SIDE};
use crate::error::{Error, Result};
use crate::files::read_bounded;
use crate::processor::jpeg::decode_jpeg;
use crate::processor::transparency::{transparent_colour, whiten};

/// Images that decode to more bytes are decoded one at a time, however many threads there are: a progressive JPEG takes
/// some four times as much (its coefficients, planes and pixels).
const LARGE_BYTES: u64 = 64 << 20;

/// An upright 8-bit RGB image.
#[derive(Clone, Debug, PartialEq)]
pub struct RgbImage {
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]` grey levels.
    pub pixels: Vec<u8>,
}

/// Reads and decodes one image (see the module's text for what becomes of alpha, palettes and orientation). `name` stands
/// for [`ImageSource::Bytes`] in errors, where a file has its path.
///
/// # Errors
/// [`Error::Missing`] where a file is not there, [`Error::Io`] where it cannot be read, [`Error::Content`] where it is
/// not a regular file, not a png, jpeg or webp, broken, or beyond [`MAX_IMAGE_SIDE`], [`MAX_IMAGE_BYTES`] or
/// [`MAX_IMAGE_FILE_BYTES`]. The limits are checked on the header, before any pixel is decoded.
pub fn load_image(source: &ImageSource, name: &str) -> Result<RgbImage> {
    match source {
        ImageSource::File(path) => decode_image(&read_image(path)?, path),
        ImageSource::Bytes(bytes) => decode_image(bytes, Path::new(name)),
    }
}

/// [`load_image`], with every pixel of a PNG's transparent colour white: what the model is to see.
///
/// # Errors
/// As [`load_image`].
pub fn load_for_model(source: &ImageSource, name: &str) -> Result<RgbImage> {
    let read;
    let (encoded, name): (&[u8], &Path) = match source {
        ImageSource::File(path) => {
            read = read_image(path)?;
            (&read, path)
        }
        ImageSource::Bytes(bytes) => (bytes, Path::new(name)),
    };
    let mut image = decode_image(encoded, name)?;
    if let Some(colour) = transparent_colour(encoded) {
        whiten(&mut image, colour);
    }
    Ok(image)
}

fn read_image(path: &Path) -> Result<Vec<u8>> {
    read_bounded(path, MAX_IMAGE_FILE_BYTES).map_err(|error| match error {
        Error::Missing { path, .. } => {
            Error::missing(path, "the image is not there; put it back or take its row out of the dataset")
        }
        other => other,
    })
}

/// Decodes png, jpeg or webp bytes, the format told by the content. `name` stands in errors only.
///
/// # Errors
/// As [`load_image`].
pub fn decode_image(encoded: &[u8], name: &Path) -> Result<RgbImage> {
    if encoded.len() as u64 > MAX_IMAGE_FILE_BYTES {
        let message = format!("image of {} bytes; at most {MAX_IMAGE_FILE_BYTES} are read", encoded.len());
        return Err(Error::content(name, message));
    }
    let format = supported_format(encoded, name)?;
    // The decoders assert some of what they expect of a file; a file that breaks that is a broken file, no more.
    catch_unwind(|| decode(encoded, format, name)).unwrap_or_else(|_| {
        let format = format_name(format);
        Err(Error::content(name, format!("broken {format} image: its decoder gave up; replace the file")))
    })
}

fn decode(encoded: &[u8], format: ImageFormat, name: &Path) -> Result<RgbImage> {
    let broken = |error: image::ImageError| {
        // Some of the decoders' texts end with a line feed.
        let reason = error.to_string();
        let reason = reason.trim_end();
        Error::content(name, format!("broken {} image: {reason}; replace the file", format_name(format)))
    };
    let mut reader = ImageReader::with_format(Cursor::new(encoded), format);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_IMAGE_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    let refused = |what: String| {
        let message = format!("image of {width} x {height} pixels{what}; scale the image down first");
        Error::content(name, message)
    };
    if width == 0 || height == 0 || width > MAX_IMAGE_SIDE || height > MAX_IMAGE_SIDE {
        return Err(refused(format!(": sides must be 1 to {MAX_IMAGE_SIDE}")));
    }
    let bytes = decoder.total_bytes();
    if bytes > MAX_IMAGE_BYTES {
        return Err(refused(format!(" takes {bytes} bytes decoded, more than {MAX_IMAGE_BYTES}")));
    }
    static LARGE: Mutex<()> = Mutex::new(());
    let _alone = (bytes > LARGE_BYTES).then(|| LARGE.lock().unwrap_or_else(PoisonError::into_inner));
    let orientation = orientation(&mut decoder);
    // Bit depth and colour type of a PNG header: 16-bit grey, with or without `tRNS`.
    let saturates = format == ImageFormat::Png && encoded.get(24..26) == Some(&[16, 0]);
    let decoded = match format {
        ImageFormat::Jpeg => decode_jpeg(encoded, width, height),
        _ => DynamicImage::from_decoder(decoder),
    };
    let mut image = decoded.map_err(broken)?;
    image.apply_orientation(orientation);
    Ok(into_rgb(image, saturates))
}

/// The format of `encoded` by its first bytes, if it is one of the three that are built in.
fn supported_format(encoded: &[u8], name: &Path) -> Result<ImageFormat> {
    let found = match image::guess_format(encoded) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP)) => return Ok(format),
        Ok(format) => format_name(format),
        Err(_) => name_of_unknown(encoded),
    };
    let mend = match found {
        LFS_POINTER => "fetch the file itself (git lfs pull)",
        _ => "convert it to png, jpeg or webp",
    };
    Err(Error::content(name, format!("{found} is not supported as an image; {mend}")))
}

const LFS_POINTER: &str = "a Git LFS pointer";

/// What bytes are that the image crate has no name for.
fn name_of_unknown(encoded: &[u8]) -> &'static str {
    let text = encoded.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(encoded).trim_ascii_start();
    let begins = |start: &[u8]| text.get(..start.len()).is_some_and(|head| head.eq_ignore_ascii_case(start));
    match (encoded.get(4..8), encoded.get(8..12)) {
        _ if encoded.is_empty() => "an empty file",
        (Some(b"ftyp"), Some(b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"mif1" | b"msf1")) => "HEIC",
        (Some(b"ftyp"), Some(b"avif" | b"avis")) => "AVIF",
        (Some(b"ftyp"), _) => "a video or HEIF file",
        (Some(b"JXL "), _) => "JPEG XL",
        _ if encoded.starts_with(b"\xFF\x0A") => "JPEG XL",
        _ if begins(b"version https://git-lfs") => LFS_POINTER,
        _ if begins(b"<svg") => "SVG",
        _ if begins(b"<!doctype html") || begins(b"<html") => "HTML text",
        _ if begins(b"<") => "SVG, HTML or XML text",
        _ if begins(b"%PDF") => "PDF",
        _ => "an unknown format",
    }
}

fn format_name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Png => "PNG",
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Gif => "GIF",
        ImageFormat::Bmp => "BMP",
        ImageFormat::Tiff => "TIFF",
        ImageFormat::Avif => "AVIF",
        ImageFormat::Ico => "ICO",
        ImageFormat::Pnm => "PNM",
        ImageFormat::Dds => "DDS",
        ImageFormat::Hdr => "HDR",
        ImageFormat::OpenExr => "OpenEXR",
        ImageFormat::Farbfeld => "farbfeld",
        ImageFormat::Qoi => "QOI",
        ImageFormat::Tga => "TGA",
        _ => "this format",
    }
}

/// The orientation that PIL's `exif_transpose` applies: the EXIF tag, else the XMP attribute or element, else upright.
/// Unreadable metadata counts as absent.
fn orientation(decoder: &mut impl ImageDecoder) -> Orientation {
    static XMP_ORIENTATION: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r#"tiff:Orientation(?:="|>)([0-9])"#).ok());
    let exif = decoder.exif_metadata().ok().flatten();
    let from_exif = exif.as_deref().and_then(|chunk| {
        // Some writers keep JPEG's marker in front of the TIFF header in PNG and WebP chunks.
        Orientation::from_exif_chunk(chunk.strip_prefix(b"Exif\0\0").unwrap_or(chunk))
    });
    let from_xmp = || {
        let xmp = decoder.xmp_metadata().ok().flatten()?;
        let digit = XMP_ORIENTATION.as_ref()?.captures(&xmp)?.get(1)?.as_bytes().first()?.wrapping_sub(b'0');
        Orientation::from_exif(digit)
    };
    from_exif.or_else(from_xmp).unwrap_or(Orientation::NoTransforms)
}

/// RGB bytes of any decoded layout: alpha dropped, grey repeated, the high byte of 16-bit samples, or their value up to
/// 255 where `saturates`.
fn into_rgb(image: DynamicImage, saturates: bool) -> RgbImage {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let high = |sample: &u16| (sample >> 8) as u8;
    let grey = |sample: &u16| if saturates { (*sample).min(255) as u8 } else { high(sample) };
    let pixels = match image {
        DynamicImage::ImageRgb8(buffer) => buffer.into_raw(),
        DynamicImage::ImageLuma8(buffer) => buffer.iter().flat_map(|&v| [v; 3]).collect(),
        DynamicImage::ImageLumaA8(buffer) => {
            buffer.as_raw().chunks_exact(2).flat_map(|p| [p[0]; 3]).collect()
        }
        DynamicImage::ImageRgba8(buffer) => {
            buffer.as_raw().chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect()
        }
        DynamicImage::ImageLuma16(buffer) => buffer.iter().flat_map(|v| [grey(v); 3]).collect(),
        DynamicImage::ImageLumaA16(buffer) => {
            buffer.as_raw().chunks_exact(2).flat_map(|p| [grey(&p[0]); 3]).collect()
        }
        DynamicImage::ImageRgb16(buffer) => buffer.iter().map(high).collect(),
        DynamicImage::ImageRgba16(buffer) => {
            buffer.as_raw().chunks_exact(4).flat_map(|p| [high(&p[0]), high(&p[1]), high(&p[2])]).collect()
        }
        // The built-in decoders give none of the float layouts; the crate's own conversion covers them.
        other => other.to_rgb8().into_raw(),
    };
    RgbImage { width, height, pixels }
}
