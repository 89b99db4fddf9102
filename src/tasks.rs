//! Synthetic visual tasks: images drawn here, with questions that only the image answers.
//!
//! - `counting`: coloured shapes on varied backgrounds, asked about as in CLEVR and SuperCLEVR.
//! - `geometry`: a figure with labelled lengths or angles; the numbers are in the image only.
//!
//! **Balance.** Rows come in blocks: one block asks one question with each of its possible
//! answers once. So within a split of whole blocks every answer is exactly as frequent as
//! every other, given the question, and a guesser without eyes is right in 1 of K. (The rows
//! of a block stand together: shuffle before taking a part of a split.)
//!
//! **Splits cannot overlap.** Which split an image may belong to is a function of its pixels:
//! one bit of their hash ([`Split::of_image`]). A drawing that falls on the other side is
//! thrown away. So no image of any test split is in any training split of the same image size,
//! whatever the seeds and difficulties. Within a split no image is drawn twice, and
//! [`write()`] checks both again by the hashes of what it wrote.
//!
//! A task is a function of (task, options, split, row): rows do not depend on how many there
//! are, except that a repeated image, were one drawn, is replaced.

mod blind;
mod canvas;
mod counting;
mod folder;
mod font;
mod geometry;
mod plan;

use std::collections::HashSet;
use std::fmt;
use std::io::Cursor;
use std::str::FromStr;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ImageEncoder, RgbImage};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::data::{ImageSource, PromptTemplate, Sample, nearest};
use crate::error::{Error, Result};
use crate::rng::{Purpose, Stream};

pub use blind::{blank_image, blank_sample, majority_accuracy};
pub use folder::write;

use plan::{Cell, plan};

/// A synthetic task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// How many of something are in the image.
    Counting,
    /// An angle, a length or an area of a labelled figure.
    Geometry,
}

impl Task {
    /// Every task.
    pub const ALL: [Task; 2] = [Task::Counting, Task::Geometry];

    /// The name used in commands and folders.
    pub fn name(self) -> &'static str {
        match self {
            Task::Counting => "counting",
            Task::Geometry => "geometry",
        }
    }

    /// Every question of this task and difficulty, with its possible answers.
    pub fn questions(self, difficulty: Difficulty) -> Vec<Question> {
        match self {
            Task::Counting => counting::questions(difficulty),
            Task::Geometry => geometry::questions(difficulty),
        }
    }

    /// The question of one kind ([`Question::kind`]); geometry has `marked_angle` beside those of the difficulties.
    ///
    /// # Errors
    /// `Usage` with the known kinds.
    pub fn question(self, kind: &str, difficulty: Difficulty) -> Result<Question> {
        let questions = self.questions(difficulty);
        let found = match self {
            Task::Counting => questions.iter().find(|question| question.kind == kind).cloned(),
            Task::Geometry => geometry::question(kind, difficulty),
        };
        found.ok_or_else(|| {
            let mut kinds: Vec<&str> = questions.iter().map(|question| question.kind).collect();
            kinds.dedup();
            Error::Usage(format!(
                "{self} at {difficulty} has no question {kind:?} (known: {})",
                kinds.join(", ")
            ))
        })
    }

    /// The smallest side, in pixels, at which this task's images are legible.
    pub fn smallest_side_px(self, difficulty: Difficulty) -> u32 {
        match (self, difficulty) {
            (Task::Counting, Difficulty::Easy) => 28,
            (Task::Counting, Difficulty::Medium) => 56,
            (Task::Counting, Difficulty::Hard) => 84,
            (Task::Geometry, Difficulty::Easy | Difficulty::Medium) => 84,
            (Task::Geometry, Difficulty::Hard) => 112,
        }
    }
}

/// How hard a task is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Difficulty {
    /// Counting: 1 to 5 separate items on a light background, one question. Geometry: an angle
    /// of a triangle, the area or perimeter of a rectangle, upright and to scale.
    #[default]
    Easy,
    /// Counting: items of one colour or shape among others. Geometry: right and isosceles
    /// triangles, heights, quadrilaterals.
    Medium,
    /// Counting: textures, partial occlusion, two sizes, pairs of colours. Geometry: turned
    /// figures with more lengths than needed, composite areas.
    Hard,
}

impl Difficulty {
    /// Every difficulty, easiest first.
    pub const ALL: [Difficulty; 3] = [Difficulty::Easy, Difficulty::Medium, Difficulty::Hard];

    /// The name used in options.
    pub fn name(self) -> &'static str {
        match self {
            Difficulty::Easy => "easy",
            Difficulty::Medium => "medium",
            Difficulty::Hard => "hard",
        }
    }
}

macro_rules! named {
    ($type:ty, $what:literal) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $type {
            type Err = Error;

            /// `Usage` with the nearest name when `name` is unknown.
            fn from_str(name: &str) -> Result<Self> {
                let wanted = name.to_lowercase();
                if let Some(found) = Self::ALL.into_iter().find(|x| x.name() == wanted) {
                    return Ok(found);
                }
                let names = Self::ALL.map(Self::name);
                let hint = nearest(name, names).map_or(String::new(), |n| format!("; did you mean `{n}`?"));
                let known = names.join(", ");
                Err(Error::Usage(format!(
                    concat!("unknown ", $what, " `{}`{} (known: {})"),
                    name, hint, known
                )))
            }
        }
    };
}

named!(Task, "task");
named!(Difficulty, "difficulty");

/// A part of a task's images; no image can be in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// What is trained on.
    Train,
    /// What is held out.
    Test,
}

impl Split {
    /// Both splits.
    pub const ALL: [Split; 2] = [Split::Train, Split::Test];

    /// The name used in file names.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Test => "test",
        }
    }

    /// The split to which an image with this hash (see [`image_hash`]) may belong.
    pub fn of_image(hash: u64) -> Split {
        if hash & 1 == 0 { Split::Train } else { Split::Test }
    }
}

/// What to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskOptions {
    /// How hard.
    pub difficulty: Difficulty,
    /// The seed of every random choice.
    pub seed: u64,
    /// Rows of the training split.
    pub train: usize,
    /// Rows of the test split.
    pub test: usize,
    /// Width and height of every image, in pixels.
    pub image_size: u32,
    /// The one kind of question to ask ([`Task::question`]); none for all of the difficulty's.
    pub question_type: Option<&'static str>,
}

impl Default for TaskOptions {
    /// Easy, seed 0, 2,000 training and 500 test images of 224 x 224.
    fn default() -> Self {
        TaskOptions {
            difficulty: Difficulty::Easy,
            seed: 0,
            train: 2_000,
            test: 500,
            image_size: 224,
            question_type: None,
        }
    }
}

/// A question and the answers that it is asked for, all equally often.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// What is being asked, as one word per kind: a metadata column.
    pub kind: &'static str,
    /// The words of the question.
    pub text: String,
    /// Every possible answer.
    pub answers: Vec<u32>,
    /// What stands behind the answer in the solution: nothing, or `°`.
    pub unit: &'static str,
}

/// One drawn row.
#[derive(Clone, Debug)]
pub struct Example {
    /// The picture.
    pub image: RgbImage,
    /// The question as the `problem` column holds it.
    pub question: String,
    /// The answer with its unit, as inside the tags of the `solution` column.
    pub answer: String,
    /// A short worked answer for SFT, with its tags, as the `thinking` column holds it.
    pub thinking: String,
    /// [`Question::kind`].
    pub kind: &'static str,
}

impl Example {
    /// The `solution` column: `<answer> 3 </answer>`, as in R1-V's datasets.
    pub fn solution(&self) -> String {
        format!("<answer> {} </answer>", self.answer)
    }

    /// The columns beside `image`, `problem` and `solution`.
    fn columns(&self, task: Task, difficulty: Difficulty) -> Map<String, Value> {
        let columns = json!({
            "thinking": self.thinking,
            "task": task.name(),
            "difficulty": difficulty.name(),
            "question_type": self.kind,
        });
        columns.as_object().cloned().unwrap_or_default()
    }
}

/// A hash of an image's size and pixels, equal on every machine (FNV-1a, finished by the
/// 64-bit mix of MurmurHash3 so that each of its bits depends on every pixel).
pub fn image_hash(image: &RgbImage) -> u64 {
    let size = [image.width().to_le_bytes(), image.height().to_le_bytes()].concat();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in size.iter().chain(image.as_raw()) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// The images of `split` in memory, as samples that equal what [`crate::data::read`] makes of
/// [`write()`]'s folder, but for holding their PNG bytes.
///
/// # Errors
/// As [`write()`], but for those of writing.
pub fn samples(
    task: Task,
    options: &TaskOptions,
    split: Split,
    template: PromptTemplate,
) -> Result<Vec<Sample>> {
    let drawn = draw_split(task, options, split, |row, example| {
        let image = ImageSource::Bytes(encode_png(&example.image)?.into());
        let solution = Some(example.solution());
        let mut sample = Sample::from_problem(row, vec![image], &example.question, template, solution);
        sample.columns.extend(example.columns(task, options.difficulty));
        Ok(sample)
    })?;
    Ok(drawn.rows)
}

/// A split's rows, each reduced by the caller, with the hashes of their images.
struct Drawn<T> {
    rows: Vec<T>,
    hashes: HashSet<u64>,
}

/// Draws `split` row by row in parallel and passes each row, with its number, to `keep`.
///
/// `keep` is called again for a row whose image repeated an earlier one, with its replacement.
fn draw_split<T: Send>(
    task: Task,
    options: &TaskOptions,
    split: Split,
    keep: impl Fn(usize, &Example) -> Result<T> + Sync,
) -> Result<Drawn<T>> {
    let smallest = task.smallest_side_px(options.difficulty);
    if !(smallest..=2048).contains(&options.image_size) {
        return Err(Error::Usage(format!(
            "image_size {} does not suit the task {task} at difficulty {}: use {smallest} to 2048 pixels",
            options.image_size, options.difficulty
        )));
    }
    let questions = match options.question_type {
        Some(kind) => vec![task.question(kind, options.difficulty)?],
        None => task.questions(options.difficulty),
    };
    let rows = match split {
        Split::Train => options.train,
        Split::Test => options.test,
    };
    let counts: Vec<usize> = questions.iter().map(|q| q.answers.len()).collect();
    let cells = plan(&counts, rows, options.seed, split);
    let one = |row: usize, attempt: u32| -> Result<(u64, T)> {
        let (hash, example) = draw_row(task, options, split, &questions, cells[row], row, attempt)?;
        Ok((hash, keep(row, &example)?))
    };
    let mut drawn: Vec<(u64, T)> =
        (0..rows).into_par_iter().map(|row| one(row, 0)).collect::<Result<Vec<_>>>()?;

    let mut hashes = HashSet::with_capacity(rows);
    for (row, entry) in drawn.iter_mut().enumerate() {
        let mut attempt = 0;
        while !hashes.insert(entry.0) {
            attempt += 1;
            if attempt > 1_000 {
                return Err(Error::Input(format!(
                    "cannot draw {rows} different images of {} pixels for {task}: ask for fewer or larger ones",
                    options.image_size
                )));
            }
            *entry = one(row, attempt)?;
        }
    }
    Ok(Drawn { rows: drawn.into_iter().map(|(_, kept)| kept).collect(), hashes })
}

/// Draws until the image falls into `split`; the second drawing of two does, on average.
fn draw_row(
    task: Task,
    options: &TaskOptions,
    split: Split,
    questions: &[Question],
    cell: Cell,
    row: usize,
    attempt: u32,
) -> Result<(u64, Example)> {
    let question = &questions[cell.question];
    let answer = question.answers[cell.answer];
    // The stream's number: split, attempt and row, each in bits of its own.
    let id = ((split as u64) << 63) | (u64::from(attempt) << 40) | row as u64;
    let mut stream = Stream::new(options.seed, Purpose::Task, id);
    // 1,000 drawings miss a split with probability 2^-1000, if they differ at all.
    for _ in 0..1_000 {
        let example = match task {
            Task::Counting => counting::draw(question, answer, options, &mut stream),
            Task::Geometry => geometry::draw(question, answer, options, &mut stream)?,
        };
        let hash = image_hash(&example.image);
        if Split::of_image(hash) == split {
            return Ok((hash, example));
        }
    }
    Err(Error::Internal(format!("no {split:?} image for {task} row {row} in 1,000 drawings")))
}

/// The PNG file of `image`.
fn encode_png(image: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Sub)
        .write_image(image.as_raw(), image.width(), image.height(), image::ExtendedColorType::Rgb8)
        .map_err(|e| Error::Internal(format!("encoding a PNG in memory failed: {e}")))?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests;
