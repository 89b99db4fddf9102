//! Finding and reading a dataset.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::image_path::ImageRoots;
use super::row::RowReader;
use super::{MAX_LINE_BYTES, Origin, PromptTemplate, Sample, objects};
use crate::error::{Error, Result};

/// Rows in a fixed order, each read when it is asked for. Clones share everything.
#[derive(Clone)]
pub struct Dataset(Arc<dyn Rows>);

/// Where rows come from.
trait Rows: Send + Sync {
    fn rows(&self) -> usize;
    fn sample(&self, row: usize) -> Result<Sample>;
}

impl Dataset {
    /// Rows that are in memory.
    pub fn from_samples(samples: Vec<Sample>) -> Dataset {
        Dataset(Arc::new(samples))
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.0.rows()
    }

    /// Row number `row`, from 0, read now.
    ///
    /// # Errors
    /// Those of reading it, with its place; [`Error::Internal`] for a number that is too large.
    pub fn sample(&self, row: usize) -> Result<Sample> {
        self.0.sample(row)
    }

    /// All rows in order.
    pub fn iter(&self) -> impl Iterator<Item = Result<Sample>> {
        (0..self.rows()).map(|row| self.sample(row))
    }

    /// The rows of some numbers alone, in the order of `rows`.
    pub fn view(&self, rows: Vec<u32>) -> Dataset {
        Dataset(Arc::new(View { of: self.clone(), rows }))
    }

    /// The same rows, each changed by `change` when it is read.
    pub fn map(&self, change: impl Fn(Sample) -> Result<Sample> + Send + Sync + 'static) -> Dataset {
        Dataset(Arc::new(Changed { of: self.clone(), change }))
    }

    /// The rows as prompts: an assistant's closing message, the answer for SFT, is left out.
    pub fn prompts(&self) -> Dataset {
        self.map(|sample| Ok(if sample.ends_with_assistant() { sample.prompt() } else { sample }))
    }

    /// The rows as SFT needs them (see [`Sample::supervised`]).
    pub fn supervised(&self) -> Dataset {
        self.map(|sample| sample.supervised())
    }

    /// The solutions of all rows that have one.
    ///
    /// # Errors
    /// Those of reading the rows.
    pub fn answers(&self) -> Result<Vec<String>> {
        self.iter().filter_map(|sample| sample.map(|sample| sample.solution).transpose()).collect()
    }

    /// Does `work` for every row, on all threads, and hands what it gives to `then` in the order of the rows. Of the rows
    /// themselves no more are in memory than there are threads.
    ///
    /// # Errors
    /// The first that `then` gives.
    pub fn each<T: Send>(
        &self,
        work: impl Fn(usize, Result<Sample>) -> T + Sync,
        mut then: impl FnMut(usize, T) -> Result<()>,
    ) -> Result<()> {
        let rows = self.rows();
        for first in (0..rows).step_by(AT_ONCE) {
            let chunk = first..(first + AT_ONCE).min(rows);
            let done: Vec<T> = chunk.clone().into_par_iter().map(|row| work(row, self.sample(row))).collect();
            chunk.zip(done).try_for_each(|(row, done)| then(row, done))?;
        }
        Ok(())
    }
}

/// Rows that [`Dataset::each`] works on before it hands over what came out.
const AT_ONCE: usize = 256;

/// What is said of a row that is not there.
fn no_such_row(row: usize, rows: usize) -> Error {
    Error::Internal(format!("row {row} of a dataset of {rows} rows"))
}

impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dataset({} rows)", self.rows())
    }
}

impl Rows for Vec<Sample> {
    fn rows(&self) -> usize {
        self.len()
    }

    fn sample(&self, row: usize) -> Result<Sample> {
        self.get(row).cloned().ok_or_else(|| no_such_row(row, self.len()))
    }
}

struct View {
    of: Dataset,
    rows: Vec<u32>,
}

impl Rows for View {
    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn sample(&self, row: usize) -> Result<Sample> {
        let row = *self.rows.get(row).ok_or_else(|| no_such_row(row, self.rows.len()))?;
        self.of.sample(row as usize)
    }
}

struct Changed<F> {
    of: Dataset,
    change: F,
}

impl<F: Fn(Sample) -> Result<Sample> + Send + Sync> Rows for Changed<F> {
    fn rows(&self) -> usize {
        self.of.rows()
    }

    fn sample(&self, row: usize) -> Result<Sample> {
        (self.change)(self.of.sample(row)?)
    }
}

/// How a dataset is read.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// Which file of a folder: `train`, `test`, ... Ignored when the path is a file.
    pub split: String,
    /// The words around the `problem` column; `messages` and `prompt` are taken as they are.
    pub template: PromptTemplate,
    /// A second folder, beside the JSONL's own, under which images may lie.
    pub image_dir: Option<PathBuf>,
    /// Whether absolute image paths may lie anywhere, not only under those two folders: for files that the user's own
    /// run wrote, never for a dataset from elsewhere.
    pub any_absolute_image: bool,
    /// Whether a row without `solution` is an error (rewards and `eval` need it).
    pub need_solution: bool,
    /// Whether a row without a target for SFT (an assistant's closing message, or a solution) is an error.
    pub need_target: bool,
    /// Only so many rows from the first on are read.
    pub max_samples: Option<usize>,
    /// Longest line in bytes.
    pub max_line_bytes: usize,
}

impl Default for ReadOptions {
    /// Split `train`, template `r1v`, images beside the JSONL, solutions optional.
    fn default() -> Self {
        ReadOptions {
            split: "train".into(),
            template: PromptTemplate::default(),
            image_dir: None,
            any_absolute_image: false,
            need_solution: false,
            need_target: false,
            max_samples: None,
            max_line_bytes: MAX_LINE_BYTES,
        }
    }
}

/// Reads every row of the dataset at `path`, a JSONL file or a folder (see [`locate`]).
///
/// A row is one of
/// - R1-V's columns: `problem`, `solution`, and `image` (one path) or `images` (a list);
///   `file_name` (a Hugging Face image folder's `metadata.jsonl`) is another name for `image`;
/// - `messages` in Hugging Face's form, content a string with `<image>` marks or a list of
///   `{"type": "text", "text"}` and `{"type": "image"}` parts, the latter with a path of its
///   own (`image`, `path`) or taking the next of the row's `images`;
/// - `prompt` (a string, or messages) with, for SFT, `completion`, as in TRL.
///
/// If several are there, `messages` goes before `prompt` before `problem`. `<image>` marks
/// and images have to be equal in number; without any mark, images go first in a `problem` or
/// `prompt`. Image paths are relative to the JSONL's folder, then to `image_dir`; whatever
/// lies elsewhere in the end is refused. Images are checked to exist, not decoded.
///
/// # Errors
/// `Missing` if there is no such dataset or image folder; `Content` naming file and line for a
/// bad row, or the file if it has no rows; `Io` for a failed read.
pub fn read(path: &Path, options: &ReadOptions) -> Result<Dataset> {
    read_usable(path, options, Err)
}

/// As [`read`], but a bad row's error goes to `bad`, which ends the reading with an error or lets it go on without the
/// row. `Sample::row` and `max_samples` count bad rows too.
///
/// # Errors
/// As [`read`], and those of `bad`; `Content` if no row can be used.
pub fn read_usable(
    path: &Path,
    options: &ReadOptions,
    mut bad: impl FnMut(Error) -> Result<()>,
) -> Result<Dataset> {
    let file: Arc<Path> = locate(path, &options.split)?.into();
    let roots =
        ImageRoots::new(&file, options.image_dir.as_deref())?.with_any_absolute(options.any_absolute_image);
    let reader = RowReader {
        roots,
        template: options.template,
        need_solution: options.need_solution,
        need_target: options.need_target,
    };
    let (mut samples, mut rows) = (Vec::new(), 0);
    let most = options.max_samples.unwrap_or(usize::MAX);
    for (row, object) in objects(&file, options.max_line_bytes)?.take(most).enumerate() {
        rows = row + 1;
        let sample = object.and_then(|(line, object)| {
            let sample = reader.sample(row, object);
            let sample = sample.map_err(|reason| Error::content(&file, format!("line {line}: {reason}")))?;
            Ok(Sample { origin: Some(Origin { file: file.clone(), line }), ..sample })
        });
        match sample {
            Ok(sample) => samples.push(sample),
            Err(error @ Error::Content { .. }) => bad(error)?,
            Err(error) => return Err(error),
        }
    }
    match (samples.len(), rows) {
        (0, 0) => Err(Error::content(&file, "has no rows; a dataset needs at least one JSON object")),
        (0, rows) => Err(Error::content(&file, format!("has {rows} rows, and none can be used"))),
        _ => Ok(Dataset::from_samples(samples)),
    }
}

/// The JSONL file that holds `split` of the dataset at `path`.
///
/// A file is taken as it is. In a folder it is `SPLIT.jsonl`, or `SPLIT/metadata.jsonl`; for
/// `train` also `data.jsonl`, or `metadata.jsonl`.
///
/// # Errors
/// `Missing` when nothing is there, with the JSONL files that are; `Usage` for a split name
/// that is not a plain name; `Content` for a file format that is not read.
pub fn locate(path: &Path, split: &str) -> Result<PathBuf> {
    let meta = fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::missing(
            path,
            "no such dataset; give a .jsonl file or a folder with train.jsonl (`tasks make` writes one)",
        ),
        _ => Error::io(path, "read the dataset", e),
    })?;
    if !meta.is_dir() {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_lowercase();
        if ["parquet", "arrow", "csv", "tsv", "zip", "gz", "tar"].contains(&extension.as_str()) {
            let message = format!("a .{extension} file is not read; export it as JSONL (`Dataset.to_json`)");
            return Err(Error::content(path, message));
        }
        return Ok(path.to_path_buf());
    }
    if split.is_empty() || !split.chars().all(|c| c.is_alphanumeric() || "_-".contains(c)) {
        return Err(Error::Usage(format!("`{split}` is not a split name; use a name like train or test")));
    }
    let mut candidates = vec![path.join(format!("{split}.jsonl")), path.join(split).join("metadata.jsonl")];
    if split == "train" {
        candidates.extend([path.join("data.jsonl"), path.join("metadata.jsonl")]);
    }
    candidates
        .into_iter()
        .find(|c| c.is_file())
        .ok_or_else(|| Error::missing(path, format!("has no {split}.jsonl; {}", found_in(path))))
}

/// Most files that an error lists.
const LISTED: usize = 20;

/// What a dataset folder has instead of the split that was asked for, in words.
fn found_in(folder: &Path) -> String {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        match entry.path().join("metadata.jsonl").is_file() {
            true => Some(format!("{name}/metadata.jsonl")),
            false => name.ends_with(".jsonl").then_some(name),
        }
    };
    let mut found: Vec<String> = entries.filter_map(name).collect();
    found.sort_unstable();
    let more = match found.len() {
        0 => return "no JSONL file is there either".to_owned(),
        count if count > LISTED => format!(" and {} more", count - LISTED),
        _ => String::new(),
    };
    found.truncate(LISTED);
    format!(
        "JSONL files found: {}{more} (--dataset_split names the split, or give one file)",
        found.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(split: &str) -> ReadOptions {
        ReadOptions { split: split.into(), ..ReadOptions::default() }
    }

    #[test]
    fn case_27_folders_hold_one_file_per_split() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, question: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{{\"problem\":\"{question}\"}}\n\n{{\"problem\":\"b\"}}\n")).unwrap();
        };
        write("data.jsonl", "data");
        assert_eq!(locate(dir.path(), "train").unwrap(), dir.path().join("data.jsonl"));
        write("train/metadata.jsonl", "meta");
        assert_eq!(locate(dir.path(), "train").unwrap(), dir.path().join("train/metadata.jsonl"));
        write("train.jsonl", "train");
        write("test.jsonl", "test");
        let train = read(dir.path(), &options("train")).unwrap();
        assert_eq!(train.rows(), 2);
        assert_eq!(train.sample(1).unwrap().row, 1);
        let test = read(&dir.path().join("test.jsonl"), &options("train")).unwrap();
        assert_eq!(test.rows(), 2);

        let missing = read(dir.path(), &options("dev")).unwrap_err();
        assert_eq!(missing.exit_code(), 66);
        let found =
            "JSONL files found: data.jsonl, test.jsonl, train.jsonl, train/metadata.jsonl (--dataset_split";
        assert!(missing.to_string().contains(found), "{missing}");
        assert_eq!(read(dir.path(), &options("../x")).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn bad_rows_name_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train.jsonl");
        fs::write(&path, "{\"problem\":\"a\"}\n\n{\"problem\":\"b\",\"image\":\"/etc/hostname\"}\n").unwrap();
        let error = read(&path, &ReadOptions::default()).unwrap_err();
        assert_eq!(error.exit_code(), 65);
        let message = error.to_string();
        assert!(message.contains("train.jsonl: line 3: image `/etc/hostname`"), "{message}");
    }

    #[test]
    fn case_33_bad_rows_are_left_out_and_keep_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train.jsonl");
        fs::write(
            &path,
            "oops\n{\"problem\":\"a\"}\n\n{\"problem\":3}\n{\"problem\":\"b\"}\n{\"problem\":\"c\"}\n",
        )
        .unwrap();
        let mut bad = Vec::new();
        let keep = |error: Error, bad: &mut Vec<String>| {
            bad.push(error.to_string());
            Ok(())
        };
        let options = ReadOptions { max_samples: Some(4), ..ReadOptions::default() };
        let samples = read_usable(&path, &options, |error| keep(error, &mut bad)).unwrap();
        let place = |s: &Sample| (s.row, s.origin.as_ref().unwrap().line);
        assert_eq!(samples.iter().map(|s| place(&s.unwrap())).collect::<Vec<_>>(), [(1, 2), (3, 5)]);
        assert!(
            bad.len() == 2 && bad[0].contains("line 1, column 1") && bad[1].contains("line 4: `problem`")
        );
        let first = ReadOptions { max_samples: Some(1), ..ReadOptions::default() };
        let none = read_usable(&path, &first, |error| keep(error, &mut bad)).unwrap_err();
        assert!(none.to_string().contains("1 rows, and none can be used"), "{none}");
    }

    #[test]
    fn supervised_rows_need_a_target() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train.jsonl");
        let rows = r#"{"problem":"a","solution":"1"}
{"prompt":"a","completion":"b"}
{"problem":"a"}"#;
        fs::write(&path, rows).unwrap();
        let options = ReadOptions { need_target: true, ..ReadOptions::default() };
        let message = read(&path, &options).unwrap_err().to_string();
        assert!(message.contains("line 3: supervised training needs a target"), "{message}");
        assert_eq!(read(&path, &ReadOptions { max_samples: Some(2), ..options }).unwrap().rows(), 2);
    }

    #[test]
    fn case_27_nothing_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let gone = read(&dir.path().join("gone.jsonl"), &ReadOptions::default()).unwrap_err();
        assert_eq!(gone.exit_code(), 66);
        let empty = dir.path().join("empty.jsonl");
        fs::write(&empty, "\n").unwrap();
        let error = read(&empty, &ReadOptions::default()).unwrap_err();
        assert!(error.exit_code() == 65 && error.to_string().contains("no rows"), "{error}");
        let parquet = dir.path().join("a.parquet");
        fs::write(&parquet, "PAR1").unwrap();
        assert!(
            read(&parquet, &ReadOptions::default()).unwrap_err().to_string().contains("export it as JSONL")
        );
    }
}
