//! Which file of a folder holds a split.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

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
