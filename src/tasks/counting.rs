//! Counting: coloured shapes, "How many .. are there in the image?"
//!
//! The questions are those of CLEVR and SuperCLEVR as R1-V's datasets word them. Below, an
//! item matches if the question is about it; the number of all items does not depend on the
//! answer (but for the easy question, which asks for just that), so counting everything, or
//! guessing from the total, is of no use.

use super::canvas::{Canvas, Colour, Point};
use super::{Difficulty, Example, Question, TaskOptions};
use crate::rng::Stream;

/// A named colour.
type Paint = (&'static str, Colour);

const PAINTS: [Paint; 6] = [
    ("red", [214.0, 40.0, 40.0]),
    ("green", [28.0, 148.0, 60.0]),
    ("blue", [40.0, 84.0, 214.0]),
    ("yellow", [236.0, 196.0, 24.0]),
    ("purple", [150.0, 52.0, 176.0]),
    ("cyan", [24.0, 176.0, 190.0]),
];

/// What an item's outline is. Sizes are such that the areas are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Circle,
    Square,
    Triangle,
    Cross,
}

impl Shape {
    const ALL: [Shape; 4] = [Shape::Circle, Shape::Square, Shape::Triangle, Shape::Cross];

    fn plural(self) -> &'static str {
        match self {
            Shape::Circle => "circles",
            Shape::Square => "squares",
            Shape::Triangle => "triangles",
            Shape::Cross => "crosses",
        }
    }

    /// The signed distance of `p` (relative to the centre) from the outline at radius `r`.
    fn distance(self, p: Point, r: f32) -> f32 {
        let cuboid =
            |half_width: f32, half_height: f32| (p[0].abs() - half_width).max(p[1].abs() - half_height);
        match self {
            Shape::Circle => (p[0] * p[0] + p[1] * p[1]).sqrt() - r,
            Shape::Square => cuboid(0.86 * r, 0.86 * r),
            Shape::Triangle => {
                // Three edges at distance r / 2 + r / 8 from the centre; cos 30 = 0.866.
                let slanted = 0.866 * p[0].abs() - 0.5 * p[1];
                slanted.max(p[1]) - 0.64 * r
            }
            Shape::Cross => cuboid(1.05 * r, 0.36 * r).min(cuboid(0.36 * r, 1.05 * r)),
        }
    }
}

/// The largest extent of any shape, in radii.
const REACH: f32 = 1.3;

/// Which items a question is about; `None` is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    paint: Option<usize>,
    /// A second colour: "red or blue".
    other: Option<usize>,
    shape: Option<Shape>,
    /// Large (`true`) or small.
    large: Option<bool>,
}

impl Target {
    const ANY: Target = Target { paint: None, other: None, shape: None, large: None };

    fn matches(&self, look: &Look) -> bool {
        let colour = self.paint.is_none_or(|p| p == look.paint) || self.other == Some(look.paint);
        colour && self.shape.is_none_or(|s| s == look.shape) && self.large.is_none_or(|l| l == look.large)
    }

    fn kind(&self) -> &'static str {
        match (self.paint, self.other, self.shape, self.large) {
            (None, None, None, None) => "count",
            (_, Some(_), _, _) => "count_two_colours",
            (Some(_), None, None, None) => "count_colour",
            (None, None, Some(_), None) => "count_shape",
            (_, None, _, Some(_)) => "count_size",
            (_, None, Some(_), None) => "count_colour_shape",
        }
    }

    /// The items in words: "small red squares".
    fn words(&self) -> String {
        let mut words = Vec::new();
        if let Some(large) = self.large {
            words.push(if large { "large".to_string() } else { "small".to_string() });
        }
        let name = |paint: usize| PAINTS[paint].0;
        match (self.paint, self.other) {
            (Some(one), Some(two)) => words.push(format!("{} or {}", name(one), name(two))),
            (Some(one), None) => words.push(name(one).to_string()),
            _ => {}
        }
        words.push(self.shape.map_or("items", Shape::plural).to_string());
        words.join(" ")
    }

    fn text(&self) -> String {
        format!("How many {} are there in the image?", self.words())
    }
}

/// The questions that a difficulty asks.
fn targets(difficulty: Difficulty) -> Vec<Target> {
    let paints = || 0..PAINTS.len();
    let colours = paints().map(|p| Target { paint: Some(p), ..Target::ANY });
    let shapes = Shape::ALL.map(|s| Target { shape: Some(s), ..Target::ANY });
    let both =
        paints().flat_map(|p| Shape::ALL.map(|s| Target { paint: Some(p), shape: Some(s), ..Target::ANY }));
    match difficulty {
        Difficulty::Easy => vec![Target::ANY],
        Difficulty::Medium => colours.chain(shapes).chain(both).collect(),
        Difficulty::Hard => {
            let pairs = paints()
                .flat_map(|a| (a + 1..PAINTS.len()).map(move |b| (a, b)))
                .map(|(a, b)| Target { paint: Some(a), other: Some(b), ..Target::ANY });
            let sized = [true, false].into_iter().flat_map(|large| {
                Shape::ALL.map(|s| Target { shape: Some(s), large: Some(large), ..Target::ANY })
            });
            both.chain(pairs).chain(sized).collect()
        }
    }
}

/// The possible answers.
fn answers(difficulty: Difficulty) -> Vec<u32> {
    match difficulty {
        Difficulty::Easy => (1..=5).collect(),
        Difficulty::Medium => (0..=5).collect(),
        Difficulty::Hard => (0..=6).collect(),
    }
}

/// See [`super::Task::questions`].
pub(super) fn questions(difficulty: Difficulty) -> Vec<Question> {
    let question = |target: Target| Question {
        kind: target.kind(),
        text: target.text(),
        answers: answers(difficulty),
        unit: "",
    };
    targets(difficulty).into_iter().map(question).collect()
}

/// An item without its place.
#[derive(Clone, Copy, Debug)]
struct Look {
    paint: usize,
    shape: Shape,
    large: bool,
}

/// An item in its place.
#[derive(Clone, Copy, Debug)]
struct Item {
    look: Look,
    centre: Point,
    radius: f32,
    /// Cosine and sine of its turn.
    turn: Point,
}

/// Draws an image in which `answer` items are what `question` asks for.
pub(super) fn draw(question: &Question, answer: u32, options: &TaskOptions, stream: &mut Stream) -> Example {
    let difficulty = options.difficulty;
    let target = targets(difficulty).into_iter().find(|t| t.text() == question.text).unwrap_or(Target::ANY);
    let total = match difficulty {
        Difficulty::Easy => answer,
        Difficulty::Medium => 5 + stream.below(4),
        Difficulty::Hard => 6 + stream.below(4),
    };
    let mut looks: Vec<Look> = (0..total).map(|i| look(&target, i < answer, difficulty, stream)).collect();
    stream.shuffle(&mut looks);
    let items = place(&looks, options, stream);
    let image = paint(&items, options, stream).image();
    let among = if target == Target::ANY { "I".to_string() } else { format!("Of the {} I", target.words()) };
    Example {
        image,
        question: question.text.clone(),
        answer: answer.to_string(),
        thinking: format!("<think> {among} count{}. </think>", counted(answer)),
        kind: question.kind,
    }
}

/// Counting aloud, ` 1 2 3`: every step is a decision that the image answers.
fn counted(answer: u32) -> String {
    if answer == 0 { " none".into() } else { (1..=answer).map(|n| format!(" {n}")).collect() }
}

/// A random look that matches `target`, or does not.
///
/// Half of those that do not match share one property with it, so that one will not do.
/// `target` is not [`Target::ANY`] when something is not to match.
fn look(target: &Target, matching: bool, difficulty: Difficulty, stream: &mut Stream) -> Look {
    let near = stream.below(2) == 0;
    loop {
        let mut look = Look {
            paint: stream.below(PAINTS.len() as u32) as usize,
            shape: Shape::ALL[stream.below(Shape::ALL.len() as u32) as usize],
            large: difficulty == Difficulty::Hard && stream.below(2) == 0,
        };
        if matching || near {
            let keep = stream.below(2) == 0;
            if let Some(paint) = target.paint.filter(|_| matching || keep) {
                let second = target.other.filter(|_| stream.below(2) == 0);
                look.paint = second.unwrap_or(paint);
            }
            if let Some(shape) = target.shape.filter(|_| matching || !keep) {
                look.shape = shape;
            }
            if let Some(large) = target.large.filter(|_| matching) {
                look.large = large;
            }
        }
        if target.matches(&look) == matching {
            return look;
        }
    }
}

/// Places the items apart (hard: overlapping by a part), smaller if they do not fit otherwise.
fn place(looks: &[Look], options: &TaskOptions, stream: &mut Stream) -> Vec<Item> {
    let side = options.image_size as f32;
    // The share of the sum of two radii that centres keep between them.
    let (radius, apart) = match options.difficulty {
        Difficulty::Easy => (0.105, 1.3),
        Difficulty::Medium => (0.092, 1.3),
        Difficulty::Hard => (0.085, 0.8),
    };
    let mut scale = 1.0;
    loop {
        let mut items: Vec<Item> = Vec::with_capacity(looks.len());
        for look in looks {
            let size = match (options.difficulty, look.large) {
                (Difficulty::Hard, true) => 1.3,
                (Difficulty::Hard, false) => 0.75,
                _ => 1.0,
            };
            let radius = radius * side * scale * size * (0.92 + 0.16 * stream.unit());
            let margin = radius * 1.15 + 1.0;
            let fits = (0..100).find_map(|_| {
                let mut within = || margin + (side - 2.0 * margin) * stream.unit();
                let centre = [within(), within()];
                let free = items.iter().all(|other| {
                    let (x, y) = (centre[0] - other.centre[0], centre[1] - other.centre[1]);
                    (x * x + y * y).sqrt() >= apart * (radius + other.radius)
                });
                free.then_some(centre)
            });
            let Some(centre) = fits else { break };
            items.push(Item { look: *look, centre, radius, turn: turn(options.difficulty, stream) });
        }
        if items.len() == looks.len() {
            return items;
        }
        scale *= 0.96;
    }
}

/// A random turn: up to 15 degrees each way, hard: any.
///
/// From the rational points of the circle, ((1 - t^2), 2 t) / (1 + t^2): the same bits on
/// every machine, which a library's sine does not promise.
fn turn(difficulty: Difficulty, stream: &mut Stream) -> Point {
    let most = if difficulty == Difficulty::Hard { 1.0 } else { 0.13 };
    let t = most * (2.0 * stream.unit() - 1.0);
    let scale = 1.0 / (1.0 + t * t);
    [(1.0 - t * t) * scale, 2.0 * t * scale]
}

/// Background and items.
fn paint(items: &[Item], options: &TaskOptions, stream: &mut Stream) -> Canvas {
    let hard = options.difficulty == Difficulty::Hard;
    let dark = options.difficulty != Difficulty::Easy && stream.below(2) == 0;
    let mut canvas = Canvas::new(options.image_size, background(options, dark, stream));
    for item in items {
        let (_, base) = PAINTS[item.look.paint];
        let shade = 0.9 + 0.2 * stream.unit();
        let colour = base.map(|c| (c * shade).min(255.0));
        let distance = |p: Point| {
            let (x, y) = (p[0] - item.centre[0], p[1] - item.centre[1]);
            let local = [item.turn[0] * x + item.turn[1] * y, item.turn[0] * y - item.turn[1] * x];
            item.look.shape.distance(local, item.radius)
        };
        if hard {
            // A rim tells overlapping items of one colour apart.
            let rim = (options.image_size as f32 / 160.0).max(0.7);
            let edge = colour.map(|c| if dark { 0.45 * c + 140.0 } else { 0.45 * c });
            canvas.fill(item.centre, REACH * item.radius + rim, edge, |p| distance(p) - rim);
        }
        canvas.fill(item.centre, REACH * item.radius, colour, distance);
    }
    canvas
}

/// A gradient between two greyish tints; hard: with stripes, checks or blotches on it.
fn background(options: &TaskOptions, dark: bool, stream: &mut Stream) -> impl Fn(Point) -> Colour + use<> {
    let side = options.image_size as f32;
    let level = if dark { 18.0 + 26.0 * stream.unit() } else { 212.0 + 30.0 * stream.unit() };
    let mut tint = || -> Colour { std::array::from_fn(|_| level + 24.0 * (stream.unit() - 0.5)) };
    let (from, to) = (tint(), tint());
    let towards = turn(Difficulty::Hard, stream);
    let texture = if options.difficulty == Difficulty::Hard { 1 + stream.below(3) } else { 0 };
    let strength = 10.0 + 10.0 * stream.unit();
    let period = side * (0.06 + 0.12 * stream.unit());
    let noise: Vec<f32> = (0..64).map(|_| stream.unit()).collect();
    move |p: Point| {
        let along = (towards[0] * p[0] + towards[1] * p[1]) / side;
        let across = (towards[0] * p[1] - towards[1] * p[0]) / side;
        let share = (0.5 + 0.5 * along).clamp(0.0, 1.0);
        let odd = |x: f32| (x * side / period).floor().rem_euclid(2.0);
        let lift = match texture {
            1 => odd(along) - 0.5,
            2 => (odd(along) - odd(across)).abs() - 0.5,
            3 => blotch(&noise, p, side) - 0.5,
            _ => 0.0,
        };
        std::array::from_fn(|c| (from[c] + (to[c] - from[c]) * share + strength * lift).clamp(0.0, 255.0))
    }
}

/// A smooth field in 0..1 from an 8 x 8 lattice of values.
fn blotch(lattice: &[f32], p: Point, side: f32) -> f32 {
    let axis = |v: f32| {
        let v = (v / side * 7.0).clamp(0.0, 6.999);
        let cell = v.floor();
        let part = v - cell;
        (cell as usize, part * part * (3.0 - 2.0 * part))
    };
    let ((x, u), (y, v)) = (axis(p[0]), axis(p[1]));
    let at = |x: usize, y: usize| lattice.get(y * 8 + x).copied().unwrap_or(0.5);
    let row = |y: usize| at(x, y) + (at(x + 1, y) - at(x, y)) * u;
    row(y) + (row(y + 1) - row(y)) * v
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Purpose;

    fn options(difficulty: Difficulty, image_size: u32) -> TaskOptions {
        TaskOptions { difficulty, image_size, ..TaskOptions::default() }
    }

    #[test]
    fn questions_are_worded_as_in_clevr() {
        assert_eq!(questions(Difficulty::Easy)[0].text, "How many items are there in the image?");
        let medium: Vec<_> = questions(Difficulty::Medium).into_iter().map(|q| q.text).collect();
        assert!(medium.contains(&"How many red squares are there in the image?".to_string()), "{medium:?}");
        assert!(medium.contains(&"How many blue items are there in the image?".to_string()));
        let hard: Vec<_> = questions(Difficulty::Hard).into_iter().map(|q| q.text).collect();
        assert!(hard.contains(&"How many red or blue items are there in the image?".to_string()), "{hard:?}");
        assert!(hard.contains(&"How many small circles are there in the image?".to_string()));
    }

    /// The items that are placed are as many as asked for, inside the image, and apart.
    #[test]
    fn scenes_hold_what_the_answer_says() {
        for difficulty in Difficulty::ALL {
            let options = options(difficulty, 84);
            let mut stream = Stream::new(5, Purpose::Task, 0);
            for target in targets(difficulty) {
                for answer in answers(difficulty) {
                    let total = if target == Target::ANY { answer } else { 9 };
                    let looks: Vec<Look> =
                        (0..total).map(|i| look(&target, i < answer, difficulty, &mut stream)).collect();
                    assert_eq!(looks.iter().filter(|l| target.matches(l)).count(), answer as usize);
                    let items = place(&looks, &options, &mut stream);
                    assert_eq!(items.len(), looks.len());
                    for (i, a) in items.iter().enumerate() {
                        assert!(a.centre.iter().all(|c| *c > a.radius && *c < 84.0 - a.radius));
                        assert!(a.radius > 3.0, "{a:?}");
                        for b in &items[..i] {
                            let gap = (a.centre[0] - b.centre[0]).hypot(a.centre[1] - b.centre[1]);
                            assert!(gap >= 0.79 * (a.radius + b.radius));
                        }
                    }
                }
            }
        }
    }

    /// Counting the connected dark regions of an easy image gives its answer.
    #[test]
    fn easy_images_show_their_answer() {
        let question = &questions(Difficulty::Easy)[0];
        for size in [28, 56, 84, 224] {
            let options = options(Difficulty::Easy, size);
            for (id, answer) in (0..40).map(|id| (id, 1 + id as u32 % 5)) {
                let mut stream = Stream::new(11, Purpose::Task, id);
                let image = draw(question, answer, &options, &mut stream).image;
                // Every paint has a channel below 70; no background has one below 190.
                let side = size as usize;
                let mut ink: Vec<bool> =
                    image.pixels().map(|p| p.0.iter().min().is_some_and(|c| *c < 110)).collect();
                let mut regions = 0;
                for start in 0..ink.len() {
                    let mut open = vec![start];
                    regions += u32::from(ink[start]);
                    while let Some(at) = open.pop() {
                        if std::mem::take(&mut ink[at]) {
                            let (x, y) = (at % side, at / side);
                            for (dx, dy) in
                                [(-1i64, 0i64), (1, 0), (0, -1), (0, 1), (1, 1), (-1, -1), (1, -1), (-1, 1)]
                            {
                                let (x, y) = (x as i64 + dx, y as i64 + dy);
                                if (0..side as i64).contains(&x) && (0..side as i64).contains(&y) {
                                    open.push(y as usize * side + x as usize);
                                }
                            }
                        }
                    }
                }
                assert_eq!(regions, answer, "size {size}, image {id}");
            }
        }
    }
}
