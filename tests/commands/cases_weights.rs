//! What is wrong with weight files, as a stranger may send them: cases 8 to 16 and 20 of the table in `cases.rs`.

use super::cases_model::{copy_of, edit_config, refused, unloadable, weights_of};
use super::{bundle, checkpoint, text};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A file in the safetensors format: the length of the header, the header, the data.
fn weight_file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Replaces header and data of the only weight file by what `edit` makes of them.
fn edit_weights(dir: &Path, edit: impl FnOnce(&mut Value, &mut Vec<u8>)) {
    let (mut header, mut data) = weights_of(dir, "model.safetensors");
    edit(&mut header, &mut data);
    fs::write(dir.join("model.safetensors"), weight_file(&header.to_string(), &data)).unwrap();
}

/// Replaces the index of a sharded folder by what `edit` makes of its `weight_map`.
pub fn edit_index(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bundles/bf16_sharded");
    let name = "model.safetensors.index.json";
    let mut index: Value = serde_json::from_slice(&fs::read(from.join(name)).unwrap()).unwrap();
    edit(&mut index["weight_map"]);
    fs::write(dir.join(name), index.to_string()).unwrap();
}

/// Most memory that a command has had, in bytes, and how it ended.
#[cfg(target_os = "linux")]
pub fn peak_memory(words: &[&str]) -> (u64, Option<i32>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_othink-train"))
        .env("CUDA_VISIBLE_DEVICES", "")
        .args(words)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let code = loop {
        let line = fs::read_to_string(&status).unwrap_or_default();
        let line = line.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
        peak = peak.max(line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10);
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    (peak, code, std::io::read_to_string(child.stderr.take().unwrap()).unwrap())
}

#[test]
fn case_08_weight_files_that_end_too_early() {
    let dir = checkpoint("short_headers");
    for (content, part) in [
        (vec![], "is 0 bytes long"),
        (b"1234567".to_vec(), "is 7 bytes long"),
        (u64::MAX.to_le_bytes().to_vec(), "18446744073709551615 bytes"),
        (1000_u64.to_le_bytes().to_vec(), "only 0 bytes follow"),
        (0_u64.to_le_bytes().to_vec(), "broken safetensors header"),
    ] {
        fs::write(dir.join("model.safetensors"), content).unwrap();
        refused(&dir, 65, &["model.safetensors", part]);
    }
    unloadable(&dir, 65, &["model.safetensors"]);
}

#[test]
fn case_09_truncated_shards_and_trailing_bytes() {
    let dir = copy_of("bf16_sharded", "truncated_shard");
    let shard = dir.join("model-00003-of-00003.safetensors");
    let bytes = fs::read(&shard).unwrap();
    let (whole, cut) = (bytes.len(), bytes.len() - 100);
    fs::write(&shard, &bytes[..cut]).unwrap();
    let sizes = [whole.to_string(), cut.to_string()];
    unloadable(&dir, 65, &["model-00003-of-00003.safetensors", "is truncated", &sizes[0], &sizes[1]]);
    fs::write(&shard, [&bytes[..], b"x"].concat()).unwrap();
    refused(&dir, 65, &["model-00003-of-00003.safetensors", "1 trailing bytes"]);
}

#[test]
fn case_10_headers_that_break_the_format() {
    let dir = checkpoint("headers");
    let good = fs::read(dir.join("model.safetensors")).unwrap();
    let head = |key: &'static str, value: Value| {
        move |header: &mut Value, _: &mut Vec<u8>| header["model.norm.weight"][key] = value
    };
    let offsets = |by: [i64; 2]| {
        move |header: &mut Value, _: &mut Vec<u8>| {
            let range = &mut header["model.norm.weight"]["data_offsets"];
            *range = json!([range[0].as_i64().unwrap() + by[0], range[1].as_i64().unwrap() + by[1]]);
        }
    };
    type Edit = Box<dyn FnOnce(&mut Value, &mut Vec<u8>)>;
    let cases: [(Edit, &str); 9] = [
        (Box::new(offsets([-4, -4])), "not valid safetensors"),
        (Box::new(offsets([4, 4])), "not valid safetensors"),
        (Box::new(head("data_offsets", json!([8, 0]))), "not valid safetensors"),
        (Box::new(head("data_offsets", json!([-8, 8]))), "-8"),
        (Box::new(head("data_offsets", json!([0, u64::MAX]))), "beyond 2^64"),
        (Box::new(head("shape", json!([1_u64 << 40, 1_u64 << 40]))), "overflow"),
        (Box::new(head("shape", json!([65]))), "not valid safetensors"),
        (Box::new(head("dtype", json!("Q4_K"))), "Q4_K"),
        (Box::new(head("dtype", json!(3))), "model.safetensors"),
    ];
    for (edit, part) in cases {
        fs::write(dir.join("model.safetensors"), &good).unwrap();
        edit_weights(&dir, edit);
        refused(&dir, 65, &["model.safetensors", part]);
    }
}

#[test]
fn case_11_a_tensor_named_twice() {
    let dir = checkpoint("twice");
    let (header, data) = weights_of(&dir, "model.safetensors");
    let again = format!("{{\"lm_head.weight\":{},{}", header["lm_head.weight"], &header.to_string()[1..]);
    fs::write(dir.join("model.safetensors"), weight_file(&again, &data)).unwrap();
    unloadable(&dir, 65, &["model.safetensors", "\"lm_head.weight\" is named twice"]);
    // Under two of the names that files have for it.
    fs::copy(Path::new(bundle()).join("model.safetensors"), dir.join("model.safetensors")).unwrap();
    edit_weights(&dir, |header, data| {
        let (start, bytes) = (data.len(), vec![0; 4 * 64]);
        data.extend(bytes);
        header["model.language_model.norm.weight"] =
            json!({"dtype": "F32", "shape": [64], "data_offsets": [start, data.len()]});
    });
    refused(&dir, 65, &["model.norm.weight", "model.language_model.norm.weight", "two names"]);
}

#[cfg(target_os = "linux")]
#[test]
fn case_12_headers_of_many_tensors() {
    let dir = checkpoint("many_tensors");
    let mut header = String::from("{");
    for i in 0..400_000 {
        header += &format!("\"{i}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}},");
    }
    header.replace_range(header.len() - 1.., "}");
    fs::write(dir.join("model.safetensors"), weight_file(&header, b"")).unwrap();
    refused(&dir, 65, &["model.safetensors", "more than 200000 tensors"]);
    let (peak, ..) = peak_memory(&["generate", "--model", text(&dir), "--prompt", "x", "-q"]);
    assert!(peak > 1 << 20 && peak < 4 * header.len() as u64, "{peak} bytes for {}", header.len());

    let file = File::create(dir.join("model.safetensors")).unwrap();
    std::io::Write::write_all(&mut &file, &99_000_000_u64.to_le_bytes()).unwrap();
    file.set_len(99_000_008).unwrap();
    refused(&dir, 65, &["model.safetensors", "header is 99000000 bytes long"]);
    let (peak, ..) = peak_memory(&["generate", "--model", text(&dir), "--prompt", "x", "-q"]);
    assert!(peak < 33 << 20, "{peak}");
}

#[test]
fn case_13_tensors_that_do_not_fit_the_config() {
    let dir = checkpoint("misfit");
    edit_weights(&dir, |header, _| header["lm_head.weight"]["shape"] = json!([64, 600]));
    unloadable(&dir, 65, &["lm_head.weight", "[64, 600]", "[600, 64]"]);
    edit_weights(&dir, |header, _| {
        let map = header.as_object_mut().unwrap();
        // Names stay in the order of the data.
        let renamed = map
            .clone()
            .into_iter()
            .map(|(name, entry)| (name.replace("visual.blocks", "else.\n\u{1b}"), entry));
        *map = renamed.collect();
    });
    // Ten of each are listed, in one line, and a name can't drive the terminal.
    let parts = ["missing: visual.blocks.0.norm1.weight", "unexpected: \"else.\\n\\u{1b}.0.attn", ", ..."];
    refused(&dir, 65, &parts);
}

#[test]
fn case_14_weights_that_are_not_numbers() {
    let dir = checkpoint("nan_weights");
    for (value, part) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        edit_weights(&dir, |header, data| {
            let at = header["lm_head.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
            data[at + 4 * 65..at + 4 * 66].copy_from_slice(&value.to_le_bytes());
        });
        refused(&dir, 65, &["model.safetensors", "lm_head.weight", part, "[1, 1]"]);
    }
    unloadable(&dir, 65, &["model.safetensors", "inf"]);
}

#[test]
fn case_15_quantised_weights() {
    let dir = checkpoint("quantised");
    for dtype in ["I8", "F8_E4M3", "U8"] {
        edit_weights(&dir, |header, _| {
            header["lm_head.weight"]["dtype"] = dtype.into();
            header["lm_head.weight"]["shape"] = json!([600, 256]);
        });
        refused(&dir, 65, &["lm_head.weight", dtype, "dequantise first"]);
    }
    edit_config(&dir, |config| config["quantization_config"] = json!({"quant_method": "awq"}));
    unloadable(&dir, 65, &["config.json", "quantization_config", "dequantise first"]);
}

#[test]
fn case_16_an_index_that_lies() {
    let dir = copy_of("bf16_sharded", "lying_index");
    let norm = "model.norm.weight";
    edit_index(&dir, |map| map[norm] = "model-00004-of-00003.safetensors".into());
    refused(&dir, 65, &["model.safetensors.index.json", "model-00004-of-00003.safetensors", "not there"]);
    edit_index(&dir, |map| {
        let right = map[norm].as_str().unwrap().to_owned();
        let other = map.as_object().unwrap().values().find(|file| **file != right).unwrap().clone();
        map[norm] = other;
    });
    refused(&dir, 65, &["model.safetensors.index.json", norm]);
    edit_index(&dir, |map| drop(map.as_object_mut().unwrap().remove(norm)));
    refused(&dir, 65, &["model.safetensors.index.json", "does not list", norm]);
    edit_index(&dir, |_| {});
    let (first, third) = (
        weights_of(&dir, "model-00001-of-00003.safetensors"),
        weights_of(&dir, "model-00003-of-00003.safetensors"),
    );
    let (mut header, mut data) = third;
    let (name, _) = first.0.as_object().unwrap().iter().find(|(name, _)| *name != "__metadata__").unwrap();
    header[name] = json!({"dtype": "BF16", "shape": [1], "data_offsets": [data.len(), data.len() + 2]});
    data.extend([0, 0]);
    fs::write(dir.join("model-00003-of-00003.safetensors"), weight_file(&header.to_string(), &data)).unwrap();
    refused(&dir, 65, &["in two shards", name]);
    fs::remove_file(dir.join("model-00003-of-00003.safetensors")).unwrap();
    unloadable(&dir, 65, &["model-00003-of-00003.safetensors", "not there"]);
}

#[test]
fn case_20_weights_that_are_missing_or_pickled() {
    let dir = checkpoint("no_weights");
    fs::remove_file(dir.join("model.safetensors")).unwrap();
    unloadable(&dir, 65, &["model.safetensors", "fetch the model again"]);
    for name in ["pytorch_model.bin", "model.pt"] {
        fs::write(dir.join(name), b"\x80\x04cos\nsystem\n").unwrap();
        refused(&dir, 65, &[name, "never opened", "convert it", "save_pretrained"]);
        fs::remove_file(dir.join(name)).unwrap();
    }
}
