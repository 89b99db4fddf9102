use std::collections::BTreeMap;

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use serde_json::json;

use super::*;
use crate::model::weights::{LM_HEAD, parameters};

/// A model folder in the making: `config.json` and tensors, to be changed by a test before it is written.
struct Draft {
    config: Value,
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

/// A published-style config of a one-layer model.
fn tiny_config() -> Value {
    json!({
        "model_type": "qwen2_vl", "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2,
        "num_hidden_layers": 1, "num_key_value_heads": 1, "vocab_size": 16, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 0]},
        "vision_config": {"depth": 1, "embed_dim": 8, "hidden_size": 8, "num_heads": 2, "mlp_ratio": 2,
                          "in_chans": 3, "patch_size": 2}
    })
}

/// Values that every stored dtype holds exactly, different for every tensor.
fn values(tensor: usize, count: usize) -> Vec<f32> {
    (0..count).map(|i| ((tensor * 7 + i) % 64) as f32 / 8.0 - 4.0).collect()
}

fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

impl Draft {
    fn new(config: Value, dtype: Dtype, rename: impl Fn(&str) -> String) -> Self {
        let parsed = ModelConfig::from_json("config.json".as_ref(), &config).expect("valid config");
        let tensors = parameters(&parsed)
            .into_iter()
            .enumerate()
            .map(|(n, (name, shape))| {
                let bytes = encode(dtype, &values(n, shape.iter().product()));
                (rename(&name), (dtype, shape, bytes))
            })
            .collect();
        Self { config, tensors }
    }

    fn tiny() -> Self {
        Self::new(tiny_config(), Dtype::F32, str::to_owned)
    }

    fn write_config(&self, dir: &Path) {
        fs::write(dir.join("config.json"), self.config.to_string()).expect("write");
    }

    fn write_tensors(&self, path: &Path, keep: impl Fn(&str) -> bool) {
        let views =
            self.tensors.iter().filter(|(name, _)| keep(name)).map(|(name, (dtype, shape, bytes))| {
                (name, TensorView::new(*dtype, shape.clone(), bytes).expect("shape fits"))
            });
        fs::write(path, safetensors::serialize(views, None).expect("serialise")).expect("write");
    }

    fn write(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temporary folder");
        self.write_config(dir.path());
        self.write_tensors(&dir.path().join("model.safetensors"), |_| true);
        dir
    }

    /// Two shards and an index; `edit` may spoil the index.
    fn write_shards(&self, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temporary folder");
        self.write_config(dir.path());
        let (a, b) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
        self.write_tensors(&dir.path().join(a), |name| name.starts_with("visual"));
        self.write_tensors(&dir.path().join(b), |name| !name.starts_with("visual"));
        let mut map = serde_json::Map::new();
        for name in self.tensors.keys() {
            map.insert(name.clone(), if name.starts_with("visual") { a } else { b }.into());
        }
        edit(&mut map);
        let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
        fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).expect("write");
        dir
    }
}

fn open(dir: &Path) -> Result<ModelFolder> {
    ModelFolder::open(dir.to_str().expect("UTF-8 path"))
}

fn load(dir: &Path) -> Result<Vec<Weight>> {
    open(dir)?.load_weights()
}

#[track_caller]
fn refused<T>(result: Result<T>, code: u8, parts: &[&str]) {
    let error = result.err().expect("must be refused");
    assert_eq!(error.exit_code(), code, "{error}");
    for part in parts {
        assert!(error.to_string().contains(part), "{part:?} is not in: {error}");
    }
}

fn check_values(weights: &[Weight], config: &ModelConfig) {
    let expected = parameters(config);
    assert_eq!(weights.len(), expected.len());
    for (n, (weight, (name, shape))) in weights.iter().zip(&expected).enumerate() {
        assert_eq!((&weight.name, &weight.shape), (name, shape));
        assert_eq!(weight.data, values(n, shape.iter().product()), "{name}");
    }
}

#[test]
fn every_naming_and_dtype_loads_the_same_model() {
    let namings: [fn(&str) -> String; 3] = [
        str::to_owned,
        |name| match name.strip_prefix("model.") {
            Some(rest) => format!("model.language_model.{rest}"),
            None if name.starts_with("visual") => format!("model.{name}"),
            None => name.to_owned(),
        },
        |name| if name.starts_with("visual") { name.to_owned() } else { format!("language_model.{name}") },
    ];
    for naming in namings {
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
            let draft = Draft::new(tiny_config(), dtype, naming);
            let dir = draft.write();
            let folder = open(dir.path()).expect("opens");
            check_values(&folder.load_weights().expect("loads"), &folder.config);
            assert_eq!(folder.dtype(), dtype);
            let stored: Vec<&String> = folder.stored_parameters().iter().map(|p| &p.stored_name).collect();
            assert!(stored.iter().all(|name| draft.tensors.contains_key(*name)));
            assert!(!folder.is_sharded());
        }
    }
}

#[test]
fn shards_load_like_one_file() {
    let dir = Draft::tiny().write_shards(|_| {});
    let folder = open(dir.path()).expect("opens");
    assert!(folder.is_sharded());
    assert_eq!(folder.weight_files().count(), 2);
    check_values(&folder.load_weights().expect("loads"), &folder.config);
}

#[test]
fn the_reference_bundle_loads() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bundles/qwen2_vl_a");
    let folder = open(&dir).expect("opens");
    let weights = folder.load_weights().expect("loads");
    assert_eq!(folder.generation.eos_token_ids, [501, 499]);
    assert_eq!(folder.dialect(), Dialect::Nested);
    let bytes = fs::read(dir.join("model.safetensors")).expect("read");
    let reference = safetensors::SafeTensors::deserialize(&bytes).expect("valid");
    assert_eq!(weights.len(), reference.len());
    for weight in &weights {
        let view = reference.tensor(&weight.name).expect("present");
        assert_eq!(view.shape(), weight.shape);
        assert!(view.data() == encode(Dtype::F32, &weight.data), "{}", weight.name);
    }
}

#[test]
fn case_13_missing_unexpected_and_misshapen_tensors_are_listed() {
    let mut draft = Draft::tiny();
    draft.tensors.remove("model.norm.weight");
    draft.tensors.remove("visual.merger.ln_q.bias");
    draft.tensors.insert("model.layers.7.odd".into(), (Dtype::F32, vec![1], vec![0; 4]));
    draft.tensors.insert("lm_head.weight".into(), (Dtype::F32, vec![4, 4], vec![0; 64]));
    refused(
        open(draft.write().path()),
        65,
        &[
            "2 missing: visual.merger.ln_q.bias, model.norm.weight",
            "1 unexpected: \"model.layers.7.odd\"",
            "1 of the wrong shape: \"lm_head.weight\" (config.json makes it [16, 8], the file has [4, 4])",
        ],
    );

    let mut draft = Draft::tiny();
    for n in 0..25 {
        draft.tensors.insert(format!("extra.{n:02}"), (Dtype::F32, vec![1], vec![0; 4]));
    }
    let error = open(draft.write().path()).expect_err("unexpected tensors").to_string();
    assert!(
        error.contains("25 unexpected") && error.contains("extra.09") && !error.contains("extra.10"),
        "{error}"
    );

    let mut draft = Draft::tiny();
    draft.tensors.remove(LM_HEAD);
    refused(open(draft.write().path()), 65, &["1 missing: lm_head.weight", "tie_word_embeddings"]);
}

#[test]
fn one_parameter_under_two_names_is_refused() {
    let mut draft = Draft::tiny();
    let norm = draft.tensors["model.norm.weight"].clone();
    draft.tensors.insert("model.language_model.norm.weight".into(), norm);
    refused(open(draft.write().path()), 65, &["two names", "model.language_model.norm.weight"]);
}

#[test]
fn case_21_a_tied_model_may_repeat_its_embedding_but_not_contradict_it() {
    for nested in [false, true] {
        let mut config = tiny_config();
        if nested {
            config["text_config"] = json!({"tie_word_embeddings": true});
        } else {
            config["tie_word_embeddings"] = true.into();
        }
        let mut draft = Draft::new(config, Dtype::BF16, str::to_owned);
        assert!(!draft.tensors.contains_key(LM_HEAD));
        let dir = draft.write();
        let folder = open(dir.path()).expect("opens");
        check_values(&folder.load_weights().expect("loads"), &folder.config);

        let (dtype, shape, bytes) = draft.tensors[EMBEDDING].clone();
        draft.tensors.insert(LM_HEAD.into(), (dtype, shape.clone(), bytes.clone()));
        check_values(&load(draft.write().path()).expect("an equal head"), &folder.config);

        let mut other = bytes;
        other[20] ^= 1;
        draft.tensors.insert(LM_HEAD.into(), (dtype, shape, other));
        refused(load(draft.write().path()), 65, &["lm_head.weight", "differs from the embedding"]);

        draft.tensors.insert(LM_HEAD.into(), (dtype, vec![1], vec![0; 2]));
        refused(load(draft.write().path()), 65, &["wrong shape", "lm_head.weight"]);
    }
}

#[test]
fn case_14_values_that_are_no_numbers_are_found() {
    for (dtype, spoiled) in [
        (Dtype::F32, f32::NAN.to_le_bytes().to_vec()),
        (Dtype::BF16, bf16::INFINITY.to_le_bytes().to_vec()),
        (Dtype::F16, f16::NEG_INFINITY.to_le_bytes().to_vec()),
    ] {
        let mut draft = Draft::new(tiny_config(), dtype, str::to_owned);
        let (_, _, bytes) = draft.tensors.get_mut("visual.merger.mlp.2.weight").expect("present");
        // Element 70 of [8, 32] is at row 2, column 6.
        let at = 70 * spoiled.len();
        bytes[at..at + spoiled.len()].copy_from_slice(&spoiled);
        refused(load(draft.write().path()), 65, &["visual.merger.mlp.2.weight", "[2, 6]"]);
    }
}

#[test]
fn case_15_quantised_weights_are_refused() {
    let mut draft = Draft::tiny();
    draft.tensors.insert("model.norm.weight".into(), (Dtype::F8_E4M3, vec![8], vec![0; 8]));
    draft.tensors.insert("model.norm.weight_scale".into(), (Dtype::F32, vec![1], vec![0; 4]));
    refused(open(draft.write().path()), 65, &["model.norm.weight", "F8_E4M3", "dequantise first"]);
}

#[test]
fn case_16_indexes_that_lie_are_refused() {
    let norm = "model.norm.weight";
    let first = "model-00001-of-00002.safetensors";
    for (file, part) in [
        ("gone.safetensors", "is not there"),
        ("../model.safetensors", "not inside the folder"),
        ("/etc/passwd", "not inside the folder"),
        ("a\0b", "not inside the folder"),
        (first, "does not hold it"),
    ] {
        let dir = Draft::tiny().write_shards(|map| {
            map.insert(norm.into(), file.into());
        });
        refused(open(dir.path()), 65, &["model.safetensors.index.json", part]);
    }
    let dir = Draft::tiny().write_shards(|map| {
        map.remove(norm);
    });
    refused(open(dir.path()), 65, &["does not list", norm]);
    let dir = Draft::tiny().write_shards(|map| {
        map.insert(norm.into(), json!(1));
    });
    refused(open(dir.path()), 65, &["no file name"]);
    let dir = Draft::tiny().write_shards(serde_json::Map::clear);
    refused(open(dir.path()), 65, &["lists no tensor"]);

    let draft = Draft::tiny();
    let dir = draft.write_shards(|_| {});
    draft.write_tensors(&dir.path().join(first), |name| name.starts_with("visual") || name == norm);
    refused(open(dir.path()), 65, &["in two shards", norm]);

    fs::write(dir.path().join("model.safetensors.index.json"), "{}").expect("write");
    refused(open(dir.path()), 65, &["weight_map"]);
}

#[test]
fn a_truncated_shard_is_reported_with_both_sizes() {
    let dir = Draft::tiny().write_shards(|_| {});
    let last = dir.path().join("model-00002-of-00002.safetensors");
    let length = fs::metadata(&last).expect("metadata").len();
    fs::File::options().write(true).open(&last).expect("open").set_len(length - 100).expect("cut");
    refused(open(dir.path()), 65, &["truncated", &length.to_string(), &(length - 100).to_string()]);
}

#[test]
fn folders_without_a_model() {
    let dir = tempfile::tempdir().expect("temporary folder");
    refused(open(dir.path()), 66, &["empty", "hf download"]);
    fs::write(dir.path().join("README.md"), "x").expect("write");
    refused(open(dir.path()), 65, &["config.json", "is not there"]);
    fs::create_dir(dir.path().join("checkpoint-9")).expect("create");
    fs::create_dir(dir.path().join("checkpoint-10")).expect("create");
    refused(open(dir.path()), 65, &["is the folder of a run", "checkpoint-10"]);
    fs::write(dir.path().join("config.json"), "{\"model_type\": \n oops").expect("write");
    refused(open(dir.path()), 65, &["config.json", "line 2"]);
    Draft::tiny().write_config(dir.path());
    refused(open(dir.path()), 65, &["model.safetensors", "no weights"]);
    fs::write(dir.path().join("pytorch_model.bin"), "x").expect("write");
    refused(open(dir.path()), 65, &["pytorch_model.bin", "convert it", "save_pretrained"]);
    fs::create_dir(dir.path().join("model.safetensors")).expect("create");
    refused(open(dir.path()), 65, &["not a regular file"]);
}

#[cfg(unix)]
#[test]
fn links_load_from_the_cache_and_from_nowhere_else() {
    use std::os::unix::fs::symlink;
    let plain = Draft::tiny().write();
    let root = tempfile::tempdir().expect("temporary folder");
    let snapshot = root.path().join("models--org--name/snapshots/0123abc");
    let blobs = root.path().join("models--org--name/blobs");
    fs::create_dir_all(&snapshot).expect("create");
    fs::create_dir_all(&blobs).expect("create");
    for (blob, name) in [("aa", "config.json"), ("bb", "model.safetensors")] {
        fs::copy(plain.path().join(name), blobs.join(blob)).expect("copy");
        symlink(format!("../../blobs/{blob}"), snapshot.join(name)).expect("link");
    }
    let folder = open(&snapshot).expect("opens");
    check_values(&folder.load_weights().expect("loads"), &folder.config);

    let other = tempfile::tempdir().expect("temporary folder");
    fs::copy(plain.path().join("config.json"), other.path().join("config.json")).expect("copy");
    symlink(plain.path().join("model.safetensors"), other.path().join("model.safetensors")).expect("link");
    refused(open(other.path()), 65, &["symbolic link out of the folder", "not opened"]);
}
