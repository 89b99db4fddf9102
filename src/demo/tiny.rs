//! A small checkpoint made from nothing: a tokenizer trained on the task's texts, and random weights.

use crate::checkpoint::{FloatDtype, OnExisting, SavePlan, WeightRef, save_model, write_folder};
use crate::data::{Dataset, Part};
use crate::disk::SystemDisk;
use crate::error::{Error, Result};
use crate::model::config::{BlockKind, ModelConfig, TextConfig, VisionConfig};
use crate::model::family::Family;
use crate::model::weights::parameters;
use crate::processor::chat::QWEN2_VL_TEMPLATE;
use crate::rng::{Purpose, Stream};
use serde_json::{Value, json};
use std::path::Path;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, TokenizerBuilder};

/// Qwen2's control tokens, in the order of the published vocabulary.
const CONTROL_TOKENS: [&str; 8] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
];

/// Ordinary words that are one token each, as in Qwen3's vocabulary: a tag costs one step of decoding.
const TAGS: [&str; 4] = ["<think>", "</think>", "<answer>", "</answer>"];

/// How Qwen2 cuts text before its merges: contractions, words, single digits, punctuation, white space.
const PRE_TOKENIZER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Bytes and merges, at most; the control tokens come on top.
const MERGED_VOCABULARY: usize = 384;

/// Sizes of the demo's model around a tokenizer: about 0.3 M parameters.
fn config(tokenizer: &Trained) -> Result<ModelConfig> {
    let (width, vision_width) = (64, 64);
    Ok(ModelConfig {
        family: Family::Qwen2Vl,
        text: TextConfig {
            vocab_size: tokenizer.size.next_multiple_of(8),
            hidden_size: width,
            intermediate_size: 128,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 16,
            rms_norm_eps: 1e-6,
            rope_theta: 1_000_000.0,
            mrope_section: [2, 3, 3],
            max_position_embeddings: 2048,
        },
        vision: VisionConfig {
            depth: 2,
            embed_dim: vision_width,
            out_hidden_size: width,
            num_heads: 4,
            mlp_dim: 2 * vision_width,
            in_channels: 3,
            patch_size: 14,
            spatial_merge_size: 2,
            temporal_patch_size: 2,
            block: BlockKind::QuickGelu,
            windows: None,
        },
        tie_word_embeddings: true,
        image_token_id: tokenizer.id("<|image_pad|>")?,
        video_token_id: tokenizer.id("<|video_pad|>")?,
        vision_start_token_id: tokenizer.id("<|vision_start|>")?,
        vision_end_token_id: tokenizer.id("<|vision_end|>")?,
    })
}

/// A finished tokenizer.
struct Trained {
    json: Vec<u8>,
    control: Vec<(String, u32)>,
    size: usize,
}

impl Trained {
    fn id(&self, token: &str) -> Result<u32> {
        let found = self.control.iter().find(|(name, _)| name == token);
        found.map(|(_, id)| *id).ok_or_else(|| broken(format!("no token {token}")))
    }
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::Internal(format!("the demo's tokenizer cannot be made: {error}"))
}

/// A byte-level BPE tokenizer in Qwen2's layout, trained on the samples' texts.
fn train_tokenizer(samples: &Dataset) -> Result<Trained> {
    let mut words =
        ["system\nYou are a helpful assistant.", "user\n", "assistant\n"].map(String::from).to_vec();
    for sample in samples.iter() {
        let parts = sample?.messages.into_iter().flat_map(|message| message.content);
        words.extend(parts.filter_map(|part| match part {
            Part::Text(text) => Some(text),
            Part::Image(_) => None,
        }));
    }
    let split =
        Split::new(SplitPattern::Regex(PRE_TOKENIZER.into()), SplitDelimiterBehavior::Isolated, false)
            .map_err(broken)?;
    let bytes = ByteLevel::new(false, false, false);
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(Some(NFC))
        .with_pre_tokenizer(Some(Sequence::new(vec![split.into(), bytes.into()])))
        .with_post_processor(Some(bytes))
        .with_decoder(Some(bytes))
        .build()
        .map_err(broken)?;
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(MERGED_VOCABULARY)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer.train(&mut trainer, words.into_iter()).map_err(broken)?;
    tokenizer.add_special_tokens(CONTROL_TOKENS.map(|t| AddedToken::from(t, true))).map_err(broken)?;
    tokenizer.add_tokens(TAGS.map(|t| AddedToken::from(t, false))).map_err(broken)?;
    let id = |token: &str| tokenizer.token_to_id(token).map(|id| (token.to_string(), id));
    Ok(Trained {
        json: tokenizer.to_string(false).map_err(broken)?.into_bytes(),
        control: CONTROL_TOKENS.iter().filter_map(|t| id(t)).collect(),
        size: tokenizer.get_vocab_size(true),
    })
}

/// Random weights as transformers initialises Qwen2-VL: matrices normal with deviation 0.02, norms 1, biases 0;
/// but the patch embedding, whose inputs are wide, with 1 / sqrt(inputs).
fn initialise(config: &ModelConfig, seed: u64) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    parameters(config)
        .into_iter()
        .enumerate()
        .map(|(i, (name, shape))| {
            let n: usize = shape.iter().product();
            let mut stream = Stream::new(seed, Purpose::Init, i as u64);
            let is_norm = shape.len() == 1 && name.ends_with("weight");
            let data = match shape.len() {
                1 => vec![if is_norm { 1.0 } else { 0.0 }; n],
                2 => {
                    let deviation =
                        if name.contains("embed_tokens") { 0.02 } else { (1.0 / shape[1] as f32).sqrt() };
                    (0..n).map(|_| stream.normal() * deviation).collect()
                }
                _ => {
                    let deviation = (shape[0] as f32 / n as f32).sqrt();
                    (0..n).map(|_| stream.normal() * deviation).collect()
                }
            };
            (name, shape, data)
        })
        .collect()
}

/// Writes the checkpoint folder: config, weights, tokenizer, chat template, processor settings.
pub fn write(dir: &Path, samples: &Dataset, image_side: usize, seed: u64) -> Result<()> {
    let tokenizer = train_tokenizer(samples)?;
    let config = config(&tokenizer)?;
    let (eos, pad) = (tokenizer.id("<|im_end|>")?, tokenizer.id("<|endoftext|>")?);
    let pixels = image_side * image_side;
    let tokenizer_config = json!({
        "add_prefix_space": false,
        "bos_token": Value::Null,
        "clean_up_tokenization_spaces": false,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": config.text.max_position_embeddings,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": false,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": Value::Null,
        "chat_template": QWEN2_VL_TEMPLATE,
    });
    let preprocessor = json!({
        "do_convert_rgb": true,
        "do_normalize": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "merge_size": 2,
        "min_pixels": 784,
        "max_pixels": pixels.max(784),
        "patch_size": 14,
        "resample": 3,
        "rescale_factor": 1.0 / 255.0,
        "temporal_patch_size": 2,
    });
    let generation =
        json!({ "bos_token_id": pad, "eos_token_id": [eos, pad], "pad_token_id": pad, "do_sample": false });
    let text = |value: &Value| format!("{value:#}\n").into_bytes();
    let (tokenizer_config, preprocessor, generation) =
        (text(&tokenizer_config), text(&preprocessor), text(&generation));
    let files: [(&str, &[u8]); 5] = [
        ("tokenizer.json", &tokenizer.json),
        ("tokenizer_config.json", &tokenizer_config),
        ("chat_template.jinja", QWEN2_VL_TEMPLATE.as_bytes()),
        ("preprocessor_config.json", &preprocessor),
        ("generation_config.json", &generation),
    ];
    let plan = SavePlan::fresh(&config, FloatDtype::F32, Some(pad), Some(eos), &files)?;
    let weights = initialise(&config, seed);
    write_folder(&SystemDisk, dir, OnExisting::Replace, |folder| {
        save_model(folder, &plan, weights.iter().map(|(name, shape, data)| WeightRef { name, shape, data }))
    })
}
