//! `MANIFEST.json`: sizes and checksums of a folder's files, written last. A folder without one, or with one that does
//! not hold, is no checkpoint.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3Default;

use crate::error::{Error, Result};
use crate::files::read_json;

/// The manifest's name.
pub const MANIFEST: &str = "MANIFEST.json";

/// The layout of checkpoints that this version writes; it reads no other.
pub const FORMAT_VERSION: u64 = 1;

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Length.
    bytes: u64,
    /// XXH3 of the content, 128 bits, as 32 hexadecimal digits: it finds damage, not forgery.
    xxh3_128: String,
}

impl FileRecord {
    /// A file of so many bytes with this hash.
    pub fn new(bytes: u64, hash: u128) -> Self {
        FileRecord { bytes, xxh3_128: format!("{hash:032x}") }
    }

    /// Reads a file.
    fn of(path: &Path) -> std::io::Result<Self> {
        let mut file = File::open(path)?;
        let (mut hasher, mut bytes, mut buffer) = (Xxh3Default::new(), 0, vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(FileRecord::new(bytes, hasher.digest128())),
                n => {
                    hasher.update(&buffer[..n]);
                    bytes += n as u64;
                }
            }
        }
    }
}

/// Why a folder is no checkpoint to resume from: the end of a sentence that begins with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Not written to its end, or changed since.
    Damaged(String),
    /// Written by another version of this program.
    OtherVersion(String),
}

impl std::fmt::Display for Flaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Flaw::Damaged(reason) | Flaw::OtherVersion(reason)) = self;
        f.write_str(reason)
    }
}

/// All files of a folder but the manifest itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format_version: u64,
    files: BTreeMap<String, FileRecord>,
}

impl Manifest {
    /// A manifest of these files, by their paths inside the folder.
    pub fn of(files: BTreeMap<String, FileRecord>) -> Self {
        Manifest { format_version: FORMAT_VERSION, files }
    }

    /// The file's text.
    ///
    /// # Errors
    /// [`Error::Internal`] if it is not JSON.
    pub fn to_json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self);
        text.map(|text| text + "\n").map_err(|e| Error::Internal(format!("a manifest as JSON: {e}")))
    }

    /// Reads every file of `dir` and compares. Files that the manifest doesn't name are a user's own.
    ///
    /// # Errors
    /// Why the folder is no checkpoint to resume from.
    pub fn verify(dir: &Path) -> std::result::Result<(), Flaw> {
        let manifest = Manifest::read(dir)?;
        manifest.compare(dir).map_err(Flaw::Damaged)
    }

    fn read(dir: &Path) -> std::result::Result<Manifest, Flaw> {
        let path = dir.join(MANIFEST);
        if !path.exists() {
            return Err(Flaw::Damaged(format!("has no {MANIFEST}, so it was not written to its end")));
        }
        let damaged = |reason: String| Flaw::Damaged(format!("has a {MANIFEST} that {reason}"));
        let value = read_json(&path).map_err(|e| damaged(format!("cannot be read ({e})")))?;
        match value.get("format_version").and_then(serde_json::Value::as_u64) {
            Some(FORMAT_VERSION) => {}
            Some(version) => {
                return Err(Flaw::OtherVersion(format!(
                    "has format_version {version}, and this program reads version {FORMAT_VERSION}: resume with the \
                     othink-train that wrote it"
                )));
            }
            None => return Err(damaged("has no format_version".into())),
        }
        serde_json::from_value(value).map_err(|e| damaged(format!("is broken ({e})")))
    }

    fn compare(&self, dir: &Path) -> std::result::Result<(), String> {
        for (name, expected) in &self.files {
            let path = dir.join(name);
            let Ok(metadata) = path.metadata() else {
                return Err(format!("lacks {name}"));
            };
            if !metadata.is_file() {
                return Err(format!("has a {name} that is no file"));
            }
            if metadata.len() != expected.bytes {
                return Err(format!(
                    "has a {name} of {} bytes, and {} were written",
                    metadata.len(),
                    expected.bytes
                ));
            }
            let found =
                FileRecord::of(&path).map_err(|e| format!("has a {name} that cannot be read ({e})"))?;
            if found != *expected {
                return Err(format!("has a damaged {name}: its checksum is not the one that was written"));
            }
        }
        Ok(())
    }
}
