//! A report that compares arms: tables, and charts with one curve for each arm.

use std::fmt::Write as _;
use std::path::Path;

use super::chart::{frame, short, ticks};
use super::{escape, facts, page};
use crate::checkpoint::replace_file;
use crate::disk::SystemDisk;
use crate::error::Result;

/// A comparison of arms.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Heading of the page.
    pub title: String,
    /// Name and value of what identifies it.
    pub facts: Vec<(String, String)>,
    /// The results.
    pub tables: Vec<Table>,
    /// Headings, each with its charts.
    pub charts: Vec<(String, Vec<Chart>)>,
    /// The resolved config.
    pub config: String,
}

/// A table with a header row; the first cell of a line is its name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// Heads of the columns.
    pub head: Vec<String>,
    /// Cells, one list per line.
    pub body: Vec<Vec<String>>,
    /// How the numbers are made.
    pub note: String,
}

/// One measure of several arms over their steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    /// What is measured.
    pub title: String,
    /// How, in a line.
    pub note: String,
    /// The arms; one without points is left out.
    pub series: Vec<Series>,
}

/// One arm's curve.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Whose.
    pub name: String,
    /// Which of the page's colours, from 0: an arm has the same one in every chart.
    pub colour: usize,
    /// In the order of the steps.
    pub points: Vec<SeriesPoint>,
}

/// A mean with a band around it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SeriesPoint {
    /// Place on the x axis.
    pub step: f64,
    /// The mean.
    pub mean: f64,
    /// Half the height of the band; 0 for none.
    pub half_band: f64,
}

/// Colours that the style sheet has for arms.
const COLOURS: usize = 4;

/// Width and height of a chart with its title in [`curves`], and the height above all charts.
const CELL: [f64; 2] = [430.0, 232.0];
const HEAD: f64 = 56.0;

/// The page's colours of arms on white, for a file that has no other style: not every viewer of SVG knows variables.
const ON_WHITE: [&str; COLOURS] = ["#8a5a00", "#2a6fc9", "#c2384f", "#3c8a4d"];

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 200.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = 408.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 178.0;

/// Writes the report to `path`, through a temporary file beside it.
///
/// # Errors
/// [`Error::Io`](crate::error::Error::Io) when the disk refuses.
pub fn write(path: impl AsRef<Path>, comparison: &Comparison) -> Result<()> {
    replace_file(&SystemDisk, path.as_ref(), render(comparison).as_bytes())
}

/// The charts as an SVG file of its own, for a README or a paper: a column for each heading.
pub fn curves(charts: &[(String, Vec<Chart>)]) -> String {
    let rows = charts.iter().map(|(_, charts)| charts.len()).max().unwrap_or(0);
    let (width, height) = (charts.len() as f64 * CELL[0], HEAD + rows as f64 * CELL[1]);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\">\n\
         <style>{}</style>\n<rect class=\"ground\" width=\"{width}\" height=\"{height}\"/>\n",
        curves_style()
    );
    let mut names: Vec<&Series> = Vec::new();
    for series in charts.iter().flat_map(|(_, charts)| charts).flat_map(shown) {
        if !names.iter().any(|known| known.name == series.name) {
            names.push(series);
        }
    }
    names.sort_by_key(|series| series.colour);
    for (place, series) in names.into_iter().enumerate() {
        let (x, colour) = (LEFT + 90.0 * place as f64, series.colour % COLOURS);
        let _ = writeln!(
            svg,
            "<rect class=\"arm-key arm-{colour}\" x=\"{x}\" y=\"12\" width=\"12\" height=\"12\"/><text x=\"{}\" y=\"22\">{}</text>",
            x + 18.0,
            escape(&series.name)
        );
    }
    for (column, (heading, charts)) in charts.iter().enumerate() {
        let x = column as f64 * CELL[0];
        let _ =
            writeln!(svg, "<text class=\"heading\" x=\"{}\" y=\"46\">{}</text>", x + LEFT, escape(heading));
        for (row, chart) in charts.iter().enumerate() {
            let (y, Some(drawing)) = (HEAD + row as f64 * CELL[1], draw(chart, false)) else { continue };
            let title = escape(&chart.title);
            let _ =
                writeln!(svg, "<text class=\"title\" x=\"{}\" y=\"{}\">{title}</text>", x + LEFT, y + 14.0);
            let place = format!("<svg x=\"{x}\" y=\"{}\" width=\"{WIDTH}\" height=\"{HEIGHT}\"", y + 20.0);
            svg += &drawing.replacen("<svg", &place, 1);
        }
    }
    svg + "</svg>\n"
}

fn curves_style() -> String {
    let mut style = "text { fill: #5d5c57; font: 11px system-ui, sans-serif } .title { font-weight: 600; fill: #1c1c1a } \
                     .heading { font-size: 15px; font-weight: 600; fill: #1c1c1a } .ground { fill: #ffffff } \
                     .grid { stroke: #ecebe6 } .axis { stroke: #dddcd6 } .arm-curve { fill: none; stroke-width: 2 } \
                     .arm-band { opacity: 0.16 }"
        .to_owned();
    for (number, colour) in ON_WHITE.iter().enumerate() {
        let _ = write!(
            style,
            " .arm-{number} {{ fill: {colour} }} .arm-curve.arm-{number} {{ fill: none; stroke: {colour} }}"
        );
    }
    style
}

/// The page as text.
pub fn render(comparison: &Comparison) -> String {
    page(
        &comparison.title,
        &comparison.config,
        |header| facts(header, &comparison.facts),
        |main| {
            comparison.tables.iter().for_each(|table| write_table(main, table));
            for (title, charts) in &comparison.charts {
                let cards: Vec<String> = charts.iter().filter_map(card).collect();
                super::section(main, title, &cards);
            }
        },
    )
}

fn write_table(text: &mut String, table: &Table) {
    let cells = |tag: &str, cells: &[String]| -> String {
        cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
    };
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(
        text,
        "<section><h2>{}</h2>\n<table class=\"results\"><thead><tr>{}</tr></thead><tbody>",
        escape(&table.title),
        cells("th", &table.head)
    );
    for line in &table.body {
        let (first, rest) = line.split_at(line.len().min(1));
        let _ = writeln!(text, "<tr>{}{}</tr>", cells("th", first), cells("td", rest));
    }
    let _ = writeln!(text, "</tbody></table><p class=\"note\">{}</p></section>", escape(&table.note));
}

fn card(chart: &Chart) -> Option<String> {
    let drawing = draw(chart, true)?;
    let legend: String = shown(chart)
        .map(|series| {
            let colour = series.colour % COLOURS;
            format!("<span class=\"arm arm-{colour}\">{}</span>", escape(&series.name))
        })
        .collect();
    let body = format!("<p>{}</p>\n<p class=\"legend\">{legend}</p>\n{drawing}", escape(&chart.note));
    Some(frame(&chart.title, "", &body))
}

/// Series with something to show, and of it what is finite.
fn shown(chart: &Chart) -> impl Iterator<Item = &Series> {
    chart.series.iter().filter(|series| finite(series).next().is_some())
}

fn finite(series: &Series) -> impl DoubleEndedIterator<Item = &SeriesPoint> + Clone {
    let is_finite = |point: &&SeriesPoint| {
        point.step.is_finite() && point.mean.is_finite() && point.half_band.is_finite()
    };
    series.points.iter().filter(is_finite)
}

/// The SVG, with the numbers of a point under the mouse if `with_numbers`; `None` when there is nothing to draw.
fn draw(chart: &Chart, with_numbers: bool) -> Option<String> {
    let points = || shown(chart).flat_map(finite);
    let least = |values: &mut dyn Iterator<Item = f64>| values.reduce(f64::min);
    let most = |values: &mut dyn Iterator<Item = f64>| values.reduce(f64::max);
    let (first, last) = (least(&mut points().map(|p| p.step))?, most(&mut points().map(|p| p.step))?);
    let low = least(&mut points().map(|p| p.mean - p.half_band))?;
    let high = most(&mut points().map(|p| p.mean + p.half_band))?;
    let ticks = ticks(low, high);
    let (low, high) = (low.min(*ticks.first()?), high.max(*ticks.last()?));
    let x = |step: f64| match last > first {
        true => LEFT + (RIGHT - LEFT) * (step - first) / (last - first),
        false => (LEFT + RIGHT) / 2.0,
    };
    let y = |value: f64| BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low);

    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    let _ = write!(svg, "<title>{}</title>", escape(&chart.title));
    for tick in &ticks {
        let (at, label) = (y(*tick), short(*tick));
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            LEFT - 6.0,
            at + 4.0
        );
    }
    let _ =
        write!(svg, "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{BOTTOM}\" y2=\"{BOTTOM}\"/>");
    for (at, anchor, label) in [
        (LEFT, "start", short(first)),
        ((LEFT + RIGHT) / 2.0, "middle", "step".to_owned()),
        (RIGHT, "end", short(last)),
    ] {
        let _ =
            write!(svg, "<text x=\"{at}\" y=\"{}\" text-anchor=\"{anchor}\">{label}</text>", BOTTOM + 15.0);
    }
    let path = |points: &mut dyn Iterator<Item = (f64, f64)>| {
        points.map(|(step, value)| format!("{:.1},{:.1}", x(step), y(value))).collect::<Vec<_>>().join(" ")
    };
    // All bands lie under all curves.
    for series in shown(chart).filter(|series| finite(series).any(|p| p.half_band > 0.0)) {
        let upper = finite(series).map(|p| (p.step, p.mean + p.half_band));
        let lower = finite(series).rev().map(|p| (p.step, p.mean - p.half_band));
        let colour = series.colour % COLOURS;
        let outline = path(&mut upper.chain(lower));
        let _ = write!(svg, "<polygon class=\"arm-band arm-{colour}\" points=\"{outline}\"/>");
    }
    for series in shown(chart) {
        let colour = series.colour % COLOURS;
        let curve = path(&mut finite(series).map(|p| (p.step, p.mean)));
        let _ = write!(svg, "<polyline class=\"arm-curve arm-{colour}\" points=\"{curve}\"/>");
        for p in finite(series).filter(|_| with_numbers) {
            let band = if p.half_band > 0.0 { format!(" ± {}", short(p.half_band)) } else { String::new() };
            let _ = write!(
                svg,
                "<circle class=\"arm-hit arm-{colour}\" r=\"3\" cx=\"{:.1}\" cy=\"{:.1}\"><title>{}, step {}: {}{band}</title></circle>",
                x(p.step),
                y(p.mean),
                escape(&series.name),
                short(p.step),
                short(p.mean)
            );
        }
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, colour: usize, points: &[(f64, f64, f64)]) -> Series {
        let point = |&(step, mean, half_band): &(f64, f64, f64)| SeriesPoint { step, mean, half_band };
        Series { name: name.into(), colour, points: points.iter().map(point).collect() }
    }

    fn chart(series: Vec<Series>) -> Chart {
        Chart { title: "Reward".into(), note: "Mean".into(), series }
    }

    #[test]
    fn curves_and_bands_share_their_axes() {
        let svg = draw(
            &chart(vec![
                series("GRPO", 1, &[(0.0, 0.0, 0.0), (10.0, 1.0, 0.0)]),
                series("GRPO-D", 2, &[(0.0, 0.5, 0.5), (10.0, 0.5, 0.25)]),
            ]),
            true,
        )
        .unwrap();
        // The value 0 lies at the bottom, 1 at the top.
        assert!(
            svg.contains("<polyline class=\"arm-curve arm-1\" points=\"50.0,178.0 408.0,8.0\"/>"),
            "{svg}"
        );
        assert!(
            svg.contains(
                "<polygon class=\"arm-band arm-2\" points=\"50.0,8.0 408.0,50.5 408.0,135.5 50.0,178.0\"/>"
            ),
            "{svg}"
        );
        assert_eq!(svg.matches("<polygon").count(), 1, "an arm without a band has none");
    }

    #[test]
    fn a_file_of_curves_has_a_column_for_each_heading() {
        let one = || chart(vec![series("GRPO & D", 2, &[(0.0, 0.0, 0.0), (10.0, 1.0, 0.0)])]);
        let nothing = chart(vec![series("SFT", 0, &[])]);
        let svg = curves(&[("Left".into(), vec![one(), nothing]), ("Right".into(), vec![one()])]);
        assert!(svg.starts_with("<svg xmlns=") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("viewBox=\"0 0 860 520\""), "{svg}");
        assert_eq!((svg.matches("<polyline").count(), svg.matches("arm-key arm-2").count()), (2, 1), "{svg}");
        assert!(
            svg.contains("<svg x=\"430\" y=\"76\"") && svg.contains("GRPO &amp; D") && !svg.contains("SFT")
        );
    }

    #[test]
    fn what_is_not_finite_is_left_out() {
        assert!(draw(&chart(vec![series("SFT", 0, &[(0.0, f64::NAN, 0.0)])]), true).is_none());
        let mixed = chart(vec![
            series("SFT", 0, &[]),
            series("GRPO", 1, &[(3.0, 2.0, 0.0), (4.0, f64::INFINITY, 0.0)]),
        ]);
        let card = card(&mixed).unwrap();
        assert!(!card.contains("NaN") && !card.contains("inf") && !card.contains("SFT"), "{card}");
    }

    #[test]
    fn page_is_self_contained_and_escaped() {
        let page = render(&Comparison {
            title: "a <b>".into(),
            facts: vec![("seeds".into(), "1 & 2".into())],
            tables: vec![Table {
                title: "Same task".into(),
                head: vec!["".into(), "x<y".into()],
                body: vec![vec!["+ SFT".into(), "1 ± 2".into()]],
                note: "n".into(),
            }],
            charts: vec![(
                "Trained on <c>".into(),
                vec![chart(vec![series("</svg><script>", 7, &[(0.0, 0.1, 0.0)])])],
            )],
            config: "seeds = [1]".into(),
        });
        for wanted in
            ["a &lt;b&gt;", "1 &amp; 2", "x&lt;y", "Trained on &lt;c&gt;", "<td>1 ± 2</td>", "seeds = [1]"]
        {
            assert!(page.contains(wanted), "{wanted}");
        }
        for unwanted in ["<script", "http://", "https://", "NaN"] {
            assert!(!page.contains(unwanted), "{unwanted}");
        }
        for tag in ["section", "svg", "div", "table", "tr", "figure", "p", "pre", "span"] {
            let opened =
                page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }
}
