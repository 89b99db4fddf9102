//! What a saved model folder will hold beside the values: config, names, dtypes, and the files
//! that travel with a model.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::checkpoint::safetensors::FloatDtype;
use crate::error::{Error, Result};
use crate::files;
use crate::model::config::ModelConfig;
use crate::model::folder::ModelFolder;
use crate::model::safetensors::Dtype;
use crate::model::weights::parameters;

/// Files of tokenizer, processor and generation that are copied byte for byte when a model is
/// saved; `additional_chat_templates/*` goes with them.
pub const COMPANION_FILES: [&str; 12] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
];

const TEMPLATE_FOLDER: &str = "additional_chat_templates";

/// Largest companion file, bytes; the largest published tokenizer.json is 11 MB.
const MAX_COMPANION_BYTES: u64 = 256 << 20;

/// Largest weight file, bytes, unless asked otherwise (the limit of the published models).
const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Everything about a folder to be saved that is known before training: made at the start, so
/// that a model folder that is moved or changed during a long run cannot spoil the save.
#[derive(Clone, Debug)]
pub struct SavePlan {
    config: Value,
    /// `config.json` as it will be written.
    config_bytes: Vec<u8>,
    pub(super) parameters: Vec<PlannedParameter>,
    /// Path inside the folder, and content.
    pub(super) companions: Vec<(String, Vec<u8>)>,
    pub(super) max_shard_bytes: u64,
}

#[derive(Clone, Debug)]
pub(super) struct PlannedParameter {
    pub name: String,
    pub stored_name: String,
    pub shape: Vec<usize>,
    pub dtype: FloatDtype,
}

impl SavePlan {
    /// Saves as `source` was loaded: its `config.json` and companion files byte for byte, its
    /// tensor names, each tensor in its dtype. (A tied model's superfluous `lm_head` is left out.)
    ///
    /// # Errors
    /// Those of reading the companion files: a link out of the folder, or a file that is too large.
    pub fn like(source: &ModelFolder) -> Result<Self> {
        let parameters = source
            .stored_parameters()
            .iter()
            .map(|stored| {
                Ok(PlannedParameter {
                    name: stored.name.clone(),
                    stored_name: stored.stored_name.clone(),
                    shape: stored.shape.clone(),
                    dtype: float_dtype(stored.dtype)?,
                })
            })
            .collect::<Result<_>>()?;
        let config_path = source.dir.join("config.json");
        Ok(Self {
            config: source.raw_config.clone(),
            config_bytes: files::read_bounded(&config_path, files::MAX_JSON_BYTES)?,
            parameters,
            companions: companions(&source.dir)?,
            max_shard_bytes: MAX_SHARD_BYTES,
        })
    }

    /// A new model in the published layout, which transformers reads from 4.45 to today: flat
    /// `config.json`, published tensor names. `bos_token_id` and `eos_token_id` go into the config;
    /// `files` (tokenizer, processor, `generation_config.json`, ...) are written as they are.
    ///
    /// # Errors
    /// [`Error::Input`] if `config` does not pass its check, or has an MLP width that is no whole
    /// multiple of the vision width (which `mlp_ratio` cannot say).
    pub fn fresh(
        config: &ModelConfig,
        dtype: FloatDtype,
        bos_token_id: Option<u32>,
        eos_token_id: Option<u32>,
        files: &[(&str, &[u8])],
    ) -> Result<Self> {
        config.check().map_err(Error::Input)?;
        let json = fresh_config(config, dtype, bos_token_id, eos_token_id)?;
        let parameters = parameters(config)
            .into_iter()
            .map(|(name, shape)| PlannedParameter { stored_name: name.clone(), name, shape, dtype })
            .collect();
        Ok(Self {
            config_bytes: pretty(&json)?,
            config: json,
            parameters,
            companions: files.iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect(),
            max_shard_bytes: MAX_SHARD_BYTES,
        })
    }

    /// Saves every parameter in `dtype`; `config.json` says so, and is unchanged otherwise.
    ///
    /// # Errors
    /// [`Error::Internal`] if the config cannot be written as JSON.
    pub fn with_dtype(mut self, dtype: FloatDtype) -> Result<Self> {
        for parameter in &mut self.parameters {
            parameter.dtype = dtype;
        }
        if declare_dtype(&mut self.config, dtype.torch_name()) {
            self.config_bytes = pretty(&self.config)?;
        }
        Ok(self)
    }

    /// Begins a new weight file when one would grow beyond `bytes` (5 GB unless set). A single
    /// larger tensor has a file of its own.
    pub fn with_max_shard_bytes(mut self, bytes: u64) -> Self {
        self.max_shard_bytes = bytes;
        self
    }

    /// `config.json` and the files that travel with the model, by name.
    pub fn each_file(&self, mut visit: impl FnMut(&str, &[u8])) {
        visit("config.json", &self.config_bytes);
        self.companions.iter().for_each(|(name, bytes)| visit(name, bytes));
    }

    /// Bytes that a save will take on disk, up to the headers.
    pub fn bytes(&self) -> u64 {
        let weights: u64 = self.parameters.iter().map(PlannedParameter::bytes).sum();
        let files: usize = self.companions.iter().map(|(_, bytes)| bytes.len()).sum();
        weights + files as u64 + self.config_bytes.len() as u64
    }

    /// The type that a parameter is saved in, by its canonical name.
    pub fn dtype_of(&self, name: &str) -> Option<FloatDtype> {
        self.parameters.iter().find(|parameter| parameter.name == name).map(|parameter| parameter.dtype)
    }

    pub(super) fn config_bytes(&self) -> &[u8] {
        &self.config_bytes
    }
}

impl PlannedParameter {
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }

    pub fn bytes(&self) -> u64 {
        self.elements() * self.dtype.bytes() as u64
    }
}

fn float_dtype(dtype: Dtype) -> Result<FloatDtype> {
    match dtype {
        Dtype::F32 => Ok(FloatDtype::F32),
        Dtype::BF16 => Ok(FloatDtype::Bf16),
        Dtype::F16 => Ok(FloatDtype::F16),
        other => Err(Error::Internal(format!("a loaded parameter is stored as {other}"))),
    }
}

/// Reads the companion files of a model folder.
fn companions(dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut names: Vec<String> = COMPANION_FILES.iter().map(|name| name.to_string()).collect();
    let templates = dir.join(TEMPLATE_FOLDER);
    if templates.is_dir() {
        let entries = fs::read_dir(&templates).map_err(|e| Error::io(&templates, "list the folder", e))?;
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(&templates, "list the folder", e))?;
            if let Ok(name) = entry.file_name().into_string() {
                names.push(format!("{TEMPLATE_FOLDER}/{name}"));
            }
        }
    }
    names.sort();
    let mut found = Vec::new();
    for name in names {
        if let Some(path) = files::file_inside(dir, &name)? {
            found.push((name, files::read_bounded(&path, MAX_COMPANION_BYTES)?));
        }
    }
    Ok(found)
}

fn pretty(value: &Value) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::Internal(format!("config.json cannot be written: {e}")))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Sets the dtype wherever the config declares one (at the top if nowhere). Whether that changed it.
fn declare_dtype(config: &mut Value, name: &str) -> bool {
    let before = config.clone();
    let nested = config.get("text_config").is_some_and(Value::is_object);
    let mut declared = false;
    let Value::Object(root) = config else { return false };
    let set = |map: &mut Map<String, Value>| {
        let mut any = false;
        for key in ["dtype", "torch_dtype"] {
            if let Some(value) = map.get_mut(key).filter(|value| !value.is_null()) {
                *value = name.into();
                any = true;
            }
        }
        any
    };
    declared |= set(root);
    for part in ["text_config", "vision_config"] {
        if let Some(Value::Object(map)) = root.get_mut(part) {
            declared |= set(map);
        }
    }
    if !declared {
        root.insert(if nested { "dtype" } else { "torch_dtype" }.into(), name.into());
    }
    *config != before
}

/// `config.json` of a new model, in the published (flat) dialect.
fn fresh_config(
    config: &ModelConfig,
    dtype: FloatDtype,
    bos_token_id: Option<u32>,
    eos_token_id: Option<u32>,
) -> Result<Value> {
    let ModelConfig { family, text, vision, .. } = config;
    let vision = family.write_vision(vision).map_err(Error::Input)?;
    let mut json = json!({
        "architectures": [family.architecture()],
        "attention_dropout": 0.0,
        "vision_start_token_id": config.vision_start_token_id,
        "vision_end_token_id": config.vision_end_token_id,
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": text.max_position_embeddings,
        "max_window_layers": text.num_hidden_layers,
        "model_type": family.model_type(),
        "num_attention_heads": text.num_attention_heads,
        "num_hidden_layers": text.num_hidden_layers,
        "num_key_value_heads": text.num_key_value_heads,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_scaling": { "type": "mrope", "mrope_section": text.mrope_section },
        "rope_theta": text.rope_theta,
        "sliding_window": 32768,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": dtype.torch_name(),
        "use_cache": true,
        "use_sliding_window": false,
        "vision_config": vision,
        "vocab_size": text.vocab_size,
    });
    for (key, id) in [("bos_token_id", bos_token_id), ("eos_token_id", eos_token_id)] {
        if let (Some(id), Value::Object(map)) = (id, &mut json) {
            map.insert(key.into(), id.into());
        }
    }
    Ok(json)
}
