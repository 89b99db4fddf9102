//! What is wrong with a model folder and its config, as a stranger may send them: cases 1 to 7, 17, 18, 21
//! and 73 of the table in `cases.rs`.

use super::cases_weights::edit_index;
use super::{DATA, LEARNABLE, ROOT, RUN, bundle, checkpoint, fails, grpo, success, text};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Long enough for a machine that is busy with other tests; each of these commands takes some 20 ms alone.
pub const SOON: Duration = Duration::from_secs(10);

/// Fails soon to load in the simplest command.
pub fn refused(dir: &Path, code: i32, parts: &[&str]) {
    let start = Instant::now();
    fails(&["generate", "--model", text(dir), "--prompt", "x", "-q"], code, parts);
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
}

/// Fails to load: `eval` and `grpo` say the same, and leave nothing.
pub fn unloadable(dir: &Path, code: i32, parts: &[&str]) {
    refused(dir, code, parts);
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

/// A copy of another bundle's files.
pub fn copy_of(bundle: &str, name: &str) -> PathBuf {
    let (from, dir) =
        (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bundles").join(bundle), ROOT.join(name));
    fs::create_dir_all(&dir).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
        }
    }
    dir
}

/// Header and data of the checkpoint's weights.
pub fn weights_of(dir: &Path, file: &str) -> (Value, Vec<u8>) {
    let file = fs::read(dir.join(file)).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&file[8..8 + length]).unwrap(), file[8 + length..].to_vec())
}

/// Replaces `config.json` by what `edit` makes of it.
pub fn edit_config(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let path = dir.join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn case_01_no_model_folder_a_file_or_an_empty_one() {
    refused(Path::new("no/such_model"), 66, &["no/such_model", "hf download no/such_model"]);
    refused(&ROOT.join("no such folder"), 66, &["no such model folder", "hf download org/name"]);
    let file = ROOT.join("model.gguf");
    fs::write(&file, "x").unwrap();
    refused(&file, 66, &["model.gguf", "is a file", "config.json"]);
    let empty = ROOT.join("empty_model");
    fs::create_dir_all(&empty).unwrap();
    unloadable(&empty, 66, &["is an empty folder", "hf download"]);
    // A line feed in a name stays one line of the message.
    refused(&ROOT.join("two\nlines"), 66, &["two\\nlines"]);
}

#[test]
fn case_02_config_json_that_cannot_be_read() {
    let dir = checkpoint("broken_config");
    let path = dir.join("config.json");
    let good = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    unloadable(&dir, 65, &["config.json", "is not there"]);
    for (content, part) in [
        (&b""[..], "is empty"),
        (b"{\n  \"model_type\": \"qwen2_vl\",\n", "line 3"),
        (b"{\n  \"model_type\": qwen2_vl\n}", "line 2 column 17"),
        (b"{\"model_type\": \"qwen2\xff_vl\"}", "is not UTF-8 text (byte 21)"),
        (b"{\"hidden_size\": 64, \"hidden_size\": 128}", "\"hidden_size\" is given twice"),
        (b"[]", "must be a JSON object"),
        ("[".repeat(100_000).as_bytes(), "recursion limit exceeded at line 1"),
        ("{\"a\":".repeat(100_000).as_bytes(), "recursion limit exceeded at line 1"),
    ] {
        fs::write(&path, content).unwrap();
        refused(&dir, 65, &["config.json", part]);
    }
    // Sparse: 200 MB that take no disk.
    File::create(&path).unwrap().set_len(200_000_000).unwrap();
    refused(&dir, 65, &["config.json", "is 200000000 bytes long"]);
    fs::write(&path, [b"\xef\xbb\xbf", &good[..]].concat()).unwrap();
    assert!(success(&["inspect", text(&dir)]).contains("412,800"), "a byte order mark is no error");
}

#[test]
fn case_03_one_model_in_every_dialect() {
    let dir = checkpoint("dialects");
    let words =
        ["generate", "--model", text(&dir), "--prompt", "How many?", "--max_completion_length", "4", "-q"];
    let nested = success(&words);
    let mut flat: Value =
        serde_json::from_slice(&fs::read(Path::new(bundle()).join("config.flat.json")).unwrap()).unwrap();
    edit_config(&dir, |config| *config = flat.clone());
    assert_eq!(success(&words), nested);
    let described = success(&["inspect", text(&dir)]);
    assert!(described.contains("flat (as published)"), "{described}");
    flat["text_config"] = flat.clone();
    flat["text_config"].as_object_mut().unwrap().remove("vision_config");
    edit_config(&dir, |config| *config = flat);
    assert_eq!(success(&words), nested);
    assert!(success(&["inspect", text(&dir)]).contains("4.52 to 4.57"));
}

#[test]
fn case_04_places_of_the_config_that_disagree() {
    let dir = checkpoint("disagreeing");
    edit_config(&dir, |config| config["hidden_size"] = 128.into());
    unloadable(&dir, 65, &["config.json", "text_config.hidden_size is 64 but hidden_size is 128"]);
}

#[test]
fn case_05_another_model_family() {
    let dir = checkpoint("other_family");
    for family in ["llama", "qwen3_vl"] {
        edit_config(&dir, |config| config["model_type"] = family.into());
        let supported = "supported model types: \"qwen2_vl\", \"qwen2_5_vl\"";
        refused(&dir, 65, &["config.json", family, supported]);
    }
    // A family that is known, but not the one whose sizes these are.
    edit_config(&dir, |config| config["model_type"] = "qwen2_5_vl".into());
    refused(&dir, 65, &["config.json", "vision_config.hidden_act is \"quick_gelu\"; only \"silu\""]);
}

#[test]
fn case_06_sizes_that_cannot_be() {
    let dir = checkpoint("sizes");
    let good = fs::read(dir.join("config.json")).unwrap();
    for (key, value, part) in [
        ("num_attention_heads", json!(5), "num_attention_heads (5)"),
        ("num_key_value_heads", json!(3), "num_key_value_heads (3)"),
        ("hidden_size", json!(0), "hidden_size is 0"),
        ("hidden_size", json!(-64), "whole number"),
        ("vocab_size", json!(1u64 << 31), "vocab_size is 2147483648"),
        ("num_hidden_layers", json!(u64::MAX), "num_hidden_layers"),
        // In range by itself: the weights do not follow.
        ("vocab_size", json!(1 << 24), "[16777216, 64]"),
        ("num_hidden_layers", json!(1024), "missing: model.layers."),
        ("max_position_embeddings", json!(1u64 << 40), "max_position_embeddings"),
    ] {
        fs::write(dir.join("config.json"), &good).unwrap();
        edit_config(&dir, |config| config["text_config"][key] = value);
        refused(&dir, 65, &[part]);
    }
    fs::write(dir.join("config.json"), &good).unwrap();
    edit_config(&dir, |config| config["text_config"]["rope_parameters"]["mrope_section"] = json!([2, 3, 4]));
    unloadable(&dir, 65, &["mrope_section [2, 3, 4]"]);
}

#[test]
fn case_07_attention_that_would_be_computed_otherwise() {
    let dir = checkpoint("yarn");
    let good = fs::read(dir.join("config.json")).unwrap();
    for kind in ["yarn", "linear", "dynamic", "longrope", "llama3"] {
        edit_config(&dir, |config| config["text_config"]["rope_parameters"]["rope_type"] = kind.into());
        refused(&dir, 65, &["config.json", "rope_type", kind]);
    }
    fs::write(dir.join("config.json"), good).unwrap();
    edit_config(&dir, |config| config["text_config"]["use_sliding_window"] = true.into());
    unloadable(&dir, 65, &["use_sliding_window"]);
}

#[cfg(unix)]
#[test]
fn case_17_what_leads_out_of_the_folder() {
    use std::os::unix::fs::symlink;
    let dir = copy_of("bf16_sharded", "outside");
    fs::copy(dir.join("model-00003-of-00003.safetensors"), ROOT.join("outside.safetensors")).unwrap();
    let absolute = text(&ROOT.join("outside.safetensors")).to_owned();
    for name in ["../outside.safetensors", &absolute, "/etc/passwd", "a\0b", "./../outside.safetensors", ""] {
        edit_index(&dir, |map| map["model.norm.weight"] = name.into());
        refused(&dir, 65, &["model.safetensors.index.json", "not inside the folder", "it was not opened"]);
    }
    // Every file of the folder may only be a link within it. A pipe would hang whoever opens it.
    let pipe = ROOT.join("outside_pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let dir = checkpoint("links");
    for name in FILES {
        let (path, good) = (dir.join(name), fs::read(dir.join(name)).unwrap());
        for target in [Path::new("/etc/hostname"), &pipe, &Path::new(bundle()).join(name)] {
            fs::remove_file(&path).unwrap();
            symlink(target, &path).unwrap();
            refused(&dir, 65, &[name, "is a symbolic link out of the folder", "it was not opened"]);
        }
        fs::remove_file(&path).unwrap();
        fs::write(dir.join("within"), good).unwrap();
        symlink("within", &path).unwrap();
        success(&["generate", "--model", text(&dir), "--prompt", "x", "--max_completion_length", "1", "-q"]);
        fs::copy(Path::new(bundle()).join(name), dir.join("real")).unwrap();
        fs::rename(dir.join("real"), &path).unwrap();
    }
    // A snapshot of the Hugging Face cache consists of links to blobs.
    let repository = ROOT.join("cache/models--org--name");
    let snapshot = repository.join("snapshots/0123abc");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repository.join("blobs")).unwrap();
    for (blob, name) in FILES.iter().enumerate() {
        fs::copy(Path::new(bundle()).join(name), repository.join(format!("blobs/{blob}"))).unwrap();
        symlink(format!("../../blobs/{blob}"), snapshot.join(name)).unwrap();
    }
    success(&["generate", "--model", text(&snapshot), "--prompt", "x", "--max_completion_length", "1", "-q"]);
}

/// The files of a checkpoint.
const FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

#[cfg(unix)]
#[test]
fn case_18_pipes_and_folders_in_place_of_files() {
    for name in FILES {
        let dir = checkpoint("no_files");
        fs::remove_file(dir.join(name)).unwrap();
        assert!(Command::new("mkfifo").arg(dir.join(name)).status().unwrap().success());
        refused(&dir, 65, &[name, "is a pipe, socket or device, not a regular file"]);
        fs::remove_file(dir.join(name)).unwrap();
        fs::create_dir(dir.join(name)).unwrap();
        refused(&dir, 65, &[name, "is a folder, not a regular file"]);
        fs::remove_dir(dir.join(name)).unwrap();
    }
    let dir = copy_of("bf16_sharded", "pipe_shard");
    let shard = "model-00002-of-00003.safetensors";
    fs::remove_file(dir.join(shard)).unwrap();
    assert!(Command::new("mkfifo").arg(dir.join(shard)).status().unwrap().success());
    unloadable(&dir, 65, &[shard, "is a pipe, socket or device"]);
}

/// The flag at the top, in `text_config`, and in neither place.
#[test]
fn case_21_tied_weights() {
    let dir = copy_of("tied_kv1_odd", "tied");
    let words =
        ["generate", "--model", text(&dir), "--prompt", "How many?", "--max_completion_length", "4", "-q"];
    let tied = success(&words);
    let place = |top: Option<bool>, nested: Option<bool>| {
        edit_config(&dir, |config| {
            let set = |map: &mut Value, flag: Option<bool>| {
                map.as_object_mut().unwrap().remove("tie_word_embeddings");
                flag.into_iter().for_each(|flag| map["tie_word_embeddings"] = flag.into());
            };
            set(config, top);
            set(&mut config["text_config"], nested);
        });
    };
    for (top, nested) in [(Some(true), None), (None, Some(true)), (Some(true), Some(true))] {
        place(top, nested);
        assert_eq!(success(&words), tied, "{top:?} {nested:?}");
    }
    place(Some(true), Some(false));
    refused(&dir, 65, &["tie_word_embeddings is false", "tie_word_embeddings is true"]);
    place(None, None);
    refused(&dir, 65, &["missing: lm_head.weight", "\"tie_word_embeddings\": true"]);
    // With an output projection of its own the model without the flag is a whole one; with the flag it contradicts it.
    let own = checkpoint("own_head");
    edit_config(&own, |config| {
        config.as_object_mut().unwrap().remove("tie_word_embeddings");
        config["text_config"].as_object_mut().unwrap().remove("tie_word_embeddings");
    });
    success(&["generate", "--model", text(&own), "--prompt", "x", "--max_completion_length", "1", "-q"]);
    edit_config(&own, |config| config["tie_word_embeddings"] = true.into());
    refused(&own, 65, &["lm_head.weight", "differs from the embedding"]);
}

/// What can be told without Python; `tools/reference/check_loads.py` loads such folders with transformers.
#[test]
fn case_73_a_saved_model_is_written_as_it_was_read() {
    let saved = RUN.join("checkpoint-2");
    let mut pairs = vec![(PathBuf::from(bundle()), saved)];
    for name in ["dialect_flat_f16", "dialect_v4_52", "dialect_v5", "dialect_language_model", "bf16_sharded"]
    {
        let (from, run) = (copy_of(name, &format!("{name}_source")), ROOT.join(format!("{name}_run")));
        let words =
            ["sft", "--model", text(&from), "--dataset", text(&LEARNABLE), "--output_dir", text(&run), "-q"];
        let options = ["--max_steps", "1", "--learning_rate", "1e-3", "--warmup_ratio", "0"];
        success(&[&words[..], &options].concat());
        pairs.push((from, run.join("checkpoint-1")));
    }
    for (from, saved) in &pairs {
        for name in
            FILES.into_iter().chain(["chat_template.json"]).filter(|name| *name != "model.safetensors")
        {
            let read = |dir: &Path| fs::read(dir.join(name)).ok();
            assert!(read(saved) == read(from), "{name} of {}", saved.display());
        }
        let (before, after) = (tensors(from), tensors(saved));
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        let told = |tensor: &Value| (tensor["dtype"].clone(), tensor["shape"].clone());
        assert!(
            before.iter().all(|(name, tensor)| told(tensor) == told(&after[name])),
            "{}",
            saved.display()
        );
        assert!(success(&["inspect", text(saved)]).contains("parameters"));
    }
}

/// The headers of all weight files of a folder, but for `__metadata__`.
fn tensors(dir: &Path) -> std::collections::BTreeMap<String, Value> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let weights = names.filter(|name| name.starts_with("model") && name.ends_with(".safetensors"));
    let headers = weights.map(|name| weights_of(dir, &name).0);
    headers
        .flat_map(|header| header.as_object().unwrap().clone())
        .filter(|(name, _)| name != "__metadata__")
        .collect()
}
