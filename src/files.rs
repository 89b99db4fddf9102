//! Reading what strangers send: bounded, from regular files, and from inside their folder.

mod json;

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

pub use json::{MAX_JSON_BYTES, parse_json, read_json, read_json_object, shown};

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// [`Error::Missing`] if it is not there, [`Error::Content`] if it is no regular file (a pipe would
/// hang, a device never end) or larger than `limit`, [`Error::Io`] if the system refuses.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, length) = open_regular(path)?;
    let too_long = |length: u64| {
        Error::content(path, format!("is {length} bytes long; at most {limit} are read from this file"))
    };
    if length > limit {
        return Err(too_long(length));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    // One byte more than allowed, so that a file that grows meanwhile is noticed too.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| Error::io(path, "read", e))?;
    if bytes.len() as u64 > limit {
        return Err(too_long(bytes.len() as u64));
    }
    Ok(bytes)
}

/// Opens a regular file, and gives its length in bytes.
///
/// # Errors
/// [`Error::Missing`] if it is not there, [`Error::Content`] if it is no regular file,
/// [`Error::Io`] if the system refuses.
pub fn open_regular(path: &Path) -> Result<(File, u64)> {
    // Asked before opening: opening a FIFO would wait for a writer.
    let metadata = fs::metadata(path).map_err(|e| Error::io(path, "read", e))?;
    if !metadata.is_file() {
        return Err(not_regular(path, &metadata));
    }
    let file = File::open(path).map_err(|e| Error::io(path, "read", e))?;
    let length = file.metadata().map_err(|e| Error::io(path, "read", e))?.len();
    Ok((file, length))
}

/// Reads at `offset` into `buffer`, whatever place other readers of the file have come to; 0 bytes at its end.
///
/// # Errors
/// The system's.
pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    loop {
        #[cfg(unix)]
        let read = std::os::unix::fs::FileExt::read_at(file, buffer, offset);
        #[cfg(windows)]
        let read = std::os::windows::fs::FileExt::seek_read(file, buffer, offset);
        match read {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Up to `bytes` bytes from `at` on; fewer only at the end of the file.
///
/// # Errors
/// The system's.
pub fn read_up_to(file: &File, at: u64, bytes: usize) -> std::io::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    let mut filled = 0;
    while filled < bytes {
        match read_at(file, &mut buffer[filled..], at + filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}

fn not_regular(path: &Path, metadata: &fs::Metadata) -> Error {
    let kind = if metadata.is_dir() { "a folder" } else { "a pipe, socket or device" };
    Error::content(path, format!("is {kind}, not a regular file"))
}

/// The path of file `name` of the folder `dir`, or `None` if there is no such file.
///
/// Nothing is opened: whatever is not a regular file inside `dir` (or a blob of the Hugging Face
/// cache that `dir` is a snapshot of) is refused by looking at its path and kind alone. The cache
/// keeps each file once under `models--ORG--NAME/blobs/<hash>` and gives it its name by a symbolic
/// link in `models--ORG--NAME/snapshots/<commit>/`. Those links are the only ones that may lead out
/// of a folder: any other would let a downloaded folder make us read files of the machine.
///
/// # Errors
/// [`Error::Content`] if `name` is not a relative path below `dir`, if a symbolic link leads out of
/// the folder or nowhere, or if it is no regular file.
pub fn file_inside(dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    let relative = Path::new(name);
    let stays = !name.is_empty()
        && !name.contains('\0')
        && relative.components().all(|part| matches!(part, Component::Normal(_)));
    if !stays {
        return Err(Error::content(
            dir,
            format!("names the file {name:?}, which is not inside the folder; it was not opened"),
        ));
    }
    let path = dir.join(relative);
    match fs::symlink_metadata(&path) {
        Ok(_) => {}
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(Error::io(&path, "read", e)),
    }
    let root = fs::canonicalize(dir).map_err(|e| Error::io(dir, "read the folder", e))?;
    let real = match fs::canonicalize(&path) {
        Ok(real) => real,
        Err(e) if e.kind() == ErrorKind::PermissionDenied => return Err(Error::io(&path, "read", e)),
        Err(_) => {
            return Err(Error::content(
                &path,
                "is a symbolic link that leads nowhere; fetch the model again (an interrupted `hf download` leaves such links)",
            ));
        }
    };
    if !real.starts_with(&root) && !is_cache_blob(&root, &real) {
        return Err(Error::content(
            &path,
            format!(
                "is a symbolic link out of the folder, to {}; it was not opened (copy the file into the folder)",
                real.display()
            ),
        ));
    }
    let kind = fs::metadata(&real).map_err(|e| Error::io(&path, "read", e))?;
    if !kind.is_file() {
        return Err(not_regular(&path, &kind));
    }
    Ok(Some(path))
}

/// Whether `real` is a blob of the cached repository that the folder `root` is a snapshot of.
/// Both paths are canonical.
fn is_cache_blob(root: &Path, real: &Path) -> bool {
    let Some(snapshots) = root.parent().filter(|p| p.file_name().is_some_and(|n| n == "snapshots")) else {
        return false;
    };
    let Some(repository) = snapshots.parent() else { return false };
    let name = repository.file_name().and_then(|n| n.to_str()).unwrap_or("");
    let is_cached = name.starts_with("models--") || name.starts_with("datasets--");
    is_cached && real.parent() == Some(repository.join("blobs").as_path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_file_is_not_read_whole() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("config.json");
        // Sparse: 200 MB that take no disk.
        File::create(&path).expect("create").set_len(200_000_000).expect("size");
        let error = read_json(&path).expect_err("too large");
        assert_eq!(error.exit_code(), 65);
        assert!(error.to_string().contains("200000000 bytes"), "{error}");
    }

    #[test]
    fn a_folder_is_no_file() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let error = read_json(dir.path()).expect_err("folder");
        assert!(error.exit_code() == 65 && error.to_string().contains("is a folder"), "{error}");
        assert_eq!(read_json(&dir.path().join("no.json")).expect_err("absent").exit_code(), 66);
    }

    #[cfg(unix)]
    #[test]
    fn case_17_only_cache_links_leave_the_folder() {
        use std::os::unix::fs::symlink;
        let temp = tempfile::tempdir().expect("temporary folder");
        let repository = temp.path().join("models--o--n");
        let folder = repository.join("snapshots").join("c0");
        fs::create_dir_all(&folder).expect("create");
        fs::create_dir_all(repository.join("blobs")).expect("create");
        fs::write(repository.join("blobs/beef"), "blob").expect("write");
        fs::write(repository.join("secret"), "secret").expect("write");
        fs::write(folder.join("plain"), "plain").expect("write");
        symlink("../../blobs/beef", folder.join("config.json")).expect("link");
        symlink("../../secret", folder.join("out")).expect("link");
        symlink("/etc/hostname", folder.join("absolute")).expect("link");
        symlink("plain", folder.join("within")).expect("link");
        symlink("../../blobs/gone", folder.join("dangling")).expect("link");
        symlink("loop", folder.join("loop")).expect("link");
        fs::create_dir(folder.join("folder")).expect("create");

        for name in ["config.json", "plain", "within"] {
            assert_eq!(file_inside(&folder, name).expect(name), Some(folder.join(name)));
        }
        for name in
            ["out", "absolute", "dangling", "loop", "folder", "../c0/plain", "/etc/hostname", "", ".", "a\0b"]
        {
            let error = file_inside(&folder, name).expect_err(name);
            assert_eq!(error.exit_code(), 65, "{name}: {error}");
        }
        assert_eq!(file_inside(&folder, "absent").expect("no error"), None);
        assert_eq!(file_inside(&folder, "plain/below").expect("no error"), None);

        // The same relative link in a folder that is no snapshot is refused.
        let other = temp.path().join("copy/snapshots/c0");
        fs::create_dir_all(&other).expect("create");
        fs::create_dir_all(temp.path().join("copy/blobs")).expect("create");
        fs::write(temp.path().join("copy/blobs/beef"), "blob").expect("write");
        symlink("../../blobs/beef", other.join("config.json")).expect("link");
        assert_eq!(file_inside(&other, "config.json").expect_err("not a cache").exit_code(), 65);

        // A link to the snapshot folder itself is the user's own choice.
        symlink(&folder, temp.path().join("mine")).expect("link");
        assert!(file_inside(&temp.path().join("mine"), "config.json").expect("cache").is_some());
    }
}
