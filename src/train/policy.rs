//! A checkpoint, loaded: processor, architecture, weights.

use crate::cuda::Purpose;
use crate::data::Sample;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::config::ModelConfig;
use crate::model::folder::{ModelFolder, Weight};
use crate::nn::Params;
use crate::packed::ImageLayout;
use crate::processor::{Processor, ProcessorOptions, Prompt};
use crate::rollout::sampler::SamplingParams;
use crate::rollout::sequence::StopRules;
use crate::rollout::stop::StopStrings;
use crate::rollout::{Decoding, Engine, Limits};
use crate::tensor::{Placement, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

/// All that a run needs of a checkpoint.
pub struct Policy {
    /// The folder and its config files.
    pub folder: ModelFolder,
    /// Text and images to model input.
    pub processor: Arc<Processor>,
    /// The architecture.
    pub model: Model,
    /// The weights.
    pub params: Arc<Params>,
}

impl Policy {
    /// Loads a folder, or `org/name` from the local Hugging Face cache; the weights go where `placement` says.
    pub fn load(model: &str, options: &ProcessorOptions, placement: &Placement) -> Result<Policy> {
        let folder = ModelFolder::open(model)?;
        let processor = Arc::new(Processor::load(&folder.dir, options)?);
        let (ids, rows) = (processor.tokenizer().id_limit(), folder.config.text.vocab_size);
        if ids > rows {
            return Err(Error::content(
                &folder.dir,
                format!(
                    "the tokenizer has ids up to {}, but the embedding only {rows} rows (vocab_size): tokenizer.json and \
                     config.json do not belong together",
                    ids - 1
                ),
            ));
        }
        if processor.image_token() != folder.config.image_token_id {
            return Err(Error::content(
                &folder.dir,
                format!(
                    "the tokenizer's image placeholder is token {}, the config's image_token_id is {}: \
                     tokenizer.json and config.json do not belong together",
                    processor.image_token(),
                    folder.config.image_token_id
                ),
            ));
        }
        let (image, vision) = (processor.image_config(), &folder.config.vision);
        let sizes = [
            ("patch_size", image.patch_size, vision.patch_size),
            ("merge_size", image.merge_size, vision.spatial_merge_size),
            ("temporal_patch_size", image.temporal_patch_size, vision.temporal_patch_size),
        ];
        if let Some((name, processor, model)) = sizes.into_iter().find(|(_, a, b)| a != b) {
            return Err(Error::content(
                &folder.dir,
                format!(
                    "the image processor's {name} is {processor}, the vision tower in config.json has {model}: \
                     preprocessor_config.json (or processor_config.json) and config.json do not belong together"
                ),
            ));
        }
        let model = Model::new(folder.config.clone(), &processor.image_config().normalisation)?;
        let weights = folder.load_weights()?;
        let place = |weight: Weight| {
            let value = Tensor::new(&weight.shape, weight.data)?.to_dtype(placement.dtype);
            Ok((weight.name, value.to_device(&placement.device, Purpose::Weights)?))
        };
        let tensors = weights.into_iter().map(place).collect::<Result<Vec<_>>>()?;
        Ok(Policy { folder, processor, model, params: Arc::new(Params::new(tensors)) })
    }

    /// How images stand in the token stream.
    pub fn layout(&self) -> ImageLayout {
        ImageLayout {
            image_token_id: self.model.config().image_token_id,
            spatial_merge_size: self.model.config().vision.spatial_merge_size,
        }
    }

    /// Tokens that a policy in training may not write: they would stand for an image that is not there.
    pub fn vision_tokens(&self) -> Vec<u32> {
        let config = self.model.config();
        let mut ids = vec![
            config.image_token_id,
            config.video_token_id,
            config.vision_start_token_id,
            config.vision_end_token_id,
        ];
        ids.extend(self.processor.tokenizer().token_id("<|vision_pad|>"));
        ids.sort_unstable();
        ids.dedup();
        ids.retain(|&id| (id as usize) < config.text.vocab_size);
        ids
    }

    /// Ids that end a completion: those of `generation_config.json`, else `<|im_end|>`.
    pub fn eos(&self) -> Vec<u32> {
        let listed = &self.folder.generation.eos_token_ids;
        if listed.is_empty() {
            self.processor.tokenizer().token_id("<|im_end|>").into_iter().collect()
        } else {
            listed.clone()
        }
    }

    /// Text of some ids, special tokens left out; ids that the tokenizer lacks give nothing.
    pub fn detokenize(&self, ids: &[u32]) -> String {
        self.processor.tokenizer().decode(ids, true).unwrap_or_default()
    }

    /// Sampling rules over this checkpoint's stop tokens; `training` bans the vision tokens.
    pub fn decoding(
        &self,
        sampling: SamplingParams,
        stop_strings: &[String],
        training: bool,
    ) -> Result<Decoding> {
        sampling.validate()?;
        let stop = StopRules {
            eos: self.eos(),
            strings: StopStrings::new(stop_strings.to_vec())?,
            max_new_tokens: sampling.max_new_tokens,
        };
        Ok(Decoding { sampling, stop, banned: if training { self.vision_tokens() } else { Vec::new() } })
    }

    /// A generator over given weights (the current ones, or a reference's).
    pub fn engine<'a>(
        &'a self,
        params: &'a Arc<Params>,
        decoding: &'a Decoding,
        detokenize: &'a (dyn Fn(&[u32]) -> String + Sync),
    ) -> Engine<'a> {
        Engine { model: &self.model, params, decoding, detokenize, limits: Limits::of(&params.device()) }
    }

    /// Prompts of some rows, images decoded on all threads. A prompt longer than `limit` tokens fails.
    pub fn encode(&self, samples: &[&Sample], limit: usize) -> Result<Vec<Prompt>> {
        let prompts: Vec<Result<Prompt>> = samples
            .par_iter()
            .map(|sample| {
                let prompt = self.processor.encode(sample, true)?;
                check_length(sample, prompt.tokens.len(), limit)?;
                Ok(prompt)
            })
            .collect();
        // Not collected at once, so that the error is the first row's and not the first thread's.
        prompts.into_iter().collect()
    }

    /// Tokens left for a prompt beside a completion of `completion` tokens; fails when there are none.
    pub fn prompt_limit(&self, given: Option<usize>, completion: usize) -> Result<usize> {
        prompt_limit(self.model.config(), given, completion)
    }
}

/// Tokens left in the model's context for a prompt beside a completion of `completion` tokens, at most `given`.
///
/// # Errors
/// [`Error::Usage`] when there are none.
pub fn prompt_limit(config: &ModelConfig, given: Option<usize>, completion: usize) -> Result<usize> {
    let context = config.text.max_position_embeddings;
    let room = context.saturating_sub(completion);
    if room == 0 {
        return Err(Error::Usage(format!(
            "--max_completion_length {completion} leaves no room for a prompt in the model's context of {context} \
             tokens: lower it"
        )));
    }
    Ok(given.map_or(room, |given| given.min(room)))
}

/// Fails when a row's prompt is longer than allowed.
pub fn check_length(sample: &Sample, tokens: usize, limit: usize) -> Result<()> {
    if tokens <= limit {
        return Ok(());
    }
    Err(sample.blame(Error::Input(format!(
        "{tokens} tokens (images included), but only {limit} fit; lower --max_pixels (grpo, eval, generate: or \
         --max_completion_length), or, in training, raise --max_prompt_length (sft: --max_length) within the model's context or \
         leave such rows out with --overlong skip (nothing is truncated: that would cut through image tokens)"
    ))))
}
