//! The size an image is given, and PIL's bicubic resampling to the byte.

use crate::error::{Error, Result};
use crate::processor::decode::RgbImage;

/// Largest accepted ratio of the longer side to the shorter one (the limit of Qwen2-VL's own processor).
pub const MAX_ASPECT_RATIO: f64 = 200.0;
/// Most pixels of a resized image: a guard against absurd `min_pixels`, above any model's context (85,000 tokens).
const MAX_RESIZED_PIXELS: f64 = (1u64 << 26) as f64;

/// The `(height, width)` to which Qwen2-VL resizes an image of `height` x `width` pixels: both multiples of `factor`
/// (patch size times merge size), their product within `min_pixels ..= max_pixels` where rounding allows, the aspect
/// ratio kept as closely as that permits.
///
/// Sides are rounded to the nearest multiple, halves to the even one (Python's `round`); too many pixels shrink both
/// sides by `sqrt(h w / max_pixels)` rounded down but not below `factor`; too few enlarge them by
/// `sqrt(min_pixels / (h w))` rounded up. So a side below `factor` is enlarged, as in transformers since 4.57.
///
/// # Errors
/// [`Error::Input`] where a side or limit is 0, the ratio of the sides exceeds [`MAX_ASPECT_RATIO`], or the result
/// would have more than 2^26 pixels.
pub fn smart_resize(
    height: usize,
    width: usize,
    factor: usize,
    min_pixels: u64,
    max_pixels: u64,
) -> Result<(usize, usize)> {
    if height == 0 || width == 0 || factor == 0 || min_pixels == 0 || max_pixels == 0 {
        return Err(Error::Input(format!(
            "cannot fit an image of {width} x {height} pixels to a factor of {factor} and {min_pixels} to {max_pixels} \
             pixels: none may be 0"
        )));
    }
    check_aspect_ratio(height, width)?;
    let (h, w, f) = (height as f64, width as f64, factor as f64);
    let mut h_bar = (h / f).round_ties_even() * f;
    let mut w_bar = (w / f).round_ties_even() * f;
    if h_bar * w_bar > max_pixels as f64 {
        let beta = (h * w / max_pixels as f64).sqrt();
        h_bar = f.max((h / beta / f).floor() * f);
        w_bar = f.max((w / beta / f).floor() * f);
    } else if h_bar * w_bar < min_pixels as f64 {
        let beta = (min_pixels as f64 / (h * w)).sqrt();
        h_bar = (h * beta / f).ceil() * f;
        w_bar = (w * beta / f).ceil() * f;
    }
    if h_bar * w_bar > MAX_RESIZED_PIXELS {
        return Err(Error::Input(format!(
            "image of {width} x {height} pixels would become {w_bar} x {h_bar}; lower min_pixels ({min_pixels}) or \
             max_pixels ({max_pixels})"
        )));
    }
    Ok((h_bar as usize, w_bar as usize))
}

/// Refuses an image whose longer side is more than [`MAX_ASPECT_RATIO`] times the shorter one.
///
/// # Errors
/// [`Error::Input`].
pub fn check_aspect_ratio(height: usize, width: usize) -> Result<()> {
    let ratio = height.max(width) as f64 / height.min(width) as f64;
    if ratio <= MAX_ASPECT_RATIO {
        return Ok(());
    }
    Err(Error::Input(format!(
        "image of {width} x {height} pixels: its sides differ by a factor of {ratio:.1}, at most {MAX_ASPECT_RATIO} is \
         accepted; crop or pad it"
    )))
}

/// Bits after the binary point of the filter's integer weights. 8 bits of grey, 22 of weight and 2 of head-room for the
/// negative lobes fill 32.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// The weights of one output pixel along one axis.
struct Taps {
    /// First input pixel.
    first: usize,
    /// One weight per input pixel from `first` on, in units of `2^-22`.
    weights: Vec<i32>,
}

/// Resizes to `height` x `width` exactly as Pillow 13's `Image.resize((width, height), BICUBIC)` does.
///
/// Keys' cubic kernel with `a = -1/2`, stretched by the scale factor when shrinking (so it also low-passes); one
/// pass per axis, the second over the first's 8-bit result; weights normalised in f64, then rounded to 22-bit fixed
/// point; each pass rounds half up and clamps to `0 ..= 255`. A pass whose side does not change is left out.
///
/// The horizontal pass comes first unless the height shrinks by more than twice as many pixels as the width (python-pillow
/// pull request 9549; Pillow before 13 has no such exception, and differs from this where the exception applies).
/// An empty input or output gives an empty image.
pub fn resize_bicubic(image: &RgbImage, height: usize, width: usize) -> RgbImage {
    let lost = |before: usize, after: usize| before as i64 - after as i64;
    let (lost_height, lost_width) = (lost(image.height, height), lost(image.width, width));
    let across =
        |image: &RgbImage| if width == image.width { None } else { Some(resample_rows(image, width)) };
    let down =
        |image: &RgbImage| if height == image.height { None } else { Some(resample_columns(image, height)) };
    let (first, last) = if lost_height > 0 && lost_height > 2 * lost_width {
        let first = down(image);
        let last = across(first.as_ref().unwrap_or(image));
        (first, last)
    } else {
        let first = across(image);
        let last = down(first.as_ref().unwrap_or(image));
        (first, last)
    };
    last.or(first).unwrap_or_else(|| image.clone())
}

/// Keys, "Cubic convolution interpolation for digital image processing" (1981), with a = -1/2.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    // Horner forms in Pillow's order of operations, so that the f64 results are the same.
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// The weights that map `input` pixels to `output` pixels along one axis.
fn taps(input: usize, output: usize) -> Vec<Taps> {
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    let inverse_stretch = 1.0 / stretch;
    let unit = f64::from(1u32 << PRECISION_BITS);
    (0..output)
        .map(|index| {
            let center = (index as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            let real: Vec<f64> = (0..end.saturating_sub(first))
                .map(|x| cubic(((x + first) as f64 - center + 0.5) * inverse_stretch))
                .collect();
            let mut sum = 0.0;
            for weight in &real {
                sum += weight;
            }
            let weights = real
                .iter()
                .map(|&weight| {
                    let normalised = if sum == 0.0 { weight } else { weight / sum };
                    // Rounds half away from zero; the cast then cuts towards zero.
                    let half = if normalised < 0.0 { -0.5 } else { 0.5 };
                    (half + normalised * unit) as i32
                })
                .collect();
            Taps { first, weights }
        })
        .collect()
}

fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Half of the last kept bit, from where each weighted sum starts.
const HALF: i32 = 1 << (PRECISION_BITS - 1);

fn resample_rows(image: &RgbImage, width: usize) -> RgbImage {
    let taps = taps(image.width, width);
    let mut pixels = Vec::with_capacity(image.height * width * 3);
    for row in image.pixels.chunks_exact(image.width.max(1) * 3) {
        for tap in &taps {
            let mut sums = [HALF; 3];
            for (pixel, weight) in row.chunks_exact(3).skip(tap.first).zip(&tap.weights) {
                for (sum, &grey) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(grey) * weight;
                }
            }
            pixels.extend(sums.map(to_byte));
        }
    }
    RgbImage { width, height: image.height, pixels }
}

fn resample_columns(image: &RgbImage, height: usize) -> RgbImage {
    let taps = taps(image.height, height);
    let row_bytes = image.width * 3;
    let mut pixels = Vec::with_capacity(height * row_bytes);
    let mut sums = vec![HALF; row_bytes];
    for tap in &taps {
        sums.fill(HALF);
        // Row by row, so that memory is read in order.
        for (row, weight) in image.pixels.chunks_exact(row_bytes.max(1)).skip(tap.first).zip(&tap.weights) {
            for (sum, &grey) in sums.iter_mut().zip(row) {
                *sum += i32::from(grey) * weight;
            }
        }
        pixels.extend(sums.iter().map(|&sum| to_byte(sum)));
    }
    RgbImage { width: image.width, height, pixels }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smart_resize_rounds_halves_to_even_and_respects_the_limits() {
        let size = |h, w, min, max| smart_resize(h, w, 28, min, max).unwrap();
        // 70/28 = 2.5 -> 2, 98/28 = 3.5 -> 4, 42/28 = 1.5 -> 2.
        assert_eq!(size(70, 98, 3136, 1_003_520), (56, 112));
        assert_eq!(size(42, 42, 3136, 1_003_520), (56, 56));
        // 1x1: beta = 56, both sides 56. 1x200: 0 pixels after rounding, beta = sqrt(3136/200).
        assert_eq!(size(1, 1, 3136, 1_003_520), (56, 56));
        assert_eq!(size(1, 200, 3136, 1_003_520), (28, 812));
        // Shrinking: sqrt(1000*1000/14112) = 8.418, 118.8/28 -> 4.
        assert_eq!(size(1000, 1000, 3136, 14_112), (112, 112));
        // The floor of `factor`: beta = 10, 28/beta < 28 -> 28, 2800/beta = 280.
        assert_eq!(size(28, 2800, 784, 784), (28, 280));
        // The limits apply to the rounded sides: 41 x 41 rounds to 28 x 28 = 784 >= 784.
        assert_eq!(size(41, 41, 784, 14_112), (28, 28));
    }

    #[test]
    fn case_35_smart_resize_refuses_what_cannot_be_fitted() {
        let message = |h, w, min| smart_resize(h, w, 28, min, 1 << 40).unwrap_err().to_string();
        assert!(smart_resize(200, 1, 28, 3136, 14_112).is_ok());
        assert!(message(201, 1, 3136).contains("201.0"), "{}", message(201, 1, 3136));
        assert!(message(0, 5, 3136).contains("none may be 0"));
        assert!(message(5, 5, 0).contains("none may be 0"));
        assert!(message(10, 10, 1 << 40).contains("lower min_pixels"));
    }

    #[test]
    fn unchanged_sizes_copy_and_constant_images_stay_constant() {
        let image = RgbImage { width: 5, height: 4, pixels: (0..60).collect() };
        assert_eq!(resize_bicubic(&image, 4, 5), image);
        let flat = RgbImage { width: 9, height: 7, pixels: vec![137; 9 * 7 * 3] };
        assert!(resize_bicubic(&flat, 20, 3).pixels.iter().all(|&v| v == 137));
    }

    #[test]
    fn equals_pillow_to_the_byte() {
        // tools/reference/make_resize_golden.py: u32 count, then per case six u32 (seed, h, w, new h, new w, byte
        // length) and Pillow's bytes.
        let golden = include_bytes!("../../tests/golden/resize_bicubic.bin");
        let (count, mut rest) = golden.split_at(4);
        let count = u32::from_le_bytes(count.try_into().unwrap());
        assert!(count >= 12);
        for _ in 0..count {
            let (head, tail) = rest.split_at(24);
            let field = |i: usize| u32::from_le_bytes(head[4 * i..4 * i + 4].try_into().unwrap());
            let (seed, h, w) = (field(0), field(1) as usize, field(2) as usize);
            let (new_h, new_w, length) = (field(3) as usize, field(4) as usize, field(5) as usize);
            let (expected, next) = tail.split_at(length);
            let image = RgbImage { width: w, height: h, pixels: noise(seed, h * w * 3) };
            let resized = resize_bicubic(&image, new_h, new_w);
            assert_eq!((resized.height, resized.width), (new_h, new_w));
            assert!(resized.pixels == expected, "{h}x{w} -> {new_h}x{new_w} differs from Pillow");
            rest = next;
        }
        assert!(rest.is_empty());
    }

    /// The input bytes of a golden case; the script has the same generator. High bits of a 32-bit LCG, every third byte
    /// pushed to 0 or 255 so that the negative lobes overshoot and clamp.
    fn noise(seed: u32, length: usize) -> Vec<u8> {
        let mut state = seed;
        (0..length)
            .map(|i| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let value = (state >> 24) as u8;
                if i % 3 == 0 { if value < 128 { 0 } else { 255 } } else { value }
            })
            .collect()
    }
}
