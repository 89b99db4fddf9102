//! Curves as inline SVG: one measure per chart, one axis per chart, the raw points pale behind their running mean.

use std::fmt::Write as _;

use serde_json::Value;

use super::escape;
use crate::report::jsonl::Row;

/// Size of a drawing, in SVG units.
const WIDTH: f64 = 420.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 22.0;
/// More points than this are averaged in buckets: a line is not wider than its pixels.
const MAX_POINTS: usize = 240;

/// One measure over the run.
struct Curve<'a> {
    title: &'a str,
    note: &'a str,
    key: &'a str,
    /// Keys of a lower and an upper bound, drawn as a band.
    band: Option<(&'a str, &'a str)>,
    height: f64,
    smooth: bool,
}

impl<'a> Curve<'a> {
    fn new(title: &'a str, key: &'a str, note: &'a str) -> Self {
        Curve { title, note, key, band: None, height: 170.0, smooth: true }
    }
}

/// The curves of a GRPO run, in the order in which they are read; measures that no row has are left out.
pub fn grpo_cards(rows: &[Row]) -> Vec<String> {
    let mut cards = Vec::new();
    let mut card = |curve: Curve<'_>| cards.extend(single(&curve, rows));
    card(Curve::new("Reward", "reward", "Mean weighted reward of the step's completions."));
    let names = rows.first().map(reward_names).unwrap_or_default();
    for name in &names {
        let (title, key) = (format!("Reward: {name}"), format!("rewards/{name}/mean"));
        card(Curve::new(&title, &key, "Mean of this reward function, unweighted."));
    }
    cards.extend(kl_with_beta(rows));
    let mut card = |curve: Curve<'_>| cards.extend(single(&curve, rows));
    card(Curve {
        band: Some(("completions/min_length", "completions/max_length")),
        ..Curve::new(
            "Completion length",
            "completions/mean_length",
            "Mean in tokens; the band spans shortest to longest.",
        )
    });
    card(Curve::new(
        "Truncated completions",
        "completions/clipped_ratio",
        "Share that hit the length limit.",
    ));
    card(Curve::new(
        "Groups without signal",
        "frac_reward_zero_std",
        "Share of groups whose rewards are all equal.",
    ));
    card(Curve::new("Entropy", "entropy", "Mean entropy of the sampled tokens, in nats."));
    card(Curve::new("Gradient norm", "grad_norm", "L2 norm before clipping."));
    card(Curve::new("Loss", "loss", "Clipped surrogate plus beta times KL."));
    card(Curve { smooth: false, ..Curve::new("Learning rate", "learning_rate", "As used by the step.") });
    card(Curve::new("Step time", "step_time", "Wall time in seconds."));
    cards
}

/// The curves of an SFT run.
pub fn sft_cards(rows: &[Row]) -> Vec<String> {
    [
        Curve::new("SFT loss", "loss", "Mean cross-entropy of the answer's tokens, in nats."),
        Curve::new("Token accuracy", "mean_token_accuracy", "Share of answer tokens that are the likeliest."),
        Curve::new("Gradient norm", "grad_norm", "L2 norm before clipping."),
        Curve { smooth: false, ..Curve::new("Learning rate", "learning_rate", "As used by the step.") },
    ]
    .iter()
    .filter_map(|curve| single(curve, rows))
    .collect()
}

/// The names `x` of the columns `rewards/x/mean`.
fn reward_names(row: &Row) -> Vec<String> {
    let name = |key: &String| Some(key.strip_prefix("rewards/")?.strip_suffix("/mean")?.to_owned());
    row.keys().filter_map(name).collect()
}

fn single(curve: &Curve<'_>, rows: &[Row]) -> Option<String> {
    let (range, drawing) = draw(curve, rows)?;
    Some(frame(curve.title, &range, &format!("<p>{}</p>\n{drawing}", escape(curve.note))))
}

/// KL and its weight share their steps but not their scale: two drawings in one card, one above the other.
fn kl_with_beta(rows: &[Row]) -> Option<String> {
    let kl = Curve { height: 125.0, ..Curve::new("KL", "kl", "KL to the reference, nats per token.") };
    let beta = Curve { height: 90.0, smooth: false, ..Curve::new("beta", "beta", "Its weight beta(s).") };
    let beta_drawing = draw(&beta, rows);
    let Some((range, drawing)) = draw(&kl, rows) else {
        return beta_drawing.map(|(range, drawing)| frame("KL weight beta", &range, &drawing));
    };
    let mut body = format!("<p>{}</p>\n{drawing}", kl.note);
    if let Some((range, drawing)) = beta_drawing {
        let _ = write!(body, "<p>{} {range}</p>\n{drawing}", beta.note);
    }
    Some(frame("KL and its weight", &range, &body))
}

pub(super) fn frame(title: &str, range: &str, body: &str) -> String {
    format!(
        "<figure class=\"card\"><header><h3>{}</h3><span class=\"range\">{range}</span></header>{body}</figure>\n",
        escape(title)
    )
}

/// The value at a point of the x axis, and its bounds where a band is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    step: f64,
    value: f64,
    low: f64,
    high: f64,
}

/// `first -> last` and the SVG; `None` when no row has a finite value.
fn draw(curve: &Curve<'_>, rows: &[Row]) -> Option<(String, String)> {
    let points = bucket(&points(curve, rows), MAX_POINTS);
    let (first, last) = (points.first()?, points.last()?);
    let means =
        if curve.smooth { running_mean(&points) } else { points.iter().map(|point| point.value).collect() };
    let range = format!("{} → {}", short(*means.first()?), short(*means.last()?));

    let bounds = |pick: fn(&Point) -> f64, best: fn(f64, f64) -> f64| points.iter().map(pick).reduce(best);
    let (low, high) = (bounds(|point| point.low, f64::min)?, bounds(|point| point.high, f64::max)?);
    let ticks = ticks(low, high);
    let (low, high) = (low.min(*ticks.first()?), high.max(*ticks.last()?));
    let span = last.step - first.step;
    let (right, bottom) = (WIDTH - RIGHT, curve.height - BOTTOM);
    // One step, or one value, stands in the middle.
    let x = |step: f64| {
        if span > 0.0 { LEFT + (right - LEFT) * (step - first.step) / span } else { (LEFT + right) / 2.0 }
    };
    let y = |value: f64| bottom - (bottom - TOP) * (value - low) / (high - low);

    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\">", curve.height);
    let _ = write!(svg, "<title>{}: {range}</title>", escape(curve.title));
    for tick in &ticks {
        let y = y(*tick);
        let _ =
            write!(svg, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            short(*tick)
        );
    }
    let _ =
        write!(svg, "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>");
    let label = |svg: &mut String, step: f64, anchor: &str| {
        let (x, y) = (x(step), bottom + 15.0);
        let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"{anchor}\">{step}</text>");
    };
    if span > 0.0 {
        label(&mut svg, first.step, "start");
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">step</text>",
            (LEFT + right) / 2.0,
            bottom + 15.0
        );
        label(&mut svg, last.step, "end");
    } else {
        label(&mut svg, first.step, "middle");
    }

    let path = |values: &mut dyn Iterator<Item = (f64, f64)>| {
        values.map(|(step, value)| format!("{:.1},{:.1}", x(step), y(value))).collect::<Vec<_>>().join(" ")
    };
    if curve.band.is_some() {
        let mut outline = points
            .iter()
            .map(|point| (point.step, point.high))
            .chain(points.iter().rev().map(|point| (point.step, point.low)));
        let _ = write!(svg, "<polygon class=\"band\" points=\"{}\"/>", path(&mut outline));
    } else if curve.smooth && points.len() > 2 {
        let raw = path(&mut points.iter().map(|point| (point.step, point.value)));
        let _ = write!(svg, "<polyline class=\"raw\" points=\"{raw}\"/>");
    }
    let smooth = path(&mut points.iter().map(|point| point.step).zip(means.iter().copied()));
    let _ = write!(svg, "<polyline class=\"curve\" points=\"{smooth}\"/>");
    let _ = write!(
        svg,
        "<circle class=\"end\" r=\"4\" cx=\"{:.1}\" cy=\"{:.1}\"/>",
        x(last.step),
        y(*means.last()?)
    );
    for point in &points {
        let (x, y) = (x(point.step), y(point.value));
        let _ = write!(
            svg,
            "<circle class=\"hit\" r=\"4\" cx=\"{x:.1}\" cy=\"{y:.1}\"><title>step {:.0}: {}</title></circle>",
            point.step,
            short(point.value)
        );
    }
    svg.push_str("</svg>\n");
    Some((range, svg))
}

/// The finite values of a measure.
fn points(curve: &Curve<'_>, rows: &[Row]) -> Vec<Point> {
    let number =
        |row: &Row, key: &str| row.get(key).and_then(Value::as_f64).filter(|value| value.is_finite());
    rows.iter()
        .filter_map(|row| {
            let (step, value) = (number(row, "step")?, number(row, curve.key)?);
            let bound = |key: &str| number(row, key).unwrap_or(value);
            let (low, high) = curve.band.map_or((value, value), |(low, high)| (bound(low), bound(high)));
            Some(Point { step, value, low: low.min(value), high: high.max(value) })
        })
        .collect()
}

/// At most `most` points, each the mean of as many neighbours as the others; bounds keep their extremes.
fn bucket(points: &[Point], most: usize) -> Vec<Point> {
    let size = points.len().div_ceil(most).max(1);
    if size == 1 {
        return points.to_vec();
    }
    points
        .chunks(size)
        .map(|chunk| {
            let mean = |pick: fn(&Point) -> f64| chunk.iter().map(pick).sum::<f64>() / chunk.len() as f64;
            Point {
                step: mean(|point| point.step).round(),
                value: mean(|point| point.value),
                low: chunk.iter().map(|point| point.low).fold(f64::INFINITY, f64::min),
                high: chunk.iter().map(|point| point.high).fold(f64::NEG_INFINITY, f64::max),
            }
        })
        .collect()
}

/// Mean over a window of a tenth of the run around each point; at the ends, over the half of it that there is.
fn running_mean(points: &[Point]) -> Vec<f64> {
    let half = points.len() / 20;
    (0..points.len())
        .map(|index| {
            let end = (index + half + 1).min(points.len());
            let window = &points[index.saturating_sub(half)..end];
            window.iter().map(|point| point.value).sum::<f64>() / window.len() as f64
        })
        .collect()
}

/// Two to six round values that enclose `[low, high]`.
pub(super) fn ticks(low: f64, high: f64) -> Vec<f64> {
    // A flat line gets room above and below.
    let (low, high) = if high > low {
        (low, high)
    } else {
        let room = if low == 0.0 { 1.0 } else { low.abs() * 0.5 };
        (low - room, high + room)
    };
    let rough = (high - low) / 3.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|unit| unit * power).find(|step| *step >= rough);
    let step = step.unwrap_or(rough);
    let (first, last) = ((low / step).floor(), (high / step).ceil());
    // Rounded to the step's own digits: 0.30000000000000004 is 0.3.
    (0..=(last - first) as usize).map(|index| (first + index as f64) * step).collect()
}

/// A number in few characters: `0.0421`, `12.5`, `1.2e-6`.
pub(super) fn short(value: f64) -> String {
    let size = value.abs();
    if size < 1e-12 {
        "0".to_owned()
    } else if !(1e-3..1e5).contains(&size) {
        let text = format!("{value:.1e}");
        text.replace(".0e", "e")
    } else {
        let digits = (2 - size.log10().floor() as i32).clamp(0, 5) as usize;
        let text = format!("{value:.digits$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(values: &[f64]) -> Vec<Row> {
        values
            .iter()
            .enumerate()
            .map(|(step, value)| {
                [("step".to_owned(), Value::from(step)), ("reward".to_owned(), Value::from(*value))]
                    .into_iter()
                    .collect()
            })
            .collect()
    }

    #[test]
    fn short_numbers() {
        for (value, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (0.0421, "0.0421"),
            (12.5, "12.5"),
            (1e-6, "1e-6"),
            (1.24e-6, "1.2e-6"),
            (-0.5, "-0.5"),
            (401408.0, "4e5"),
            (0.1 + 0.2, "0.3"),
            (150.0, "150"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn ticks_enclose_the_values_with_round_numbers() {
        assert_eq!(ticks(0.0, 1.0), [0.0, 0.5, 1.0]);
        assert_eq!(ticks(3.0, 41.0), [0.0, 20.0, 40.0, 60.0]);
        for (low, high) in [(0.0, 0.0), (5.0, 5.0), (-1e-9, 2e-9), (-3.0, 700.0), (1e20, 3e20)] {
            let ticks = ticks(low, high);
            assert!((2..=7).contains(&ticks.len()), "{ticks:?}");
            assert!(ticks[0] <= low && ticks[ticks.len() - 1] >= high, "{low} {high} {ticks:?}");
        }
    }

    #[test]
    fn running_mean_of_a_line_is_the_line_but_for_the_ends() {
        let curve = Curve::new("Reward", "reward", "");
        let points = points(&curve, &rows(&(0..100).map(f64::from).collect::<Vec<_>>()));
        let means = running_mean(&points);
        assert!((5..95).all(|step| (means[step] - step as f64).abs() < 1e-9));
        // Of 0..=5 and of 94..=99.
        assert_eq!((means[0], means[99]), (2.5, 96.5));
    }

    #[test]
    fn buckets_keep_mean_and_extremes() {
        let point = |step: f64, value: f64| Point { step, value, low: value - 1.0, high: value + 1.0 };
        let bucketed = bucket(&[point(0.0, 1.0), point(1.0, 3.0), point(2.0, 5.0)], 2);
        assert_eq!(bucketed[0], Point { step: 1.0, value: 2.0, low: 0.0, high: 4.0 });
        assert_eq!(bucketed[1], point(2.0, 5.0));
    }

    #[test]
    fn drawing_survives_gaps_single_points_and_absence() {
        let curve = Curve::new("Reward", "reward", "");
        assert!(draw(&curve, &[]).is_none());
        assert!(draw(&curve, &rows(&[f64::NAN])).is_none());
        for values in [&[0.5][..], &[0.5, f64::NAN, 0.7], &[2.0, 2.0, 2.0], &[-1e300, 1e300]] {
            let (_, svg) = draw(&curve, &rows(values)).unwrap();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
        let (range, svg) = draw(&curve, &rows(&[0.0, 1.0])).unwrap();
        assert_eq!(range, "0 → 1");
        // Step 0 at the left end and the bottom, step 1 at the right end and the top.
        assert!(svg.contains("points=\"50.0,148.0 408.0,8.0\""), "{svg}");
    }
}
