//! The transparent colour of a PNG.
//!
//! transformers' `load_image` drops alpha channels, but an image with one fully transparent colour (a `tRNS` chunk) still
//! carries that colour when its image processor converts it to RGB "compositing any transparency onto a white background".
//! So there, and here, every pixel of that colour turns white, wherever it came from. What PIL makes of the chunk, by the
//! kind of image:
//!
//! | PNG | colour |
//! |---|---|
//! | palette, one entry of alpha 0, all others 255 | that entry's (any other mix of alphas is dropped) |
//! | grey of 2, 4 or 8 bits | the chunk's number on all channels, 2 and 4 bits not scaled up |
//! | grey of 1 or 16 bits | the chunk's number (1 bit: 0 or 255) on red alone, so that only black can match |
//! | RGB | the low byte of each number, for 16 bits too |

use super::decode::RgbImage;

/// The colour that an encoded image declares transparent; none for other formats, and for broken chunks.
pub(super) fn transparent_colour(encoded: &[u8]) -> Option<[u8; 3]> {
    let mut rest = encoded.strip_prefix(b"\x89PNG\r\n\x1a\n")?;
    let (mut kind, mut palette): (Option<(u8, u8)>, &[u8]) = (None, &[]);
    while let Some((head, body)) = rest.split_first_chunk::<8>() {
        let [a, b, c, d, name @ ..] = *head;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let data = body.get(..length)?;
        match &name {
            b"IHDR" => kind = Some((*data.get(8)?, *data.get(9)?)),
            b"PLTE" => palette = data,
            b"tRNS" => return colour_of(kind?, palette, data),
            b"IDAT" => return None,
            _ => {}
        }
        // Behind the data stands its checksum.
        rest = body.get(length.checked_add(4)?..)?;
    }
    None
}

/// The table of the module: bit depth and colour type, palette, and the chunk's data.
fn colour_of((depth, kind): (u8, u8), palette: &[u8], chunk: &[u8]) -> Option<[u8; 3]> {
    let number = |i: usize| Some(u16::from_be_bytes([*chunk.get(2 * i)?, *chunk.get(2 * i + 1)?]));
    match (kind, depth) {
        (3, _) => {
            let entry = chunk.iter().position(|&alpha| alpha == 0)?;
            let others = chunk.iter().filter(|&&alpha| alpha == 255).count();
            if others + 1 != chunk.len() {
                return None;
            }
            palette.get(3 * entry..3 * entry + 3)?.try_into().ok()
        }
        (0, 1) => Some([if number(0)? == 0 { 0 } else { 255 }, 0, 0]),
        (0, 16) => Some([number(0)? as u8, 0, 0]),
        (0, _) => Some([number(0)?.min(255) as u8; 3]),
        (2, _) => Some([number(0)? as u8, number(1)? as u8, number(2)? as u8]),
        _ => None,
    }
}

/// Turns every pixel of a colour white.
pub(super) fn whiten(image: &mut RgbImage, colour: [u8; 3]) {
    image.pixels.chunks_exact_mut(3).filter(|pixel| **pixel == colour).for_each(|pixel| pixel.fill(255));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(depth: u8, kind: u8, chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
        let header = [0, 0, 0, 1, 0, 0, 0, 1, depth, kind, 0, 0, 0];
        let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
        for (name, data) in [(b"IHDR", &header[..])].into_iter().chain(chunks.iter().copied()) {
            bytes.extend((data.len() as u32).to_be_bytes());
            bytes.extend_from_slice(name);
            bytes.extend_from_slice(data);
            bytes.extend([0; 4]);
        }
        bytes
    }

    #[test]
    fn the_colour_by_kind_of_image() {
        let palette: (&[u8; 4], &[u8]) = (b"PLTE", &[1, 2, 3, 4, 5, 6]);
        for (depth, kind, chunk, want) in [
            (8, 3, &[255, 0][..], Some([4, 5, 6])),
            (4, 3, &[0], Some([1, 2, 3])),
            (8, 3, &[255, 255], None),
            (8, 3, &[0, 0], None),
            (8, 3, &[0, 128], None),
            // The transparent entry is not in the palette.
            (8, 3, &[255, 255, 0], None),
            (8, 0, &[0, 9], Some([9, 9, 9])),
            (8, 0, &[1, 0], Some([255, 255, 255])),
            (2, 0, &[0, 3], Some([3, 3, 3])),
            (1, 0, &[0, 1], Some([255, 0, 0])),
            (1, 0, &[0, 0], Some([0, 0, 0])),
            (16, 0, &[1, 0], Some([0, 0, 0])),
            (8, 2, &[0, 7, 0, 8, 0, 9], Some([7, 8, 9])),
            (16, 2, &[7, 1, 8, 2, 9, 3], Some([1, 2, 3])),
            (8, 2, &[0, 7, 0, 8], None),
            (8, 6, &[0, 7, 0, 8, 0, 9], None),
        ] {
            let encoded = png(depth, kind, &[palette, (b"tRNS", chunk)]);
            assert_eq!(transparent_colour(&encoded), want, "{depth} bits, type {kind}, {chunk:?}");
        }
    }

    #[test]
    fn no_chunk_no_colour() {
        assert_eq!(transparent_colour(&png(8, 2, &[])), None);
        assert_eq!(transparent_colour(&png(8, 2, &[(b"IDAT", &[]), (b"tRNS", &[0; 6])])), None);
        let mut cut = png(8, 2, &[(b"tRNS", &[0; 6])]);
        cut.truncate(cut.len() - 5);
        assert_eq!(transparent_colour(&cut), None);
        assert_eq!(transparent_colour(b"\xff\xd8\xff"), None);
        assert_eq!(transparent_colour(&[]), None);
    }

    #[test]
    fn pixels_of_the_colour_turn_white() {
        let mut image = RgbImage { width: 3, height: 1, pixels: vec![1, 2, 3, 3, 2, 1, 1, 2, 3] };
        whiten(&mut image, [1, 2, 3]);
        assert_eq!(image.pixels, [255, 255, 255, 3, 2, 1, 255, 255, 255]);
    }
}
