//! A task as a dataset folder.

use std::collections::HashSet;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Drawn, Split, Task, TaskOptions, draw_split, encode_png};
use crate::error::{Error, Result};

/// Writes `task` to the new folder `folder`:
///
/// ```text
/// train.jsonl  test.jsonl      one row per line: image, problem, solution (R1-V's columns),
///                              thinking, task, difficulty, question_type
/// images/train/000000.png ...  the pictures
/// metadata.json                what was drawn, and with which options
/// ```
///
/// The folder is written under a temporary name beside its own and renamed when it is whole.
/// `progress` is called once for each image, from several threads.
///
/// # Errors
/// `Usage` if `folder` exists already or `image_size` does not suit the task; `Input` if so
/// many different images cannot be drawn; `Io` if something cannot be written.
pub fn write(task: Task, options: &TaskOptions, folder: &Path, progress: &(dyn Fn() + Sync)) -> Result<()> {
    if fs::symlink_metadata(folder).is_ok() {
        let message = format!("{} exists already; remove it or name another folder", folder.display());
        return Err(Error::Usage(message));
    }
    let Some(name) = folder.file_name() else {
        return Err(Error::Usage(format!("{} is not a name for a new folder", folder.display())));
    };
    let mut temporary = name.to_os_string();
    temporary.push(format!(".tmp-{}", std::process::id()));
    let temporary = folder.with_file_name(temporary);

    let written = write_into(task, options, &temporary, progress)
        .and_then(|()| fs::rename(&temporary, folder).map_err(|e| Error::io(folder, "create the folder", e)));
    if written.is_err() {
        // The first error is the one to report; what is left behind has a name that says so.
        let _ = fs::remove_dir_all(&temporary);
    }
    written
}

fn write_into(task: Task, options: &TaskOptions, folder: &Path, progress: &(dyn Fn() + Sync)) -> Result<()> {
    let mut seen = HashSet::new();
    for split in Split::ALL {
        let images = PathBuf::from("images").join(split.name());
        fs::create_dir_all(folder.join(&images)).map_err(|e| Error::io(folder, "create the folder", e))?;
        let Drawn { rows, hashes } = draw_split(task, options, split, |row, example| {
            let name = images.join(format!("{row:06}.png"));
            let path = folder.join(&name);
            fs::write(&path, encode_png(&example.image)?).map_err(|e| Error::io(&path, "write", e))?;
            progress();
            let mut line = json!({
                "image": name.to_string_lossy(),
                "problem": example.question,
                "solution": example.solution(),
            });
            if let Value::Object(columns) = &mut line {
                columns.extend(example.columns(task, options.difficulty));
            }
            Ok(line.to_string())
        })?;
        // The hash of the image alone: stricter than that of image and question.
        if rows.len() != hashes.len() || !hashes.is_disjoint(&seen) {
            return Err(Error::Internal(format!("the {} split of {task} repeats an image", split.name())));
        }
        seen.extend(hashes);
        let path = folder.join(format!("{}.jsonl", split.name()));
        write_lines(&path, &rows).map_err(|e| Error::io(&path, "write", e))?;
    }
    let metadata = json!({
        "task": task.name(),
        "difficulty": options.difficulty.name(),
        "seed": options.seed,
        "train": options.train,
        "test": options.test,
        "image_size": options.image_size,
        "format_version": 1,
        "splits": "an image belongs to the split that one bit of the hash of its pixels names",
    });
    let path = folder.join("metadata.json");
    write_lines(&path, &[format!("{metadata:#}")]).map_err(|e| Error::io(&path, "write", e))
}

fn write_lines(path: &Path, lines: &[String]) -> std::io::Result<()> {
    let mut file = BufWriter::new(fs::File::create(path)?);
    for line in lines {
        writeln!(file, "{line}")?;
    }
    file.into_inner().map_err(|e| e.into_error())?.sync_all()
}
