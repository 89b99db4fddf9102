//! Folders that appear whole or not at all.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// What to do when the folder to be written is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExisting {
    /// Fail, before anything is written.
    Refuse,
    /// Put the new folder in its place once the new one is complete and on disk.
    Replace,
}

/// Writes the folder `target` so that at every moment it is either absent (or the old one) or complete.
///
/// `fill` gets an empty temporary folder beside `target` (`<name>.tmp-<pid>-<n>`). When it succeeds,
/// every file and folder below is forced to disk, the temporary folder is renamed to `target`, and the
/// rename is forced to disk. When anything fails, the temporary folder is removed and an old `target` is as it was.
///
/// [`OnExisting::Replace`] first moves the old folder to `<name>.old-<pid>-<n>`, because no portable
/// call exchanges two folders; a power cut between the two renames leaves both folders, complete, under
/// those names.
///
/// # Errors
/// [`Error::Usage`] if `target` exists and may not be replaced, or has no name of its own;
/// [`Error::Io`] for what the system refuses; whatever `fill` returns.
pub fn write_folder<T>(
    target: &Path,
    on_existing: OnExisting,
    fill: impl FnOnce(&Path) -> Result<T>,
) -> Result<T> {
    let Some(name) = target.file_name() else {
        return Err(Error::Usage(format!("{} is no folder that can be written", target.display())));
    };
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    refuse_existing(target, on_existing)?;
    fs::create_dir_all(parent).map_err(|e| Error::io(parent, "create the folder", e))?;

    static FOLDERS: AtomicU64 = AtomicU64::new(0);
    let suffix = format!("{}-{}", std::process::id(), FOLDERS.fetch_add(1, Ordering::Relaxed));
    let beside = |kind: &str| {
        let mut other = name.to_os_string();
        other.push(format!(".{kind}-{suffix}"));
        parent.join(other)
    };
    let temporary = Temporary { path: beside("tmp"), renamed: false };
    fs::create_dir(&temporary.path).map_err(|e| Error::io(&temporary.path, "create the folder", e))?;
    let value = fill(&temporary.path)?;
    sync_tree(&temporary.path)?;
    // Again: the folder may have appeared while this one was being filled.
    refuse_existing(target, on_existing)?;
    move_into_place(temporary, target, &beside("old"))?;
    sync_folder(parent)?;
    Ok(value)
}

fn refuse_existing(target: &Path, on_existing: OnExisting) -> Result<()> {
    if on_existing == OnExisting::Refuse && target.symlink_metadata().is_ok() {
        return Err(Error::Usage(format!(
            "{} exists already; choose another folder, remove it, or ask for it to be replaced",
            target.display()
        )));
    }
    Ok(())
}

fn move_into_place(mut temporary: Temporary, target: &Path, old: &Path) -> Result<()> {
    let had_old = target.symlink_metadata().is_ok();
    if had_old {
        fs::rename(target, old).map_err(|e| Error::io(target, "move the old folder away", e))?;
    }
    if let Err(e) = fs::rename(&temporary.path, target) {
        if had_old {
            fs::rename(old, target).map_err(|e| Error::io(old, "move the old folder back", e))?;
        }
        return Err(Error::io(target, "rename the finished folder to", e));
    }
    temporary.renamed = true;
    if had_old {
        remove(old).map_err(|e| Error::io(old, "remove the replaced folder", e))?;
    }
    Ok(())
}

fn remove(path: &Path) -> std::io::Result<()> {
    if path.symlink_metadata()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// A temporary folder, removed when dropped (also by a panic) unless it was renamed.
struct Temporary {
    path: PathBuf,
    renamed: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // The error that led here is the one to report.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Forces every file and folder below `folder`, and `folder` itself, to disk.
fn sync_tree(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, "list the folder", e))?;
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(folder, "list the folder", e))?;
        let kind = entry.file_type().map_err(|e| Error::io(entry.path(), "read", e))?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            sync_path(&entry.path())?;
        }
    }
    sync_folder(folder)
}

fn sync_path(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io(path, "force to disk", e))?;
    file.sync_all().map_err(|e| Error::io(path, "force to disk", e))
}

/// Forces the names in a folder to disk. Only Unix can: elsewhere the system orders renames itself.
fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) { sync_path(folder) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .expect("list")
            .map(|entry| entry.expect("entry").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }

    fn put(folder: &Path, text: &str) -> Result<()> {
        fs::create_dir(folder.join("sub")).expect("create");
        fs::write(folder.join("sub/file"), text).expect("write");
        Ok(())
    }

    #[test]
    fn a_folder_appears_with_its_parents() {
        let root = tempfile::tempdir().expect("temporary folder");
        let target = root.path().join("runs/one");
        let seen = write_folder(&target, OnExisting::Refuse, |folder| {
            assert!(!target.exists());
            assert_eq!(folder.parent(), target.parent());
            put(folder, "new")?;
            Ok(7)
        });
        assert_eq!(seen.expect("written"), 7);
        assert_eq!(names(&root.path().join("runs")), ["one"]);
        assert_eq!(fs::read_to_string(target.join("sub/file")).expect("read"), "new");
    }

    #[test]
    fn an_existing_folder_is_kept_or_replaced_as_asked() {
        let root = tempfile::tempdir().expect("temporary folder");
        let target = root.path().join("model");
        write_folder(&target, OnExisting::Refuse, |folder| put(folder, "old")).expect("written");
        let error =
            write_folder(&target, OnExisting::Refuse, |_| -> Result<()> { panic!("must not be filled") })
                .expect_err("exists");
        assert_eq!(error.exit_code(), 2);
        write_folder(&target, OnExisting::Replace, |folder| put(folder, "new")).expect("replaced");
        assert_eq!(names(root.path()), ["model"]);
        assert_eq!(fs::read_to_string(target.join("sub/file")).expect("read"), "new");
    }

    #[test]
    fn a_failure_leaves_the_old_folder_and_no_trace() {
        let root = tempfile::tempdir().expect("temporary folder");
        let target = root.path().join("model");
        write_folder(&target, OnExisting::Refuse, |folder| put(folder, "old")).expect("written");
        let error = write_folder(&target, OnExisting::Replace, |folder| {
            put(folder, "half")?;
            Err::<(), _>(Error::Protect("stopped".into()))
        });
        assert_eq!(error.expect_err("stopped").exit_code(), 70);
        let panicked = std::panic::catch_unwind(|| {
            write_folder(&target, OnExisting::Replace, |_| -> Result<()> { panic!("planned by the test") })
        });
        assert!(panicked.is_err());
        assert_eq!(names(root.path()), ["model"]);
        assert_eq!(fs::read_to_string(target.join("sub/file")).expect("read"), "old");
    }

    #[test]
    fn a_folder_that_appeared_meanwhile_is_not_overwritten() {
        let root = tempfile::tempdir().expect("temporary folder");
        let target = root.path().join("model");
        let result = write_folder(&target, OnExisting::Refuse, |folder| {
            fs::create_dir(&target).expect("somebody else's folder");
            put(folder, "new")
        });
        assert_eq!(result.expect_err("exists").exit_code(), 2);
        assert_eq!(names(root.path()), ["model"]);
        assert_eq!(names(&target), [""; 0]);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for target in ["/", "..", ""] {
            let error = write_folder(Path::new(target), OnExisting::Replace, |_| Ok(())).expect_err(target);
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_parent_that_is_a_file_is_an_io_error() {
        let root = tempfile::tempdir().expect("temporary folder");
        fs::write(root.path().join("file"), "x").expect("write");
        let target = root.path().join("file/model");
        assert_eq!(
            write_folder(&target, OnExisting::Refuse, |_| Ok(())).expect_err("no folder").exit_code(),
            74
        );
    }
}
