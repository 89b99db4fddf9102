//! Reading `.safetensors` files.
//!
//! A file is `N` (8 bytes, little endian), `N` bytes of JSON that give each tensor's dtype, shape
//! and byte range, then the data. The `safetensors` crate checks that the ranges fit the shapes and
//! cover the data without hole or overlap; what it lets pass is checked here first: a tensor named
//! twice, headers that take seconds to parse, and a length other than the header promises (reported
//! with both lengths).
//!
//! The data is copied out of a short-lived memory map. Nothing keeps a map while training runs:
//! a file that is cut short while mapped would end the process.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::SafeTensors;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::{Error, Result};

pub use safetensors::Dtype;

/// Longest header read, bytes (the format itself allows 100 MB).
pub const MAX_HEADER_BYTES: u64 = 32 << 20;
/// Most tensors in one file.
pub const MAX_TENSORS: usize = 200_000;

/// What the header says of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorEntry {
    /// Name in the file. Any text, so never part of a path, and shown escaped.
    pub name: String,
    /// Element type in the file.
    pub dtype: Dtype,
    /// Shape, row-major.
    pub shape: Vec<usize>,
    /// Byte range, counted from the end of the header.
    range: (usize, usize),
}

/// A safetensors file whose header has been read and checked. No data is held.
#[derive(Clone, Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    /// The file as it was when the header was checked.
    version: FileVersion,
    /// Where the data starts.
    data_start: usize,
    /// Sorted by place in the file.
    tensors: Vec<TensorEntry>,
    /// Index into `tensors`.
    by_name: HashMap<String, usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct FileVersion {
    bytes: u64,
    modified: Option<SystemTime>,
}

impl SafetensorsFile {
    /// Reads and checks the header of `path`.
    ///
    /// # Errors
    /// [`Error::Missing`] if it is not there; [`Error::Content`] if it is no regular file, is
    /// truncated or has trailing bytes, or its header breaks any rule of the format.
    pub fn open(path: &Path) -> Result<Self> {
        let (map, version) = map_file(path)?;
        let data_start = check_layout(path, &map)?;
        let (_, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|e| Error::content(path, format!("is not valid safetensors: {e}")))?;
        let mut tensors: Vec<TensorEntry> = metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| TensorEntry {
                name,
                dtype: info.dtype,
                shape: info.shape.clone(),
                range: info.data_offsets,
            })
            .collect();
        tensors.sort_by(|a, b| a.range.cmp(&b.range).then_with(|| a.name.cmp(&b.name)));
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(Self { path: path.to_path_buf(), version, data_start, tensors, by_name })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the whole file, bytes.
    pub fn bytes(&self) -> u64 {
        self.version.bytes
    }

    /// Every tensor, in the order of the data.
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.by_name.get(name).and_then(|&i| self.tensors.get(i))
    }

    /// Maps the file to copy tensors out of it. Drop the map soon (see the module's note).
    ///
    /// # Errors
    /// [`Error::Content`] if the file is not the one whose header was read.
    pub fn map(&self) -> Result<MappedTensors<'_>> {
        let (map, version) = map_file(&self.path)?;
        if version != self.version {
            return Err(Error::content(&self.path, "was changed while it was being loaded; try again"));
        }
        Ok(MappedTensors { file: self, map })
    }
}

/// The data of a [`SafetensorsFile`], for as long as it takes to copy it.
pub struct MappedTensors<'a> {
    file: &'a SafetensorsFile,
    map: Mmap,
}

impl MappedTensors<'_> {
    /// The stored bytes of `tensor` (little endian, row-major).
    ///
    /// # Errors
    /// [`Error::Internal`] if `tensor` is not of this file.
    pub fn bytes(&self, tensor: &TensorEntry) -> Result<&[u8]> {
        let (start, end) = tensor.range;
        let start = self.file.data_start.saturating_add(start);
        let end = self.file.data_start.saturating_add(end);
        self.map.get(start..end).ok_or_else(|| {
            Error::Internal(format!("tensor {:?} is not of {}", tensor.name, self.file.path.display()))
        })
    }

    /// The values of an f32, bf16 or f16 tensor as f32 (exact).
    ///
    /// # Errors
    /// [`Error::Content`] for any other dtype, naming the tensor.
    pub fn read_f32(&self, tensor: &TensorEntry) -> Result<Vec<f32>> {
        let bytes = self.bytes(tensor)?;
        match tensor.dtype {
            Dtype::F32 => Ok(decode(bytes, f32::from_le_bytes)),
            Dtype::BF16 => Ok(decode(bytes, |b| bf16::from_le_bytes(b).to_f32())),
            Dtype::F16 => Ok(decode(bytes, |b| f16::from_le_bytes(b).to_f32())),
            other => Err(Error::content(
                &self.file.path,
                format!(
                    "tensor {:?} is stored as {other}; only F32, BF16 and F16 weights can be loaded, so dequantise first",
                    tensor.name
                ),
            )),
        }
    }

    /// The values of a whole-number tensor (u8, i8, i16, i32, u32 or i64) as i64 (exact).
    ///
    /// # Errors
    /// [`Error::Content`] for any other dtype, naming the tensor.
    pub fn read_i64(&self, tensor: &TensorEntry) -> Result<Vec<i64>> {
        let bytes = self.bytes(tensor)?;
        match tensor.dtype {
            Dtype::U8 => Ok(decode(bytes, |b| u8::from_le_bytes(b).into())),
            Dtype::I8 => Ok(decode(bytes, |b| i8::from_le_bytes(b).into())),
            Dtype::I16 => Ok(decode(bytes, |b| i16::from_le_bytes(b).into())),
            Dtype::I32 => Ok(decode(bytes, |b| i32::from_le_bytes(b).into())),
            Dtype::U32 => Ok(decode(bytes, |b| u32::from_le_bytes(b).into())),
            Dtype::I64 => Ok(decode(bytes, i64::from_le_bytes)),
            other => Err(Error::content(
                &self.file.path,
                format!("tensor {:?} is stored as {other}; whole numbers were expected", tensor.name),
            )),
        }
    }
}

/// Decodes elements of `N` bytes; the header check has made the length a multiple of `N`.
fn decode<const N: usize, T: Copy + Default + Send + Sync>(
    bytes: &[u8],
    from_le_bytes: impl Fn([u8; N]) -> T + Send + Sync,
) -> Vec<T> {
    // Large enough to pay for a task, small enough to spread one embedding matrix over all cores.
    const CHUNK: usize = 1 << 18;
    let mut values = vec![T::default(); bytes.len() / N];
    values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * N)).for_each(|(values, bytes)| {
        for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<N>().0) {
            *value = from_le_bytes(*bytes);
        }
    });
    values
}

/// Maps a regular file, and says which version of it is mapped.
#[allow(unsafe_code)]
fn map_file(path: &Path) -> Result<(Mmap, FileVersion)> {
    // Asked before opening: opening a FIFO would wait for a writer.
    let metadata = fs::metadata(path).map_err(|e| Error::io(path, "read", e))?;
    if !metadata.is_file() {
        return Err(Error::content(path, "is not a regular file"));
    }
    let file = File::open(path).map_err(|e| Error::io(path, "read", e))?;
    let metadata = file.metadata().map_err(|e| Error::io(path, "read", e))?;
    if metadata.len() < 8 {
        return Err(Error::content(
            path,
            format!(
                "is {} bytes long, and a safetensors file begins with the 8 bytes of its header's length; fetch it again",
                metadata.len()
            ),
        ));
    }
    // SAFETY: the map is read-only, private to this process's view and only lives while tensors are
    // copied out of it; every access goes through the slice of exactly the mapped length, which is the
    // file's length just read. Bytes that another process overwrites meanwhile are read as plain
    // bytes (any bit pattern is a valid u8), and a file cut short meanwhile ends the process with
    // SIGBUS instead of giving wrong memory.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "map", e))?;
    let version = FileVersion { bytes: metadata.len(), modified: metadata.modified().ok() };
    if map.len() as u64 != version.bytes {
        return Err(Error::content(path, "was changed while it was being loaded; try again"));
    }
    Ok((map, version))
}

/// The checks that the `safetensors` crate leaves to its caller. Gives the offset of the data.
fn check_layout(path: &Path, file: &[u8]) -> Result<usize> {
    let refuse = |message: String| Err(Error::content(path, message));
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return refuse("is shorter than 8 bytes".into());
    };
    let header_bytes = u64::from_le_bytes(*length);
    if header_bytes > MAX_HEADER_BYTES {
        return refuse(format!(
            "says its header is {header_bytes} bytes long; at most {MAX_HEADER_BYTES} are read (is it a safetensors file?)"
        ));
    }
    let header_bytes = header_bytes as usize;
    let Some(header) = rest.get(..header_bytes) else {
        return refuse(format!(
            "says its header is {header_bytes} bytes long, but only {} bytes follow: the file is truncated, fetch it again",
            rest.len()
        ));
    };
    let header = match std::str::from_utf8(header) {
        Ok(header) => header,
        Err(e) => {
            return refuse(format!("has a header that is not UTF-8 text (byte {})", 8 + e.valid_up_to()));
        }
    };
    let extent: HeaderExtent = match serde_json::from_str(header) {
        Ok(extent) => extent,
        Err(e) => return refuse(format!("has a broken safetensors header: {e}")),
    };
    let data_start = 8 + header_bytes;
    let Some(expected) = extent.data_end.checked_add(data_start as u64) else {
        return refuse("has a header with a byte range beyond 2^64".into());
    };
    let actual = file.len() as u64;
    if actual < expected {
        return refuse(format!(
            "is truncated: its header promises {expected} bytes, the file has {actual}; fetch it again"
        ));
    }
    if actual > expected {
        return refuse(format!(
            "has {} trailing bytes: its header promises {expected} bytes, the file has {actual}; fetch it again",
            actual - expected
        ));
    }
    Ok(data_start)
}

/// How much data a header promises. Reading it refuses names given twice and too many tensors.
struct HeaderExtent {
    data_end: u64,
}

#[derive(Deserialize)]
struct RawEntry {
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for HeaderExtent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Header;
        impl<'de> Visitor<'de> for Header {
            type Value = HeaderExtent;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<HeaderExtent, A::Error> {
                let mut names = HashSet::new();
                let mut data_end = 0;
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        data_end = data_end.max(map.next_value::<RawEntry>()?.data_offsets.1);
                    }
                    if names.len() == MAX_TENSORS {
                        return Err(serde::de::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                    if let Some(name) = names.replace(name) {
                        return Err(serde::de::Error::custom(format!("tensor {name:?} is named twice")));
                    }
                }
                Ok(HeaderExtent { data_end })
            }
        }
        deserializer.deserialize_map(Header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn open(bytes: &[u8]) -> Result<SafetensorsFile> {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("model.safetensors");
        fs::write(&path, bytes).expect("write");
        SafetensorsFile::open(&path)
    }

    #[track_caller]
    fn refused(bytes: &[u8], wanted: &str) {
        let error = open(bytes).expect_err(wanted);
        assert_eq!(error.exit_code(), 65, "{error}");
        assert!(error.to_string().contains(wanted), "{wanted:?} is not in: {error}");
    }

    const TWO: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;

    #[test]
    fn lengths_that_cannot_be() {
        refused(b"", "is 0 bytes long");
        refused(b"1234567", "is 7 bytes long");
        refused(&u64::MAX.to_le_bytes(), "18446744073709551615 bytes");
        refused(&file("", b""), "broken safetensors header");
        refused(&1000u64.to_le_bytes(), "only 0 bytes follow");
        refused(&99_000_000u64.to_le_bytes(), "99000000 bytes");
        let start = 8 + TWO.len();
        refused(&file(TWO, &[0; 7]), &format!("promises {} bytes, the file has {}", start + 8, start + 7));
        refused(&file(TWO, &[0; 9]), "1 trailing bytes");
    }

    #[test]
    fn headers_that_break_the_rules() {
        refused(&file("[]", b""), "an object of tensors");
        refused(&file("{\"a\":", b""), "EOF");
        refused(&file("{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", b""), "data_offsets");
        let one = |entry: &str| format!("{{\"a\":{entry}}}");
        refused(&file(&one(r#"{"dtype":"F32","shape":[2],"data_offsets":[-8,8]}"#), &[0; 8]), "-8");
        refused(
            &file(&one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#), b""),
            "not valid safetensors",
        );
        refused(
            &file(&one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#), &[0; 8]),
            "not valid safetensors",
        );
        refused(&file(&one(r#"{"dtype":"Q4_K","shape":[2],"data_offsets":[0,8]}"#), &[0; 8]), "Q4_K");
        refused(
            &file(&one(r#"{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,8]}"#), &[0; 8]),
            "overflow",
        );
        refused(
            &file(&one(r#"{"dtype":"F32","shape":[],"data_offsets":[0,18446744073709551615]}"#), &[0; 8]),
            "beyond 2^64",
        );
        let pair = |b: &str| {
            format!(
                r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},"b":{{"dtype":"F32","shape":[2],"data_offsets":{b}}}}}"#
            )
        };
        refused(&file(&pair("[4,12]"), &[0; 12]), "invalid offset");
        refused(&file(&pair("[12,20]"), &[0; 20]), "invalid offset");
        let twice = TWO.replacen('}', "}, ", 1).trim_end_matches('}').to_owned() + &TWO[1..];
        refused(&file(&twice, &[0; 8]), "named twice");
        refused(&file(&format!("{{\"a\":{}", "[".repeat(100_000)), b""), "broken safetensors header");
        let mut not_text = file(TWO, &[0; 8]);
        not_text[10] = 0xff;
        refused(&not_text, "not UTF-8");
    }

    #[test]
    fn too_many_tensors_are_refused_quickly() {
        let mut header = String::from("{");
        for i in 0..400_000 {
            header += &format!("\"{i}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}},");
        }
        header.pop();
        header.push('}');
        refused(&file(&header, b""), "more than 200000 tensors");
    }

    #[test]
    fn empty_files_and_tensors_are_valid() {
        assert!(open(&file("{}", b"")).expect("valid").tensors().is_empty());
        let scalar =
            open(&file(r#"{"a":{"dtype":"U8","shape":[0,3],"data_offsets":[0,0]}}"#, b"")).expect("valid");
        assert_eq!(scalar.tensors()[0].shape, [0, 3]);
    }

    #[test]
    fn every_dtype_decodes_exactly() {
        // 1.5 is 0x3FC0 in bf16 and 0x3E00 in f16; -2 is 0xC000 in both.
        let header = r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"BF16","shape":[2],"data_offsets":[4,8]},"h":{"dtype":"F16","shape":[2],"data_offsets":[8,12]},"i":{"dtype":"I32","shape":[1],"data_offsets":[12,16]}} "#;
        let mut data = 0.1f32.to_le_bytes().to_vec();
        data.extend([0xC0, 0x3F, 0x00, 0xC0, 0x00, 0x3E, 0x00, 0xC0]);
        data.extend((-7i32).to_le_bytes());
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("x.safetensors");
        fs::write(&path, file(header, &data)).expect("write");
        let opened = SafetensorsFile::open(&path).expect("valid");
        let map = opened.map().expect("unchanged");
        let read = |name: &str| map.read_f32(opened.tensor(name).expect(name));
        assert_eq!(read("w").expect("f32"), [0.1]);
        assert_eq!(read("b").expect("bf16"), [1.5, -2.0]);
        assert_eq!(read("h").expect("f16"), [1.5, -2.0]);
        assert!(read("i").expect_err("i32").to_string().contains("dequantise first"));
        assert_eq!(map.read_i64(opened.tensor("i").expect("i")).expect("i32"), [-7]);
        assert_eq!(map.read_i64(opened.tensor("w").expect("w")).expect_err("f32").exit_code(), 65);
    }

    #[test]
    fn a_file_changed_after_its_header_was_read_is_noticed() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("x.safetensors");
        fs::write(&path, file(TWO, &[0; 8])).expect("write");
        let opened = SafetensorsFile::open(&path).expect("valid");
        fs::write(&path, file(TWO, &[0; 4])).expect("write");
        assert!(opened.map().err().expect("changed").to_string().contains("was changed"));
    }

    #[cfg(unix)]
    #[test]
    fn only_regular_files() {
        let dir = tempfile::tempdir().expect("temporary folder");
        assert_eq!(SafetensorsFile::open(dir.path()).expect_err("folder").exit_code(), 65);
        assert_eq!(SafetensorsFile::open(Path::new("/dev/zero")).expect_err("device").exit_code(), 65);
        assert_eq!(SafetensorsFile::open(&dir.path().join("no")).expect_err("absent").exit_code(), 66);
    }
}
