//! Geometry: a labelled figure, and a question for an angle, a length or an area.
//!
//! The question's words hold no number: what is given stands in the figure. A problem starts
//! from its answer and draws the given values at random among those that lead to it.

mod figure;

use super::canvas::Point;
use super::{Difficulty, Example, Question, TaskOptions};
use crate::error::{Error, Result};
use crate::rng::Stream;
use figure::Figure;

/// A kind of problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Problem {
    TriangleAngle,
    RectangleArea,
    RectanglePerimeter,
    Hypotenuse,
    TriangleArea,
    QuadrilateralAngle,
    IsoscelesAngle,
    Leg,
    TriangleAreaAmongSides,
    TrapezoidArea,
    CompositeArea,
    MarkedAngle,
}

use Problem::*;

/// Right triangles with whole sides: leg, leg, hypotenuse.
const TRIPLES: [[u32; 3]; 12] = [
    [3, 4, 5],
    [6, 8, 10],
    [5, 12, 13],
    [9, 12, 15],
    [8, 15, 17],
    [12, 16, 20],
    [15, 20, 25],
    [7, 24, 25],
    [10, 24, 26],
    [20, 21, 29],
    [18, 24, 30],
    [12, 35, 37],
];

/// Triangles with whole sides and height: height, the two parts of the base.
const HEIGHTS: [[u32; 3]; 11] = [
    [4, 3, 3],
    [8, 6, 6],
    [12, 5, 5],
    [12, 5, 9],
    [12, 9, 9],
    [8, 15, 15],
    [12, 5, 16],
    [12, 9, 16],
    [24, 7, 7],
    [24, 7, 10],
    [15, 8, 20],
];

impl Problem {
    fn of(difficulty: Difficulty) -> &'static [Problem] {
        match difficulty {
            Difficulty::Easy => &[TriangleAngle, RectangleArea, RectanglePerimeter],
            Difficulty::Medium => &[Hypotenuse, TriangleArea, QuadrilateralAngle, IsoscelesAngle],
            Difficulty::Hard => &[Leg, TriangleAreaAmongSides, TrapezoidArea, CompositeArea],
        }
    }

    /// The problem of this kind among those of a difficulty and those that are asked by name only.
    fn named(kind: &str, difficulty: Difficulty) -> Option<Problem> {
        let all = Problem::of(difficulty).iter().copied().chain([MarkedAngle]);
        all.into_iter().find(|problem| problem.question().kind == kind)
    }

    fn question(self) -> Question {
        let (kind, text, answers, unit): (_, _, Vec<u32>, _) = match self {
            TriangleAngle => (
                "triangle_angle",
                "What is the size of the angle marked x in the triangle, in degrees?",
                (20..=110).step_by(10).collect(),
                "°",
            ),
            RectangleArea => (
                "rectangle_area",
                "What is the area of the rectangle?",
                vec![12, 18, 20, 24, 28, 30, 36, 40, 42, 48],
                "",
            ),
            RectanglePerimeter => (
                "rectangle_perimeter",
                "What is the perimeter of the rectangle?",
                (14..=32).step_by(2).collect(),
                "",
            ),
            Hypotenuse => (
                "hypotenuse",
                "What is the length of the side marked x of the right triangle?",
                vec![5, 10, 13, 15, 17, 20, 25, 26, 29, 30],
                "",
            ),
            TriangleArea => (
                "triangle_area",
                "What is the area of the triangle? The dashed line is its height.",
                vec![6, 10, 12, 14, 15, 18, 20, 21, 24, 30],
                "",
            ),
            QuadrilateralAngle => (
                "quadrilateral_angle",
                "What is the size of the angle marked x in the quadrilateral, in degrees?",
                (60..=150).step_by(10).collect(),
                "°",
            ),
            IsoscelesAngle => (
                "isosceles_angle",
                "The two marked sides are equal. What is the size of the angle marked x, in degrees?",
                (30..=75).step_by(5).collect(),
                "°",
            ),
            Leg => (
                "leg",
                "The triangle has a right angle. What is the length of the side marked x?",
                vec![3, 4, 5, 6, 8, 9, 12, 15, 20, 24],
                "",
            ),
            TriangleAreaAmongSides => (
                "triangle_area_among_sides",
                "What is the area of the triangle? The dashed line is a height; not every length is needed.",
                vec![12, 48, 60, 84, 108, 120, 126, 150, 168, 204, 210],
                "",
            ),
            TrapezoidArea => (
                "trapezoid_area",
                "What is the area of the trapezoid? The dashed line is its height.",
                vec![12, 15, 18, 20, 24, 25, 30, 32, 36, 40],
                "",
            ),
            CompositeArea => (
                "composite_area",
                "All corners are right angles. What is the area of the figure?",
                (20..=56).step_by(4).collect(),
                "",
            ),
            MarkedAngle => (
                "marked_angle",
                "The triangle is drawn to scale. What is the size of the angle marked x, in degrees?",
                (30..=120).step_by(15).collect(),
                "°",
            ),
        };
        Question { kind, text: text.to_string(), answers, unit }
    }

    /// A figure whose answer is `answer`, and the working in a line; `None` if the random
    /// values do not make a good figure (the caller tries again).
    fn pose(self, answer: u32, stream: &mut Stream) -> Option<(Figure, String)> {
        match self {
            TriangleAngle => {
                let a = 25 + 5 * stream.below((180 - answer - 50) / 5 + 1);
                let b = 180 - answer - a;
                let figure = Figure {
                    corners: triangle(a, b)?,
                    angles: vec![(0, degrees(a)), (1, degrees(b)), (2, "x".into())],
                    ..Figure::default()
                };
                Some((figure, format!("180 - {a} - {b} = {answer}")))
            }
            MarkedAngle => {
                let b = 25 + 5 * stream.below((180 - answer - 50) / 5 + 1);
                let figure = Figure {
                    corners: triangle(answer, b)?,
                    angles: vec![(0, "x".into())],
                    ..Figure::default()
                };
                // Opening it step by step: every step is a decision that the image answers.
                let steps: Vec<String> = (30..=answer).step_by(15).map(|angle| angle.to_string()).collect();
                Some((figure, format!("It opens {}", steps.join(" "))))
            }
            RectangleArea | RectanglePerimeter => {
                let fits = |w: u32, h: u32| match self {
                    RectangleArea => w * h == answer,
                    _ => 2 * (w + h) == answer,
                };
                let (w, h) =
                    pick(pairs(2..=14).filter(|(w, h)| fits(*w, *h) && *w <= 3 * h && *h <= 3 * w), stream)?;
                let figure = Figure {
                    corners: rectangle(w as f32, h as f32),
                    sides: vec![(0, w.to_string()), (1, h.to_string())],
                    ..Figure::default()
                };
                let working = match self {
                    RectangleArea => format!("{w} * {h} = {answer}"),
                    _ => format!("2 * ({w} + {h}) = {answer}"),
                };
                Some((figure, working))
            }
            Hypotenuse | Leg => {
                let wanted = |t: &[u32; 3]| if self == Leg { t[0] == answer } else { t[2] == answer };
                let both = TRIPLES.into_iter().flat_map(|[a, b, c]| [[a, b, c], [b, a, c]]);
                let [a, b, c] = pick(both.filter(wanted), stream)?;
                let (x, working) = if self == Leg {
                    (0, format!("{c}^2 - {b}^2 = {answer}^2"))
                } else {
                    (2, format!("{a}^2 + {b}^2 = {answer}^2"))
                };
                let mut names = [a, b, c].map(|side| side.to_string());
                names[x] = "x".into();
                // Corners: the right angle, the end of leg a, the end of leg b.
                let (a, b) = (softened(a), softened(b));
                let figure = Figure {
                    corners: vec![[0.0, 0.0], [0.0, -a], [b, 0.0]],
                    sides: [0, 2, 1].into_iter().zip(names).collect(),
                    right_angles: vec![0],
                    ..Figure::default()
                };
                Some((figure, working))
            }
            TriangleArea => {
                let fits = |(b, h): &(u32, u32)| b * h == 2 * answer && *h <= 2 * b && *b <= 3 * h;
                let (base, height) = pick(pairs(3..=15).filter(fits), stream)?;
                let foot = base as f32 * (0.25 + 0.5 * stream.unit());
                let figure = Figure {
                    corners: vec![[0.0, 0.0], [foot, -(height as f32)], [base as f32, 0.0]],
                    sides: vec![(2, base.to_string())],
                    height: Some(([foot, 0.0], [foot, -(height as f32)], height.to_string())),
                    ..Figure::default()
                };
                Some((figure, format!("{base} * {height} / 2 = {answer}")))
            }
            TriangleAreaAmongSides => {
                let fits = |[h, p, q]: &[u32; 3]| h * (p + q) == 2 * answer;
                let [h, p, q] = pick(HEIGHTS.into_iter().filter(fits), stream)?;
                let side = |part: u32| f64::from(h * h + part * part).sqrt().round() as u32;
                let drawn = [h, p, q].map(softened);
                let figure = Figure {
                    corners: vec![[0.0, 0.0], [drawn[1], -drawn[0]], [drawn[1] + drawn[2], 0.0]],
                    sides: vec![(0, side(p).to_string()), (1, side(q).to_string()), (2, (p + q).to_string())],
                    height: Some(([drawn[1], 0.0], [drawn[1], -drawn[0]], h.to_string())),
                    ..Figure::default()
                };
                Some((figure, format!("{} * {h} / 2 = {answer}", p + q)))
            }
            QuadrilateralAngle => {
                let mut angle = || 60 + 5 * stream.below(18);
                let (a, b) = (angle(), angle());
                let c = 360u32.checked_sub(answer + a + b).filter(|c| (60..=145).contains(c))?;
                let corners = quadrilateral([answer, a, b, c], stream)?;
                let figure = Figure {
                    corners,
                    angles: vec![(0, "x".into()), (1, degrees(a)), (2, degrees(b)), (3, degrees(c))],
                    ..Figure::default()
                };
                Some((figure, format!("360 - {a} - {b} - {c} = {answer}")))
            }
            IsoscelesAngle => {
                let apex = 180 - 2 * answer;
                let figure = Figure {
                    corners: triangle(answer, answer)?,
                    angles: vec![(stream.below(2) as usize, "x".into()), (2, degrees(apex))],
                    ticks: vec![1, 2],
                    ..Figure::default()
                };
                Some((figure, format!("(180 - {apex}) / 2 = {answer}")))
            }
            TrapezoidArea => {
                let shapes = pairs(3..=14).flat_map(|(a, b)| (3..=8).map(move |h| [a, b, h]));
                let fits = |[a, b, h]: &[u32; 3]| a + 2 <= *b && (a + b) * h == 2 * answer && h <= b;
                let [top, bottom, h] = pick(shapes.filter(fits), stream)?;
                let inset = (bottom - top) as f32 * stream.unit();
                let [t, b, height] = [top, bottom, h].map(|v| v as f32);
                // The height stands at a share of the upper side, inside.
                let at = inset + t * (0.3 + 0.4 * stream.unit());
                let figure = Figure {
                    corners: vec![[0.0, 0.0], [inset, -height], [inset + t, -height], [b, 0.0]],
                    sides: vec![(1, top.to_string()), (3, bottom.to_string())],
                    height: Some(([at, 0.0], [at, -height], h.to_string())),
                    ..Figure::default()
                };
                Some((figure, format!("({top} + {bottom}) * {h} / 2 = {answer}")))
            }
            CompositeArea => {
                let outer = pairs(5..=10).flat_map(|(w, h)| pairs(2..=7).map(move |(x, y)| [w, h, x, y]));
                let fits = |[w, h, x, y]: &[u32; 4]| x + 2 <= *w && y + 2 <= *h && w * h == answer + x * y;
                let [w, h, x, y] = pick(outer.filter(fits), stream)?;
                let [fw, fh, fx, fy] = [w, h, x, y].map(|v| v as f32);
                // A rectangle w by h without its upper right corner, x by y.
                let figure = Figure {
                    corners: vec![
                        [0.0, 0.0],
                        [0.0, -fh],
                        [fw - fx, -fh],
                        [fw - fx, fy - fh],
                        [fw, fy - fh],
                        [fw, 0.0],
                    ],
                    sides: vec![
                        (0, h.to_string()),
                        (2, y.to_string()),
                        (3, x.to_string()),
                        (5, w.to_string()),
                    ],
                    ..Figure::default()
                };
                Some((figure, format!("{w} * {h} - {x} * {y} = {answer}")))
            }
        }
    }
}

/// See [`super::Task::questions`].
pub(super) fn questions(difficulty: Difficulty) -> Vec<Question> {
    Problem::of(difficulty).iter().map(|p| p.question()).collect()
}

/// The question of one kind; also one that no difficulty asks on its own.
pub(super) fn question(kind: &str, difficulty: Difficulty) -> Option<Question> {
    Problem::named(kind, difficulty).map(Problem::question)
}

/// Draws a figure to which `question` has the answer `answer`.
///
/// # Errors
/// `Input` if no figure with legible labels comes out of 2,000 trials (image too small).
pub(super) fn draw(
    question: &Question,
    answer: u32,
    options: &TaskOptions,
    stream: &mut Stream,
) -> Result<Example> {
    let problem = Problem::named(question.kind, options.difficulty);
    let problem = problem.ok_or_else(|| Error::Internal(format!("no geometry problem {}", question.kind)))?;
    for _ in 0..2_000 {
        let Some((mut figure, working)) = problem.pose(answer, stream) else { continue };
        if options.difficulty != Difficulty::Easy && stream.below(2) == 0 {
            figure = figure.mirrored();
        }
        let turn = match options.difficulty {
            Difficulty::Easy => 0.0,
            Difficulty::Medium => 0.5 * (stream.unit() - 0.5),
            Difficulty::Hard => std::f32::consts::TAU * stream.unit(),
        };
        if let Some(canvas) = figure.turned(turn).draw(options.image_size, stream) {
            return Ok(Example {
                image: canvas.image(),
                question: question.text.clone(),
                answer: format!("{answer}{}", question.unit),
                thinking: format!("<think> {working} </think>"),
                kind: question.kind,
            });
        }
    }
    Err(Error::Input(format!(
        "no legible figure for {} = {answer} at {} pixels; use a larger image_size",
        question.kind, options.image_size
    )))
}

fn degrees(angle: u32) -> String {
    format!("{angle}°")
}

/// One of `choices`, each equally likely.
fn pick<T>(choices: impl Iterator<Item = T>, stream: &mut Stream) -> Option<T> {
    let mut choices: Vec<T> = choices.collect();
    if choices.is_empty() {
        return None;
    }
    let at = stream.below(choices.len() as u32) as usize;
    Some(choices.swap_remove(at))
}

/// All ordered pairs of numbers in `range`.
fn pairs(range: std::ops::RangeInclusive<u32>) -> impl Iterator<Item = (u32, u32)> {
    range.clone().flat_map(move |a| range.clone().map(move |b| (a, b)))
}

/// A drawn length: long and short come closer, so that a 7-24-25 triangle has room for labels.
fn softened(length: u32) -> f32 {
    (length as f32).powf(0.6)
}

/// A rectangle, from its upper left corner clockwise.
fn rectangle(w: f32, h: f32) -> Vec<Point> {
    vec![[0.0, 0.0], [w, 0.0], [w, h], [0.0, h]]
}

/// Corners with angles `a` (left), `b` (right) and the rest (top), base 1, in degrees.
fn triangle(a: u32, b: u32) -> Option<Vec<Point>> {
    let (a, b) = ((a as f32).to_radians(), (b as f32).to_radians());
    let apex = std::f32::consts::PI - a - b;
    if apex <= 0.0 {
        return None;
    }
    let side = b.sin() / apex.sin();
    Some(vec![[0.0, 0.0], [1.0, 0.0], [side * a.cos(), -side * a.sin()]])
}

/// Corners with these angles in turn, convex and no side too short; `None` if it does not close so.
fn quadrilateral(angles: [u32; 4], stream: &mut Stream) -> Option<Vec<Point>> {
    let [a, b, _, d] = angles.map(|v| (v as f32).to_radians());
    // Sides: from corner 0 along x to corner 1, from corner 0 at angle a to corner 3.
    let side = 0.6 + 0.6 * stream.unit();
    let last = [side * a.cos(), -side * a.sin()];
    // From corner 1 at angle b to the left of straight on, and from corner 3 at angle d.
    let from_1 = [-b.cos(), -b.sin()];
    let heading = a - std::f32::consts::PI + d;
    let from_3 = [heading.cos(), -heading.sin()];
    let det = from_1[1] * from_3[0] - from_1[0] * from_3[1];
    if det.abs() < 1e-3 {
        return None;
    }
    let gap = [last[0] - 1.0, last[1]];
    let t = (gap[1] * from_3[0] - gap[0] * from_3[1]) / det;
    let u = (gap[1] * from_1[0] - gap[0] * from_1[1]) / det;
    let sides = 0.45..1.8;
    (sides.contains(&t) && sides.contains(&u))
        .then(|| vec![[0.0, 0.0], [1.0, 0.0], [1.0 + t * from_1[0], t * from_1[1]], last])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Purpose;

    /// The interior angle at each corner, in degrees.
    fn measured(corners: &[Point]) -> Vec<f32> {
        let n = corners.len();
        (0..n)
            .map(|i| {
                let (p, q, r) = (corners[(i + n - 1) % n], corners[i], corners[(i + 1) % n]);
                let (u, v) = ([p[0] - q[0], p[1] - q[1]], [r[0] - q[0], r[1] - q[1]]);
                (u[0] * v[1] - u[1] * v[0]).abs().atan2(u[0] * v[0] + u[1] * v[1]).to_degrees()
            })
            .collect()
    }

    #[test]
    fn angles_are_drawn_to_scale() {
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 0.05);
        assert!(close(&measured(&triangle(40, 60).unwrap()), &[40.0, 60.0, 80.0]));
        let mut stream = Stream::new(2, Purpose::Task, 0);
        let corners = (0..99).find_map(|_| quadrilateral([80, 95, 75, 110], &mut stream)).unwrap();
        assert!(close(&measured(&corners), &[80.0, 95.0, 75.0, 110.0]), "{:?}", measured(&corners));
        assert!(triangle(90, 90).is_none());
    }

    #[test]
    fn tables_hold_right_triangles() {
        assert!(TRIPLES.iter().all(|[a, b, c]| a * a + b * b == c * c));
        for [h, p, q] in HEIGHTS {
            for part in [p, q] {
                let square = h * h + part * part;
                assert_eq!(f64::from(square).sqrt().fract(), 0.0, "{h} {part}");
            }
        }
    }

    /// Every answer of every question can be drawn, and the working comes out at it.
    #[test]
    fn every_answer_has_a_legible_figure() {
        for difficulty in Difficulty::ALL {
            let size = super::super::Task::Geometry.smallest_side_px(difficulty);
            let options = TaskOptions { difficulty, image_size: size, ..TaskOptions::default() };
            for question in questions(difficulty) {
                assert!(!question.text.chars().any(|c| c.is_ascii_digit()), "{}", question.text);
                for answer in &question.answers {
                    let mut stream = Stream::new(3, Purpose::Task, u64::from(*answer));
                    let example = draw(&question, *answer, &options, &mut stream).unwrap();
                    let working = example.thinking.trim_end_matches(" </think>");
                    let end = format!("= {answer}");
                    assert!(working.ends_with(&end) || working.ends_with(&format!("{end}^2")), "{working}");
                    let value = evaluate(working.trim_start_matches("<think> ").split(" = ").next().unwrap());
                    let wanted = if working.ends_with("^2") { answer * answer } else { *answer };
                    assert_eq!(value, f64::from(wanted), "{working}");
                }
            }
        }
    }

    #[test]
    fn a_marked_angle_is_asked_by_name_only_and_opened_step_by_step() {
        let easy = Difficulty::Easy;
        assert!(questions(easy).iter().all(|question| question.kind != "marked_angle"));
        let question = question("marked_angle", easy).unwrap();
        assert_eq!(question.answers, [30, 45, 60, 75, 90, 105, 120]);
        let options = TaskOptions { difficulty: easy, image_size: 84, ..TaskOptions::default() };
        for answer in &question.answers {
            let mut stream = Stream::new(3, Purpose::Task, u64::from(*answer));
            let example = draw(&question, *answer, &options, &mut stream).unwrap();
            assert!(example.thinking.ends_with(&format!(" {answer} </think>")), "{}", example.thinking);
            assert_eq!(example.answer, format!("{answer}°"));
        }
        let mut stream = Stream::new(3, Purpose::Task, 1);
        let corners = MarkedAngle.pose(75, &mut stream).unwrap().0.corners;
        assert!((measured(&corners)[0] - 75.0).abs() < 0.05);
    }

    /// The value of a working: + - * / ^ and brackets.
    fn evaluate(text: &str) -> f64 {
        fn sum(s: &mut &[u8]) -> f64 {
            let mut value = product(s);
            while let [op @ (b'+' | b'-'), rest @ ..] = *s {
                *s = rest;
                let next = product(s);
                value += if *op == b'+' { next } else { -next };
            }
            value
        }
        fn product(s: &mut &[u8]) -> f64 {
            let mut value = power(s);
            while let [op @ (b'*' | b'/'), rest @ ..] = *s {
                *s = rest;
                let next = power(s);
                value *= if *op == b'*' { next } else { 1.0 / next };
            }
            value
        }
        fn power(s: &mut &[u8]) -> f64 {
            let mut value = 0.0;
            if let [b'(', rest @ ..] = *s {
                *s = rest;
                value = sum(s);
                *s = &s[1..];
            }
            while let [digit @ b'0'..=b'9', rest @ ..] = *s {
                value = 10.0 * value + f64::from(digit - b'0');
                *s = rest;
            }
            if let [b'^', b'2', rest @ ..] = *s {
                *s = rest;
                value *= value;
            }
            value
        }
        let plain: Vec<u8> = text.bytes().filter(|b| *b != b' ').collect();
        sum(&mut plain.as_slice())
    }
}
