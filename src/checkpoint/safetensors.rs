//! Writing `.safetensors` files.
//!
//! The `safetensors` crate's writer neither forces the file to disk nor honours the umask (it leaves
//! mode 0600, so that another user's server cannot read the model). This one streams into any writer, and gives the
//! same bytes.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;
use std::str::FromStr;

use half::{bf16, f16};

use crate::error::{Error, Result};

/// Element types that parameters can be saved in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatDtype {
    /// IEEE single precision.
    F32,
    /// The upper half of an f32, rounded to nearest even.
    Bf16,
    /// IEEE half precision, rounded to nearest even.
    F16,
}

impl FloatDtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            FloatDtype::F32 => 4,
            FloatDtype::Bf16 | FloatDtype::F16 => 2,
        }
    }

    /// The name in `config.json`.
    pub fn torch_name(self) -> &'static str {
        match self {
            FloatDtype::F32 => "float32",
            FloatDtype::Bf16 => "bfloat16",
            FloatDtype::F16 => "float16",
        }
    }

    /// `data` as this type's stored values.
    pub fn values(self, data: &[f32]) -> Values<'_> {
        match self {
            FloatDtype::F32 => Values::F32(data),
            FloatDtype::Bf16 => Values::Bf16(data),
            FloatDtype::F16 => Values::F16(data),
        }
    }
}

impl FromStr for FloatDtype {
    type Err = Error;

    /// `float32`, `bfloat16`, `float16`, or the short forms `f32`, `bf16`, `f16`, `fp32`, `fp16`.
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "float32" | "f32" | "fp32" => Ok(FloatDtype::F32),
            "bfloat16" | "bf16" => Ok(FloatDtype::Bf16),
            "float16" | "f16" | "fp16" => Ok(FloatDtype::F16),
            other => Err(Error::Usage(format!(
                "{other:?} is no dtype to save in; choose float32, bfloat16 or float16"
            ))),
        }
    }
}

/// A tensor's values and the type they are stored in.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// Stored as they are.
    F32(&'a [f32]),
    /// Rounded to nearest even.
    Bf16(&'a [f32]),
    /// Rounded to nearest even.
    F16(&'a [f32]),
    /// Stored as they are.
    I32(&'a [i32]),
    /// Stored as they are.
    U8(&'a [u8]),
}

impl Values<'_> {
    fn len(&self) -> usize {
        match self {
            Values::F32(v) | Values::Bf16(v) | Values::F16(v) => v.len(),
            Values::I32(v) => v.len(),
            Values::U8(v) => v.len(),
        }
    }

    fn element_bytes(&self) -> usize {
        match self {
            Values::F32(_) | Values::I32(_) => 4,
            Values::Bf16(_) | Values::F16(_) => 2,
            Values::U8(_) => 1,
        }
    }

    fn dtype(&self) -> &'static str {
        match self {
            Values::F32(_) => "F32",
            Values::Bf16(_) => "BF16",
            Values::F16(_) => "F16",
            Values::I32(_) => "I32",
            Values::U8(_) => "U8",
        }
    }
}

/// One tensor to write.
#[derive(Clone, Copy, Debug)]
pub struct NamedTensor<'a> {
    /// Name in the file; unique.
    pub name: &'a str,
    /// Shape, row-major.
    pub shape: &'a [usize],
    /// Values; as many as the shape says.
    pub values: Values<'a>,
}

/// Writes a whole file to `out`; `path` is only for errors. Metadata is
/// `{"format": "pt"}`, which transformers asks for; tensors are ordered by element size, then name,
/// and the data starts at a multiple of 8, as the `safetensors` library writes them.
///
/// # Errors
/// [`Error::Input`] if a finite value is beyond the stored type's range; [`Error::Io`];
/// [`Error::Internal`] if a name comes twice or a shape does not fit its values.
pub fn write_safetensors(out: &mut dyn Write, path: &Path, tensors: &[NamedTensor]) -> Result<()> {
    let mut order: Vec<&NamedTensor> = tensors.iter().collect();
    order.sort_by(|a, b| {
        b.values.element_bytes().cmp(&a.values.element_bytes()).then_with(|| a.name.cmp(b.name))
    });
    let header = header(&order)?;
    let io = |e| Error::io(path, "write", e);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    out.write_all(header.as_bytes()).map_err(io)?;
    for tensor in order {
        match tensor.values {
            Values::F32(v) => write_values(out, v, |x| Some(x.to_le_bytes())),
            Values::Bf16(v) => write_values(out, v, |x| {
                let y = bf16::from_f32(x);
                (y.is_finite() || !x.is_finite()).then(|| y.to_le_bytes())
            }),
            Values::F16(v) => write_values(out, v, |x| {
                let y = f16::from_f32(x);
                (y.is_finite() || !x.is_finite()).then(|| y.to_le_bytes())
            }),
            Values::I32(v) => write_values(out, v, |x| Some(x.to_le_bytes())),
            Values::U8(v) => out.write_all(v).map(|()| None),
        }
        .map_err(io)?
        .map_or(Ok(()), |at| {
            Err(Error::Input(format!(
                "{}: tensor {:?} holds a value (element {at}) that {} cannot hold; save in bfloat16 or float32",
                path.display(),
                tensor.name,
                tensor.values.dtype()
            )))
        })?;
    }
    Ok(())
}

/// Writes `values` encoded; gives the index of the first that `encode` refuses (and stops there).
fn write_values<T: Copy, const N: usize>(
    out: &mut dyn Write,
    values: &[T],
    encode: impl Fn(T) -> Option<[u8; N]>,
) -> std::io::Result<Option<usize>> {
    const CHUNK: usize = 1 << 18;
    let mut bytes = Vec::with_capacity(CHUNK.min(values.len()) * N);
    for (n, chunk) in values.chunks(CHUNK).enumerate() {
        bytes.clear();
        for (i, value) in chunk.iter().enumerate() {
            match encode(*value) {
                Some(encoded) => bytes.extend_from_slice(&encoded),
                None => return Ok(Some(n * CHUNK + i)),
            }
        }
        out.write_all(&bytes)?;
    }
    Ok(None)
}

/// The JSON header of tensors in file order, padded with spaces to a multiple of 8.
fn header(order: &[&NamedTensor]) -> Result<String> {
    let mut text = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut names = HashSet::new();
    let mut start = 0usize;
    for tensor in order {
        let elements = tensor.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        if elements != Some(tensor.values.len()) {
            return Err(Error::Internal(format!(
                "tensor {:?} of shape {:?} has {} values",
                tensor.name,
                tensor.shape,
                tensor.values.len()
            )));
        }
        if !names.insert(tensor.name) {
            return Err(Error::Internal(format!("tensor {:?} is to be written twice", tensor.name)));
        }
        let end = start + tensor.values.len() * tensor.values.element_bytes();
        let entry = serde_json::json!({
            "dtype": tensor.values.dtype(), "shape": tensor.shape, "data_offsets": [start, end],
        });
        text.push_str(&format!(",{}:{entry}", serde_json::Value::from(tensor.name)));
        start = end;
    }
    text.push('}');
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::safetensors::SafetensorsFile;
    use std::fs::File;
    use std::path::PathBuf;

    fn temporary() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("x.safetensors");
        (dir, path)
    }

    fn write_file(path: &Path, tensors: &[NamedTensor]) -> Result<()> {
        write_safetensors(&mut File::create(path).expect("create"), path, tensors)
    }

    fn write_one(values: Values, shape: &[usize]) -> Result<Vec<u8>> {
        let (_dir, path) = temporary();
        write_file(&path, &[NamedTensor { name: "x", shape, values }])?;
        Ok(std::fs::read(&path).expect("read"))
    }

    #[test]
    fn bytes_are_those_of_the_safetensors_library() {
        let original =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bundles/qwen2_vl_a/model.safetensors");
        let file = SafetensorsFile::open(&original).expect("bundle");
        let map = file.read().expect("open");
        let data: Vec<Vec<f32>> = file.tensors().iter().map(|t| map.read_f32(t).expect("f32")).collect();
        let tensors: Vec<NamedTensor> = file
            .tensors()
            .iter()
            .zip(&data)
            .map(|(t, data)| NamedTensor { name: &t.name, shape: &t.shape, values: Values::F32(data) })
            .rev()
            .collect();
        let (_dir, path) = temporary();
        write_file(&path, &tensors).expect("written");
        assert!(std::fs::read(&path).expect("read") == std::fs::read(&original).expect("read"));
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        // 1 + 2^-8 is half-way between the bf16 neighbours 1 (even) and 1 + 2^-7; 1 + 3 * 2^-8 between
        // 1 + 2^-7 (odd) and 1 + 2^-6. f16 has 10 fraction bits: the same with 2^-11.
        let half_ulp = |bits: i32| [1.0 + 2f32.powi(-bits), 1.0 + 3.0 * 2f32.powi(-bits), -0.0];
        let bf16 = write_one(Values::Bf16(&half_ulp(8)), &[3]).expect("bf16");
        assert_eq!(bf16[bf16.len() - 6..], [0x80, 0x3F, 0x82, 0x3F, 0x00, 0x80]);
        let f16 = write_one(Values::F16(&half_ulp(11)), &[3]).expect("f16");
        assert_eq!(f16[f16.len() - 6..], [0x00, 0x3C, 0x02, 0x3C, 0x00, 0x80]);
    }

    #[test]
    fn a_value_out_of_range_is_refused() {
        let error = write_one(Values::F16(&[1.0, 65520.0]), &[2]).expect_err("overflow");
        assert_eq!(error.exit_code(), 65);
        assert!(error.to_string().contains("element 1"), "{error}");
        assert!(write_one(Values::F16(&[65504.0]), &[1]).is_ok());
        assert!(write_one(Values::Bf16(&[f32::MAX]), &[1]).is_err());
        // What is infinite already is stored as such (a dump may hold it).
        assert!(write_one(Values::F16(&[f32::INFINITY, f32::NAN]), &[2]).is_ok());
    }

    #[test]
    fn integers_names_and_mixed_sizes_survive() {
        let (_dir, path) = temporary();
        let tensors = [
            NamedTensor { name: "bytes", shape: &[3], values: Values::U8(&[1, 2, 255]) },
            NamedTensor { name: "quote\"\n", shape: &[1, 2], values: Values::I32(&[-1, i32::MAX]) },
            NamedTensor { name: "half", shape: &[], values: Values::F16(&[0.5]) },
            NamedTensor { name: "empty", shape: &[0, 4], values: Values::F32(&[]) },
        ];
        write_file(&path, &tensors).expect("written");
        let file = SafetensorsFile::open(&path).expect("valid");
        let map = file.read().expect("open");
        let at = |name: &str| file.tensor(name).expect("present");
        assert_eq!(map.read_i64(at("bytes")).expect("u8"), [1, 2, 255]);
        assert_eq!(map.read_i64(at("quote\"\n")).expect("i32"), [-1, i32::MAX.into()]);
        assert_eq!(map.read_f32(at("half")).expect("f16"), [0.5]);
        assert_eq!(at("empty").shape, [0, 4]);
        let bytes = std::fs::read(&path).expect("read");
        assert_eq!(bytes[0] % 8, 0);
    }

    #[test]
    fn a_caller_that_contradicts_itself_is_told() {
        assert_eq!(write_one(Values::F32(&[1.0]), &[2]).expect_err("shape").exit_code(), 1);
        let (_dir, path) = temporary();
        let same = NamedTensor { name: "x", shape: &[1], values: Values::U8(&[1]) };
        assert_eq!(write_file(&path, &[same, same]).expect_err("twice").exit_code(), 1);
    }

    #[test]
    fn dtype_names() {
        for (name, dtype) in
            [("float32", FloatDtype::F32), ("bf16", FloatDtype::Bf16), ("fp16", FloatDtype::F16)]
        {
            assert_eq!(name.parse::<FloatDtype>().expect(name), dtype);
        }
        assert_eq!("int8".parse::<FloatDtype>().expect_err("int8").exit_code(), 2);
    }
}
