//! Reading `.safetensors` files.
//!
//! A file is `N` (8 bytes, little endian), `N` bytes of JSON that give each tensor's dtype, shape
//! and byte range, then the data. The `safetensors` crate checks that the ranges fit the shapes and
//! cover the data without hole or overlap; what it lets pass is checked here first: a tensor named
//! twice, headers that take seconds to parse, and a length other than the header promises (reported
//! with both lengths).
//!
//! The files are read, not mapped: touching a map of a file that somebody cuts short meanwhile
//! ends the process, and no program can rule that out. A tensor's bytes are read into anonymous
//! memory of their own, decoded, and given back.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use half::{bf16, f16};
use memmap2::MmapMut;
use rayon::prelude::*;
use safetensors::tensor::Metadata;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::{Error, Result};
use crate::files::open_regular;

pub use safetensors::Dtype;

/// Longest header read, bytes (the format itself allows 100 MB).
pub const MAX_HEADER_BYTES: u64 = 32 << 20;
/// Most tensors in one file, and in all shards of a model.
pub const MAX_TENSORS: usize = 200_000;
/// Longest name of a tensor, bytes.
const MAX_NAME_BYTES: usize = 1024;

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
        let (mut file, length) = open_regular(path)?;
        let version = FileVersion::of(path, &file)?;
        let header = read_header(path, &mut file, length)?;
        let data_start = check_layout(path, &header, length)?;
        let metadata: Metadata = serde_json::from_slice(&header)
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

    /// Opens the file to read tensors from it.
    ///
    /// # Errors
    /// [`Error::Content`] if the file is not the one whose header was read.
    pub fn read(&self) -> Result<TensorReader<'_>> {
        let (file, _) = open_regular(&self.path)?;
        let reader = TensorReader { header: self, file: Mutex::new(file) };
        reader.check_unchanged()?;
        Ok(reader)
    }
}

/// An open [`SafetensorsFile`].
pub struct TensorReader<'a> {
    header: &'a SafetensorsFile,
    file: Mutex<File>,
}

impl TensorReader<'_> {
    /// The stored bytes of `tensor` (little endian, row-major).
    ///
    /// # Errors
    /// [`Error::Content`] if the file was cut short since its header was read; [`Error::Io`].
    pub fn bytes(&self, tensor: &TensorEntry) -> Result<TensorBytes> {
        let path = &self.header.path;
        let (start, end) = tensor.range;
        let length = end.saturating_sub(start);
        let mut bytes = TensorBytes::zeros(length).map_err(|e| Error::io(path, "get memory for", e))?;
        let mut file = self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let at = self.header.data_start.saturating_add(start) as u64;
        let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(bytes.slots()));
        match read {
            Ok(()) => Ok(bytes),
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Err(changed(path)),
            Err(e) => Err(Error::io(path, "read", e)),
        }
    }

    /// Fails if the file is not as it was when its header was read: call it after the last tensor.
    ///
    /// # Errors
    /// [`Error::Content`] then; [`Error::Io`].
    pub fn check_unchanged(&self) -> Result<()> {
        let file = self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if FileVersion::of(&self.header.path, &file)? != self.header.version {
            return Err(changed(&self.header.path));
        }
        Ok(())
    }

    /// The values of an f32, bf16 or f16 tensor as f32 (exact).
    ///
    /// # Errors
    /// [`Error::Content`] for any other dtype, naming the tensor.
    pub fn read_f32(&self, tensor: &TensorEntry) -> Result<Vec<f32>> {
        let bytes = &*self.bytes(tensor)?;
        match tensor.dtype {
            Dtype::F32 => Ok(decode(bytes, f32::from_le_bytes)),
            Dtype::BF16 => Ok(decode(bytes, |b| bf16::from_le_bytes(b).to_f32())),
            Dtype::F16 => Ok(decode(bytes, |b| f16::from_le_bytes(b).to_f32())),
            other => Err(Error::content(
                &self.header.path,
                format!(
                    "tensor {:?} is stored as {other}; only F32, BF16 and F16 weights can be loaded, so dequantise first",
                    tensor.name
                ),
            )),
        }
    }

    /// The values of an f64 tensor.
    ///
    /// # Errors
    /// [`Error::Content`] for any other dtype, naming the tensor.
    pub fn read_f64(&self, tensor: &TensorEntry) -> Result<Vec<f64>> {
        let bytes = &*self.bytes(tensor)?;
        match tensor.dtype {
            Dtype::F64 => Ok(decode(bytes, f64::from_le_bytes)),
            other => Err(Error::content(
                &self.header.path,
                format!("tensor {:?} is stored as {other}; F64 was expected", tensor.name),
            )),
        }
    }

    /// The values of a whole-number tensor (u8, i8, i16, i32, u32 or i64) as i64 (exact).
    ///
    /// # Errors
    /// [`Error::Content`] for any other dtype, naming the tensor.
    pub fn read_i64(&self, tensor: &TensorEntry) -> Result<Vec<i64>> {
        let bytes = &*self.bytes(tensor)?;
        match tensor.dtype {
            Dtype::U8 => Ok(decode(bytes, |b| u8::from_le_bytes(b).into())),
            Dtype::I8 => Ok(decode(bytes, |b| i8::from_le_bytes(b).into())),
            Dtype::I16 => Ok(decode(bytes, |b| i16::from_le_bytes(b).into())),
            Dtype::I32 => Ok(decode(bytes, |b| i32::from_le_bytes(b).into())),
            Dtype::U32 => Ok(decode(bytes, |b| u32::from_le_bytes(b).into())),
            Dtype::I64 => Ok(decode(bytes, i64::from_le_bytes)),
            other => Err(Error::content(
                &self.header.path,
                format!("tensor {:?} is stored as {other}; whole numbers were expected", tensor.name),
            )),
        }
    }
}

/// The stored bytes of one tensor.
pub struct TensorBytes(Memory);

enum Memory {
    /// Of a small tensor: a mapping of its own would cost more than reading it.
    Heap(Vec<u8>),
    /// Given back to the system as soon as the tensor is decoded.
    Mapped(MmapMut),
}

impl TensorBytes {
    fn zeros(length: usize) -> io::Result<Self> {
        const MAPPED_FROM: usize = 1 << 20;
        let small = length < MAPPED_FROM;
        Ok(Self(if small {
            Memory::Heap(vec![0; length])
        } else {
            Memory::Mapped(MmapMut::map_anon(length)?)
        }))
    }

    fn slots(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Memory::Heap(bytes) => bytes,
            Memory::Mapped(bytes) => bytes,
        }
    }
}

impl Deref for TensorBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Memory::Heap(bytes) => bytes,
            Memory::Mapped(bytes) => bytes,
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

impl FileVersion {
    fn of(path: &Path, file: &File) -> Result<Self> {
        let metadata = file.metadata().map_err(|e| Error::io(path, "read", e))?;
        Ok(Self { bytes: metadata.len(), modified: metadata.modified().ok() })
    }
}

fn changed(path: &Path) -> Error {
    Error::content(path, "was changed while it was being loaded; try again")
}

/// The JSON at the start of a file of `length` bytes.
fn read_header(path: &Path, file: &mut File, length: u64) -> Result<Vec<u8>> {
    let refuse = |message: String| Err(Error::content(path, message));
    if length < 8 {
        return refuse(format!(
            "is {length} bytes long, and a safetensors file begins with the 8 bytes of its header's length; fetch it again"
        ));
    }
    let mut header_bytes = [0; 8];
    file.read_exact(&mut header_bytes).map_err(|e| Error::io(path, "read", e))?;
    let header_bytes = u64::from_le_bytes(header_bytes);
    if header_bytes > MAX_HEADER_BYTES {
        return refuse(format!(
            "says its header is {header_bytes} bytes long; at most {MAX_HEADER_BYTES} are read (is it a safetensors file?)"
        ));
    }
    if header_bytes > length - 8 {
        return refuse(format!(
            "says its header is {header_bytes} bytes long, but only {} bytes follow: the file is truncated, fetch it again",
            length - 8
        ));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header).map_err(|e| Error::io(path, "read", e))?;
    Ok(header)
}

/// The checks that the `safetensors` crate leaves to its caller. Gives the offset of the data in a
/// file of `actual` bytes.
fn check_layout(path: &Path, header: &[u8], actual: u64) -> Result<usize> {
    let refuse = |message: String| Err(Error::content(path, message));
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
    let data_start = 8 + header.len();
    let Some(expected) = extent.data_end.checked_add(data_start as u64) else {
        return refuse("has a header with a byte range beyond 2^64".into());
    };
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
                    if name.len() > MAX_NAME_BYTES {
                        let length = name.len();
                        return Err(serde::de::Error::custom(format!("a tensor name of {length} bytes")));
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
mod tests;
