//! Weight files: header and data as `grpo`, `eval` and the like read them, and written again.

use std::path::Path;

use othink::checkpoint::{NamedTensor, Values, write_safetensors};
use othink::model::safetensors::{Dtype, SafetensorsFile, TensorEntry};
use serde_json::Value;

use super::{Outcome, Target, refused, write};

pub const TARGET: Target = Target {
    name: "safetensors",
    body,
    seeds,
    dictionary: &[
        b"\"dtype\":\"F32\"",
        b"\"shape\":[2,3]",
        b"\"data_offsets\":[0,8]",
        b"\"__metadata__\":{\"format\":\"pt\"},",
        b"\"BF16\"",
        b"\"F16\"",
        b"\"I64\"",
        b"\"I32\"",
        b"\"U8\"",
        b"\"BOOL\"",
        b"\"F8_E4M3\"",
        b"\"F4\"",
        b"\"F6_E2M3\"",
        b"18446744073709551615",
        b"9223372036854775808",
        b"4294967296",
        b"[]",
        b"{}",
        b"\\u0000",
        b"\\ud800",
        b"null",
        b"-1",
        b"1e3",
        b"\x00\x00\x00\x00\x00\x00\x00\x00",
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x00\x00\xc0\x7f",
    ],
    repair,
    max_bytes: 1 << 13,
};

fn body(input: &[u8]) -> Outcome {
    let path = write("model.safetensors", input);
    let file = match SafetensorsFile::open(&path) {
        Ok(file) => file,
        Err(error) => return refused(&error, &[65]),
    };
    assert_eq!(file.bytes(), input.len() as u64);
    let map = file.read().expect("nobody changed the file");
    let (mut data_bytes, mut kinds) = (0, Vec::new());
    let (mut floats, mut wholes, mut raw): (Vec<Floats>, Vec<Wholes>, Vec<Raw>) = Default::default();
    for tensor in file.tensors() {
        assert_eq!(file.tensor(&tensor.name), Some(tensor));
        let bytes = map.bytes(tensor).expect("a tensor of this file");
        let elements: usize = tensor.shape.iter().product();
        assert_eq!(bytes.len() * 8, elements * tensor.dtype.bitsize(), "{tensor:?}");
        data_bytes += bytes.len();
        kinds.push(tensor.dtype.to_string());
        match map.read_f32(tensor) {
            Ok(values) => {
                assert_eq!(values.len(), elements);
                floats.push((tensor, values));
            }
            Err(error) => _ = refused(&error, &[65]),
        }
        match map.read_i64(tensor) {
            Ok(values) => {
                assert_eq!(values.len(), elements);
                if tensor.dtype == Dtype::I32 {
                    wholes.push((tensor, values.into_iter().map(|v| v as i32).collect()));
                }
                if tensor.dtype == Dtype::U8 {
                    raw.push((tensor, bytes.to_vec()));
                }
            }
            Err(error) => _ = refused(&error, &[65]),
        }
    }
    let header_bytes = u64::from_le_bytes(input[..8].try_into().expect("8 bytes")) as usize;
    assert_eq!(8 + header_bytes + data_bytes, input.len(), "tensors and header are the whole file");
    written_again(&floats, &wholes, &raw);
    kinds.sort();
    kinds.dedup();
    Outcome::of((kinds, file.tensors().len().min(4)))
}

type Floats<'a> = (&'a TensorEntry, Vec<f32>);
type Wholes<'a> = (&'a TensorEntry, Vec<i32>);
type Raw<'a> = (&'a TensorEntry, Vec<u8>);

fn float_values<'a>(tensor: &TensorEntry, values: &'a [f32]) -> Values<'a> {
    match tensor.dtype {
        Dtype::BF16 => Values::Bf16(values),
        Dtype::F16 => Values::F16(values),
        _ => Values::F32(values),
    }
}

/// What was read, written by the program's own writer, reads as the same.
fn written_again(floats: &[Floats], wholes: &[Wholes], raw: &[Raw]) {
    let named = |(tensor, values)| {
        let TensorEntry { name, shape, .. }: &TensorEntry = tensor;
        NamedTensor { name, shape, values }
    };
    let floats_named = floats.iter().map(|(tensor, values)| (*tensor, float_values(tensor, values)));
    let wholes_named = wholes.iter().map(|(tensor, values)| (*tensor, Values::I32(values)));
    let raw_named = raw.iter().map(|(tensor, bytes)| (*tensor, Values::U8(bytes)));
    let mut tensors: Vec<NamedTensor> =
        floats_named.chain(wholes_named).chain(raw_named).map(named).collect();
    // The writer's own key, which a file of strangers may use for a tensor only by mistake.
    tensors.retain(|tensor| tensor.name != "__metadata__");

    let mut file = Vec::new();
    write_safetensors(&mut file, Path::new("again"), &tensors).expect("what was read can be written");
    let path = write("again.safetensors", &file);
    let again = SafetensorsFile::open(&path).expect("what was written can be read");
    let map = again.read().expect("nobody changed the file");
    assert_eq!(again.tensors().len(), tensors.len());
    for (tensor, values) in floats {
        let entry = again.tensor(&tensor.name).expect("every tensor was written");
        assert_eq!((&entry.shape, entry.dtype), (&tensor.shape, tensor.dtype));
        let read = map.read_f32(entry).expect("floats");
        // A NaN stays one; which one is not promised in two bytes.
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        assert!(read.iter().zip(values).all(same), "{tensor:?}: {read:?} was {values:?}");
    }
    for (tensor, values) in wholes {
        let entry = again.tensor(&tensor.name).expect("every tensor was written");
        let read = map.read_i64(entry).expect("whole numbers");
        assert!(read.iter().zip(values).all(|(a, b)| *a == i64::from(*b)), "{tensor:?}");
    }
    for (tensor, bytes) in raw {
        let entry = again.tensor(&tensor.name).expect("every tensor was written");
        assert_eq!(map.bytes(entry).expect("bytes")[..], bytes[..], "{tensor:?}");
    }
}

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn seeds() -> Vec<Vec<u8>> {
    let bundle = include_bytes!("../../bundles/dialect_v5/expected.safetensors");
    let one = |dtype: &str, bytes: usize| {
        let entry = format!(r#"{{"w":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,{bytes}]}}}}"#);
        file(&entry, &[0x3f; 16][..bytes])
    };
    let mut seeds: Vec<_> = [
        ("F32", 8),
        ("BF16", 4),
        ("F16", 4),
        ("I64", 16),
        ("I32", 8),
        ("I16", 4),
        ("U8", 2),
        ("F64", 16),
        ("F8_E4M3", 2),
        ("F4", 1),
        ("BOOL", 2),
    ]
    .into_iter()
    .map(|(dtype, bytes)| one(dtype, bytes))
    .collect();
    seeds.push(file("{}", b""));
    seeds.push(file(
        r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[],"data_offsets":[8,10]},"c":{"dtype":"U8","shape":[0,3],"data_offsets":[10,10]},"d":{"dtype":"I32","shape":[1],"data_offsets":[10,14]}}  "#,
        b"\0\0\x80\x3f\0\0\xc0\x7f\x80\x7f\x01\0\0\0",
    ));
    // The small tensors of a real file.
    let length = u64::from_le_bytes(bundle[..8].try_into().expect("8 bytes")) as usize;
    let header: Value = serde_json::from_slice(&bundle[8..8 + length]).expect("a valid header");
    let mut kept = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, entry) in header.as_object().into_iter().flatten() {
        let offset = |i: usize| entry["data_offsets"][i].as_u64().map(|at| 8 + length + at as usize);
        let (Some(start), Some(end)) = (offset(0), offset(1)) else { continue };
        if end - start <= 64 && kept.len() < 12 {
            let mut entry = entry.clone();
            entry["data_offsets"] = serde_json::json!([data.len(), data.len() + end - start]);
            data.extend_from_slice(&bundle[start..end]);
            kept.insert(name.clone(), entry);
        }
    }
    let real = file(&Value::Object(kept).to_string(), &data);
    seeds.push(real);
    seeds
}

/// Sets the header's length to where its braces close, and the data's length to what the header promises.
fn repair(bytes: &mut Vec<u8>) {
    let Some(header) = bytes.get(8..) else { return };
    let (mut depth, mut in_text, mut escaped) = (0usize, false, false);
    let end = header.iter().position(|&byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' if !in_text => depth += 1,
            b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && byte == b'}' && !in_text
    });
    let Some(end) = end else { return };
    let mut length = end + 1;
    while header.get(length) == Some(&b' ') {
        length += 1;
    }
    let header = serde_json::from_slice::<Value>(&header[..length]).unwrap_or_default();
    let ends = header.as_object().into_iter().flatten();
    let data = ends.filter_map(|(_, entry)| entry["data_offsets"][1].as_u64()).max().unwrap_or(0);
    bytes[..8].copy_from_slice(&(length as u64).to_le_bytes());
    if data <= 1 << 12 {
        bytes.resize(8 + length + data as usize, 0x3f);
    }
}
