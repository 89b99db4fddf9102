//! A 5 x 7 bitmap font of what labels need: digits, `x` and the degree sign.

use super::canvas::{Canvas, Colour, Point};

/// Height of a glyph in font pixels.
const HEIGHT: usize = 7;

/// Rows from the top, the leftmost pixel in bit 4.
const GLYPHS: [(char, [u8; HEIGHT]); 12] = [
    ('0', [0b01110, 0b10001, 0b10011, 0b10101, 0b11001, 0b10001, 0b01110]),
    ('1', [0b00100, 0b01100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110]),
    ('2', [0b01110, 0b10001, 0b00001, 0b00110, 0b01000, 0b10000, 0b11111]),
    ('3', [0b01110, 0b10001, 0b00001, 0b00110, 0b00001, 0b10001, 0b01110]),
    ('4', [0b00010, 0b00110, 0b01010, 0b10010, 0b11111, 0b00010, 0b00010]),
    ('5', [0b11111, 0b10000, 0b11110, 0b00001, 0b00001, 0b10001, 0b01110]),
    ('6', [0b00110, 0b01000, 0b10000, 0b11110, 0b10001, 0b10001, 0b01110]),
    ('7', [0b11111, 0b00001, 0b00010, 0b00100, 0b01000, 0b01000, 0b01000]),
    ('8', [0b01110, 0b10001, 0b10001, 0b01110, 0b10001, 0b10001, 0b01110]),
    ('9', [0b01110, 0b10001, 0b10001, 0b01111, 0b00001, 0b00010, 0b01100]),
    ('x', [0b00000, 0b00000, 0b10001, 0b01010, 0b00100, 0b01010, 0b10001]),
    ('°', [0b110, 0b1001, 0b1001, 0b110, 0b0000, 0b0000, 0b0000]),
];

/// Columns that a character takes, without the gap behind it.
fn columns(c: char) -> usize {
    if c == '°' { 4 } else { 5 }
}

/// Width and height of `text` in pixels, one font pixel being `scale` pixels wide.
pub(super) fn size(text: &str, scale: u32) -> Point {
    let width: usize = text.chars().map(|c| columns(c) + 1).sum();
    [(width.saturating_sub(1) as u32 * scale) as f32, (HEIGHT as u32 * scale) as f32]
}

/// Writes `text` with its upper left corner at the whole pixel nearest to `corner`.
///
/// Characters that the font lacks leave a gap.
pub(super) fn write(canvas: &mut Canvas, text: &str, corner: Point, scale: u32, colour: Colour) {
    let scale = scale as f32;
    let mut left = corner[0].round();
    let top = corner[1].round();
    for c in text.chars() {
        let rows = GLYPHS.iter().find(|(glyph, _)| *glyph == c).map_or([0; HEIGHT], |(_, rows)| *rows);
        for (y, row) in rows.into_iter().enumerate() {
            for x in (0..columns(c)).filter(|x| row >> (columns(c) - 1 - x) & 1 == 1) {
                let centre = [left + (x as f32 + 0.5) * scale, top + (y as f32 + 0.5) * scale];
                canvas.fill(centre, scale / 2.0, colour, |p| {
                    (p[0] - centre[0]).abs().max((p[1] - centre[1]).abs()) - scale / 2.0
                });
            }
        }
        left += (columns(c) + 1) as f32 * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written can be read back: the glyph whose bits are in the image.
    #[test]
    fn text_is_legible() {
        for scale in [1, 2, 3] {
            let text = "0123456789x";
            let [width, height] = size(text, scale);
            let side = width as u32 + 2;
            let mut canvas = Canvas::new(side, |_| [255.0; 3]);
            write(&mut canvas, text, [1.2, 0.8], scale, [0.0; 3]);
            let image = canvas.image();
            let dark = |x: usize, y: usize| {
                let at = |v: usize| 1 + v as u32 * scale + scale / 2;
                image.get_pixel(at(x), at(y)).0[0] < 128
            };
            for (i, c) in text.chars().enumerate() {
                let read: Vec<u8> = (0..HEIGHT)
                    .map(|y| (0..5).fold(0, |row, x| row << 1 | u8::from(dark(6 * i + x, y))))
                    .collect();
                let found = GLYPHS.iter().find(|(_, rows)| rows.as_slice() == read).map(|(c, _)| *c);
                assert_eq!(found, Some(c));
            }
            assert_eq!(height, 7.0 * scale as f32);
        }
        assert_eq!(size("90°", 1), [16.0, 7.0]);
    }
}
