//! Which files of a folder make up which split, as Hugging Face's `datasets` finds them.

use std::fs;
use std::path::{Path, PathBuf};

use super::card::configured;
use super::read::Named;
use crate::error::{Error, Result};
use crate::files::{file_inside, read_json_object};

/// The splits of a folder in order, each with its files, sorted, relative to the folder.
pub(super) type Splits = Vec<(String, Vec<String>)>;

/// The words that name a split in the names of files and folders.
const KEYWORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// The formats that are read, the preferred one first.
const READ: [&[&str]; 3] = [&["parquet"], &["arrow"], &["jsonl", "ndjson", "json"]];
/// Formats that `datasets` reads and we do not.
const UNREAD: [&str; 11] = ["csv", "tsv", "txt", "zip", "gz", "tar", "xml", "lance", "h5", "hdf5", "zst"];
/// What lies in a dataset's folder and is none of its data.
const NO_DATA: [&str; 5] =
    ["config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];

/// Deepest folder that is looked into, and most entries.
const MAX_DEPTH: usize = 10;
const MAX_ENTRIES: usize = 4_000_000;
/// Most names that an error lists.
const LISTED: usize = 20;

/// The extension of a file name in small letters, if it has one.
pub(super) fn extension(path: &Path) -> String {
    path.extension().and_then(|e| e.to_str()).unwrap_or("").to_lowercase()
}

/// The files that hold the rows of `split` at `path`, in the order of the rows.
///
/// A file stands for itself. In a folder the first of these counts:
/// 1. what `save_to_disk` wrote (`dataset_dict.json` or `state.json`);
/// 2. the `data_files` of the default config in the YAML of `README.md`;
/// 3. `data/SPLIT-00000-of-00001*.EXT`;
/// 4. a word for the split in the name of a folder, 5. in the name of a file, between `-._ 0-9`: train or training;
///    validation, valid, dev or val; test, testing, eval or evaluation;
/// 6. everything is `train`.
///
/// Where these do not name `split`, a file `SPLIT.EXT`, or all in a folder `SPLIT`, does. Names that begin with `.` or `__`
/// are passed over; where a split has files of several formats, the most frequent one is read, then parquet before Arrow
/// before JSONL.
///
/// # Errors
/// As [`super::open_table`].
pub(super) fn find_files(path: &Path, split: &str) -> Result<Vec<PathBuf>> {
    let meta = fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::missing(
            path,
            "no such dataset; give a .jsonl, .parquet or .arrow file or a folder with them (`tasks make` writes one)",
        ),
        _ => Error::io(path, "read the dataset", e),
    })?;
    if !meta.is_dir() {
        return match UNREAD.contains(&extension(path).as_str()) {
            true => Err(unread(path, &extension(path))),
            false => Ok(vec![path.to_path_buf()]),
        };
    }
    if split.is_empty() || !split.chars().all(|c| c.is_alphanumeric() || "_-".contains(c)) {
        return Err(Error::Usage(format!("`{split}` is not a split name; use a name like train or test")));
    }
    if path.join("dataset_dict.json").is_file() {
        return saved_split(path, split);
    }
    if path.join("state.json").is_file() {
        return saved(path, split);
    }

    let files = list(path)?;
    let found = match configured(path, &files)? {
        Some(splits) => splits,
        None => splits_of(&files),
    };
    let chosen = chosen(&found, split).or_else(|| named(&files, split));
    let Some(mut names) = chosen else {
        return Err(missing(path, split, &found));
    };
    one_format(&mut names);
    Ok(names.iter().map(|name| path.join(name)).collect())
}

/// The split on which the dataset `source` evaluates where it does not say (`PATH@SPLIT`): `test`, or without one
/// `validation`.
///
/// # Errors
/// Those of [`Named::find`] and of reading the folder.
pub fn held_out_split(source: &Path) -> Result<String> {
    let found = splits(&Named::find(source, "test")?.path)?;
    let has = |words: &[&str]| found.iter().any(|name| words.contains(&name.as_str()));
    let [_, validation, test] = KEYWORDS;
    Ok(if has(validation.1) && !has(test.1) { validation.0 } else { test.0 }.to_owned())
}

/// The names of the splits that the folder `path` has; none for a file.
///
/// # Errors
/// Those of reading the folder.
pub fn splits(path: &Path) -> Result<Vec<String>> {
    if !path.is_dir() {
        return Ok(Vec::new());
    }
    let dict = path.join("dataset_dict.json");
    if dict.is_file() {
        let dict = read_json_object(&dict)?;
        let names = dict.get("splits").and_then(|names| names.as_array());
        let names = names.into_iter().flatten().filter_map(|name| name.as_str());
        return Ok(names.map(str::to_owned).collect());
    }
    let state = path.join("state.json");
    if state.is_file() {
        let own = read_json_object(&state)?;
        return Ok(vec![own.get("_split").and_then(|name| name.as_str()).unwrap_or("train").to_owned()]);
    }
    let files = list(path)?;
    let found = match configured(path, &files)? {
        Some(splits) => splits,
        None => splits_of(&files),
    };
    Ok(found.into_iter().map(|(name, _)| name).collect())
}

fn unread(path: &Path, extension: &str) -> Error {
    Error::content(
        path,
        format!(
            "a .{extension} file is not read; save it as parquet or JSONL (`Dataset.to_parquet`, `to_json`)"
        ),
    )
}

/// The split of that name, or the one that the name is another word for.
fn chosen(found: &Splits, split: &str) -> Option<Vec<String>> {
    let words = KEYWORDS.iter().find(|(_, words)| words.contains(&split)).map_or(&[][..], |(_, words)| words);
    let named = |name: &str| found.iter().find(|(found, _)| found == name).map(|(_, files)| files.clone());
    named(split).or_else(|| words.iter().find_map(|word| named(word)))
}

/// `SPLIT.EXT`, or what lies in a folder of the split's name.
fn named(files: &[String], split: &str) -> Option<Vec<String>> {
    let is_file = |file: &&String| file.rsplit_once('.').is_some_and(|(stem, _)| stem == split);
    let is_inside = |file: &&String| file.strip_prefix(split).is_some_and(|rest| rest.starts_with('/'));
    let of = |chosen: &dyn Fn(&&String) -> bool| {
        let names: Vec<String> = files.iter().filter(chosen).cloned().collect();
        (!names.is_empty()).then_some(names)
    };
    of(&is_file).or_else(|| of(&is_inside))
}

/// Keeps the files of one format.
fn one_format(names: &mut Vec<String>) {
    let format = |name: &String| READ.iter().position(|e| e.contains(&extension(Path::new(name)).as_str()));
    let count = |of: usize| names.iter().filter(|name| format(name) == Some(of)).count();
    // The last of equals is the greatest, hence backwards.
    let best = (0..READ.len()).rev().max_by_key(|of| count(*of));
    names.retain(|name| format(name) == best);
}

/// The data files below `folder` as paths with `/` from there, sorted. Links to folders are not followed.
fn list(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut entries = 0;
    let mut folders = vec![(folder.to_path_buf(), String::new(), 0)];
    while let Some((inner, prefix, depth)) = folders.pop() {
        let listed = fs::read_dir(&inner).map_err(|e| Error::io(&inner, "list the folder", e))?;
        for entry in listed {
            let entry = entry.map_err(|e| Error::io(&inner, "list the folder", e))?;
            entries += 1;
            if entries > MAX_ENTRIES {
                return Err(Error::content(
                    folder,
                    format!("has more than {MAX_ENTRIES} files; name one of them"),
                ));
            }
            let Ok(name) = entry.file_name().into_string() else { continue };
            let kind = entry.file_type().map_err(|e| Error::io(entry.path(), "read", e))?;
            if name.starts_with('.') {
            } else if kind.is_dir() {
                if depth < MAX_DEPTH && !name.starts_with("__") {
                    folders.push((entry.path(), format!("{prefix}{name}/"), depth + 1));
                }
            } else if READ.iter().any(|e| e.contains(&extension(Path::new(&name)).as_str()))
                && !NO_DATA.contains(&name.as_str())
            {
                found.push(format!("{prefix}{name}"));
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The splits by the names of the files alone (rules 3 to 6 of [`find_files`]).
pub(super) fn splits_of(files: &[String]) -> Splits {
    let mut sharded: Splits = Vec::new();
    for file in files {
        let Some(split) = file.strip_prefix("data/").and_then(shard_of) else { continue };
        match sharded.iter_mut().find(|(name, _)| name == split) {
            Some((_, files)) => files.push(file.clone()),
            None => sharded.push((split.to_owned(), vec![file.clone()])),
        }
    }
    if !sharded.is_empty() {
        return sharded;
    }
    let by = |matches: &dyn Fn(&str, &str) -> bool| -> Splits {
        let of = |words: &[&str]| {
            let matching = |file: &&String| words.iter().any(|word| matches(file, word));
            files.iter().filter(matching).cloned().collect::<Vec<_>>()
        };
        let splits = KEYWORDS.iter().map(|(name, words)| (name.to_string(), of(words)));
        splits.filter(|(_, files)| !files.is_empty()).collect()
    };
    let in_folder = |file: &str, word: &str| {
        file.rsplit_once('/')
            .is_some_and(|(folders, _)| folders.split('/').any(|name| has_word(name, word, true)))
    };
    let in_name = |file: &str, word: &str| has_word(file.rsplit('/').next().unwrap_or(file), word, false);
    let found = [by(&in_folder), by(&in_name)].into_iter().find(|splits| !splits.is_empty());
    match found {
        Some(splits) => splits,
        None if files.is_empty() => Vec::new(),
        None => vec![("train".to_owned(), files.to_vec())],
    }
}

/// `SPLIT` of `SPLIT-00000-of-00001*.*`.
fn shard_of(name: &str) -> Option<&str> {
    let (at, _) = name.match_indices("-of-").find(|(at, _)| {
        let five = |text: Option<&str>| text.is_some_and(|t| t.bytes().all(|byte| byte.is_ascii_digit()));
        let front = at.checked_sub(5);
        five(front.and_then(|front| name.get(front..*at)))
            && five(name.get(at + 4..at + 9))
            && front.is_some_and(|front| name[..front].ends_with('-'))
            && name.get(at + 9..).is_some_and(|rest| rest.contains('.'))
    })?;
    let split = &name[..at - 6];
    (!split.is_empty() && !split.contains('/')).then_some(split)
}

/// Whether `word` stands in `name` at its start or behind a separator, and before a separator or, if `may_end`, at its end.
fn has_word(name: &str, word: &str, may_end: bool) -> bool {
    let separates = |byte: u8| b"-._ ".contains(&byte) || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    name.match_indices(word).any(|(at, _)| {
        let front = at == 0 || separates(bytes[at - 1]);
        front && bytes.get(at + word.len()).map_or(may_end, |next| separates(*next))
    })
}

/// A split of a `DatasetDict` of `save_to_disk`.
fn saved_split(folder: &Path, split: &str) -> Result<Vec<PathBuf>> {
    let splits = read_json_object(&folder.join("dataset_dict.json"))?;
    let names: Vec<&str> = splits
        .get("splits")
        .and_then(|names| names.as_array())
        .map(|names| names.iter().filter_map(|name| name.as_str()).collect())
        .unwrap_or_default();
    let found: Splits = names.iter().map(|name| (name.to_string(), vec![name.to_string()])).collect();
    let Some(name) = chosen(&found, split).and_then(|mut names| names.pop()) else {
        return Err(missing(folder, split, &found));
    };
    match file_inside(folder, &format!("{name}/state.json"))? {
        Some(_) => saved_files(&folder.join(name)),
        None => Err(Error::missing(
            folder.join(name),
            "dataset_dict.json names this split, but it has no state.json",
        )),
    }
}

/// A single dataset of `save_to_disk`, which is one split.
fn saved(folder: &Path, split: &str) -> Result<Vec<PathBuf>> {
    let state = read_json_object(&folder.join("state.json"))?;
    let own = state.get("_split").and_then(|name| name.as_str()).unwrap_or("train").to_owned();
    let found = vec![(own, vec![String::new()])];
    match chosen(&found, split) {
        Some(_) => saved_files(folder),
        None => Err(missing(folder, split, &found)),
    }
}

/// The files that a `state.json` lists.
fn saved_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let path = folder.join("state.json");
    let state = read_json_object(&path)?;
    let list = |key: &str| state.get(key).and_then(|files| files.as_array()).map_or(&[][..], Vec::as_slice);
    if !list("_indices_data_files").is_empty() {
        return Err(Error::content(
            path,
            "the rows are reordered by an indices mapping; write them out with `flatten_indices()` and save again",
        ));
    }
    let mut files = Vec::new();
    for file in list("_data_files") {
        let name = file.get("filename").and_then(|name| name.as_str()).unwrap_or("");
        match file_inside(folder, name)? {
            Some(file) => files.push(file),
            None => {
                return Err(Error::missing(folder.join(name), "state.json names this file; it is not there"));
            }
        }
    }
    match files.is_empty() {
        true => Err(Error::content(path, "lists no `_data_files`; it is not what `save_to_disk` writes")),
        false => Ok(files),
    }
}

/// What a folder has instead of the split that was asked for.
fn missing(folder: &Path, split: &str, found: &Splits) -> Error {
    if found.is_empty() {
        let unread_file = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let unread_file = unread_file.filter(|p| UNREAD.contains(&extension(p).as_str())).min();
        return match unread_file {
            Some(file) => unread(&file, &extension(&file)),
            None => Error::missing(
                folder,
                format!("has no split {split}; no .jsonl, .parquet or .arrow file is there either"),
            ),
        };
    }
    let mut shown: Vec<String> = found
        .iter()
        .map(|(name, files)| match files.as_slice() {
            [file] if !file.is_empty() && file != name => format!("{name} ({file})"),
            [_] => name.clone(),
            files => format!("{name} ({} files)", files.len()),
        })
        .collect();
    let more = shown.len().saturating_sub(LISTED);
    shown.truncate(LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Error::missing(
        folder,
        format!(
            "has no split {split}; splits found: {}{more} (PATH@SPLIT names one, or give a file)",
            shown.join(", ")
        ),
    )
}

#[cfg(test)]
mod tests;
