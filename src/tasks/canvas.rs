//! A small anti-aliased canvas: shapes as signed distances, coverage from the distance.

use image::{Rgb, RgbImage};

/// A colour with channels 0 to 255.
pub(super) type Colour = [f32; 3];

/// A point or vector in pixels; x right, y down; pixel (i, j) has its centre at (i + .5, j + .5).
pub(super) type Point = [f32; 2];

/// An RGB picture in floats.
pub(super) struct Canvas {
    side: usize,
    pixels: Vec<Colour>,
}

impl Canvas {
    /// A square of `side` pixels, each coloured by `background` of its centre.
    pub(super) fn new(side: u32, background: impl Fn(Point) -> Colour) -> Self {
        let side = side as usize;
        let centre = |i: usize| i as f32 + 0.5;
        let pixels = (0..side * side).map(|at| background([centre(at % side), centre(at / side)])).collect();
        Canvas { side, pixels }
    }

    /// Fills the shape whose signed distance (negative inside, in pixels) is `distance`, which
    /// lies within `reach` of `centre`. The edge covers a pixel by half its distance from it.
    pub(super) fn fill(
        &mut self,
        centre: Point,
        reach: f32,
        colour: Colour,
        distance: impl Fn(Point) -> f32,
    ) {
        let span = |c: f32| {
            let low = (c - reach - 1.0).floor().clamp(0.0, self.side as f32) as usize;
            let high = (c + reach + 2.0).ceil().clamp(0.0, self.side as f32) as usize;
            low..high
        };
        let columns = span(centre[0]);
        for y in span(centre[1]) {
            for x in columns.clone() {
                let coverage = (0.5 - distance([x as f32 + 0.5, y as f32 + 0.5])).clamp(0.0, 1.0);
                if coverage > 0.0 {
                    let pixel = &mut self.pixels[y * self.side + x];
                    for (old, new) in pixel.iter_mut().zip(colour) {
                        *old += (new - *old) * coverage;
                    }
                }
            }
        }
    }

    /// A straight line of `width` pixels with round ends.
    pub(super) fn line(&mut self, from: Point, to: Point, width: f32, colour: Colour) {
        let middle = [(from[0] + to[0]) / 2.0, (from[1] + to[1]) / 2.0];
        let along = [to[0] - from[0], to[1] - from[1]];
        let length2 = (along[0] * along[0] + along[1] * along[1]).max(1e-6);
        self.fill(middle, length2.sqrt() / 2.0 + width, colour, |p| {
            let from_start = [p[0] - from[0], p[1] - from[1]];
            let t = ((from_start[0] * along[0] + from_start[1] * along[1]) / length2).clamp(0.0, 1.0);
            let off = [from_start[0] - t * along[0], from_start[1] - t * along[1]];
            (off[0] * off[0] + off[1] * off[1]).sqrt() - width / 2.0
        });
    }

    /// The picture in bytes, rounded to the nearest level.
    pub(super) fn image(&self) -> RgbImage {
        RgbImage::from_fn(self.side as u32, self.side as u32, |x, y| {
            let pixel = self.pixels[y as usize * self.side + x as usize];
            Rgb(pixel.map(|c| c.round().clamp(0.0, 255.0) as u8))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coverage_adds_up_to_the_area() {
        let mut canvas = Canvas::new(40, |_| [0.0; 3]);
        let centre = [20.3, 19.6];
        canvas.fill(centre, 9.0, [255.0; 3], |p| ((p[0] - centre[0]).hypot(p[1] - centre[1])) - 9.0);
        let area: f32 = canvas.pixels.iter().map(|p| p[0] / 255.0).sum();
        assert!((area - std::f32::consts::PI * 81.0).abs() < 2.0, "{area}");
    }

    #[test]
    fn shapes_beyond_the_edge_are_cut() {
        let mut canvas = Canvas::new(8, |_| [10.0; 3]);
        canvas.line([-50.0, 4.0], [50.0, 4.0], 2.0, [200.0; 3]);
        canvas.fill([-90.0, -90.0], 3.0, [255.0; 3], |_| -1.0);
        let image = canvas.image();
        assert_eq!(image.get_pixel(0, 3).0, [200; 3]);
        assert_eq!(image.get_pixel(7, 4).0, [200; 3]);
        assert_eq!(image.get_pixel(0, 0).0, [10; 3]);
    }
}
