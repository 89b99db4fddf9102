//! `batch.*`, `loss`, `grad.*`, `train.*`: negative log-likelihood of all completions, its gradient, and AdamW on it.
//!
//! The model sees no padding; the padded arrays of the bundle are made from its packed input.

use super::compare::Values;
use super::examples::Example;
use super::{Context, Sink, to_i32};
use crate::autograd::ParamGrads;
use crate::batch::{Group, micro_batches};
use crate::error::{Error, Result};
use crate::nn::Params;
use crate::optim::{AdamWConfig, Optimiser, global_grad_norm};
use crate::tensor::{DType, Device, Placement, Tensor};
use crate::train::update::{ForwardOptions, check_finite, forward, score};
use std::sync::Arc;

/// Learning rate of the training case.
const LEARNING_RATE: f64 = 1e-3;
/// Its optimiser; the weight decay is on every parameter.
const ADAMW: AdamWConfig = AdamWConfig { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 };
/// Norm that its gradients are clipped to.
const MAX_GRAD_NORM: f64 = 1.0;

/// Log-probabilities of every completion, their mean negative sum, and the gradients of that.
struct Likelihood {
    logps: Vec<Vec<f32>>,
    loss: f64,
    grads: Option<ParamGrads>,
}

impl Context<'_> {
    /// How forward passes with a backward pass are run.
    pub(super) fn forward_options(&self) -> ForwardOptions {
        ForwardOptions { temperature: 1.0, recompute: self.large }
    }

    /// The keys of the batch, of its loss and of the gradients.
    pub(super) fn batch(&self, examples: &[Example], sink: &mut Sink<'_>) -> Result<()> {
        self.padded(examples, sink)?;
        let backward = sink.wants("grad_norm") || sink.wants_any("grad.");
        if !backward && !sink.wants("loss") && !sink.wants("batch.logps") {
            return Ok(());
        }
        let likelihood = self.likelihood(&self.params, examples, backward)?;
        if sink.wants("batch.logps") {
            let width = length(examples) - 1;
            let mut logps = vec![0.0; examples.len() * width];
            for ((row, example), own) in
                logps.chunks_exact_mut(width.max(1)).zip(examples).zip(&likelihood.logps)
            {
                let first = example.prompt.tokens.len() - 1;
                row[first..first + own.len()].copy_from_slice(own);
            }
            sink.emit("batch.logps", &[examples.len(), width], Values::F32(logps))?;
        }
        sink.emit("loss", &[1], Values::F32(vec![likelihood.loss as f32]))?;
        match &likelihood.grads {
            Some(grads) => self.gradients("", grads, sink),
            None => Ok(()),
        }
    }

    /// `{prefix}grad.*` and `{prefix}grad_norm`; a parameter that nothing reached has a zero gradient.
    pub(super) fn gradients(&self, prefix: &str, grads: &ParamGrads, sink: &mut Sink<'_>) -> Result<()> {
        let mut present = Vec::new();
        for (id, parameter) in self.params.iter() {
            let grad = grads.of(id).map(Tensor::download_f32).transpose()?;
            let key = format!("{prefix}grad.{}", parameter.name);
            if sink.wants(&key) {
                let values =
                    grad.as_deref().map_or_else(|| vec![0.0; parameter.value.len()], <[f32]>::to_vec);
                sink.emit(&key, parameter.value.shape(), Values::F32(values))?;
            }
            present.extend(grad);
        }
        let present: Vec<&[f32]> = present.iter().map(AsRef::as_ref).collect();
        sink.emit(&format!("{prefix}grad_norm"), &[1], Values::F32(vec![global_grad_norm(&present) as f32]))
    }

    /// The integer tensors: every example right-padded to the longest.
    fn padded(&self, examples: &[Example], sink: &mut Sink<'_>) -> Result<()> {
        let (rows, width) = (examples.len(), length(examples));
        let mut ids = vec![self.pad()?; rows * width];
        let mut attention = vec![0; rows * width];
        let mut loss = vec![0; rows * width];
        let mut positions = vec![0; 3 * rows * width];
        let mut grids = Vec::new();
        for (b, example) in examples.iter().enumerate() {
            let own = b * width..b * width + example.len();
            ids[own.clone()].copy_from_slice(&super::ids_i32(&example.ids())?);
            attention[own.clone()].fill(1);
            loss[own.start + example.prompt.tokens.len()..own.end].fill(1);
            let packed = self.whole(&example.prompt, &example.completion)?;
            for (axis, own_positions) in packed.positions_3t.iter().enumerate() {
                let start = (axis * rows + b) * width;
                positions[start..start + own_positions.len()].copy_from_slice(own_positions);
            }
            grids.extend(example.grids()?);
        }
        sink.emit("batch.input_ids", &[rows, width], Values::I32(ids))?;
        sink.emit("batch.attention_mask", &[rows, width], Values::I32(attention))?;
        sink.emit("batch.loss_mask", &[rows, width], Values::I32(loss))?;
        sink.emit("batch.position_ids", &[3, rows, width], Values::I32(positions))?;
        sink.emit("batch.image_grid_thw", &[grids.len() / 3, 3], Values::I32(grids))
    }

    /// Id of the token that fills rows of unequal length.
    pub(super) fn pad(&self) -> Result<i32> {
        let token = self.bundle.pad_token();
        let id = self.policy.processor.tokenizer().token_id(token).ok_or_else(|| {
            Error::Input(format!(
                "inputs.json pads with {token:?}, which is no token of the checkpoint's tokenizer"
            ))
        })?;
        to_i32(id as usize)
    }

    /// Forward (and backward) over all examples.
    fn likelihood(&self, params: &Arc<Params>, examples: &[Example], backward: bool) -> Result<Likelihood> {
        let groups: Vec<Group<'_>> = examples
            .iter()
            .map(|example| Group { prompt: &example.prompt, completions: vec![&example.completion] })
            .collect();
        let size = if self.large { 1 } else { examples.len() };
        let tokens: usize = examples.iter().map(|example| example.completion.len()).sum();
        let mut result =
            Likelihood { logps: Vec::new(), loss: 0.0, grads: backward.then(ParamGrads::default) };
        for batch in micro_batches(&groups, size, self.policy.layout())? {
            let logp_t = match &mut result.grads {
                None => score(&self.policy.model, params, &batch, 1.0)?.logp_t,
                Some(grads) => {
                    let (scores, pass) =
                        forward(&self.policy.model, params, &batch, self.forward_options(), None)?;
                    let slope = -1.0 / tokens as f32;
                    pass.backward(&vec![slope; scores.logp_t.len()], None)?.add_to(grads)?;
                    scores.logp_t
                }
            };
            result.loss -= logp_t.iter().map(|&logp| f64::from(logp)).sum::<f64>();
            result.logps.extend(batch.offsets.windows(2).map(|ends| logp_t[ends[0]..ends[1]].to_vec()));
        }
        result.loss /= tokens as f64;
        Ok(result)
    }

    /// `train.*`: optimiser steps on the batch, from the checkpoint's f32 weights.
    pub(super) fn train(&self, examples: &[Example], sink: &mut Sink<'_>) -> Result<()> {
        if !sink.wants_any("train.") {
            return Ok(());
        }
        let mut weights = self.policy.params.clone();
        // The CPU's optimiser has f32 weights; in bf16, what is computed with is a copy of them.
        let rounds = self.placement.device == Device::Cpu && self.dtype != DType::F32;
        let placement = if rounds { &Placement::HOST } else { self.placement };
        let mut optimiser = Optimiser::new(ADAMW, &mut weights, true, placement)?;
        let steps = self.bundle.steps();
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        for step in 0..=steps {
            let params = match rounds {
                true => Arc::new(weights.to_dtype(self.dtype)),
                false => weights.clone(),
            };
            let likelihood = self.likelihood(&params, examples, step < steps)?;
            drop(params);
            check_finite("loss", likelihood.loss, step as u64)?;
            losses.push(likelihood.loss as f32);
            if let Some(grads) = likelihood.grads {
                optimiser.begin()?;
                grads.add_to(&mut optimiser)?;
                let norm = optimiser.step(&mut weights, LEARNING_RATE, MAX_GRAD_NORM)?;
                check_finite("gradient norm", norm, step as u64)?;
                norms.push(norm as f32);
            }
        }
        sink.emit("train.losses", &[losses.len()], Values::F32(losses))?;
        sink.emit("train.grad_norms", &[norms.len()], Values::F32(norms))
    }
}

/// Tokens of the longest example.
fn length(examples: &[Example]) -> usize {
    examples.iter().map(Example::len).max().unwrap_or(0)
}
