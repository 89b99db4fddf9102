use super::*;
use std::fs;

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
fn case_08_lengths_that_cannot_be() {
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
fn case_10_headers_that_break_the_rules() {
    refused(&file("[]", b""), "an object of tensors");
    refused(&file("{\"a\":", b""), "EOF");
    refused(&file("{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", b""), "data_offsets");
    let one = |entry: &str| format!("{{\"a\":{entry}}}");
    refused(&file(&one(r#"{"dtype":"F32","shape":[2],"data_offsets":[-8,8]}"#), &[0; 8]), "-8");
    refused(&file(&one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#), b""), "not valid safetensors");
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
    refused(
        &file(&TWO.replace("\"a\"", &format!("\"{}\"", "a".repeat(2000))), &[0; 8]),
        "a tensor name of 2000 bytes",
    );
    let mut not_text = file(TWO, &[0; 8]);
    not_text[10] = 0xff;
    refused(&not_text, "not UTF-8");
}

#[test]
fn case_12_too_many_tensors_are_refused_quickly() {
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
    let map = opened.read().expect("unchanged");
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
    assert!(opened.read().err().expect("changed").to_string().contains("was changed"));
}

/// Cut short, then overwritten, after it was opened for reading.
#[test]
fn case_19_a_file_that_shrinks_while_it_is_read() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("x.safetensors");
    fs::write(&path, file(TWO, &[0; 8])).expect("write");
    let opened = SafetensorsFile::open(&path).expect("valid");
    let entry = opened.tensor("a").expect("a").clone();
    let reader = opened.read().expect("unchanged");
    assert_eq!(reader.read_f32(&entry).expect("whole"), [0.0, 0.0]);
    File::options().write(true).open(&path).expect("open").set_len(12).expect("cut");
    for error in [reader.read_f32(&entry).map(drop), reader.check_unchanged()] {
        let error = error.expect_err("cut short");
        assert!(error.exit_code() == 65 && error.to_string().contains("was changed"), "{error}");
    }
    // A file that takes its place is not the one whose header was read; the open one still is.
    fs::write(&path, file(TWO, &[0; 8])).expect("write");
    let opened = SafetensorsFile::open(&path).expect("valid");
    let reader = opened.read().expect("unchanged");
    fs::write(dir.path().join("new"), file(TWO, &[1; 8])).expect("write");
    fs::rename(dir.path().join("new"), &path).expect("replace");
    assert_eq!(reader.read_f32(&entry).expect("whole"), [0.0, 0.0]);
    reader.check_unchanged().expect("the open file is the old one");
}

#[cfg(unix)]
#[test]
fn only_regular_files() {
    let dir = tempfile::tempdir().expect("temporary folder");
    assert_eq!(SafetensorsFile::open(dir.path()).expect_err("folder").exit_code(), 65);
    assert_eq!(SafetensorsFile::open(Path::new("/dev/zero")).expect_err("device").exit_code(), 65);
    assert_eq!(SafetensorsFile::open(&dir.path().join("no")).expect_err("absent").exit_code(), 66);
}
