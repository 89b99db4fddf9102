//! What changes files and folders: one seam for everything that a run keeps, so that tests can make any single
//! operation fail, or lose what was not forced to disk.
//!
//! Reading goes past it: what is read is checked, so a fault shows there. So do the lock of a run's folder, which the
//! system keeps, and what can be made again from what is kept: the report, and the demo around its run.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// The operations. [`SystemDisk`] performs them; each is atomic or not as the operating system's is.
pub trait Disk: Debug + Send + Sync {
    /// Creates one folder, whose parent is there.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Creates a file, or empties the one that is there. Its mode is that of the umask.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file that is there to write behind its first `length` bytes; what follows them goes.
    fn append(&self, path: &Path, length: u64) -> io::Result<Box<dyn DiskFile>>;

    /// Forces a file's content, or a folder's list of names, to disk.
    fn sync(&self, path: &Path) -> io::Result<()>;

    /// Moves a file or folder within a file system; a file takes the place of one that is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes a folder and all that is in it; links in it are removed, not followed.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Waits before something that failed is tried again.
    fn pause(&self, time: Duration) {
        thread::sleep(time);
    }

    /// Bytes that this user may still write below `path`; `None` where the system does not say.
    fn free_bytes(&self, path: &Path) -> io::Result<Option<u64>>;
}

/// An open file.
pub trait DiskFile: Debug + Send + Write {
    /// Cuts the file to `length` bytes; the next write goes behind them.
    fn truncate(&mut self, length: u64) -> io::Result<()>;

    /// Forces the content to disk. After an error it is unknown what is there: the file has to be written anew.
    fn sync(&mut self) -> io::Result<()>;
}

/// The operating system's file systems.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(File::create(path)?))
    }

    fn append(&self, path: &Path, length: u64) -> io::Result<Box<dyn DiskFile>> {
        let mut file = OpenOptions::new().append(true).open(path)?;
        DiskFile::truncate(&mut file, length)?;
        Ok(Box::new(file))
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        // Only Unix opens folders; elsewhere the system orders renames itself.
        if cfg!(unix) || path.is_file() { File::open(path)?.sync_all() } else { Ok(()) }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    #[cfg(unix)]
    fn free_bytes(&self, path: &Path) -> io::Result<Option<u64>> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(Some(stat.f_bavail.saturating_mul(stat.f_frsize)))
    }

    #[cfg(not(unix))]
    fn free_bytes(&self, _: &Path) -> io::Result<Option<u64>> {
        Ok(None)
    }
}

impl DiskFile for File {
    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)?;
        io::Seek::seek(self, io::SeekFrom::Start(length)).map(drop)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_cut_and_continued() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut file = SystemDisk.create(&path).unwrap();
        file.write_all(b"one two three").unwrap();
        file.truncate(4).unwrap();
        file.write_all(b"2").unwrap();
        file.sync().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one 2");
        let mut file = SystemDisk.append(&path, 3).unwrap();
        file.write_all(b"!").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one!");
        assert!(SystemDisk.append(&dir.path().join("none"), 0).is_err());
        SystemDisk.sync(dir.path()).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn free_space_is_known() {
        let dir = tempfile::tempdir().unwrap();
        assert!(SystemDisk.free_bytes(dir.path()).unwrap().is_some_and(|bytes| bytes > 0));
    }
}
