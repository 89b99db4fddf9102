//! What is wrong with a model folder, as a stranger may send it: cases 1 to 26 and 73 of the table in `cases.rs`.

use super::{DATA, ROOT, bundle, checkpoint, fails, grpo, text};
use std::fs;
use std::path::Path;

/// Fails to load: `eval` and `grpo` say the same, and leave nothing.
fn unloadable(dir: &Path, code: i32, parts: &[&str]) {
    fails(&["generate", "--model", text(dir), "--prompt", "x", "-q"], code, parts);
    let (answers, run) = (ROOT.join("unloadable.jsonl"), ROOT.join("unloadable"));
    fails(
        &["eval", "--model", text(dir), "--dataset", text(&DATA), "--output", text(&answers), "-q"],
        code,
        parts,
    );
    let mut words = grpo(&run);
    words[2] = text(dir);
    fails(&words, code, parts);
    assert!(!answers.exists() && !run.exists());
}

/// Replaces the header of the only weight file by what `edit` makes of it; offsets stay.
fn edit_header(dir: &Path, edit: impl Fn(&str) -> String) {
    let path = dir.join("model.safetensors");
    let file = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut header = edit(std::str::from_utf8(&file[8..8 + length]).unwrap());
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &file[8 + length..]].concat();
    fs::write(path, bytes).unwrap();
}

#[test]
fn weights_that_are_missing_short_or_misshapen() {
    let dir = checkpoint("no_weights");
    fs::remove_file(dir.join("model.safetensors")).unwrap();
    unloadable(&dir, 66, &["model.safetensors", "fetch the model again"]);

    let dir = checkpoint("short_weights");
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    unloadable(&dir, 65, &["model.safetensors"]);
    fs::write(&path, b"").unwrap();
    unloadable(&dir, 65, &["model.safetensors"]);

    let dir = checkpoint("wrong_shape");
    let from = "[600,64]";
    edit_header(&dir, |header| {
        assert!(header.contains(from), "{header}");
        header.replacen(from, "[64,600]", 1)
    });
    unloadable(&dir, 65, &["[64, 600]", "[600, 64]"]);

    fails(&["generate", "--model", "no/such_model", "--prompt", "x"], 66, &["hf download no/such_model"]);
}

#[test]
fn weights_that_are_not_numbers() {
    let dir = checkpoint("nan_weights");
    let path = dir.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    unloadable(&dir, 65, &["model.safetensors", "NaN"]);
}

#[test]
fn an_index_that_leaves_the_folder() {
    let dir = checkpoint("index_outside");
    fs::rename(dir.join("model.safetensors"), ROOT.join("outside.safetensors")).unwrap();
    for name in ["../outside.safetensors", text(&ROOT.join("outside.safetensors"))] {
        let index = serde_json::json!({"metadata": {}, "weight_map": {"lm_head.weight": name}});
        fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
        unloadable(&dir, 65, &["outside.safetensors"]);
    }
}

#[test]
fn configs_that_are_broken_or_of_another_model() {
    let dir = checkpoint("broken_config");
    fs::write(dir.join("config.json"), "{\n  \"model_type\": \"qwen2_vl\",\n").unwrap();
    unloadable(&dir, 65, &["config.json", "line 3"]);
    let config = fs::read_to_string(Path::new(bundle()).join("config.json")).unwrap();
    fs::write(
        dir.join("config.json"),
        config.replace("\"model_type\": \"qwen2_vl\"", "\"model_type\": \"llama\""),
    )
    .unwrap();
    unloadable(&dir, 65, &["config.json", "llama", "qwen2_vl"]);

    let dir = checkpoint("broken_tokenizer");
    fs::write(dir.join("tokenizer.json"), "{\"model\": ").unwrap();
    unloadable(&dir, 65, &["tokenizer.json"]);
    fs::remove_file(dir.join("tokenizer.json")).unwrap();
    unloadable(&dir, 66, &["tokenizer.json", "copy it"]);
}
