//! `ex{i}.*`: one conversation with its completion through processor and model.

use super::compare::Values;
use super::{Context, Sink, ids_i32, to_i32};
use crate::autograd::Tape;
use crate::batch::{Group, micro_batches};
use crate::error::{Error, Result};
use crate::nn::{Params, Scope};
use crate::ops::embedding::gather_rows;
use crate::ops::log_softmax_kl::{cuda, logits};
use crate::packed::Packed;
use crate::processor::Prompt;
use crate::tensor::{DType, Placement, Tensor};
use crate::train::update::score;
use std::sync::Arc;

/// An encoded example.
pub(super) struct Example {
    pub(super) prompt: Prompt,
    pub(super) completion: Vec<u32>,
}

impl Example {
    /// Prompt and completion.
    pub(super) fn ids(&self) -> Vec<u32> {
        [self.prompt.tokens.as_slice(), &self.completion].concat()
    }

    pub(super) fn len(&self) -> usize {
        self.prompt.tokens.len() + self.completion.len()
    }

    /// Grids of the images, `[images, 3]`.
    pub(super) fn grids(&self) -> Result<Vec<i32>> {
        self.prompt.images.iter().flat_map(|image| image.grid_thw).map(to_i32).collect()
    }
}

impl Context<'_> {
    /// Tokenises example `index` and prepares its images.
    pub(super) fn encode(&self, index: usize) -> Result<Example> {
        let input = &self.bundle.examples()[index];
        let prompt = self.policy.processor.encode(&self.sample(index, input)?, true)?;
        let completion = self.policy.processor.encode_completion(&input.completion)?;
        let (length, context) =
            (prompt.tokens.len() + completion.len(), self.policy.model.config().text.max_position_embeddings);
        if length > context {
            return Err(Error::content(
                self.bundle.inputs_path(),
                format!(
                    "example {index} has {length} tokens, images included; the model's context has {context}"
                ),
            ));
        }
        Ok(Example { prompt, completion })
    }

    /// All tokens as one segment, with a row for the last one too.
    pub(super) fn whole(&self, prompt: &Prompt, completion: &[u32]) -> Result<Packed> {
        // The last token of a completion has no row, because nothing follows it; so one more token follows.
        let and_one = [completion, &[0]].concat();
        Ok(Packed::separate(prompt, &and_one, self.policy.layout())?.0)
    }

    /// Every key of one example.
    pub(super) fn example(&self, index: usize, example: &Example, sink: &mut Sink<'_>) -> Result<()> {
        let prefix = format!("ex{index}.");
        if !sink.wants_any(&prefix) {
            return Ok(());
        }
        let key = |name: &str| format!("{prefix}{name}");
        let (length, prompt) = (example.len(), example.prompt.tokens.len());
        let packed = self.whole(&example.prompt, &example.completion)?;
        sink.emit(&key("input_ids"), &[length], Values::I32(ids_i32(&example.ids())?))?;
        sink.emit(&key("attention_mask"), &[length], Values::I32(vec![1; length]))?;
        sink.emit(&key("prompt_len"), &[1], Values::I32(vec![to_i32(prompt)?]))?;
        sink.emit(&key("position_ids"), &[3, length], Values::I32(packed.positions_3t.concat()))?;
        let last = packed.positions_3t.iter().flatten().copied().max().unwrap_or(-1);
        sink.emit(&key("rope_delta"), &[1], Values::I32(vec![last + 1 - to_i32(length)?]))?;
        if !example.prompt.images.is_empty() {
            let images = &example.prompt.images;
            sink.emit(&key("image_grid_thw"), &[images.len(), 3], Values::I32(example.grids()?))?;
            let normalisation = &self.policy.processor.image_config().normalisation;
            let pixels: Vec<f32> = images.iter().flat_map(|image| image.normalised(normalisation)).collect();
            let patches: usize = images.iter().map(|image| image.patches()).sum();
            sink.emit(&key("pixel_values"), &[patches, pixels.len() / patches.max(1)], Values::F32(pixels))?;
        }
        let inner = ["vision_pre_merger", "vision_out", "final_hidden", "logits", "logits_all"];
        if inner.iter().any(|name| sink.wants(&key(name))) {
            self.forward(&packed, prompt, &key, sink)?;
        }
        if sink.wants(&key("completion_logps")) {
            let logps = self.completion_logps(&self.params, example)?;
            sink.emit(&key("completion_logps"), &[logps.len()], Values::F32(logps))?;
        }
        self.greedy(index, example, sink)
    }

    /// The intermediate values of one forward pass.
    fn forward(
        &self,
        packed: &Packed,
        prompt: usize,
        key: &dyn Fn(&str) -> String,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let tape = Tape::off();
        let scope = Scope { tape: &tape, params: &self.params };
        let model = &self.policy.model;
        let output = model.forward(&scope, packed, false)?;
        let mut emit = |name: &str, tensor: &Tensor| {
            sink.emit(&key(name), tensor.shape(), Values::F32(tensor.download_f32()?))
        };
        if let Some(features) = &output.vision {
            emit("vision_pre_merger", features.pre_merger.value())?;
            emit("vision_out", features.merged.value())?;
        }
        let hidden = output.hidden.value();
        emit("final_hidden", hidden)?;
        let rows = hidden.matrix().0;
        for (name, from) in [("logits", prompt.saturating_sub(1)), ("logits_all", 0)] {
            if sink.wants(&key(name)) {
                let (values, vocab) = self.logits(hidden, from)?;
                sink.emit(&key(name), &[rows - from, vocab], Values::F32(values))?;
            }
        }
        Ok(())
    }

    /// Logits of the hidden states' rows from `from` on, in host memory, and the size of the vocabulary.
    pub(super) fn logits(&self, hidden: &Tensor, from: usize) -> Result<(Vec<f32>, usize)> {
        let head = &self.params.of(self.policy.model.head()).value;
        let rows = (from..hidden.matrix().0).collect::<Vec<_>>();
        let hidden = gather_rows(hidden, &rows)?;
        let logits = match hidden.gpu() {
            Some(_) => cuda::logits(&hidden, head)?.download_f32()?,
            None => logits(&hidden.to_f32(), head),
        };
        Ok((logits, head.matrix().0))
    }

    /// Log-probabilities of an example's completion from the training forward.
    pub(super) fn completion_logps(&self, params: &Arc<Params>, example: &Example) -> Result<Vec<f32>> {
        let group = Group { prompt: &example.prompt, completions: vec![&example.completion] };
        let mut logps = Vec::new();
        for batch in micro_batches(&[group], 1, self.policy.layout())? {
            logps.extend(score(&self.policy.model, params, &batch, 1.0)?.logp_t);
        }
        Ok(logps)
    }

    /// `ex{i}.completion_logps_bf16compute`.
    pub(super) fn bf16_log_probs(&self, examples: &[Example], sink: &mut Sink<'_>) -> Result<()> {
        let key = |i: usize| format!("ex{i}.completion_logps_bf16compute");
        if !(0..examples.len()).any(|i| sink.wants(&key(i))) {
            return Ok(());
        }
        let params = match self.dtype {
            DType::Bf16 => self.params.clone(),
            _ => Arc::new(
                self.policy.params.placed(&Placement { dtype: DType::Bf16, ..self.placement.clone() })?,
            ),
        };
        for (i, example) in examples.iter().enumerate().filter(|(i, _)| self.bundle.has(&key(*i))) {
            let logps = self.completion_logps(&params, example)?;
            sink.emit(&key(i), &[logps.len()], Values::F32(logps))?;
        }
        Ok(())
    }
}
