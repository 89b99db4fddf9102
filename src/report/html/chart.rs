//! Curves as inline SVG: what is compared in one chart, a measure of another scale on an axis of its own at the right,
//! the raw points pale behind their running mean.

mod scale;

use std::fmt::Write as _;

use serde_json::Value;

use scale::{Point, bucket, running_mean};
pub(super) use scale::{short, ticks};

use super::escape;
use crate::report::jsonl::Row;

/// Size of a drawing, in SVG units.
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 170.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = 12.0;
/// Room at the right where there is an axis.
const RIGHT_AXIS: f64 = 50.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 22.0;
/// More points than this are averaged in buckets: a line is not wider than its pixels.
const MAX_POINTS: usize = 240;

/// One measure over the run.
#[derive(Clone, Copy)]
struct Line<'a> {
    /// What the legend calls it.
    label: &'a str,
    key: &'a str,
    smooth: bool,
}

/// Measures over the run in one drawing. The first is the one that the heading tells first and last value of.
struct Chart<'a> {
    title: &'a str,
    note: &'a str,
    lines: Vec<Line<'a>>,
    /// A measure of another scale.
    right: Option<Line<'a>>,
    /// Keys of a lower and an upper bound of the first, drawn as a band.
    band: Option<(&'a str, &'a str)>,
    /// Key of `eval_metrics.jsonl`, drawn as dots.
    evaluation: Option<&'a str>,
}

impl<'a> Chart<'a> {
    fn new(title: &'a str, key: &'a str, note: &'a str) -> Self {
        let lines = vec![Line { label: title, key, smooth: true }];
        Chart { title, note, lines, right: None, band: None, evaluation: None }
    }

    fn exact(mut self) -> Self {
        self.lines.iter_mut().for_each(|line| line.smooth = false);
        self
    }

    fn with(mut self, label: &'a str, key: &'a str) -> Self {
        self.lines.push(Line { label, key, smooth: true });
        self
    }

    fn on_the_right(mut self, label: &'a str, key: &'a str) -> Self {
        self.right = Some(Line { label, key, smooth: false });
        self
    }

    fn evaluated(mut self, key: &'a str) -> Self {
        self.evaluation = Some(key);
        self
    }
}

/// The curves of a GRPO run, in the order in which they are read; measures that no row has are left out.
pub fn grpo_cards(rows: &[Row], evaluations: &[Row]) -> Vec<String> {
    let names = rows.first().map(reward_names).unwrap_or_default();
    let each: Vec<_> = names
        .iter()
        .map(|name| {
            [format!("Reward: {name}"), format!("rewards/{name}/mean"), format!("eval_rewards/{name}/mean")]
        })
        .collect();
    let mut charts = vec![
        Chart::new("Reward", "reward", "Mean weighted reward of the step's completions.")
            .evaluated("eval_reward"),
    ];
    charts.extend(each.iter().map(|[title, key, evaluation]| {
        Chart::new(title, key, "Mean of this reward function, unweighted.").evaluated(evaluation)
    }));
    charts.extend([
        Chart {
            lines: vec![Line { label: "in force", key: "kl", smooth: true }],
            ..Chart::new("KL and its weight", "kl", "KL to the reference, nats per token; at the right its weight beta(s).")
        }
        .with("exact", "kl/exact")
        .with("k3", "kl/k3")
        .with("k1", "kl/k1")
        .on_the_right("beta", "beta"),
        Chart::new(
            "Reward spread",
            "reward_std",
            "Deviation of the reward; at the right the share of groups whose rewards are all equal: they teach nothing.",
        )
        .on_the_right("equal groups", "frac_reward_zero_std"),
        Chart {
            band: Some(("completions/min_length", "completions/max_length")),
            ..Chart::new(
                "Completion length",
                "completions/mean_length",
                "Mean in tokens, the band from shortest to longest; at the right the share that hit the limit.",
            )
        }
        .evaluated("eval_completions/mean_length")
        .on_the_right("cut off", "completions/clipped_ratio"),
        Chart::new("Entropy", "entropy", "Mean entropy of the sampled tokens, in nats."),
        Chart::new("Gradient norm", "grad_norm", "L2 norm before clipping."),
        Chart::new("Loss", "loss", "Clipped surrogate plus beta times KL."),
        Chart::new("Clipped ratios", "clip_ratio/region_mean", "Share of tokens whose probability ratio was clipped."),
        Chart::new("Learning rate", "learning_rate", "As used by the step.").exact(),
        Chart::new("Step time", "step_time", "Wall time in seconds."),
    ]);
    charts.iter().filter_map(|chart| card(chart, rows, evaluations)).collect()
}

/// The curves of an SFT run.
pub fn sft_cards(rows: &[Row], evaluations: &[Row]) -> Vec<String> {
    [
        Chart::new("SFT loss", "loss", "Mean cross-entropy of the answer's tokens, in nats.")
            .evaluated("eval_loss"),
        Chart::new("Gradient norm", "grad_norm", "L2 norm before clipping."),
        Chart::new("Learning rate", "learning_rate", "As used by the step.").exact(),
        Chart::new("Step time", "step_time", "Wall time in seconds."),
    ]
    .iter()
    .filter_map(|chart| card(chart, rows, evaluations))
    .collect()
}

/// The names `x` of the columns `rewards/x/mean`.
fn reward_names(row: &Row) -> Vec<String> {
    let name = |key: &String| Some(key.strip_prefix("rewards/")?.strip_suffix("/mean")?.to_owned());
    row.keys().filter_map(name).collect()
}

fn card(chart: &Chart<'_>, rows: &[Row], evaluations: &[Row]) -> Option<String> {
    let (range, drawing) = draw(chart, rows, evaluations)?;
    Some(frame(chart.title, &range, &format!("<p>{}</p>\n{drawing}", escape(chart.note))))
}

pub(super) fn frame(title: &str, range: &str, body: &str) -> String {
    format!(
        "<figure class=\"card\"><header><h3>{}</h3><span class=\"range\">{range}</span></header>{body}</figure>\n",
        escape(title)
    )
}

/// A measure as it is drawn.
struct Drawn<'a> {
    label: &'a str,
    /// Its colour: a class of the style sheet.
    class: String,
    points: Vec<Point>,
    means: Vec<f64>,
    smooth: bool,
}

impl<'a> Drawn<'a> {
    /// `None` where no row has a finite value.
    fn of(line: Line<'a>, class: String, band: Option<(&str, &str)>, rows: &[Row]) -> Option<Drawn<'a>> {
        let points = bucket(&points(line.key, band, rows), MAX_POINTS);
        let means =
            if line.smooth { running_mean(&points) } else { points.iter().map(|p| p.value).collect() };
        (!points.is_empty()).then_some(Drawn { label: line.label, class, points, means, smooth: line.smooth })
    }
}

/// From values to the height in a drawing.
struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Axis {
    fn around<'p>(points: impl Iterator<Item = &'p Point>) -> Axis {
        let (low, high) = points.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), point| {
            (low.min(point.low), high.max(point.high))
        });
        let ticks = ticks(low, high);
        let (first, last) = (ticks.first().copied().unwrap_or(low), ticks.last().copied().unwrap_or(high));
        Axis { low: low.min(first), high: high.max(last), ticks }
    }

    fn y(&self, value: f64) -> f64 {
        let bottom = HEIGHT - BOTTOM;
        bottom - (bottom - TOP) * (value - self.low) / (self.high - self.low)
    }
}

/// `first → last` of the first measure and the drawing; `None` when no row has a finite value of it.
fn draw(chart: &Chart<'_>, rows: &[Row], evaluations: &[Row]) -> Option<(String, String)> {
    let drawn: Vec<Drawn<'_>> = (0..)
        .zip(&chart.lines)
        .filter_map(|(n, line)| Drawn::of(*line, format!("series-{n}"), chart.band.filter(|_| n == 0), rows))
        .collect();
    let right = chart.right.and_then(|line| Drawn::of(line, "series-right".into(), None, rows));
    let dots = chart.evaluation.map_or_else(Vec::new, |key| points(key, None, evaluations));
    // A measure that is missing leaves the others; with none of them, what stands at the right is the chart's.
    let main = drawn.first().or(right.as_ref())?;
    let range = format!("{} → {}", short(*main.means.first()?), short(*main.means.last()?));
    let lines = || drawn.iter().chain(&right);
    let steps = || lines().flat_map(|line| &line.points).chain(&dots).map(|point| point.step);
    let (first, last) = (steps().reduce(f64::min)?, steps().reduce(f64::max)?);
    let edge = WIDTH - if right.is_some() { RIGHT_AXIS } else { RIGHT };
    // One step, or one value, stands in the middle.
    let x = |step: f64| match last > first {
        true => LEFT + (edge - LEFT) * (step - first) / (last - first),
        false => (LEFT + edge) / 2.0,
    };
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    // Writing to a String cannot fail, here and below.
    let _ = write!(svg, "<title>{}: {range}</title>", escape(chart.title));
    let left_axis =
        (!drawn.is_empty()).then(|| Axis::around(drawn.iter().flat_map(|line| &line.points).chain(&dots)));
    let right_axis = right.as_ref().map(|line| Axis::around(line.points.iter()));
    if let Some(axis) = &left_axis {
        for tick in &axis.ticks {
            let y = axis.y(*tick);
            let _ =
                write!(svg, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{edge}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
            text(&mut svg, LEFT - 6.0, y + 4.0, "end", &short(*tick));
        }
    }
    if let Some(axis) = &right_axis {
        axis.ticks
            .iter()
            .for_each(|tick| text(&mut svg, edge + 6.0, axis.y(*tick) + 4.0, "start", &short(*tick)));
    }
    let bottom = HEIGHT - BOTTOM;
    let _ = write!(svg, "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{edge}\" y1=\"{bottom}\" y2=\"{bottom}\"/>");
    if last > first {
        text(&mut svg, x(first), bottom + 15.0, "start", &first.to_string());
        text(&mut svg, (LEFT + edge) / 2.0, bottom + 15.0, "middle", "step");
        text(&mut svg, x(last), bottom + 15.0, "end", &last.to_string());
    } else {
        text(&mut svg, x(first), bottom + 15.0, "middle", &first.to_string());
    }
    if let (Some(axis), Some(first), Some(_)) = (&left_axis, drawn.first(), chart.band) {
        let upper = first.points.iter().map(|point| (point.step, point.high));
        let outline = upper.chain(first.points.iter().rev().map(|point| (point.step, point.low)));
        let outline = outline.map(|(step, value)| (x(step), axis.y(value)));
        let _ = write!(svg, "<polygon class=\"band\" points=\"{}\"/>", path(outline));
    }
    let axes = lines().map(|line| if line.class == "series-right" { &right_axis } else { &left_axis });
    let crowded = lines().count() > 1 || chart.band.is_some();
    for (line, axis) in lines().zip(axes).filter_map(|(line, axis)| Some((line, axis.as_ref()?))) {
        series(&mut svg, line, x, axis, !crowded);
    }
    if let Some(axis) = left_axis.as_ref().or(right_axis.as_ref()) {
        for dot in &dots {
            let (x, y) = (x(dot.step), axis.y(dot.value));
            let _ = write!(
                svg,
                "<circle class=\"evaluation\" r=\"3.5\" cx=\"{x:.1}\" cy=\"{y:.1}\"><title>evaluation at step {:.0}: \
                 {}</title></circle>",
                dot.step,
                short(dot.value)
            );
        }
    }
    svg.push_str("</svg>\n");
    if crowded || !dots.is_empty() {
        svg.push_str(&legend(lines(), !dots.is_empty()));
    }
    Some((range, svg))
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>");
}

fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
}

/// One measure: the raw points where there is room for them, their running mean, its last value, and what a pointer finds.
fn series(svg: &mut String, line: &Drawn<'_>, x: impl Fn(f64) -> f64, axis: &Axis, with_raw: bool) {
    let class = &line.class;
    if with_raw && line.smooth && line.points.len() > 2 {
        let raw = path(line.points.iter().map(|point| (x(point.step), axis.y(point.value))));
        let _ = write!(svg, "<polyline class=\"raw {class}\" points=\"{raw}\"/>");
    }
    let mean = path(line.points.iter().zip(&line.means).map(|(point, mean)| (x(point.step), axis.y(*mean))));
    let _ = write!(svg, "<polyline class=\"curve {class}\" points=\"{mean}\"/>");
    if let (Some(point), Some(mean)) = (line.points.last(), line.means.last()) {
        let (x, y) = (x(point.step), axis.y(*mean));
        let _ = write!(svg, "<circle class=\"end {class}\" r=\"4\" cx=\"{x:.1}\" cy=\"{y:.1}\"/>");
    }
    for point in &line.points {
        let (x, y) = (x(point.step), axis.y(point.value));
        let _ = write!(
            svg,
            "<circle class=\"hit {class}\" r=\"4\" cx=\"{x:.1}\" cy=\"{y:.1}\"><title>{}, step {:.0}: {}</title></circle>",
            escape(line.label),
            point.step,
            short(point.value)
        );
    }
}

fn legend<'d>(lines: impl Iterator<Item = &'d Drawn<'d>>, evaluations: bool) -> String {
    let mut legend = String::from("<div class=\"legend\">");
    for line in lines {
        let _ = write!(legend, "<span class=\"{}\">{}</span>", line.class, escape(line.label));
    }
    if evaluations {
        legend.push_str("<span class=\"evaluation\">evaluation</span>");
    }
    legend + "</div>\n"
}

/// The finite values of a measure.
fn points(key: &str, band: Option<(&str, &str)>, rows: &[Row]) -> Vec<Point> {
    let number =
        |row: &Row, key: &str| row.get(key).and_then(Value::as_f64).filter(|value| value.is_finite());
    rows.iter()
        .filter_map(|row| {
            let (step, value) = (number(row, "step")?, number(row, key)?);
            let bound = |key: &str| number(row, key).unwrap_or(value);
            let (low, high) = band.map_or((value, value), |(low, high)| (bound(low), bound(high)));
            Some(Point { step, value, low: low.min(value), high: high.max(value) })
        })
        .collect()
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
    fn drawing_survives_gaps_single_points_and_absence() {
        let chart = Chart::new("Reward", "reward", "");
        assert!(draw(&chart, &[], &[]).is_none());
        assert!(draw(&chart, &rows(&[f64::NAN]), &[]).is_none());
        for values in [&[0.5][..], &[0.5, f64::NAN, 0.7], &[2.0, 2.0, 2.0], &[-1e300, 1e300]] {
            let (_, svg) = draw(&chart, &rows(values), &[]).unwrap();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
        let (range, svg) = draw(&chart, &rows(&[0.0, 1.0]), &[]).unwrap();
        assert_eq!(range, "0 → 1");
        // Step 0 at the left end and the bottom, step 1 at the right end and the top.
        assert!(svg.contains("points=\"50.0,148.0 408.0,8.0\""), "{svg}");
        assert!(!svg.contains("legend"));
    }

    #[test]
    fn measures_of_two_scales_have_two_axes_and_evaluations_are_dots() {
        let mut rows = rows(&[0.0, 1.0]);
        for (row, beta) in rows.iter_mut().zip([0.07, 0.04]) {
            row.insert("beta".into(), beta.into());
            row.insert("kl".into(), Value::Null);
        }
        let evaluations =
            [[("step".to_owned(), 1.into()), ("eval_reward".to_owned(), 2.0.into())].into_iter().collect()];
        let chart = Chart::new("R", "reward", "")
            .with("none", "kl")
            .on_the_right("beta", "beta")
            .evaluated("eval_reward");
        let (range, svg) = draw(&chart, &rows, &evaluations).unwrap();
        assert_eq!(range, "0 → 1");
        // The left axis reaches to the evaluation's 2, the right one from 0.04 to 0.08.
        assert!(svg.contains("curve series-0\" points=\"50.0,148.0 370.0,78.0\""), "{svg}");
        assert!(svg.contains("curve series-right\" points=\"50.0,43.0 370.0,148.0\""), "{svg}");
        assert!(svg.contains("class=\"evaluation\" r=\"3.5\" cx=\"370.0\" cy=\"8.0\""), "{svg}");
        assert!(svg.contains("text-anchor=\"start\">0.04</text>"), "{svg}");
        assert!(svg.contains("<span class=\"series-right\">beta</span><span class=\"evaluation\">"), "{svg}");
        assert!(!svg.contains(">none<"), "{svg}");
        // Alone, what stands at the right is the chart's.
        let (range, svg) =
            draw(&Chart::new("KL", "kl", "").on_the_right("beta", "beta"), &rows, &[]).unwrap();
        assert_eq!(range, "0.07 → 0.04");
        assert!(svg.contains("curve series-right"), "{svg}");
    }
}
