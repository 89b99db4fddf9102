//! Reading files that somebody else may have made.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// Opens a file after making sure that it is a regular one: opening a pipe would wait for a writer, reading a device
/// need not end. Gives the file and its length in bytes.
///
/// # Errors
/// [`Error::Missing`], [`Error::Io`], and [`Error::Content`] for anything but a regular file.
pub(crate) fn open_regular_file(path: &Path) -> Result<(File, u64)> {
    let metadata = fs::metadata(path).map_err(|e| Error::io(path, "read", e))?;
    if !metadata.is_file() {
        let kind = if metadata.is_dir() { "a folder" } else { "a pipe, socket or device" };
        return Err(Error::content(path, format!("expected a regular file, found {kind}")));
    }
    let file = File::open(path).map_err(|e| Error::io(path, "read", e))?;
    Ok((file, metadata.len()))
}

/// The whole of a regular file of at most `max_bytes`.
///
/// # Errors
/// As [`open_regular_file`], and [`Error::Content`] for a longer file.
pub(crate) fn read_regular_file(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let too_long =
        |length: u64| Error::content(path, format!("file of {length} bytes; at most {max_bytes} are read"));
    let (file, length) = open_regular_file(path)?;
    if length > max_bytes {
        return Err(too_long(length));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    // One byte more than allowed, so that a file that grew since it was opened is noticed.
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, "read", e))?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_long(bytes.len() as u64));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, b"abc").unwrap();
        assert_eq!(read_regular_file(&path, 3).unwrap(), b"abc");
        let message = read_regular_file(&path, 2).unwrap_err().to_string();
        assert!(message.contains("file of 3 bytes; at most 2 are read"), "{message}");
        assert_eq!(read_regular_file(&dir.path().join("b"), 3).unwrap_err().exit_code(), 66);
    }

    #[cfg(unix)]
    #[test]
    fn pipes_devices_and_folders_are_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for (path, kind) in
            [(pipe.as_path(), "a pipe"), (Path::new("/dev/zero"), "device"), (dir.path(), "a folder")]
        {
            let error = read_regular_file(path, 10).unwrap_err();
            assert!(error.exit_code() == 65 && error.to_string().contains(kind), "{error}");
        }
    }
}
