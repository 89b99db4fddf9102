use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

use serde_json::Value;

use super::*;
use crate::checkpoint::{FloatDtype, NewFolder, OnExisting, write_folder};
use crate::disk::SystemDisk;
use crate::model::config::{BlockKind, ModelConfig, TextConfig, VisionConfig, WindowConfig};
use crate::model::family::Family;
use crate::model::folder::ModelFolder;
use crate::model::weights::parameters;

fn bundle() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bundles/qwen2_vl_a")
}

fn open(dir: &Path) -> ModelFolder {
    ModelFolder::open(dir.to_str().expect("UTF-8 path")).expect("opens")
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).expect("list");
    entries.map(|entry| entry.expect("entry").file_name().into_string().expect("UTF-8")).collect()
}

fn refs(weights: &[Weight]) -> impl Iterator<Item = WeightRef<'_>> {
    weights.iter().map(WeightRef::from)
}

/// A tied one-layer model with one key/value head.
fn tiny() -> ModelConfig {
    ModelConfig {
        family: Family::Qwen2Vl,
        text: TextConfig {
            vocab_size: 20,
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 8,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            mrope_section: [2, 1, 1],
            max_position_embeddings: 128,
        },
        vision: VisionConfig {
            depth: 1,
            embed_dim: 8,
            out_hidden_size: 16,
            num_heads: 2,
            mlp_dim: 32,
            in_channels: 3,
            patch_size: 4,
            spatial_merge_size: 2,
            temporal_patch_size: 2,
            block: BlockKind::QuickGelu,
            windows: None,
        },
        tie_word_embeddings: true,
        image_token_id: 17,
        video_token_id: 18,
        vision_start_token_id: 15,
        vision_end_token_id: 16,
    }
}

/// Values with all their f32 bits in use.
fn random_weights(config: &ModelConfig) -> Vec<Weight> {
    let mut state = 1u64;
    let mut next = || {
        // Knuth's MMIX generator: any bits will do here.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let weight = |(name, shape): (String, Vec<usize>)| {
        let data = (0..shape.iter().product::<usize>()).map(|_| next()).collect();
        Weight { name, shape, data }
    };
    parameters(config).into_iter().map(weight).collect()
}

#[test]
fn a_model_saved_as_loaded_is_the_same_to_the_byte() {
    let source = open(&bundle());
    let weights = source.load_weights().expect("loads");
    let root = tempfile::tempdir().expect("temporary folder");
    let target = root.path().join("copy");
    let plan = SavePlan::like(&source).expect("plan");
    write_folder(&SystemDisk, &target, OnExisting::Refuse, |dir| save_model(dir, &plan, refs(&weights)))
        .expect("saved");
    let expected = [
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names(&target), expected.map(str::to_owned).into());
    for name in expected {
        let [ours, theirs] = [&target, &bundle()].map(|dir| fs::read(dir.join(name)).expect(name));
        assert!(ours == theirs, "{name} differs");
    }
    let on_disk: u64 = expected.iter().map(|name| fs::metadata(target.join(name)).expect(name).len()).sum();
    assert!(on_disk >= plan.bytes() && on_disk < plan.bytes() + 20_000);
}

#[test]
fn every_layout_is_saved_as_loaded() {
    let bundles = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bundles");
    for name in
        ["dialect_v4_52", "dialect_flat_f16", "qwen2_5_tied_odd", "qwen2_5_bf16_sharded", "qwen2_5_v4_52"]
    {
        let source = open(&bundles.join(name));
        let weights = source.load_weights().expect("loads");
        let root = tempfile::tempdir().expect("temporary folder");
        let plan = SavePlan::like(&source).expect("plan");
        save_model(&mut NewFolder::at(&SystemDisk, root.path()), &plan, refs(&weights)).expect("saved");
        let again = open(root.path());
        assert_eq!((&again.raw_config, again.dialect()), (&source.raw_config, source.dialect()), "{name}");
        assert_eq!(again.load_weights().expect("loads"), weights, "{name}");
        let stored = |folder: &ModelFolder| -> Vec<_> {
            folder.stored_parameters().iter().map(|p| (p.stored_name.clone(), p.dtype)).collect()
        };
        assert_eq!(stored(&again), stored(&source), "{name}");
    }
}

#[test]
fn shards_and_their_index() {
    let source = open(&bundle());
    let weights = source.load_weights().expect("loads");
    let root = tempfile::tempdir().expect("temporary folder");
    let plan = SavePlan::like(&source).expect("plan").with_max_shard_bytes(300_000);
    save_model(&mut NewFolder::at(&SystemDisk, root.path()), &plan, refs(&weights)).expect("saved");
    let again = open(root.path());
    assert_eq!(again.load_weights().expect("loads"), weights);
    assert!(again.is_sharded());
    let files: Vec<_> = again.weight_files().collect();
    assert!(files.len() > 4, "{files:?}");
    for (n, file) in files.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", n + 1, files.len());
        assert_eq!(file.file_name().and_then(|name| name.to_str()), Some(name.as_str()));
        // visual.patch_embed.proj.weight alone is 301,056 bytes; headers come on top.
        assert!(fs::metadata(file).expect("metadata").len() < 301_056 + 8_000);
    }
    let index = fs::read(root.path().join("model.safetensors.index.json")).expect("read");
    let index: Value = serde_json::from_slice(&index).expect("JSON");
    assert_eq!(index["metadata"]["total_size"], 1_651_200);
    assert_eq!(index["metadata"]["total_parameters"], 412_800);
    assert_eq!(index["weight_map"].as_object().expect("object").len(), weights.len());
}

#[test]
fn another_dtype_rounds_the_values_and_changes_only_the_dtype_key() {
    let source = open(&bundle());
    let weights = source.load_weights().expect("loads");
    for (dtype, round) in [
        (FloatDtype::Bf16, (|x| half::bf16::from_f32(x).to_f32()) as fn(f32) -> f32),
        (FloatDtype::F16, |x| half::f16::from_f32(x).to_f32()),
    ] {
        let root = tempfile::tempdir().expect("temporary folder");
        let plan = SavePlan::like(&source).expect("plan").with_dtype(dtype).expect("plan");
        save_model(&mut NewFolder::at(&SystemDisk, root.path()), &plan, refs(&weights)).expect("saved");
        let again = open(root.path());
        for (ours, original) in again.load_weights().expect("loads").iter().zip(&weights) {
            let rounded: Vec<f32> = original.data.iter().map(|&x| round(x)).collect();
            assert_eq!(ours.data, rounded, "{}", ours.name);
        }
        let mut expected = source.raw_config.clone();
        expected["dtype"] = dtype.torch_name().into();
        // As text, so that the order of the keys is compared too.
        assert_eq!(again.raw_config.to_string(), expected.to_string());
        assert_eq!(again.config, source.config);
        // A second round trip in the dtype it now has is exact.
        let root_2 = tempfile::tempdir().expect("temporary folder");
        let stored = again.load_weights().expect("loads");
        save_model(
            &mut NewFolder::at(&SystemDisk, root_2.path()),
            &SavePlan::like(&again).expect("plan"),
            refs(&stored),
        )
        .expect("saved");
        let [a, b] =
            [&root, &root_2].map(|dir| fs::read(dir.path().join("model.safetensors")).expect("read"));
        assert!(a == b);
    }
}

#[test]
fn a_flat_config_declares_its_dtype_in_its_own_words() {
    let root = tempfile::tempdir().expect("temporary folder");
    fs::copy(bundle().join("config.flat.json"), root.path().join("config.json")).expect("copy");
    fs::copy(bundle().join("model.safetensors"), root.path().join("model.safetensors")).expect("copy");
    let source = open(root.path());
    let weights = source.load_weights().expect("loads");
    let target = tempfile::tempdir().expect("temporary folder");
    let plan = SavePlan::like(&source).expect("plan").with_dtype(FloatDtype::Bf16).expect("plan");
    save_model(&mut NewFolder::at(&SystemDisk, target.path()), &plan, refs(&weights)).expect("saved");
    let again = open(target.path());
    let mut expected = source.raw_config.clone();
    expected["torch_dtype"] = "bfloat16".into();
    assert_eq!(again.raw_config.to_string(), expected.to_string());
}

#[test]
fn tensor_names_stay_as_they_were_loaded() {
    let config = tiny();
    let weights = random_weights(&config);
    let plan = SavePlan::fresh(&config, FloatDtype::F32, None, None, &[]).expect("plan");
    let first = tempfile::tempdir().expect("temporary folder");
    save_model(&mut NewFolder::at(&SystemDisk, first.path()), &plan, refs(&weights)).expect("saved");
    // Rename as transformers keeps them in memory since 4.52.
    let renamed: Vec<(String, &Weight)> = weights
        .iter()
        .map(|w| match w.name.strip_prefix("model.") {
            Some(rest) => (format!("model.language_model.{rest}"), w),
            None => (format!("model.{}", w.name), w),
        })
        .collect();
    let tensors: Vec<NamedTensor> = renamed
        .iter()
        .map(|(name, w)| NamedTensor { name, shape: &w.shape, values: FloatDtype::F32.values(&w.data) })
        .collect();
    let path = first.path().join("model.safetensors");
    write_safetensors(&mut fs::File::create(&path).expect("create"), &path, &tensors).expect("written");
    let source = open(first.path());
    let second = tempfile::tempdir().expect("temporary folder");
    let loaded = source.load_weights().expect("loads");
    assert_eq!(loaded, weights);
    save_model(
        &mut NewFolder::at(&SystemDisk, second.path()),
        &SavePlan::like(&source).expect("plan"),
        refs(&loaded),
    )
    .expect("saved");
    let [a, b] = [&first, &second].map(|dir| fs::read(dir.path().join("model.safetensors")).expect("read"));
    assert!(a == b);
}

#[test]
fn a_fresh_model_is_read_back() {
    let windowed = VisionConfig {
        mlp_dim: 27,
        block: BlockKind::SwiGlu,
        windows: Some(WindowConfig { size: 17, full_blocks: vec![0] }),
        ..tiny().vision
    };
    for config in [
        tiny(),
        ModelConfig { tie_word_embeddings: false, ..tiny() },
        ModelConfig { family: Family::Qwen2_5Vl, vision: windowed, ..tiny() },
    ] {
        let weights = random_weights(&config);
        let files: [(&str, &[u8]); 2] =
            [("tokenizer.json", b"{}"), ("additional_chat_templates/short.jinja", b"{{ messages }}")];
        let plan = SavePlan::fresh(&config, FloatDtype::F32, Some(1), Some(2), &files).expect("plan");
        let root = tempfile::tempdir().expect("temporary folder");
        save_model(&mut NewFolder::at(&SystemDisk, root.path()), &plan, refs(&weights)).expect("saved");
        let again = open(root.path());
        assert_eq!(again.config, config);
        assert_eq!(again.load_weights().expect("loads"), weights);
        assert_eq!(again.generation.eos_token_ids, [2]);
        // Saved once more, the companions travel along.
        let second = tempfile::tempdir().expect("temporary folder");
        save_model(
            &mut NewFolder::at(&SystemDisk, second.path()),
            &SavePlan::like(&again).expect("plan"),
            refs(&weights),
        )
        .expect("saved");
        assert_eq!(names(second.path()), names(root.path()));
        let template = second.path().join("additional_chat_templates/short.jinja");
        assert_eq!(fs::read(template).expect("copied"), b"{{ messages }}");
    }
}

#[test]
fn a_config_that_cannot_be_written_is_refused() {
    let mut config = tiny();
    config.vision.mlp_dim = 30;
    let error = SavePlan::fresh(&config, FloatDtype::F32, None, None, &[]).expect_err("mlp_ratio 3.75");
    assert_eq!(error.exit_code(), 65);
    config.family = Family::Qwen2_5Vl;
    let error = SavePlan::fresh(&config, FloatDtype::F32, None, None, &[]).expect_err("no windows");
    assert_eq!(error.exit_code(), 65);
    config = tiny();
    config.text.num_key_value_heads = 3;
    assert_eq!(
        SavePlan::fresh(&config, FloatDtype::F32, None, None, &[]).expect_err("heads").exit_code(),
        65
    );
}

#[test]
fn a_broken_model_replaces_nothing() {
    let config = tiny();
    let good = random_weights(&config);
    let plan = SavePlan::fresh(&config, FloatDtype::F32, None, None, &[]).expect("plan");
    let root = tempfile::tempdir().expect("temporary folder");
    let target = root.path().join("last");
    write_folder(&SystemDisk, &target, OnExisting::Refuse, |dir| save_model(dir, &plan, refs(&good)))
        .expect("saved");
    let mut bad = good.clone();
    bad[5].data[3] = f32::NAN;
    let error =
        write_folder(&SystemDisk, &target, OnExisting::Replace, |dir| save_model(dir, &plan, refs(&bad)));
    let error = error.expect_err("NaN");
    assert_eq!(error.exit_code(), 70);
    assert!(error.to_string().contains(&bad[5].name), "{error}");
    bad[5].data[3] = 1e6;
    let plan_f16 = plan.clone().with_dtype(FloatDtype::F16).expect("plan");
    let error =
        write_folder(&SystemDisk, &target, OnExisting::Replace, |dir| save_model(dir, &plan_f16, refs(&bad)));
    assert_eq!(error.expect_err("beyond f16").exit_code(), 65);
    assert_eq!(names(root.path()), BTreeSet::from(["last".to_owned()]));
    assert_eq!(open(&target).load_weights().expect("loads"), good);
}

#[test]
fn weights_of_another_model_are_a_bug() {
    let config = tiny();
    let weights = random_weights(&config);
    let plan = SavePlan::fresh(&config, FloatDtype::F32, None, None, &[]).expect("plan");
    let root = tempfile::tempdir().expect("temporary folder");
    let code = |weights: Vec<WeightRef>| {
        save_model(&mut NewFolder::at(&SystemDisk, root.path()), &plan, weights)
            .expect_err("refused")
            .exit_code()
    };
    let all: Vec<WeightRef> = refs(&weights).collect();
    assert_eq!(code(all[1..].to_vec()), 1);
    assert_eq!(code([&all[..], &all[..1]].concat()), 1);
    let extra = WeightRef { name: "lm_head.weight", ..all[0] };
    assert_eq!(code([&all[..], &[extra]].concat()), 1);
    let flat = WeightRef { shape: &[1], ..all[0] };
    assert_eq!(code([&all[1..], &[flat]].concat()), 1);
    assert_eq!(names(root.path()), BTreeSet::new());
}
