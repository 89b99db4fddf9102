//! TensorBoard's event files: curves, completions and images of a run, for every program that reads such files.
//!
//! They stand where Hugging Face's trainer puts them, `OUTPUT_DIR/runs/NAME/events.out.tfevents.*`, and carry its tags:
//! `KEY` of `metrics.jsonl` is `train/KEY`, `eval_KEY` of `eval_metrics.jsonl` is `eval/KEY`, each at the number of
//! optimiser steps done (a row's `step` plus 1).
//!
//! A run that goes on cuts what its files have of steps that are made again, so that no reader sees them twice, and
//! begins a new file with the mark by which a TensorBoard that is looking on forgets them too.

mod event;
mod frame;
mod markdown;

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::appended::{Appended, open_regular};
use super::jsonl::Row;
use super::record::CompletionRecord;
use super::thumbnail::Picture;
use crate::disk::Disk;
use crate::error::{Error, Result};
use event::{Place, Shown};

/// How the name of every event file begins.
const PREFIX: &str = "events.out.tfevents.";

/// Groups of a step that are shown, and images of each.
const SHOWN_GROUPS: usize = 2;
const SHOWN_IMAGES: usize = 2;

/// The event file of a run.
#[derive(Debug)]
pub struct EventLog {
    file: Arc<Appended>,
}

impl EventLog {
    /// Begins a file in `dir` for a run that has done `done` optimiser steps, and cuts the files that are there behind
    /// them; where the evaluation after the last one will be made again (`evaluates`), its values go too.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk refuses; [`Error::Content`] where something else stands in a file's place.
    pub fn begin(disk: &dyn Disk, dir: &Path, done: u64, evaluates: bool) -> Result<EventLog> {
        for folder in [dir.parent().unwrap_or(dir), dir] {
            match disk.create_dir(folder) {
                Err(error) if !folder.is_dir() => return Err(Error::io(folder, "create the folder", error)),
                _ => {}
            }
        }
        let files = event_files(dir)?;
        for path in &files {
            cut(disk, path, |place: &Place| {
                let is_evaluation = place.tag.starts_with("eval/");
                done > 0 && (place.step < done || place.step == done && !(evaluates && is_evaluation))
            })?;
        }
        let file = Arc::new(Appended::create(disk, &dir.join(new_name(files.last())))?);
        let log = EventLog { file };
        log.write(event::version(now_s()))?;
        if done > 0 {
            log.write(event::goes_on(now_s(), done + 1))?;
        }
        Ok(log)
    }

    /// The file, to be flushed and forced to disk.
    pub fn file(&self) -> &Arc<Appended> {
        &self.file
    }

    fn write(&self, event: Vec<u8>) -> Result<()> {
        self.file.append(&frame::framed(&event))
    }

    /// The numbers of a row of `metrics.jsonl` or `eval_metrics.jsonl`, after its step; `null` has no point.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk refuses; what was to be written is kept.
    pub fn row(&self, row: &Row) -> Result<()> {
        let step = row.get("step").and_then(Value::as_u64).unwrap_or(0) + 1;
        let tag = |key: &str| match key.strip_prefix("eval_") {
            Some(key) => format!("eval/{key}"),
            None => format!("train/{key}"),
        };
        let values: Vec<(String, f32)> = row
            .iter()
            .filter(|(key, _)| *key != "step")
            .filter_map(|(key, value)| Some((tag(key), value.as_f64()? as f32)))
            .collect();
        let values = values.iter().map(|(tag, value)| (tag.as_str(), Shown::Scalar(*value)));
        self.write(event::summary(now_s(), step, values))
    }

    /// The options of the run, where Hugging Face's trainer has its arguments.
    ///
    /// # Errors
    /// As [`EventLog::row`].
    pub fn config(&self, config: &str) -> Result<()> {
        let text = markdown::block(config);
        self.write(event::summary(now_s(), 0, [("args/text_summary", Shown::Text(&text))]))
    }

    /// The first groups of a step's completions, with the images of their prompts. An image that cannot be read is
    /// left out.
    ///
    /// # Errors
    /// As [`EventLog::row`].
    pub fn completions(&self, completions: &[CompletionRecord]) -> Result<()> {
        let groups = completions.chunk_by(|a, b| a.prompt_index == b.prompt_index);
        for (n, group) in groups.take(SHOWN_GROUPS).enumerate() {
            let Some(first) = group.first() else { continue };
            let text = markdown::group(group);
            let pictures: Vec<(String, Picture)> = (0..)
                .zip(first.sources().take(SHOWN_IMAGES))
                .filter_map(|(i, source)| {
                    Some((format!("completions/group_{n}/image_{i}"), Picture::of(&source).ok()?))
                })
                .collect();
            let tag = format!("completions/group_{n}/text_summary");
            let images = pictures.iter().map(|(tag, picture)| (tag.as_str(), Shown::Image(picture)));
            let values = std::iter::once((tag.as_str(), Shown::Text(&text))).chain(images);
            self.write(event::summary(now_s(), first.step as u64 + 1, values))?;
        }
        Ok(())
    }
}

/// Seconds since 1970.
fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

/// The event files of a folder, in the order in which TensorBoard reads them.
fn event_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| Error::io(dir, "read the folder", error))? {
        let entry = entry.map_err(|error| Error::io(dir, "read the folder", error))?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// A name behind `last`: readers go through the files in the order of their names, whose first part is the time.
fn new_name(last: Option<&PathBuf>) -> String {
    let time_of = |path: &PathBuf| -> Option<u64> {
        path.file_name()?.to_str()?.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()
    };
    let after = last.and_then(time_of).map_or(0, |time_s| time_s.saturating_add(1));
    let time_s = (now_s() as u64).max(after);
    // The name of the machine is a part of TensorFlow's names; no one reads it.
    format!("{PREFIX}{time_s:010}.othink.{}.0", std::process::id())
}

/// Cuts a file before its first event that does not stay; one of which nothing stays is removed.
fn cut(disk: &dyn Disk, path: &Path, stays: impl Fn(&Place) -> bool) -> Result<()> {
    let Some(file) = open_regular(path)? else { return Ok(()) };
    let length = file.metadata().map_err(|error| Error::io(path, "read", error))?.len();
    let kept = events_before(file, stays).map_err(|error| Error::io(path, "read", error))?;
    if kept == 0 {
        return disk.remove_file(path).map_err(|error| Error::io(path, "remove", error));
    }
    if kept < length {
        disk.append(path, kept).map_err(|error| Error::io(path, "cut", error))?;
    }
    Ok(())
}

/// Bytes of the leading whole events that stay.
fn events_before(file: File, stays: impl Fn(&Place) -> bool) -> std::io::Result<u64> {
    let mut reader = BufReader::new(file);
    let mut kept = 0;
    while let Some(event) = frame::read(&mut reader)? {
        if !event::place(&event).is_some_and(|place| stays(&place)) {
            break;
        }
        kept += frame::framed_bytes(event.len());
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SystemDisk;
    use serde_json::json;

    fn row(value: Value) -> Row {
        value.as_object().unwrap().clone()
    }

    /// Every event of a folder: step and first tag, files apart.
    fn events(dir: &Path) -> Vec<Vec<(u64, String)>> {
        let of = |path: &PathBuf| {
            let (mut file, mut events) = (File::open(path).unwrap(), Vec::new());
            while let Some(event) = frame::read(&mut file).unwrap() {
                let Place { step, tag } = event::place(&event).unwrap();
                events.push((step, tag));
            }
            events
        };
        event_files(dir).unwrap().iter().map(of).collect()
    }

    fn some(events: &[(u64, &str)]) -> Vec<(u64, String)> {
        events.iter().map(|(step, tag)| (*step, (*tag).to_owned())).collect()
    }

    #[test]
    fn a_run_that_goes_on_repeats_no_step() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("runs").join("a");
        let log = EventLog::begin(&SystemDisk, &dir, 0, false).unwrap();
        log.config("seed = 42").unwrap();
        for step in 0..3 {
            log.row(&row(json!({"step": step, "loss": 0.5, "kl": null}))).unwrap();
            log.row(&row(json!({"step": step, "eval_reward": 1, "eval_runtime": 2.5}))).unwrap();
        }
        let begin = [(0, ""), (0, "args/text_summary")];
        let step = |n: u64| [(n, "train/loss"), (n, "eval/reward")];
        let first = [&begin[..], &step(1), &step(2)].concat();
        assert_eq!(events(&dir), [some(&[&first[..], &step(3)].concat())]);

        let log = EventLog::begin(&SystemDisk, &dir, 2, false).unwrap();
        log.row(&row(json!({"step": 2, "loss": 0.5}))).unwrap();
        let second = [(0, ""), (3, "")];
        assert_eq!(events(&dir), [some(&first), some(&[&second[..], &[(3, "train/loss")]].concat())]);

        // Killed after an evaluation that the checkpoint does not know of.
        EventLog::begin(&SystemDisk, &dir, 2, true).unwrap();
        assert_eq!(events(&dir), [some(&first[..5]), some(&second[..1]), some(&second)]);
        // From the start again.
        fs::write(dir.join("notes.txt"), "").unwrap();
        EventLog::begin(&SystemDisk, &dir, 0, false).unwrap();
        assert_eq!(events(&dir), [some(&begin[..1])]);
        assert!(dir.join("notes.txt").is_file());
    }

    #[test]
    fn a_torn_or_strange_file_is_cut_where_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("runs").join("a");
        let log = EventLog::begin(&SystemDisk, &dir, 0, false).unwrap();
        log.row(&row(json!({"step": 0, "loss": 0.5}))).unwrap();
        let path = log.file().path().to_path_buf();
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, [&bytes[..], &bytes[..30]].concat()).unwrap();
        let strange = dir.join(format!("{PREFIX}9999999999.x.1.0"));
        fs::write(&strange, "nonsense").unwrap();
        let newer = EventLog::begin(&SystemDisk, &dir, 1, false).unwrap();
        assert!(!strange.exists());
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert!(newer.file().path().to_str().unwrap().contains(".tfevents.10000000000.othink."));
    }

    #[test]
    fn completions_show_texts_and_images_of_the_first_groups() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("a.png");
        image::RgbImage::new(6, 4).save(&image).unwrap();
        let images = vec![image.display().to_string(), "/nowhere.png".to_owned()];
        let record = |prompt_index| CompletionRecord {
            step: 4,
            prompt_index,
            images: images.clone(),
            ..CompletionRecord::default()
        };
        let dir = folder.path().join("runs").join("a");
        let log = EventLog::begin(&SystemDisk, &dir, 0, false).unwrap();
        log.completions(&[record(7), record(7), record(8), record(9)]).unwrap();
        let tag = |n: usize| (5, format!("completions/group_{n}/text_summary"));
        assert_eq!(events(&dir)[0][1..], [tag(0), tag(1)]);
        let bytes = fs::read(log.file().path()).unwrap();
        let count = |needle: &[u8]| bytes.windows(needle.len()).filter(|window| *window == needle).count();
        assert_eq!((count(b"/image_0"), count(b"/image_1"), count(b"\x89PNG")), (2, 0, 2));
    }
}
