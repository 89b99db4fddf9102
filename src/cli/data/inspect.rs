//! `othink-train data inspect`.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use rayon::prelude::*;

use crate::config::InspectDataConfig;
use crate::data::{
    self, Cell, Cells, Dataset, ImageSource, Message, Named, Part, PromptTemplate, ReadOptions, Sample,
    Table, conversation_column,
};
use crate::error::Result;
use crate::hub;
use crate::processor::resize::smart_resize;
use crate::processor::{ImageConfig, Processor, image_sizes};
use crate::report::console::{escape_control, one_line};

use crate::cli::inputs;

/// Rows whose columns are looked at, and rows whose images are decoded; spread evenly over the dataset.
const ROWS_LOOKED_AT: usize = 1000;
const ROWS_DECODED: usize = 200;

/// Most characters of a text, and most bad rows, that are shown.
const SHOWN_CHARACTERS: usize = 2000;
const SHOWN_BAD: usize = 5;

/// Runs the command.
pub(super) fn run(options: &InspectDataConfig) -> Result<()> {
    let template: PromptTemplate = options.prompt_template.parse()?;
    let read = super::read_options(&options.rows, template);
    let limits = inputs::given(options.pixels);
    let (config, processor) = match &options.model {
        Some(model) => {
            let processor = inputs::processor(&hub::resolve(model)?, limits)?;
            (processor.image_config().clone(), Some(processor))
        }
        None => {
            let (min, max) = (options.pixels.min_pixels as u64, options.pixels.max_pixels as u64);
            (ImageConfig::default().with_limits(Some(min), Some(max))?, None)
        }
    };
    for source in options.rows.datasets() {
        let text = describe(source, &read, &config, processor.as_ref(), options.num_rows)?;
        crate::cli::print(&escape_control(&text))?;
    }
    Ok(())
}

/// All that is told of one source.
fn describe(
    source: &Path,
    read: &ReadOptions,
    config: &ImageConfig,
    processor: Option<&Processor>,
    shown: usize,
) -> Result<String> {
    let named = Named::find(source, &read.split)?;
    let table = named.table(read)?;
    let dataset = data::open(&[source], read)?;
    let mut text = String::new();
    let mut tell = |name: &str, value: &str| text += &format!("{name:<14} {value}\n");
    tell("dataset", &source.display().to_string());
    let files = table.files();
    let first = files.first().map_or(String::new(), |file| file.display().to_string());
    tell("files", &if files.len() == 1 { first } else { format!("{}, the first {first}", files.len()) });
    let splits = data::splits(&named.path)?;
    if !splits.is_empty() {
        tell("splits", &format!("{}; here {}", splits.join(", "), named.split));
    }
    tell("rows", &dataset.rows().to_string());
    let cells: Vec<Cells> = spread(dataset.rows(), ROWS_LOOKED_AT)
        .into_par_iter()
        .filter_map(|row| table.read(row).ok())
        .collect();
    tell("layout", &layout(&cells));
    for (name, kinds) in columns(&cells) {
        tell("column", &format!("{name}: {kinds}"));
    }
    let seen = Seen::of(&dataset, config);
    for (name, value) in seen.lines() {
        tell(name, &value);
    }
    for row in 0..shown.min(dataset.rows()) {
        text += &format!("\n--- row {row} ({})\n", place(&*table, row));
        text += &match dataset.sample(row) {
            Ok(sample) => show(&sample, processor),
            Err(error) => format!("bad: {error}\n"),
        };
    }
    Ok(text)
}

fn place(table: &dyn Table, row: usize) -> String {
    let origin = table.origin(row);
    format!("{}: {}", origin.file.display(), origin.place)
}

/// At most `most` numbers below `rows`, evenly apart.
fn spread(rows: usize, most: usize) -> Vec<usize> {
    let count = rows.min(most);
    (0..count).map(|i| i * rows / count).collect()
}

/// The forms of conversation that were found.
fn layout(cells: &[Cells]) -> String {
    let form = |cells: &Cells| match conversation_column(cells) {
        Some("problem") => "problem, put into the prompt template",
        Some("prompt") => "prompt",
        Some("messages") => "messages",
        Some(_) => "conversations, of a user and an assistant",
        None => "none is recognised",
    };
    let forms: BTreeSet<&str> = cells.iter().map(form).collect();
    forms.into_iter().collect::<Vec<_>>().join("; ")
}

/// Every column with the kinds of its values.
fn columns(cells: &[Cells]) -> Vec<(String, String)> {
    let mut columns: Vec<(String, BTreeSet<String>, usize)> = Vec::new();
    for (name, cell) in cells.iter().flat_map(Cells::iter) {
        let column = match columns.iter().position(|(known, ..)| known == name) {
            Some(known) => &mut columns[known],
            None => {
                columns.push((name.to_owned(), BTreeSet::new(), 0));
                let last = columns.len() - 1;
                &mut columns[last]
            }
        };
        column.1.insert(kind(cell));
        column.2 += 1;
    }
    let absent = |count: usize| match cells.len() - count {
        0 => String::new(),
        absent => format!(" (absent in {absent} of {} rows looked at)", cells.len()),
    };
    let line = |(name, kinds, count): (String, BTreeSet<String>, usize)| {
        (name, format!("{}{}", kinds.into_iter().collect::<Vec<_>>().join(" or "), absent(count)))
    };
    columns.into_iter().map(line).collect()
}

/// What a value is, without an article; of a list also what its first item is.
fn kind(cell: &Cell) -> String {
    let plain = |cell: &Cell| {
        let kind = cell.kind();
        kind.trim_start_matches("an ").trim_start_matches("a ").to_owned()
    };
    match cell.clone().into_items() {
        Ok(items) => {
            items.first().map_or("empty list".to_owned(), |item| format!("list of {}s", plain(item)))
        }
        Err(cell) => plain(&cell),
    }
}

/// What the images of some rows came to.
#[derive(Default)]
struct Seen {
    rows: usize,
    /// Per row.
    images: Vec<usize>,
    /// (width, height) of each image.
    sizes: Vec<(usize, usize)>,
    resized: Vec<usize>,
    tokens: Vec<usize>,
    bad: Vec<String>,
}

impl Seen {
    fn of(dataset: &Dataset, config: &ImageConfig) -> Seen {
        let looked: Vec<_> = spread(dataset.rows(), ROWS_DECODED)
            .into_par_iter()
            .map(|row| dataset.sample(row).and_then(|sample| image_sizes(&sample)))
            .collect();
        let mut seen = Seen { rows: looked.len(), ..Seen::default() };
        for sizes in looked {
            match sizes {
                Ok(sizes) => {
                    seen.images.push(sizes.len());
                    seen.sizes.extend(sizes);
                }
                Err(error) => seen.bad.push(error.to_string()),
            }
        }
        let factor = config.factor();
        for &(width, height) in &seen.sizes {
            let to = smart_resize(height, width, factor, config.min_pixels, config.max_pixels);
            if let Ok((height, width)) = to {
                seen.resized.push(height * width);
                seen.tokens.push(height * width / (factor * factor));
            }
        }
        seen
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = Vec::new();
        if !self.sizes.is_empty() {
            let pixels = self.sizes.iter().map(|(w, h)| w * h).collect();
            lines.push(("images a row", figures(self.images.clone())));
            lines.push(("width", figures(self.sizes.iter().map(|(width, _)| *width).collect())));
            lines.push(("height", figures(self.sizes.iter().map(|(_, height)| *height).collect())));
            lines.push(("pixels", figures(pixels)));
            lines.push(("  resized", figures(self.resized.clone())));
            lines.push(("image tokens", figures(self.tokens.clone())));
        } else if self.bad.is_empty() {
            lines.push(("images", "none".into()));
        }
        if !self.bad.is_empty() {
            let told = format!("{} of {} rows looked at; `data check` lists all", self.bad.len(), self.rows);
            lines.push(("bad rows", told));
            lines.extend(self.bad.iter().take(SHOWN_BAD).map(|error| ("", one_line(error).into_owned())));
        }
        lines
    }
}

fn figures(mut values: Vec<usize>) -> String {
    values.sort_unstable();
    match values.as_slice() {
        [] => "none".into(),
        [least, .., most] if least != most => {
            format!("min {least}, median {}, max {most}", values[values.len() / 2])
        }
        [same, ..] => format!("{same}"),
    }
}

/// A row as the model will see it: rendered by the checkpoint's template, or without one its messages.
fn show(sample: &Sample, processor: Option<&Processor>) -> String {
    let mut text = String::new();
    let prompt = if sample.ends_with_assistant() { &sample.prompt() } else { sample };
    match processor.map(|processor| processor.encode(prompt, true)) {
        Some(Ok(prompt)) => {
            let images: usize = prompt.tokens.len();
            _ = writeln!(text, "{}\n({images} tokens, images included)", cut(&prompt.text));
        }
        Some(Err(error)) => _ = writeln!(text, "bad: {error}"),
        None => prompt.messages.iter().for_each(|message| text += &words(message)),
    }
    for image in &sample.images {
        _ = match image {
            ImageSource::File(path) => writeln!(text, "image: {}", path.display()),
            ImageSource::Bytes(bytes) => writeln!(text, "image: {} bytes in the dataset", bytes.len()),
        };
    }
    if let Some(answer) = sample.messages.last().filter(|_| sample.ends_with_assistant()) {
        text += &words(answer);
    }
    if let Some(solution) = &sample.solution {
        _ = writeln!(text, "solution: {}", cut(solution));
    }
    if !sample.columns.is_empty() {
        _ = writeln!(text, "columns: {}", cut(&serde_json::Value::from(sample.columns.clone()).to_string()));
    }
    text
}

fn words(message: &Message) -> String {
    let part = |part: &Part| match part {
        Part::Text(text) => text.clone(),
        Part::Image(_) => "<image>".into(),
    };
    format!("{}: {}\n", message.role, cut(&message.content.iter().map(part).collect::<String>()))
}

/// The beginning of a long text.
fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{} ... ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_are_spread_evenly_and_figures_are_order_statistics() {
        assert_eq!(spread(10, 4), [0, 2, 5, 7]);
        assert_eq!(spread(3, 10), [0, 1, 2]);
        assert!(spread(0, 10).is_empty());
        assert_eq!(figures(vec![3, 1, 2]), "min 1, median 2, max 3");
        assert_eq!((figures(vec![7, 7]), figures(vec![])), ("7".into(), "none".into()));
        assert_eq!(cut(&"é".repeat(2001)).matches('é').count(), 2000);
    }

    #[test]
    fn columns_tell_kinds_and_gaps() {
        let cells = |value: serde_json::Value| Cells::from(value.as_object().cloned().unwrap());
        let rows = [
            cells(json!({"problem": "a", "images": ["a.png"], "n": 1})),
            cells(json!({"problem": "b", "images": [], "n": null})),
            cells(json!({"messages": []})),
        ];
        let found = columns(&rows);
        let told = |name: &str| found.iter().find(|(column, _)| column == name).unwrap().1.clone();
        assert_eq!(told("problem"), "string (absent in 1 of 3 rows looked at)");
        assert_eq!(told("images"), "empty list or list of strings (absent in 1 of 3 rows looked at)");
        assert_eq!(told("n"), "null or number (absent in 1 of 3 rows looked at)");
        assert_eq!(layout(&rows), "messages; problem, put into the prompt template");
    }
}
