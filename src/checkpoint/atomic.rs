//! Folders that appear whole or not at all.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::Xxh3Default;

use super::manifest::{FileRecord, MANIFEST, Manifest};
use crate::disk::{Disk, DiskFile};
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
/// the folder is forced to disk (its files are already), the temporary folder is renamed to `target`, and the
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
    disk: &dyn Disk,
    target: &Path,
    on_existing: OnExisting,
    fill: impl FnOnce(&mut NewFolder) -> Result<T>,
) -> Result<T> {
    let Some(name) = target.file_name() else {
        return Err(Error::Usage(format!("{} is no folder that can be written", target.display())));
    };
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    refuse_existing(target, on_existing)?;
    create_dir_all(disk, parent)?;

    static FOLDERS: AtomicU64 = AtomicU64::new(0);
    let suffix = format!("{}-{}", std::process::id(), FOLDERS.fetch_add(1, Ordering::Relaxed));
    let beside = |kind: &str| {
        let mut other = name.to_os_string();
        other.push(format!(".{kind}-{suffix}"));
        parent.join(other)
    };
    let temporary = Temporary { disk, path: beside("tmp"), renamed: false };
    disk.create_dir(&temporary.path).map_err(|e| Error::io(&temporary.path, "create the folder", e))?;
    let mut folder = NewFolder::at(disk, &temporary.path);
    let value = fill(&mut folder)?;
    sync(disk, &temporary.path)?;
    // Again: the folder may have appeared while this one was being filled.
    refuse_existing(target, on_existing)?;
    move_into_place(temporary, target, parent, &beside("old"))?;
    Ok(value)
}

/// Creates a folder and those above it that are missing, each forced to disk by its parent.
///
/// # Errors
/// [`Error::Io`] for what the system refuses.
pub fn create_dir_all(disk: &dyn Disk, path: &Path) -> Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(Path::new(""));
    create_dir_all(disk, parent)?;
    match disk.create_dir(path) {
        // Another process may have been quicker.
        Err(_) if path.is_dir() => {}
        Err(e) => return Err(Error::io(path, "create the folder", e)),
        Ok(()) => {}
    }
    sync(disk, if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

/// Writes a file that is there whole or not at all (or as it was).
///
/// # Errors
/// [`Error::Io`] for what the system refuses.
pub fn replace_file(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".tmp-{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = disk.create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync()?;
        disk.rename(&temporary, path)
    });
    written.map_err(|e| {
        // The error that led here is the one to report.
        let _ = disk.remove_file(&temporary);
        Error::io(path, "write", e)
    })
}

/// A folder that is being filled, and what its files hold.
#[derive(Debug)]
pub struct NewFolder<'a> {
    disk: &'a dyn Disk,
    path: PathBuf,
    files: BTreeMap<String, FileRecord>,
}

impl<'a> NewFolder<'a> {
    /// Files are written into the folder `path`, which is there.
    pub fn at(disk: &'a dyn Disk, path: &Path) -> Self {
        NewFolder { disk, path: path.to_path_buf(), files: BTreeMap::new() }
    }

    /// Writes one file and forces it to disk. `name` may have folders but stays inside the folder.
    ///
    /// # Errors
    /// [`Error::Io`] for what the system refuses; whatever `fill` returns.
    pub fn file(&mut self, name: &str, fill: impl FnOnce(&mut NewFile) -> Result<()>) -> Result<()> {
        let relative = Path::new(name);
        if name.is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(Error::Internal(format!("file {name:?} is not inside the folder to be written")));
        }
        let path = self.path.join(relative);
        if let Some(parent) = path.parent() {
            create_dir_all(self.disk, parent)?;
        }
        let file = self.disk.create(&path).map_err(|e| Error::io(&path, "create", e))?;
        let mut file = NewFile { path, file, buffer: Vec::new(), hasher: Xxh3Default::new(), bytes: 0 };
        fill(&mut file)?;
        let record = file.finish()?;
        if let Some(parent) = relative.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync(self.disk, &self.path.join(parent))?;
        }
        self.files.insert(name.to_owned(), record);
        Ok(())
    }

    /// Writes a file of these bytes.
    ///
    /// # Errors
    /// As [`NewFolder::file`].
    pub fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.file(name, |file| {
            let written = file.write_all(bytes);
            written.map_err(|e| Error::io(file.path(), "write", e))
        })
    }

    /// Writes the manifest of the files so far: what tells a whole folder from a damaged one.
    ///
    /// # Errors
    /// As [`NewFolder::file`].
    pub fn manifest(&mut self) -> Result<()> {
        let text = Manifest::of(self.files.clone()).to_json()?;
        self.bytes(MANIFEST, text.as_bytes())
    }
}

/// A file that is being written, hashed on the way.
pub struct NewFile {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    buffer: Vec<u8>,
    hasher: Xxh3Default,
    bytes: u64,
}

impl NewFile {
    /// Writes of less than this are gathered.
    const BUFFER_BYTES: usize = 1 << 20;

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn finish(mut self) -> Result<FileRecord> {
        self.flush().map_err(|e| Error::io(&self.path, "write", e))?;
        self.file.sync().map_err(|e| Error::io(&self.path, "force to disk", e))?;
        Ok(FileRecord::new(self.bytes, self.hasher.digest128()))
    }
}

impl fmt::Debug for NewFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewFile").field("path", &self.path).field("bytes", &self.bytes).finish()
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + bytes.len() > Self::BUFFER_BYTES {
            self.flush()?;
        }
        if bytes.len() >= Self::BUFFER_BYTES {
            self.file.write_all(bytes)?;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
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

fn move_into_place(mut temporary: Temporary<'_>, target: &Path, parent: &Path, old: &Path) -> Result<()> {
    let disk = temporary.disk;
    let had_old = target.symlink_metadata().is_ok();
    if had_old {
        disk.rename(target, old).map_err(|e| Error::io(target, "move the old folder away", e))?;
    }
    if let Err(e) = disk.rename(&temporary.path, target) {
        if had_old {
            disk.rename(old, target).map_err(|e| Error::io(old, "move the old folder back", e))?;
        }
        return Err(Error::io(target, "rename the finished folder to", e));
    }
    temporary.renamed = true;
    // Both renames first: a disk may keep the removal of the old files and lose them.
    sync(disk, parent)?;
    if had_old {
        // The new folder is there, which is what was asked for; a later start sweeps what is left of the old one.
        let _ = remove(disk, old);
    }
    Ok(())
}

fn remove(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    if path.symlink_metadata()?.is_dir() { disk.remove_dir_all(path) } else { disk.remove_file(path) }
}

fn sync(disk: &dyn Disk, path: &Path) -> Result<()> {
    disk.sync(path).map_err(|e| Error::io(path, "force to disk", e))
}

/// A temporary folder, removed when dropped (also by a panic) unless it was renamed.
struct Temporary<'a> {
    disk: &'a dyn Disk,
    path: PathBuf,
    renamed: bool,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.renamed {
            // The error that led here is the one to report.
            let _ = self.disk.remove_dir_all(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SystemDisk;
    use std::fs;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .expect("list")
            .map(|entry| entry.expect("entry").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }

    fn put(folder: &mut NewFolder, text: &str) -> Result<()> {
        folder.bytes("sub/file", text.as_bytes())
    }

    #[test]
    fn a_folder_appears_with_its_parents() {
        let root = tempfile::tempdir().expect("temporary folder");
        let target = root.path().join("runs/one");
        let seen = write_folder(&SystemDisk, &target, OnExisting::Refuse, |folder| {
            assert!(!target.exists());
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
        write_folder(&SystemDisk, &target, OnExisting::Refuse, |folder| put(folder, "old")).expect("written");
        let error = write_folder(&SystemDisk, &target, OnExisting::Refuse, |_| -> Result<()> {
            panic!("must not be filled")
        })
        .expect_err("exists");
        assert_eq!(error.exit_code(), 2);
        write_folder(&SystemDisk, &target, OnExisting::Replace, |folder| put(folder, "new"))
            .expect("replaced");
        assert_eq!(names(root.path()), ["model"]);
        assert_eq!(fs::read_to_string(target.join("sub/file")).expect("read"), "new");
    }

    #[test]
    fn a_failure_leaves_the_old_folder_and_no_trace() {
        let root = tempfile::tempdir().expect("temporary folder");
        let target = root.path().join("model");
        write_folder(&SystemDisk, &target, OnExisting::Refuse, |folder| put(folder, "old")).expect("written");
        let error = write_folder(&SystemDisk, &target, OnExisting::Replace, |folder| {
            put(folder, "half")?;
            Err::<(), _>(Error::Protect("stopped".into()))
        });
        assert_eq!(error.expect_err("stopped").exit_code(), 70);
        let panicked = std::panic::catch_unwind(|| {
            write_folder(&SystemDisk, &target, OnExisting::Replace, |_| -> Result<()> {
                panic!("planned by the test")
            })
        });
        assert!(panicked.is_err());
        assert_eq!(names(root.path()), ["model"]);
        assert_eq!(fs::read_to_string(target.join("sub/file")).expect("read"), "old");
    }

    #[test]
    fn a_folder_that_appeared_meanwhile_is_not_overwritten() {
        let root = tempfile::tempdir().expect("temporary folder");
        let target = root.path().join("model");
        let result = write_folder(&SystemDisk, &target, OnExisting::Refuse, |folder| {
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
            let error = write_folder(&SystemDisk, Path::new(target), OnExisting::Replace, |_| Ok(()))
                .expect_err(target);
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn the_manifest_tells_what_was_written() {
        let root = tempfile::tempdir().expect("temporary folder");
        let target = root.path().join("model");
        let long: Vec<u8> = (0..3 * NewFile::BUFFER_BYTES).map(|i| (i % 251) as u8).collect();
        write_folder(&SystemDisk, &target, OnExisting::Refuse, |folder| {
            folder.file("sub/long", |file| {
                let pieces = [&long[..10], &long[10..long.len() - 7], &long[long.len() - 7..]];
                pieces.iter().try_for_each(|piece| file.write_all(piece)).expect("written");
                Ok(())
            })?;
            folder.bytes("empty", b"")?;
            for outside in ["../x", "/x", ""] {
                assert_eq!(folder.bytes(outside, b"").expect_err("outside").exit_code(), 1);
            }
            folder.manifest()
        })
        .expect("written");
        assert!(fs::read(target.join("sub/long")).expect("read") == long);
        Manifest::verify(&target).expect("whole");
        fs::write(target.join("empty"), "x").expect("damaged");
        assert!(Manifest::verify(&target).expect_err("damaged").to_string().contains("empty"));
    }

    #[cfg(unix)]
    #[test]
    fn a_parent_that_is_a_file_is_an_io_error() {
        let root = tempfile::tempdir().expect("temporary folder");
        fs::write(root.path().join("file"), "x").expect("write");
        let target = root.path().join("file/model");
        assert_eq!(
            write_folder(&SystemDisk, &target, OnExisting::Refuse, |_| Ok(()))
                .expect_err("no folder")
                .exit_code(),
            74
        );
    }
}
