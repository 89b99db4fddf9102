//! A labelled polygon: where everything goes, and how it is drawn.

use crate::rng::Stream;
use crate::tasks::canvas::{Canvas, Colour, Point};
use crate::tasks::font;

/// A polygon with what is written on it. Lengths are in any unit; the layout scales them.
#[derive(Clone, Debug, Default)]
pub(super) struct Figure {
    /// The corners in order; side `i` runs from corner `i` to the next.
    pub(super) corners: Vec<Point>,
    /// Side and what stands beside it.
    pub(super) sides: Vec<(usize, String)>,
    /// Corner (of less than 180 degrees) and what stands before it; it gets an arc.
    pub(super) angles: Vec<(usize, String)>,
    /// Corners with a right-angle mark.
    pub(super) right_angles: Vec<usize>,
    /// Sides with the stroke that marks equal sides.
    pub(super) ticks: Vec<usize>,
    /// A dashed line from its foot to its top, with its length.
    pub(super) height: Option<(Point, Point, String)>,
}

/// A label in place: its text, and the centre of its box.
struct Label {
    text: String,
    centre: Point,
}

fn sub(a: Point, b: Point) -> Point {
    [a[0] - b[0], a[1] - b[1]]
}

/// `a + t * b`.
fn along(a: Point, t: f32, b: Point) -> Point {
    [a[0] + t * b[0], a[1] + t * b[1]]
}

fn cross(a: Point, b: Point) -> f32 {
    a[0] * b[1] - a[1] * b[0]
}

fn norm(a: Point) -> f32 {
    (a[0] * a[0] + a[1] * a[1]).sqrt()
}

fn unit(a: Point) -> Point {
    let n = norm(a).max(1e-6);
    [a[0] / n, a[1] / n]
}

impl Figure {
    /// The figure mirrored left to right.
    pub(super) fn mirrored(self) -> Self {
        self.mapped(|p| [-p[0], p[1]])
    }

    /// The figure turned by `angle` radians.
    pub(super) fn turned(self, angle: f32) -> Self {
        let (sin, cos) = angle.sin_cos();
        self.mapped(|p| [cos * p[0] - sin * p[1], sin * p[0] + cos * p[1]])
    }

    fn mapped(mut self, map: impl Fn(Point) -> Point) -> Self {
        self.corners.iter_mut().for_each(|p| *p = map(*p));
        self.height = self.height.map(|(foot, top, text)| (map(foot), map(top), text));
        self
    }

    /// Corners before, at and after `i`.
    fn corner(&self, i: usize) -> [Point; 3] {
        let n = self.corners.len();
        [(i + n - 1) % n, i % n, (i + 1) % n].map(|j| self.corners[j])
    }

    /// +1 if the corners go clockwise on the screen (y down), else -1.
    fn sense(&self) -> f32 {
        let twice_area: f32 = (0..self.corners.len())
            .map(|i| {
                let [_, a, b] = self.corner(i);
                cross(a, b)
            })
            .sum();
        twice_area.signum()
    }

    /// The straight strokes: sides, and the height if there is one.
    fn strokes(&self) -> Vec<[Point; 2]> {
        let sides = (0..self.corners.len()).map(|i| {
            let [_, a, b] = self.corner(i);
            [a, b]
        });
        sides.chain(self.height.iter().map(|(foot, top, _)| [*foot, *top])).collect()
    }

    /// The labels' boxes, each beside what it names; `gap` pixels stay free.
    fn labels(&self, scale: u32, gap: f32) -> Vec<Label> {
        let sense = self.sense();
        let beside = |anchor: Point, out: Point, text: &str| {
            let [w, h] = font::size(text, scale);
            let reach = (out[0].abs() * w + out[1].abs() * h) / 2.0 + gap;
            Label { text: text.to_string(), centre: along(anchor, reach, out) }
        };
        let mut labels = Vec::new();
        for (side, text) in &self.sides {
            let [_, a, b] = self.corner(*side);
            let line = unit(sub(b, a));
            labels.push(beside(along(a, 0.5, sub(b, a)), [sense * line[1], -sense * line[0]], text));
        }
        for (at, text) in &self.angles {
            let [before, p, after] = self.corner(*at);
            let (u, v) = (unit(sub(before, p)), unit(sub(after, p)));
            labels.push(beside(p, unit([-u[0] - v[0], -u[1] - v[1]]), text));
        }
        if let Some((foot, top, text)) = &self.height {
            // Near the foot, on the side with more room.
            let line = sub(*top, *foot);
            let anchor = along(*foot, 0.35, line);
            let out = unit([line[1], -line[0]]);
            let room = |sign: f32| {
                self.corners
                    .iter()
                    .map(|c| sign * (sub(*c, *foot)[0] * out[0] + sub(*c, *foot)[1] * out[1]))
                    .fold(0.0, f32::max)
            };
            let sign = if room(1.0) >= room(-1.0) { 1.0 } else { -1.0 };
            labels.push(beside(anchor, [sign * out[0], sign * out[1]], text));
        }
        labels
    }

    /// Draws the figure as large as it fits; `None` if a label would touch a line or another.
    pub(super) fn draw(&self, side_px: u32, stream: &mut Stream) -> Option<Canvas> {
        let side = side_px as f32;
        let font_scale = (side_px / 112).max(1);
        let width = (side / 130.0).max(1.1);
        let gap = 1.5 + width;
        let largest = side * (0.78 + 0.14 * stream.unit());
        let (low, high) = bounds(self.corners.iter().copied());
        let extent = (high[0] - low[0]).max(high[1] - low[1]).max(1e-6);

        // From large to small, until figure and labels are inside together.
        let (placed, labels, slack, low) = (0..40).find_map(|step| {
            let factor = largest * 0.96f32.powi(step) / extent;
            let placed = self.clone().mapped(|p| [p[0] * factor, p[1] * factor]);
            let labels = placed.labels(font_scale, gap);
            let boxes = labels.iter().flat_map(|l| {
                let [w, h] = font::size(&l.text, font_scale);
                [
                    [l.centre[0] - w / 2.0, l.centre[1] - h / 2.0],
                    [l.centre[0] + w / 2.0, l.centre[1] + h / 2.0],
                ]
            });
            let (low, high) = bounds(placed.corners.iter().copied().chain(boxes));
            let slack = [side - 5.0 - (high[0] - low[0]), side - 5.0 - (high[1] - low[1])];
            (slack[0] >= 0.0 && slack[1] >= 0.0).then_some((placed, labels, slack, low))
        })?;
        let shift: Point = std::array::from_fn(|c| 2.5 - low[c] + slack[c] * stream.unit());
        let placed = placed.mapped(|p| [p[0] + shift[0], p[1] + shift[1]]);
        let labels: Vec<Label> =
            labels.into_iter().map(|l| Label { centre: along(l.centre, 1.0, shift), ..l }).collect();
        if !apart(&labels, &placed.strokes(), font_scale) {
            return None;
        }

        let (paper, ink, accent) = palette(stream);
        let mut canvas = Canvas::new(side_px, |p| {
            let share = (p[0] + p[1]) / (2.0 * side);
            std::array::from_fn(|c| paper[0][c] + (paper[1][c] - paper[0][c]) * share)
        });
        placed.paint(&mut canvas, width, side, ink, accent);
        for label in &labels {
            let [w, h] = font::size(&label.text, font_scale);
            font::write(&mut canvas, &label.text, sub(label.centre, [w / 2.0, h / 2.0]), font_scale, ink);
        }
        Some(canvas)
    }

    /// Lines, arcs and marks.
    fn paint(&self, canvas: &mut Canvas, width: f32, side: f32, ink: Colour, accent: Colour) {
        for (at, _) in &self.angles {
            let [before, p, after] = self.corner(*at);
            let (u, v) = (sub(before, p), sub(after, p));
            let radius = (0.12 * side).min(0.4 * norm(u).min(norm(v)));
            let turn = cross(u, v);
            canvas.fill(p, radius + width, accent, |q| {
                let d = sub(q, p);
                let inside = cross(u, d) * turn >= 0.0 && cross(d, v) * turn >= 0.0;
                if inside { (norm(d) - radius).abs() - width / 2.0 } else { 1.0 }
            });
        }
        for at in &self.right_angles {
            let [before, p, after] = self.corner(*at);
            let size = (0.06 * side).min(0.4 * norm(sub(before, p)).min(norm(sub(after, p))));
            let (u, v) = (unit(sub(before, p)), unit(sub(after, p)));
            let (a, b) = (along(p, size, u), along(p, size, v));
            let corner = along(a, size, v);
            canvas.line(a, corner, 0.8 * width, accent);
            canvas.line(b, corner, 0.8 * width, accent);
        }
        if let Some((foot, top, _)) = &self.height {
            let line = sub(*top, *foot);
            let dashes = (norm(line) / (5.0 * width)).max(3.0).floor();
            for i in 0..dashes as usize {
                let at = |t: f32| along(*foot, (i as f32 + t) / dashes, line);
                canvas.line(at(0.1), at(0.6), width, accent);
            }
        }
        for i in 0..self.corners.len() {
            let [_, a, b] = self.corner(i);
            canvas.line(a, b, width, ink);
            if self.ticks.contains(&i) {
                let line = unit(sub(b, a));
                let across = [-line[1], line[0]];
                let middle = along(a, 0.5, sub(b, a));
                canvas.line(
                    along(middle, 0.03 * side, across),
                    along(middle, -0.03 * side, across),
                    width,
                    ink,
                );
            }
        }
    }
}

/// The smallest and largest coordinates.
fn bounds(points: impl Iterator<Item = Point>) -> (Point, Point) {
    points.fold(([f32::MAX; 2], [f32::MIN; 2]), |(low, high), p| {
        (std::array::from_fn(|c| low[c].min(p[c])), std::array::from_fn(|c| high[c].max(p[c])))
    })
}

/// Whether every label keeps a pixel from every other and from every stroke.
fn apart(labels: &[Label], strokes: &[[Point; 2]], font_scale: u32) -> bool {
    let half = |l: &Label| font::size(&l.text, font_scale).map(|v| v / 2.0);
    let free_of_labels = labels.iter().enumerate().all(|(i, a)| {
        labels[..i].iter().all(|b| {
            let (ha, hb, d) = (half(a), half(b), sub(a.centre, b.centre));
            (0..2).any(|c| d[c].abs() > ha[c] + hb[c] + 1.5)
        })
    });
    let free_of_strokes = labels.iter().all(|l| {
        let h = half(l);
        strokes.iter().all(|[a, b]| {
            (0..=64).all(|t| {
                let d = sub(along(*a, t as f32 / 64.0, sub(*b, *a)), l.centre);
                d[0].abs() > h[0] + 1.0 || d[1].abs() > h[1] + 1.0
            })
        })
    });
    free_of_labels && free_of_strokes
}

/// Two shades of paper, the ink, and the colour of marks.
fn palette(stream: &mut Stream) -> ([Colour; 2], Colour, Colour) {
    let mut shade =
        |level: f32, range: f32| -> Colour { std::array::from_fn(|_| level + range * (stream.unit() - 0.5)) };
    let paper = [shade(238.0, 30.0), shade(238.0, 30.0)];
    (paper, shade(32.0, 60.0), shade(110.0, 120.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Purpose;

    fn square() -> Figure {
        Figure {
            corners: vec![[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]],
            sides: (0..4).map(|i| (i, i.to_string())).collect(),
            ..Figure::default()
        }
    }

    #[test]
    fn labels_stand_outside_in_either_sense() {
        for figure in [square(), square().mirrored(), square().turned(0.7)] {
            let (low, high) = bounds(figure.corners.iter().copied());
            let middle = [(low[0] + high[0]) / 2.0, (low[1] + high[1]) / 2.0];
            for label in figure.labels(1, 0.1) {
                assert!(norm(sub(label.centre, middle)) > 1.0, "{}", label.text);
            }
        }
    }

    #[test]
    fn a_label_on_a_line_is_refused() {
        let label = |x: f32, y: f32| Label { text: "12".into(), centre: [x, y] };
        let stroke = [[0.0, 0.0], [100.0, 0.0]];
        assert!(apart(&[label(50.0, 20.0), label(70.0, 20.0)], &[stroke], 1));
        assert!(!apart(&[label(50.0, 4.0)], &[stroke], 1));
        assert!(!apart(&[label(50.0, 20.0), label(60.0, 22.0)], &[stroke], 1));
    }

    #[test]
    fn what_cannot_fit_is_refused() {
        let mut stream = Stream::new(1, Purpose::Task, 0);
        assert!(square().draw(84, &mut stream).is_some());
        assert!(square().draw(12, &mut stream).is_none());
    }
}
