//! Vision-language models: a vision tower whose merged patch features replace the image tokens of a decoder.
//!
//! `tokens, patches -> vision -> spliced embeddings -> decoder -> hidden states [T, C] -> head`.
//! The architecture is a [`Model`]; the weights are a [`Params`] in the order of [`weights::parameters`], read from Hugging Face
//! folders ([`folder`]). The decoder is the same in every family; what a [`family`] has of its own stands in one file.

pub mod config;
pub mod family;
pub mod folder;
pub mod generation;
mod qwen2_5_vl;
mod qwen2_vl;
pub mod safetensors;
pub mod text;
pub mod vision;
pub mod weights;

use crate::autograd::{ParamId, Tape, Var};
use crate::cuda::Purpose;
use crate::error::Result;
use crate::nn::{Names, Params, Scope};
use crate::ops::attention::{Segment, Segments};
use crate::ops::embedding::Embedding;
use crate::packed::Packed;
use crate::processor::Normalisation;
use crate::tensor::Tensor;
use config::ModelConfig;
use std::sync::Arc;
use text::Text;
use vision::{Features, Vision};

/// The architecture: which parameters are used where.
#[derive(Clone, Debug)]
pub struct Model {
    config: ModelConfig,
    vision: Vision,
    text: Text,
    embedding: ParamId,
    head: ParamId,
}

/// The result of a forward pass.
pub struct Output {
    /// The images' features; absent when there are no images.
    pub vision: Option<Features>,
    /// Hidden states after the last norm, `[T, C]`.
    pub hidden: Var,
}

impl Model {
    /// Puts the model together for weights in the order of [`weights::parameters`].
    pub fn new(config: ModelConfig, normalisation: &Normalisation) -> Result<Model> {
        let list = weights::parameters(&config);
        let names = Names::new(list.iter().map(|(name, _)| name.as_str()));
        let embedding = names.id("model.embed_tokens.weight")?;
        let head = if config.tie_word_embeddings { embedding } else { names.id("lm_head.weight")? };
        Ok(Model {
            vision: Vision::new(&names, &config.vision, normalisation)?,
            text: Text::new(&names, &config.text)?,
            config,
            embedding,
            head,
        })
    }

    /// Sizes and special ids.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The parameter whose rows give the logits, `[V, C]`.
    pub fn head(&self) -> ParamId {
        self.head
    }

    /// The decoder, for cached inference.
    pub fn text(&self) -> &Text {
        &self.text
    }

    /// Image features and the embeddings `[T, C]` they are spliced into.
    pub fn embed(
        &self,
        scope: &Scope<'_>,
        input: &Packed,
        recompute: bool,
    ) -> Result<(Option<Features>, Var)> {
        let table = scope.param(self.embedding);
        let images: Vec<_> = input.images.iter().map(|i| &i.patches).collect();
        let features = match images.is_empty() {
            true => None,
            false => Some(self.vision.forward(scope, &images, recompute)?),
        };
        let merged = match &features {
            Some(features) => features.merged.clone(),
            None => {
                let none = Tensor::zeros(&[0, self.config.text.hidden_size], table.value().dtype());
                Var::constant(none.to_device(&table.value().device(), Purpose::Inputs)?)
            }
        };
        let image_rows = input.images.iter().flat_map(|i| i.rows.clone()).collect();
        let x =
            scope.tape.apply(Embedding { tokens: input.tokens.clone(), image_rows }, [&table, &merged])?;
        Ok((features, x))
    }

    /// The whole model up to the hidden states. With `recompute`, only the layers' inputs are kept for the backward
    /// pass; no bit of the result or the gradients changes.
    pub fn forward(&self, scope: &Scope<'_>, input: &Packed, recompute: bool) -> Result<Output> {
        let (vision, x) = self.embed(scope, input, recompute)?;
        let rope = self.config.text.rope(&input.positions_3t);
        let hidden = self.text.forward(scope, x, &rope, &attention_segments(input), recompute)?;
        Ok(Output { vision, hidden })
    }

    /// Hidden states without a tape.
    pub fn infer(&self, params: &Arc<Params>, input: &Packed) -> Result<Tensor> {
        let tape = Tape::off();
        Ok(self.forward(&Scope { tape: &tape, params }, input, false)?.hidden.value().clone())
    }
}

/// The packed input's segments as the attention op takes them.
pub fn attention_segments(input: &Packed) -> Segments {
    let prefix = |s: usize| input.segments[s].rows.clone();
    let segments = input.segments.iter();
    let segments: Vec<_> =
        segments.map(|s| Segment { rows: s.rows.clone(), prefix: s.prefix.map(prefix) }).collect();
    segments.into()
}
