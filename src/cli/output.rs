//! Rows that commands write: JSON lines that appear whole or not at all.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use crate::data::{ImageSource, Message, Part, Sample};
use crate::disk::SystemDisk;
use crate::error::{Error, Result};
use crate::report::JsonLines;

/// A JSONL file under construction. It has its name only once it is finished; dropped before, it leaves nothing.
pub(super) struct OutputFile {
    lines: JsonLines,
    target: PathBuf,
    /// Where the rows go until then; `None` for what is no file (`/dev/stdout`), which is written at once.
    temporary: Option<PathBuf>,
}

impl OutputFile {
    /// Starts the file; one that is there stays as it is until the new one is whole.
    ///
    /// # Errors
    /// [`Error::Usage`] for a folder; [`Error::Missing`] where its folder is not there; [`Error::Io`].
    pub(super) fn create(path: &Path) -> Result<OutputFile> {
        // Through links, so that the link stays and the file behind it is replaced.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let is_other = match fs::metadata(&target) {
            Ok(found) if found.is_dir() => {
                return Err(Error::Usage(format!("--output {} is a folder; name a file", path.display())));
            }
            Ok(found) => !found.is_file(),
            Err(_) => false,
        };
        if is_other {
            return Ok(OutputFile {
                lines: JsonLines::create(&SystemDisk, &target)?,
                target,
                temporary: None,
            });
        }
        let Some(name) = target.file_name() else {
            return Err(Error::Usage(format!("--output {} is no file name", path.display())));
        };
        let mut other = name.to_os_string();
        other.push(format!(".tmp-{}", std::process::id()));
        let temporary = target.with_file_name(other);
        let lines = JsonLines::create(&SystemDisk, &temporary).map_err(|error| match error {
            // The name that was given, not the one that nobody knows.
            Error::Io { action, source, .. } => Error::Io { path: target.clone(), action, source },
            other => other,
        })?;
        Ok(OutputFile { lines, target, temporary: Some(temporary) })
    }

    /// Writes one row.
    pub(super) fn append(&mut self, row: &impl Serialize) -> Result<()> {
        self.lines.append(row)
    }

    /// Forces the rows to disk and gives the file its name.
    pub(super) fn finish(mut self) -> Result<()> {
        let Some(temporary) = &self.temporary else { return Ok(()) };
        File::open(temporary)
            .and_then(|file| file.sync_all())
            .map_err(|e| Error::io(temporary, "force to disk", e))?;
        fs::rename(temporary, &self.target).map_err(|e| Error::io(&self.target, "write", e))?;
        self.temporary = None;
        Ok(())
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // The error that led here is the one to report.
            let _ = fs::remove_file(temporary);
        }
    }
}

/// A completion's log-probabilities as the numbers that they are, and as the 8 hex digits of each f32's bits.
pub(super) fn numbers_and_bits(logps: &[f32]) -> (Vec<f64>, Vec<String>) {
    let numbers = logps.iter().map(|&logp| f64::from(logp)).collect();
    (numbers, logps.iter().map(|logp| format!("{:08x}", logp.to_bits())).collect())
}

/// A sample's prompt and images in the form that [`crate::data::read`] turns into the same prompt: a text where
/// the images come first and one text after them, else messages.
pub(super) fn prompt_row(sample: &Sample) -> (Value, Vec<String>) {
    let images = sample.images.iter().map(ImageSource::as_text).collect();
    let in_order = |parts: &[Part]| {
        parts.len() == sample.images.len()
            && parts.iter().enumerate().all(|(i, part)| *part == Part::Image(i))
    };
    if let [message] = sample.messages.as_slice()
        && let Some((Part::Text(text), before)) = message.content.split_last()
        && message.role == "user"
        && in_order(before)
        && !text.contains("<image>")
    {
        return (text.as_str().into(), images);
    }
    let part = |part: &Part| match part {
        Part::Text(text) => json!({"type": "text", "text": text}),
        // The next of the row's images; they are numbered in reading order.
        Part::Image(_) => json!({"type": "image"}),
    };
    let message = |message: &Message| json!({"role": message.role, "content": message.content.iter().map(part).collect::<Vec<_>>()});
    (sample.messages.iter().map(message).collect::<Vec<_>>().into(), images)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{ReadOptions, read};

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        fs::write(&path, "old\n").unwrap();
        let names = || fs::read_dir(dir.path()).unwrap().count();
        let mut file = OutputFile::create(&path).unwrap();
        file.append(&json!({"a": 1})).unwrap();
        assert_eq!(names(), 2);
        drop(file);
        assert_eq!((names(), fs::read_to_string(&path).unwrap().as_str()), (1, "old\n"));
        let mut file = OutputFile::create(&path).unwrap();
        file.append(&json!({"a": 1})).unwrap();
        file.finish().unwrap();
        assert_eq!((names(), fs::read_to_string(&path).unwrap().as_str()), (1, "{\"a\":1}\n"));
        assert_eq!(OutputFile::create(dir.path()).err().unwrap().exit_code(), 2);
        assert_eq!(OutputFile::create(&dir.path().join("no/out.jsonl")).err().unwrap().exit_code(), 74);
    }

    #[cfg(unix)]
    #[test]
    fn a_device_is_written_and_not_replaced() {
        let mut file = OutputFile::create(Path::new("/dev/null")).unwrap();
        file.append(&json!({})).unwrap();
        file.finish().unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    /// Every kind of conversation, written and read again, is the same conversation.
    #[test]
    fn prompts_read_back_to_themselves() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.png", "b.png"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
        let rows = [
            r#"{"problem": "plain"}"#,
            r#"{"problem": "two?", "images": ["a.png", "b.png"]}"#,
            r#"{"problem": "first <image> then <image>?", "images": ["b.png", "a.png"]}"#,
            r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [
               {"type": "text", "text": "literal <image>"}, {"type": "image", "image": "a.png"}]}]}"#,
            r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "literal <image>"}]}]}"#,
        ];
        fs::write(&input, rows.map(|row| row.replace('\n', " ")).join("\n")).unwrap();
        let all = |path| -> Vec<Sample> {
            read(path, &ReadOptions::default()).unwrap().iter().map(Result::unwrap).collect()
        };
        let mut samples = all(&input);
        // The question stays beside the prompt in a row alone.
        samples.iter_mut().for_each(|sample| drop(sample.columns.remove("problem")));
        let mut file = OutputFile::create(&output).unwrap();
        for sample in &samples {
            let (prompt, images) = prompt_row(sample);
            file.append(&json!({"prompt": prompt, "images": images})).unwrap();
        }
        file.finish().unwrap();
        let mut again = all(&output);
        again.iter_mut().zip(&samples).for_each(|(again, sample)| again.origin = sample.origin.clone());
        assert_eq!(again, samples);
    }

    #[test]
    fn bits_are_those_of_the_number() {
        let (numbers, bits) = numbers_and_bits(&[-0.1, -0.0]);
        assert_eq!(bits, ["bdcccccd", "80000000"]);
        assert_eq!(numbers, [f64::from(-0.1f32), 0.0]);
    }
}
