//! `othink-train reward`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::inputs;
use super::output::OutputFile;
use crate::config::RewardConfig;
use crate::data::{self, ImageSource, MAX_LINE_BYTES, Message, Part, Sample};
use crate::error::{Error, Result};
use crate::model::folder::ModelFolder;
use crate::processor::Tokenizer;
use crate::report::Progress;
use crate::report::console::escape_json;
use crate::reward::{Completed, KNOWN, RewardSet};
use crate::train::interrupt::Interrupt;

/// Rows read and scored together. The result does not depend on it.
const ROWS_AT_ONCE: usize = 256;

/// Why a row is refused; the caller adds file and line.
type RowResult<T> = std::result::Result<T, String>;

/// A row of the input.
struct Case {
    sample: Sample,
    completion: String,
    /// `completion_ids`.
    tokens: Option<Vec<u32>>,
}

impl Case {
    fn completed(&self) -> Completed<'_> {
        let tokens = self.tokens.as_deref().unwrap_or_default();
        Completed { sample: &self.sample, text: &self.completion, tokens }
    }
}

/// Runs the command.
pub fn run(options: &RewardConfig) -> Result<()> {
    let Some(input) = options.input.as_deref().filter(|_| !options.list) else {
        return super::print(&list());
    };
    let quiet = options.quiet.quiet;
    let rewards = RewardSet::new(&options.name, &[], &options.rewards, &inputs::notes(quiet))?;
    let tokenizer = match (&options.model, rewards.needs_tokens()) {
        (Some(model), Some(_)) => Some(Tokenizer::load(&ModelFolder::open(model)?.dir)?),
        _ => None,
    };
    // Bad rows are told of before anything is computed or written.
    let mut rows: u64 = 0;
    for case in cases(input)? {
        let case = case?;
        if let (Some(name), None, None) = (rewards.needs_tokens(), &case.tokens, &tokenizer) {
            return Err(case.sample.blame(Error::Input(format!(
                "the reward `{name}` goes by tokens: give the row `completion_ids`, as generate writes them, or name a \
                 checkpoint by --model, whose tokenizer makes them"
            ))));
        }
        rows += 1;
    }
    let interrupt = Interrupt::by_signals()?;
    rewards.start(&|_| interrupt.check())?;
    let mut output = options.output.as_deref().map(OutputFile::create).transpose()?;
    // Rows that are printed are progress enough.
    let progress = Progress::start("reward", rows, quiet || output.is_none());
    let mut cases = cases(input)?;
    loop {
        let mut chunk = cases.by_ref().take(ROWS_AT_ONCE).collect::<Result<Vec<_>>>()?;
        if chunk.is_empty() {
            break;
        }
        for case in &mut chunk {
            if let (None, Some(tokenizer)) = (&case.tokens, &tokenizer) {
                case.tokens = Some(tokenizer.encode(&case.completion).map_err(|e| case.sample.blame(e))?);
            }
        }
        let completed: Vec<Completed<'_>> = chunk.iter().map(Case::completed).collect();
        let scores = rewards.score(&completed, &|_| interrupt.check())?;
        for (case, scores) in chunk.iter().zip(&scores) {
            let row = scored(case, &rewards, scores);
            match &mut output {
                Some(file) => file.append(&row)?,
                None => super::print(&format!("{}\n", escape_json(&row.to_string())))?,
            }
            progress.advance(1);
        }
    }
    progress.finish();
    output.map_or(Ok(()), OutputFile::finish)
}

/// What the built-in rewards are, one a line.
fn list() -> String {
    let line = |(name, formula): &(&str, &str)| format!("{name:14} {formula}\n");
    KNOWN.iter().map(line).collect::<String>()
        + "\nn is the completion's length in tokens. A reward without the solution or box that it needs does not apply: null.\n"
}

/// The score of a row: that of the one reward, else the sum of those that apply, and each by its name.
fn scored(case: &Case, rewards: &RewardSet, scores: &[Option<f64>]) -> Value {
    let mut row = json!({"row": case.sample.row, "score": rewards.total(scores)});
    if let (Value::Object(row), 2..) = (&mut row, scores.len()) {
        let each =
            rewards.names().into_iter().zip(scores).map(|(name, score)| (name.to_owned(), json!(score)));
        row.insert("scores".into(), Value::Object(each.collect()));
    }
    row
}

/// The rows of a file in order, each read when it is asked for.
fn cases(path: &Path) -> Result<impl Iterator<Item = Result<Case>>> {
    let path = path.to_path_buf();
    let objects = data::objects(&path, MAX_LINE_BYTES)?;
    Ok(objects.enumerate().map(move |(row, object)| {
        let (line, object) = object?;
        case(row, object, &path)
            .map_err(|what| Error::content(&path, format!("line {line}: {what}")))
            .map(|case| placed(case, &path, line))
    }))
}

fn placed(mut case: Case, path: &Path, line: usize) -> Case {
    case.sample.origin = Some(data::Origin { file: path.into(), place: data::Place::Line(line) });
    case
}

fn case(row: usize, mut object: Map<String, Value>, path: &Path) -> RowResult<Case> {
    let completion = match object.remove("completion") {
        Some(Value::String(text)) => text,
        Some(Value::Array(turns)) => {
            turns.iter().map(|turn| content(turn).map(text_of)).collect::<RowResult<String>>()?
        }
        Some(_) => return Err("`completion` has to be a text or a list of messages".into()),
        None => return Err("there is nothing to score: give the row a `completion`".into()),
    };
    let tokens = match object.remove("completion_ids") {
        None | Some(Value::Null) => None,
        Some(ids) => Some(
            serde_json::from_value(ids)
                .map_err(|_| "`completion_ids` has to be a list of token ids".to_owned())?,
        ),
    };
    let solution = match object.get("solution") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(other) => match data::Cell::from(other.clone()).spelled() {
            Some(text) => Some(text),
            None => return Err("`solution` has to be a text or numbers".into()),
        },
    };
    let messages = prompt(&mut object)?;
    let images = images(&mut object, path.parent().unwrap_or(Path::new("")));
    let sample = Sample { row, messages, images, solution, columns: object, ..Sample::default() };
    Ok(Case { sample, completion, tokens })
}

/// The prompt, if the row has one: only a process may want it.
fn prompt(object: &mut Map<String, Value>) -> RowResult<Vec<Message>> {
    let Some(name) = ["messages", "prompt", "problem"].into_iter().find(|name| object.contains_key(*name))
    else {
        return Ok(Vec::new());
    };
    // A question stays a column, as it does for a dataset's rows.
    let value = if name == "problem" { object.get(name).cloned() } else { object.remove(name) };
    match value {
        Some(Value::String(text)) => {
            Ok(vec![Message { role: "user".into(), content: vec![Part::Text(text)] }])
        }
        Some(Value::Array(turns)) => turns
            .iter()
            .map(|turn| {
                let role = turn.get("role").and_then(Value::as_str).unwrap_or("user").to_owned();
                Ok(Message { role, content: content(turn)? })
            })
            .collect(),
        _ => Err(format!("`{name}` has to be a text or a list of messages")),
    }
}

/// The names of the images, which nobody reads here.
fn images(object: &mut Map<String, Value>, folder: &Path) -> Vec<ImageSource> {
    let image = |name: &Value| name.as_str().map(|name| ImageSource::File(folder.join(name)));
    match (object.remove("images"), object.remove("image")) {
        (Some(Value::Array(names)), _) => names.iter().filter_map(image).collect(),
        (_, Some(name)) => image(&name).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// What a message says: a text, or a list of parts.
fn content(message: &Value) -> RowResult<Vec<Part>> {
    let mut images = 0;
    let mut part = |part: &Value| match part.get("text").and_then(Value::as_str) {
        Some(text) => Part::Text(text.to_owned()),
        None => {
            images += 1;
            Part::Image(images - 1)
        }
    };
    match message.get("content") {
        Some(Value::String(text)) => Ok(vec![Part::Text(text.clone())]),
        Some(Value::Array(parts)) => Ok(parts.iter().map(&mut part).collect()),
        _ => Err("a message has to be an object with `role` and `content`".into()),
    }
}

fn text_of(content: Vec<Part>) -> String {
    let texts = content.into_iter().filter_map(|part| match part {
        Part::Text(text) => Some(text),
        Part::Image(_) => None,
    });
    texts.collect()
}
