//! Finding and reading a dataset.

use std::fs;
use std::path::{Path, PathBuf};

use super::image_path::ImageRoots;
use super::row::RowReader;
use super::{MAX_LINE_BYTES, PromptTemplate, Sample, read_objects};
use crate::error::{Error, Result};

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
pub fn read(path: &Path, options: &ReadOptions) -> Result<Vec<Sample>> {
    let file = locate(path, &options.split)?;
    let roots =
        ImageRoots::new(&file, options.image_dir.as_deref())?.with_any_absolute(options.any_absolute_image);
    let reader = RowReader { roots, template: options.template, need_solution: options.need_solution };
    let mut samples = Vec::new();
    read_objects(&file, options.max_line_bytes, |line, object| {
        let sample = reader
            .sample(samples.len(), object)
            .map_err(|reason| Error::content(&file, format!("line {line}: {reason}")))?;
        samples.push(sample);
        Ok(())
    })?;
    if samples.is_empty() {
        return Err(Error::content(&file, "has no rows; a dataset needs at least one JSON object"));
    }
    Ok(samples)
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
    candidates.into_iter().find(|c| c.is_file()).ok_or_else(|| {
        let mut found: Vec<String> = fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.ends_with(".jsonl"))
            .collect();
        found.sort_unstable();
        let found = if found.is_empty() { "none".to_string() } else { found.join(", ") };
        Error::missing(path, format!("has no {split}.jsonl (JSONL files found: {found})"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(split: &str) -> ReadOptions {
        ReadOptions { split: split.into(), ..ReadOptions::default() }
    }

    #[test]
    fn folders_hold_one_file_per_split() {
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
        assert_eq!(train.len(), 2);
        assert_eq!(train[1].row, 1);
        let test = read(&dir.path().join("test.jsonl"), &options("train")).unwrap();
        assert_eq!(test.len(), 2);

        let missing = read(dir.path(), &options("dev")).unwrap_err();
        assert_eq!(missing.exit_code(), 66);
        assert!(missing.to_string().contains("data.jsonl, test.jsonl, train.jsonl"), "{missing}");
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
    fn nothing_to_read() {
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
