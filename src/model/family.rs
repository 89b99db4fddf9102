//! The families of models: what `model_type` decides.
//!
//! A family is a file beside this one with its `Spec`, a variant and an arm here: which keys its vision tower has, with which
//! defaults, and what its blocks are made of.

use super::config::VisionConfig;
use super::config::parse::{Group, Parsed};
use super::{qwen2_5_vl, qwen2_vl};
use serde_json::Value;

/// A family of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Qwen2-VL (Wang et al. 2024).
    Qwen2Vl,
    /// Qwen2.5-VL (Bai et al. 2025).
    Qwen2_5Vl,
}

/// What a family has of its own.
pub(super) struct Spec {
    /// `model_type` of `config.json`.
    pub model_type: &'static str,
    /// The one of `architectures`.
    pub architecture: &'static str,
    /// What `vision_config` calls the sizes.
    pub vision_keys: VisionKeys,
    /// The tower's sizes from `vision_config`.
    pub read_vision: fn(&Group) -> Parsed<VisionConfig>,
    /// `vision_config` of a new model, as published files have it.
    pub write_vision: fn(&VisionConfig) -> Parsed<Value>,
}

/// Names that differ between families, for errors.
pub(super) struct VisionKeys {
    /// The blocks' width.
    pub width: &'static str,
    /// The MLP's width.
    pub mlp: &'static str,
    /// The merger's width.
    pub out: &'static str,
}

impl Family {
    /// Every family.
    pub const ALL: [Family; 2] = [Family::Qwen2Vl, Family::Qwen2_5Vl];

    fn spec(self) -> &'static Spec {
        match self {
            Family::Qwen2Vl => &qwen2_vl::SPEC,
            Family::Qwen2_5Vl => &qwen2_5_vl::SPEC,
        }
    }

    /// What `config.json` calls it.
    pub fn model_type(self) -> &'static str {
        self.spec().model_type
    }

    /// transformers' class.
    pub fn architecture(self) -> &'static str {
        self.spec().architecture
    }

    pub(super) fn vision_keys(self) -> &'static VisionKeys {
        &self.spec().vision_keys
    }

    pub(super) fn read_vision(self, group: &Group) -> Parsed<VisionConfig> {
        (self.spec().read_vision)(group)
    }

    /// `vision_config` of a new model, in the published dialect.
    ///
    /// # Errors
    /// A sentence, for sizes that the dialect cannot say.
    pub fn write_vision(self, vision: &VisionConfig) -> Result<Value, String> {
        (self.spec().write_vision)(vision)
    }
}
