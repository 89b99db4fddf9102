//! The checkpoints of a run folder: `checkpoint-N` after N optimiser steps.

use std::fs;
use std::path::{Path, PathBuf};

use super::manifest::{Flaw, Manifest};
use crate::disk::Disk;
use crate::error::{Error, Result};

/// The folder of the checkpoint after `step` optimiser steps.
pub fn checkpoint_dir(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoint-{step}"))
}

/// The checkpoints of a run folder by their steps, oldest first; none where there is no such folder. Whether they are
/// whole is not looked at.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be listed.
pub fn list_checkpoints(run: &Path) -> Result<Vec<u64>> {
    let mut steps: Vec<u64> = names(run)?
        .iter()
        .filter_map(|name| step_of(name))
        .filter(|&step| checkpoint_dir(run, step).is_dir())
        .collect();
    steps.sort_unstable();
    Ok(steps)
}

/// The step of a checkpoint's name. One that is not written by us (`checkpoint-007`) is not taken for ours.
fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("checkpoint-")?;
    digits.parse().ok().filter(|step: &u64| step.to_string() == digits)
}

fn names(run: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(run) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(run, "list the folder", e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(run, "list the folder", e))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

/// The newest whole checkpoint of a run folder, and why newer ones were passed over.
#[derive(Debug, Default)]
pub struct Newest {
    /// Its step; `None` if the folder has no checkpoint at all.
    pub step: Option<u64>,
    /// A line for each checkpoint that was passed over.
    pub passed_over: Vec<String>,
}

/// Finds the newest checkpoint whose manifest holds.
///
/// # Errors
/// [`Error::Content`] if there are checkpoints but none is whole, or if the newest whole one was written by another
/// version of this program: what it holds is not guessed.
pub fn newest_whole(run: &Path) -> Result<Newest> {
    let mut passed_over = Vec::new();
    for step in list_checkpoints(run)?.into_iter().rev() {
        let dir = checkpoint_dir(run, step);
        match Manifest::verify(&dir) {
            Ok(()) => return Ok(Newest { step: Some(step), passed_over }),
            Err(Flaw::Damaged(reason)) => passed_over.push(format!("{} {reason}", dir.display())),
            Err(flaw @ Flaw::OtherVersion(_)) => return Err(Error::content(&dir, flaw.to_string())),
        }
    }
    if passed_over.is_empty() {
        return Ok(Newest::default());
    }
    Err(Error::content(
        run,
        format!(
            "has no whole checkpoint to resume from: {}; start anew with --overwrite_output_dir or in another --output_dir",
            passed_over.join("; ")
        ),
    ))
}

/// Removes what writes that did not come to their end have left (`checkpoint-N.tmp-*`, `config.toml.tmp-*`, `report.html.tmp-*`), and puts
/// back a checkpoint that was being replaced (`checkpoint-N.old-*`) where the new one is not there whole. The folder
/// belongs to one run at a time, so none of it is in use. What is there then is on disk: a killed run may have renamed a
/// checkpoint and not forced its name to disk.
///
/// # Errors
/// [`Error::Io`] for what the system refuses.
pub fn sweep(disk: &dyn Disk, run: &Path) -> Result<()> {
    // The renames of a save that was killed behind them first: what they put in place is what makes leftovers of the rest.
    disk.sync(run).map_err(|e| Error::io(run, "force to disk", e))?;
    for name in names(run)? {
        let path = run.join(&name);
        let Some((target, kind)) = leftover(&name) else { continue };
        let target = run.join(target);
        let unfinished = |e| Error::io(&path, "remove the unfinished", e);
        if path.is_file() {
            disk.remove_file(&path).map_err(unfinished)?;
        } else if kind == "old" && !is_whole(&target) && (is_whole(&path) || !target.exists()) {
            if target.exists() {
                disk.remove_dir_all(&target)
                    .map_err(|e| Error::io(&target, "remove the damaged folder", e))?;
            }
            disk.rename(&path, &target).map_err(|e| Error::io(&path, "put back", e))?;
        } else {
            disk.remove_dir_all(&path).map_err(unfinished)?;
        }
    }
    disk.sync(run).map_err(|e| Error::io(run, "force to disk", e))
}

/// Whether a folder is a whole checkpoint, of this version or of another.
fn is_whole(dir: &Path) -> bool {
    !matches!(Manifest::verify(dir), Err(Flaw::Damaged(_)))
}

/// What a leftover was to become, and whether it is `tmp` or `old`; `None` for a name that this program does not give
/// (`checkpoint-100.old-lr1e-5` is a user's).
fn leftover(name: &str) -> Option<(&str, &str)> {
    let (target, suffix) = name.rsplit_once('.')?;
    let (kind, numbers) = suffix.split_once('-')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_ours = ["config.toml", "report.html"].contains(&target) || step_of(target).is_some();
    (is_ours && ["tmp", "old"].contains(&kind) && numbers.split('-').all(is_number)).then_some((target, kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{OnExisting, write_folder};
    use crate::disk::SystemDisk;

    fn put(run: &Path, step: u64) -> PathBuf {
        let dir = checkpoint_dir(run, step);
        write_folder(&SystemDisk, &dir, OnExisting::Replace, |folder| {
            folder.bytes("weights", &step.to_le_bytes())?;
            folder.manifest()
        })
        .unwrap();
        dir
    }

    #[test]
    fn the_newest_whole_one_is_taken() {
        let run = tempfile::tempdir().unwrap();
        let run = run.path();
        assert_eq!(newest_whole(run).unwrap().step, None);
        assert_eq!(newest_whole(&run.join("nowhere")).unwrap().step, None);
        for step in [2, 10, 9] {
            put(run, step);
        }
        for stranger in ["checkpoint-011", "checkpoint-x", "checkpoint-30.tmp-1-0", "my-checkpoint-40"] {
            fs::create_dir(run.join(stranger)).unwrap();
        }
        fs::write(run.join("checkpoint-99"), "a file").unwrap();
        assert_eq!(list_checkpoints(run).unwrap(), [2, 9, 10]);
        assert_eq!(newest_whole(run).unwrap().step, Some(10));

        // One flipped bit, a length, a missing file, a missing manifest: each is told apart.
        let weights = run.join("checkpoint-10/weights");
        fs::write(&weights, 11_u64.to_le_bytes()).unwrap();
        let newest = newest_whole(run).unwrap();
        assert_eq!(newest.step, Some(9));
        assert!(newest.passed_over[0].contains("checkpoint-10 has a damaged weights"), "{newest:?}");
        fs::write(&weights, "short").unwrap();
        assert!(newest_whole(run).unwrap().passed_over[0].contains("of 5 bytes, and 8 were written"));
        fs::remove_file(&weights).unwrap();
        assert!(newest_whole(run).unwrap().passed_over[0].contains("lacks weights"));
        fs::remove_file(run.join("checkpoint-10/MANIFEST.json")).unwrap();
        assert!(newest_whole(run).unwrap().passed_over[0].contains("not written to its end"));
        for step in [2, 9] {
            fs::write(checkpoint_dir(run, step).join("MANIFEST.json"), "{\"format_version\": 1").unwrap();
        }
        let error = newest_whole(run).unwrap_err();
        assert_eq!(error.exit_code(), 65);
        assert!(
            error.to_string().contains("checkpoint-2 has a MANIFEST.json that cannot be read"),
            "{error}"
        );
    }

    #[test]
    fn another_version_is_not_guessed() {
        let run = tempfile::tempdir().unwrap();
        put(run.path(), 1);
        let manifest = put(run.path(), 2).join("MANIFEST.json");
        let text = fs::read_to_string(&manifest).unwrap();
        fs::write(&manifest, text.replace("\"format_version\": 1", "\"format_version\": 2")).unwrap();
        let error = newest_whole(run.path()).unwrap_err();
        assert_eq!(error.exit_code(), 65);
        assert!(error.to_string().contains("format_version 2"), "{error}");
    }

    #[test]
    fn a_manifest_makes_no_other_file_be_read() {
        let run = tempfile::tempdir().unwrap();
        let dir = put(run.path(), 1);
        let outside = run.path().join("outside");
        fs::copy(dir.join("weights"), &outside).unwrap();
        let manifest = dir.join("MANIFEST.json");
        let text = fs::read_to_string(&manifest).unwrap();
        for name in ["../outside", outside.to_str().unwrap()] {
            fs::write(&manifest, text.replace("\"weights\"", &format!("{name:?}"))).unwrap();
            let reason = Manifest::verify(&dir).unwrap_err().to_string();
            assert!(reason.contains("is not inside the folder"), "{reason}");
        }
    }

    #[test]
    fn leftovers_are_swept() {
        let run = tempfile::tempdir().unwrap();
        let run = run.path();
        put(run, 1);
        fs::rename(put(run, 2), run.join("checkpoint-2.old-7-0")).unwrap();
        fs::create_dir(run.join("checkpoint-1.old-7-0")).unwrap();
        fs::create_dir(run.join("checkpoint-3.tmp-7-0")).unwrap();
        fs::write(run.join("config.toml.tmp-7"), "half").unwrap();
        let foreign =
            ["notes.tmp-1", "checkpoint-1.old-lr1e-5", "checkpoint-1.old-", "checkpoint-01.tmp-7-0"];
        foreign.iter().for_each(|name| fs::create_dir(run.join(name)).unwrap());
        sweep(&SystemDisk, run).unwrap();
        assert_eq!(names(run).unwrap().len(), 2 + foreign.len());
        assert_eq!(newest_whole(run).unwrap().step, Some(2));
    }

    #[test]
    fn of_several_leftovers_the_whole_one_is_put_back() {
        // A replaced folder whose removal failed half-way, and a second replacement that the power cut short: in
        // either order of their names.
        for (damaged, whole) in [("old-7-0", "old-7-1"), ("old-7-1", "old-7-0")] {
            let run = tempfile::tempdir().unwrap();
            let run = run.path();
            let aside = |kind: &str| {
                let aside = run.join(format!("checkpoint-2.{kind}"));
                fs::rename(put(run, 2), &aside).unwrap();
                aside
            };
            fs::remove_file(aside(damaged).join("weights")).unwrap();
            aside(whole);
            sweep(&SystemDisk, run).unwrap();
            assert_eq!(names(run).unwrap(), ["checkpoint-2"]);
            assert_eq!(newest_whole(run).unwrap().step, Some(2));
        }
    }
}
