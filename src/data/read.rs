//! Opening and reading datasets.

use std::path::{Path, PathBuf};

use super::dataset::{Dataset, Rows};
use super::image_path::ImageRoots;
use super::row::RowReader;
use super::{MAX_LINE_BYTES, PromptTemplate, Sample, Table, TableOptions, open_table};
use crate::error::{Error, Result};
use crate::hub;

/// How a dataset is read.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// Which split of a folder, where the source itself does not say (`FOLDER@SPLIT`): `train`, `test`, ... Ignored when
    /// the path is a file.
    pub split: String,
    /// The words around the `problem` column; `messages` and `prompt` are taken as they are.
    pub template: PromptTemplate,
    /// A second folder, beside the table's own, under which images may lie.
    pub image_dir: Option<PathBuf>,
    /// Whether absolute image paths may lie anywhere, not only under those two folders: for files that the user's own
    /// run wrote, never for a dataset from elsewhere.
    pub any_absolute_image: bool,
    /// Whether a row without `solution` is an error (rewards and `eval` need it).
    pub need_solution: bool,
    /// Whether a row without a target for SFT (an assistant's closing message, or a solution) is an error.
    pub need_target: bool,
    /// Only so many rows from the first on are read, of each source.
    pub max_samples: Option<usize>,
    /// Longest line in bytes.
    pub max_line_bytes: usize,
}

impl Default for ReadOptions {
    /// Split `train`, template `r1v`, images beside the table, solutions optional.
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

/// A source as a user names it: `PATH`, `PATH@SPLIT`, or with `ORG/NAME` for a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The file or folder.
    pub path: PathBuf,
    /// The split that was named with it, or the one to be taken otherwise.
    pub split: String,
    /// The folder that links of a cached repository lead into.
    linked: Option<PathBuf>,
}

impl Named {
    /// Finds what `source` means. What exists under the whole name is taken as it is.
    ///
    /// # Errors
    /// `Missing` for a name of the form `ORG/NAME` that is neither a path nor in the local Hugging Face cache.
    pub fn find(source: &Path, split: &str) -> Result<Named> {
        let named = source.to_str().and_then(|text| text.rsplit_once('@'));
        let (path, split) = match named {
            Some((path, named)) if !source.exists() && !path.is_empty() => (Path::new(path), named),
            _ => (source, split),
        };
        let found = |path: PathBuf, linked| Named { path, split: split.to_owned(), linked };
        if path.exists() {
            return Ok(found(path.to_path_buf(), None));
        }
        let cached = hub::cached_dataset(path.to_str().unwrap_or_default())?;
        Ok(match cached {
            Some((snapshot, repository)) => found(snapshot, Some(repository)),
            None => found(path.to_path_buf(), None),
        })
    }

    /// Opens the table that it is.
    ///
    /// # Errors
    /// Those of [`open_table`].
    pub fn table(&self, options: &ReadOptions) -> Result<Box<dyn Table>> {
        open_table(&self.path, &self.split, &TableOptions { max_line_bytes: options.max_line_bytes })
    }
}

/// Opens the datasets that `sources` name, one behind the other; see [`Named`]. No row is read.
///
/// A row is one of
/// - R1-V's and EasyR1's columns: `problem`, and `image` or `images`; `file_name` (an image folder's metadata) is another
///   name for `image`;
/// - `prompt` (a string, or messages) with, for SFT, `completion`, as in TRL and verl;
/// - `messages` in Hugging Face's or OpenAI's form;
/// - `conversations` of `from` and `value`, as in VLM-R1; a single question is a `problem`, and its reply the solution.
///
/// If several are there, `messages` goes before `prompt`, `problem`, `conversations`. The reference answer is `solution`,
/// else `answer`, `ground_truth` or verl's `reward_model.ground_truth`. An image is a path, a Hugging Face struct of
/// `bytes` and `path`, bytes, or a `data:` URI. `<image>` marks and images have to be equal in number; without any mark,
/// images go first, except in `messages`.
/// Image paths are relative to the table's folder, then to `image_dir`; whatever lies elsewhere in the end is refused.
/// Images are checked to exist, not decoded.
///
/// # Errors
/// `Missing` if there is no such dataset or image folder; `Content` for one that is no table or has no rows; `Io` for a
/// failed read.
pub fn open(sources: &[impl AsRef<Path>], options: &ReadOptions) -> Result<Dataset> {
    let one = |source: &Path| {
        let named = Named::find(source, &options.split)?;
        let rows = TableRows::open(&named, options)?;
        if rows.rows() == 0 {
            return Err(Error::content(rows.file(source), "has no rows; a dataset needs at least one"));
        }
        if u32::try_from(rows.rows()).is_err() {
            return Err(Error::content(rows.file(source), "has more rows than can be numbered"));
        }
        Ok(Dataset::of(&source.to_string_lossy(), rows))
    };
    Ok(Dataset::concat(sources.iter().map(|source| one(source.as_ref())).collect::<Result<_>>()?))
}

/// As [`open`] with one source; then every row is read once, so that what is wrong is found now.
///
/// # Errors
/// As [`open`]; that of the first bad row, naming its place.
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
    bad: impl FnMut(Error) -> Result<()>,
) -> Result<Dataset> {
    let all = open(&[path], options)?;
    let usable = all.usable(|_| Ok(()), |_| (), bad)?;
    match usable.rows() {
        0 => Err(Error::content(path, format!("has {} rows, and none can be used", all.rows()))),
        _ => Ok(usable),
    }
}

/// The rows of a table as samples.
struct TableRows {
    table: Box<dyn Table>,
    /// One for each folder that holds files of the table: images lie relative to it.
    readers: Vec<(PathBuf, RowReader)>,
    rows: usize,
}

impl TableRows {
    fn open(named: &Named, options: &ReadOptions) -> Result<TableRows> {
        let table = named.table(options)?;
        let mut readers: Vec<(PathBuf, RowReader)> = Vec::new();
        for file in table.files() {
            let folder = file.parent().unwrap_or(Path::new(""));
            if readers.iter().any(|(known, _)| known == folder) {
                continue;
            }
            let roots = ImageRoots::new(&file, options.image_dir.as_deref())?
                .with_linked(named.linked.as_deref())
                .with_any_absolute(options.any_absolute_image);
            let reader = RowReader {
                roots,
                template: options.template,
                need_solution: options.need_solution,
                need_target: options.need_target,
            };
            readers.push((folder.to_path_buf(), reader));
        }
        let rows = table.rows().min(options.max_samples.unwrap_or(usize::MAX));
        Ok(TableRows { table, readers, rows })
    }

    /// The table's file if it is one, else what the user named.
    fn file(&self, source: &Path) -> PathBuf {
        match self.table.files().as_slice() {
            [file] => file.to_path_buf(),
            _ => source.to_path_buf(),
        }
    }
}

impl Rows for TableRows {
    fn rows(&self) -> usize {
        self.rows
    }

    fn sample(&self, row: usize) -> Result<Sample> {
        let cells = self.table.read(row)?;
        let origin = self.table.origin(row);
        let folder = origin.file.parent().unwrap_or(Path::new(""));
        let reader = self.readers.iter().find(|(known, _)| known == folder);
        let Some((_, reader)) = reader else {
            return Err(Error::Internal(format!("{} is no file of its table", origin.file.display())));
        };
        let sample = reader.sample(row, cells).map_err(|reason| origin.error(reason))?;
        Ok(Sample { origin: Some(origin), ..sample })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data;
    use std::fs;

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
        write("train.jsonl", "train");
        write("test.jsonl", "test");
        let train = read(dir.path(), &options("train")).unwrap();
        assert_eq!(train.rows(), 2);
        assert_eq!(train.sample(1).unwrap().row, 1);
        let test = read(&dir.path().join("test.jsonl"), &options("train")).unwrap();
        assert_eq!(test.rows(), 2);

        let missing = read(dir.path(), &options("dev")).unwrap_err();
        assert_eq!(missing.exit_code(), 66);
        let found = "splits found: train (train.jsonl), test (test.jsonl) (PATH@SPLIT";
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
        let place = |s: Sample| (s.row, s.origin.unwrap().place);
        let places: Vec<_> = samples.iter().map(|s| place(s.unwrap())).collect();
        assert_eq!(places, [(1, data::Place::Line(2)), (3, data::Place::Line(5))]);
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
        let message = read(&parquet, &ReadOptions::default()).unwrap_err().to_string();
        assert!(message.contains("not a readable parquet file"), "{message}");
    }
}
