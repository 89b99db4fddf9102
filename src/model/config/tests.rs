use serde_json::json;

use super::*;

const PATH: &str = "some/config.json";

fn parse(root: &Value) -> Result<ModelConfig> {
    ModelConfig::from_json(Path::new(PATH), root)
}

/// A small published-style (flat) config.
fn flat() -> Value {
    json!({
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl",
        "image_token_id": 511, "video_token_id": 512, "vision_start_token_id": 508, "vision_end_token_id": 509,
        "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 4096,
        "num_attention_heads": 4, "num_hidden_layers": 3, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "sliding_window": 32768, "use_sliding_window": false, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "vocab_size": 600,
        "vision_config": {"depth": 2, "embed_dim": 64, "hidden_size": 64, "num_heads": 4, "mlp_ratio": 2,
                          "in_chans": 3, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
                          "temporal_patch_size": 2}
    })
}

const TEXT_KEYS: [&str; 14] = [
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "sliding_window",
    "use_sliding_window",
    "tie_word_embeddings",
    "vocab_size",
];

/// The same text model with Qwen2.5-VL's tower.
fn flat_2_5() -> Value {
    let mut root = flat();
    root["architectures"] = json!(["Qwen2_5_VLForConditionalGeneration"]);
    root["model_type"] = "qwen2_5_vl".into();
    root["vision_config"] = json!({
        "depth": 3, "hidden_size": 32, "num_heads": 4, "intermediate_size": 52, "out_hidden_size": 64, "hidden_act": "silu",
        "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2, "in_chans": 3, "patch_size": 14,
        "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2
    });
    root
}

/// As transformers 4.52 to 4.57 saves it: everything twice, the tie flag in text_config only.
fn both() -> Value {
    let mut root = flat();
    let mut text = json!({"model_type": "qwen2_vl_text", "dtype": "bfloat16"});
    for key in TEXT_KEYS {
        text[key] = root[key].clone();
    }
    text["rope_scaling"] = json!({"type": "default", "rope_type": "default", "mrope_section": [2, 3, 3]});
    text["sliding_window"] = Value::Null;
    text["layer_types"] = json!(["full_attention", "full_attention", "full_attention"]);
    root["text_config"] = text;
    root.as_object_mut().expect("object").remove("tie_word_embeddings");
    root
}

/// As transformers 5 saves it: text_config only, rope_parameters, dtype, the tie flag at the top.
fn nested() -> Value {
    let mut root = both();
    let map = root.as_object_mut().expect("object");
    for key in TEXT_KEYS {
        map.remove(key);
    }
    map.remove("torch_dtype");
    root["tie_word_embeddings"] = true.into();
    let text = root["text_config"].as_object_mut().expect("object");
    for key in ["rope_theta", "rope_scaling", "tie_word_embeddings"] {
        text.remove(key);
    }
    let rope = json!({"rope_type": "default", "rope_theta": 500000, "mrope_section": [2, 3, 3]});
    text.insert("rope_parameters".into(), rope);
    let vision = root["vision_config"].as_object_mut().expect("object");
    vision.remove("in_chans");
    vision.insert("in_channels".into(), 3.into());
    vision.insert("hidden_act".into(), "quick_gelu".into());
    vision.insert("model_type".into(), "qwen2_vl_vision".into());
    vision.insert("rope_parameters".into(), json!({"rope_theta": 10000.0, "rope_type": "axial"}));
    root
}

#[test]
fn case_03_every_dialect_gives_the_same_model() {
    let expected = ModelConfig {
        family: Family::Qwen2Vl,
        text: TextConfig {
            vocab_size: 600,
            hidden_size: 64,
            intermediate_size: 128,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 16,
            rms_norm_eps: 1e-6,
            rope_theta: 500_000.0,
            mrope_section: [2, 3, 3],
            max_position_embeddings: 4096,
        },
        vision: VisionConfig {
            depth: 2,
            embed_dim: 64,
            out_hidden_size: 64,
            num_heads: 4,
            mlp_dim: 128,
            in_channels: 3,
            patch_size: 14,
            spatial_merge_size: 2,
            temporal_patch_size: 2,
            block: BlockKind::QuickGelu,
            windows: None,
        },
        tie_word_embeddings: true,
        image_token_id: 511,
        video_token_id: 512,
        vision_start_token_id: 508,
        vision_end_token_id: 509,
    };
    for (name, root) in [("flat", flat()), ("both", both()), ("nested", nested())] {
        assert_eq!(parse(&root).expect(name), expected, "{name}");
    }
}

#[test]
fn the_reference_bundle_says_the_same_in_both_its_dialects() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bundles/qwen2_vl_a");
    let [flat, nested] = ["config.flat.json", "config.json"].map(|name| {
        let path = dir.join(name);
        ModelConfig::from_json(&path, &crate::files::read_json(&path).expect("JSON")).expect(name)
    });
    assert_eq!(flat, nested);
    assert_eq!(flat.text.mrope_section, [2, 3, 3]);
}

/// What published files leave out has transformers' defaults, which are the published 7B's vision
/// tower and special ids.
#[test]
fn absent_keys_have_transformers_defaults() {
    let config = parse(&json!({
        "model_type": "qwen2_vl", "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
        "num_hidden_layers": 28, "num_key_value_heads": 4, "vocab_size": 152064
    }))
    .expect("valid");
    assert!(!config.tie_word_embeddings);
    assert_eq!(config.vision.mlp_dim, 5120);
    assert_eq!((config.vision.depth, config.vision.num_heads, config.vision.patch_size), (32, 16, 14));
    assert_eq!((config.image_token_id, config.video_token_id), (151_655, 151_656));
    assert_eq!((config.vision_start_token_id, config.vision_end_token_id), (151_652, 151_653));
    assert_eq!((config.text.rope_theta, config.text.mrope_section), (1e6, [16, 24, 24]));
    assert_eq!(config.text.rms_norm_eps, 1e-5);

    let mut root = flat();
    root["num_key_value_heads"] = Value::Null;
    assert_eq!(parse(&root).expect("null heads").text.num_key_value_heads, 4);
    root["vision_config"]["mlp_ratio"] = json!(1.99);
    assert_eq!(parse(&root).expect("fractional ratio").vision.mlp_dim, 127);
}

/// `base` with the value at a JSON pointer replaced, and what the error has to name.
#[track_caller]
fn refused(base: fn() -> Value, pointer: &str, value: Value, parts: &[&str]) {
    let mut root = base();
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    root.pointer_mut(parent).expect("parent")[key] = value;
    let error = parse(&root).expect_err(pointer);
    assert_eq!(error.exit_code(), 65);
    let text = error.to_string();
    for part in parts.iter().chain(&[PATH]) {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn case_04_places_that_disagree_are_both_named() {
    refused(both, "/hidden_size", json!(128), &["text_config.hidden_size is 64 but hidden_size is 128"]);
    refused(both, "/rope_theta", json!(1e4), &["500000.0", "10000.0"]);
    refused(both, "/rope_scaling/mrope_section", json!([4, 2, 2]), &["[2,3,3]", "[4,2,2]"]);
    refused(
        both,
        "/tie_word_embeddings",
        json!(false),
        &["text_config.tie_word_embeddings is true", "is false"],
    );
    refused(
        nested,
        "/text_config/rope_theta",
        json!(7),
        &["rope_parameters.rope_theta is 500000", "rope_theta is 7"],
    );
    refused(flat, "/vision_config/in_channels", json!(1), &["in_channels is 1", "in_chans is 3"]);
}

#[test]
fn a_tower_with_windows() {
    let config = parse(&flat_2_5()).expect("valid");
    let vision = VisionConfig {
        depth: 3,
        embed_dim: 32,
        out_hidden_size: 64,
        num_heads: 4,
        mlp_dim: 52,
        in_channels: 3,
        patch_size: 14,
        spatial_merge_size: 2,
        temporal_patch_size: 2,
        block: BlockKind::SwiGlu,
        windows: Some(WindowConfig { size: 56, full_blocks: vec![1] }),
    };
    assert_eq!((config.family, config.vision), (Family::Qwen2_5Vl, vision));
    assert_eq!(config.text, parse(&flat()).expect("valid").text);
    // transformers' defaults, which are the published sizes but for the widths.
    let mut root = flat_2_5();
    root["vision_config"] = json!({"hidden_size": 1280, "out_hidden_size": 64});
    let vision = parse(&root).expect("valid").vision;
    assert_eq!((vision.depth, vision.num_heads, vision.mlp_dim, vision.patch_size), (32, 16, 3420, 14));
    let windows = vision.windows.as_ref().expect("windows");
    assert_eq!((windows.size, &windows.full_blocks[..]), (112, &[7, 15, 23, 31][..]));
    assert_eq!(vision.window_side(windows), 4);
    // A side is rounded down to whole merge blocks; numbers of no block, and numbers given twice, change nothing.
    root["vision_config"] = json!({
        "hidden_size": 32, "out_hidden_size": 64, "num_heads": 4, "depth": 3, "window_size": 111, "fullatt_block_indexes": [7, 2, 0, 2]
    });
    let vision = parse(&root).expect("valid").vision;
    let windows = vision.windows.as_ref().expect("windows");
    assert_eq!((vision.window_side(windows), &windows.full_blocks[..]), (3, &[0, 2][..]));
    for (key, value, part) in [
        ("hidden_size", json!(36), "vision head dimension (hidden_size 36 / num_heads 4 = 9)"),
        ("hidden_size", json!(0), "vision_config.hidden_size is 0"),
        ("out_hidden_size", json!(32), "vision_config.out_hidden_size (32) is not hidden_size (64)"),
        ("intermediate_size", json!(0), "vision_config.intermediate_size is 0"),
        ("window_size", json!(27), "window_size (27) is less than a merged patch"),
        ("window_size", json!("56"), "window_size must be a whole number"),
        ("fullatt_block_indexes", json!(1), "fullatt_block_indexes must be a list of block numbers"),
        ("fullatt_block_indexes", json!([-1]), "fullatt_block_indexes must be a whole number"),
        ("tokens_per_second", json!("2"), "tokens_per_second must be a number"),
        ("hidden_act", json!("quick_gelu"), "vision_config.hidden_act"),
    ] {
        refused(flat_2_5, &format!("/vision_config/{key}"), value, &[part]);
    }
}

#[test]
fn case_05_other_models_are_refused() {
    for family in ["qwen3_vl", "qwen2_5_vl_text", "llama"] {
        let supported = "supported model types: \"qwen2_vl\", \"qwen2_5_vl\"";
        refused(flat, "/model_type", json!(family), &[family, supported]);
    }
    // Another family's sizes do not pass for one's own.
    refused(flat, "/model_type", json!("qwen2_5_vl"), &["vision_config.out_hidden_size (3584)"]);
    refused(flat_2_5, "/model_type", json!("qwen2_vl"), &["vision_config.hidden_act is \"silu\""]);
    refused(flat, "/model_type", Value::Null, &["supported model types"]);
    refused(flat, "/quantization_config", json!({"quant_method": "awq"}), &["dequantise first"]);
    for root in [json!([]), json!("x"), json!({})] {
        assert_eq!(parse(&root).expect_err("no model").exit_code(), 65);
    }
}

#[test]
fn case_07_what_would_compute_another_model_is_refused() {
    for kind in ["yarn", "linear", "dynamic", "longrope", "llama3"] {
        refused(flat, "/rope_scaling/type", json!(kind), &["rope_scaling.type", kind]);
        refused(
            nested,
            "/text_config/rope_parameters/rope_type",
            json!(kind),
            &["rope_parameters.rope_type", kind],
        );
    }
    refused(nested, "/text_config/rope_parameters/full_attention", json!({"rope_theta": 1}), &["per layer"]);
    refused(nested, "/text_config/rope_parameters/mrope_interleaved", json!(true), &["interleaved"]);
    refused(flat, "/use_sliding_window", json!(true), &["sliding"]);
    refused(both, "/text_config/layer_types", json!(["sliding_attention"]), &["layer_types"]);
    refused(flat, "/hidden_act", json!("gelu"), &["hidden_act", "gelu", "silu"]);
    refused(flat, "/vision_config/hidden_act", json!("silu"), &["vision_config.hidden_act", "quick_gelu"]);
    refused(
        nested,
        "/vision_config/rope_parameters/rope_theta",
        json!(1e6),
        &["vision_config.rope_parameters"],
    );
}

#[test]
fn case_06_sizes_that_do_not_fit_are_refused() {
    refused(flat, "/num_attention_heads", json!(5), &["num_attention_heads (5)", "hidden_size (64)"]);
    refused(flat, "/num_key_value_heads", json!(3), &["num_key_value_heads (3)"]);
    refused(flat, "/rope_scaling/mrope_section", json!([2, 3, 4]), &["[2, 3, 4]", "16 / 2"]);
    refused(flat, "/rope_scaling/mrope_section", json!([8]), &["three whole numbers"]);
    refused(flat, "/rope_scaling/mrope_section", json!([2, 3, u64::MAX]), &["mrope_section"]);
    refused(flat, "/rope_scaling", json!("mrope"), &["rope_scaling must be an object"]);
    refused(flat, "/head_dim", json!(32), &["head dimension (32)"]);
    refused(flat, "/vision_config/num_heads", json!(7), &["num_heads (7)"]);
    refused(flat, "/vision_config/num_heads", json!(32), &["multiple of 4"]);
    refused(flat, "/vision_config/hidden_size", json!(32), &["vision_config.hidden_size (32)"]);
    refused(flat, "/vision_config/mlp_ratio", json!(-1), &["mlp_ratio"]);
    refused(flat, "/vision_config", json!(1), &["vision_config must be an object"]);
    refused(flat, "/rms_norm_eps", json!(0), &["rms_norm_eps"]);
    refused(flat, "/rope_theta", json!(-1.0), &["rope_theta"]);
    refused(flat, "/tie_word_embeddings", json!("yes"), &["tie_word_embeddings must be true or false"]);
    refused(flat, "/image_token_id", json!(1u64 << 32), &["image_token_id"]);
}

#[test]
fn case_06_sizes_out_of_all_bounds_are_refused_without_overflow() {
    let keys = [
        "/vocab_size",
        "/hidden_size",
        "/intermediate_size",
        "/num_hidden_layers",
        "/num_attention_heads",
        "/num_key_value_heads",
        "/max_position_embeddings",
        "/vision_config/depth",
        "/vision_config/embed_dim",
        "/vision_config/hidden_size",
        "/vision_config/num_heads",
        "/vision_config/mlp_ratio",
        "/vision_config/in_chans",
        "/vision_config/patch_size",
        "/vision_config/spatial_merge_size",
        "/vision_config/temporal_patch_size",
    ];
    for key in keys {
        for value in
            [json!(0), json!(-1), json!(1u64 << 31), json!(u64::MAX), json!(1e300), json!("64"), json!([64])]
        {
            refused(flat, key, value, &[]);
        }
    }
    refused(flat, "/hidden_size", json!(64.5), &["whole number", "64.5"]);
    refused(flat, "/vision_config/spatial_merge_size", json!(1024), &["spatial_merge_size^2"]);
}
