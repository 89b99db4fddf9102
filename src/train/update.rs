//! Forward and backward passes over micro-batches.

use crate::autograd::{GradSink, ParamGrads, Tape, Var};
use crate::batch::MicroBatch;
use crate::cuda::Purpose;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::nn::{Params, Scope};
use crate::ops::log_softmax_kl::{LogSoftmaxKl, Reference};
use crate::tensor::Tensor;
use rayon::prelude::*;
use std::sync::Arc;

/// Log-probability, entropy and exact KL of each target, completion after completion, in host memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenScores {
    /// Log-probability of the target.
    pub logp_t: Vec<f32>,
    /// Entropy of the distribution it was taken from, nats.
    pub entropy_t: Vec<f32>,
    /// Exact KL to the reference, nats; 0 without one.
    pub kl_t: Vec<f32>,
}

impl TokenScores {
    /// The columns of a score tensor `[T, 3]`.
    ///
    /// # Errors
    /// Those of copying device memory.
    pub fn of(scores: &Tensor) -> Result<TokenScores> {
        let scores = scores.to_cpu()?;
        let rows = scores.to_f32();
        let column = |c: usize| rows.chunks_exact(3).map(|row| row[c]).collect();
        Ok(TokenScores { logp_t: column(0), entropy_t: column(1), kl_t: column(2) })
    }
}

/// The policy's forward pass on a tape, waiting for the loss's gradient.
pub struct Pass {
    tape: Tape,
    scores: Var,
}

/// How a forward pass is run.
#[derive(Clone, Copy, Debug)]
pub struct ForwardOptions {
    /// Divides the logits.
    pub temperature: f64,
    /// Keep only the layers' inputs for the backward pass.
    pub recompute: bool,
}

/// [`Pass::run`] with its scores in host memory.
pub fn forward(
    model: &Model,
    params: &Arc<Params>,
    batch: &MicroBatch,
    options: ForwardOptions,
    reference: Option<&Arc<Params>>,
) -> Result<(TokenScores, Pass)> {
    let pass = Pass::run(model, params, batch, options, reference, Vec::new())?;
    Ok((TokenScores::of(pass.scores())?, pass))
}

/// [`scores`] in host memory.
pub fn score(
    model: &Model,
    params: &Arc<Params>,
    batch: &MicroBatch,
    temperature: f64,
) -> Result<TokenScores> {
    TokenScores::of(&scores(model, params, batch, temperature)?)
}

/// The numbers of [`Pass::scores`] without a tape: `[T, 3]`, beside the weights.
pub fn scores(model: &Model, params: &Arc<Params>, batch: &MicroBatch, temperature: f64) -> Result<Tensor> {
    let tape = Tape::off();
    let options = ForwardOptions { temperature, recompute: false };
    let head = LogSoftmaxKl::new(batch.targets.clone(), temperature);
    Ok(run(model, &Scope { tape: &tape, params }, batch, options, head)?.value().clone())
}

/// [`scores`] of the reference, and those of the policy with the exact KL to it. Costs a forward pass of either and the
/// head's product for both a second time.
pub fn scores_of_both(
    model: &Model,
    reference: &Arc<Params>,
    policy: &Arc<Params>,
    batch: &MicroBatch,
    temperature: f64,
) -> Result<[Tensor; 2]> {
    let tape = Tape::off();
    let score = |params: &Arc<Params>, against: Option<Reference>| -> Result<(Tensor, Reference)> {
        let hidden = model.infer(params, &batch.packed)?;
        let head = params.of(model.head()).value.clone();
        let op = LogSoftmaxKl { reference: against, ..LogSoftmaxKl::new(batch.targets.clone(), temperature) };
        let inputs = [Var::constant(hidden.clone()), Var::constant(head.clone())];
        let scores = tape.apply(op, [&inputs[0], &inputs[1]])?.value().clone();
        Ok((scores, Reference { hidden, head }))
    };
    let (of_reference, against) = score(reference, None)?;
    let (of_policy, _) = score(policy, Some(against))?;
    Ok([of_reference, of_policy])
}

fn run(
    model: &Model,
    scope: &Scope<'_>,
    batch: &MicroBatch,
    options: ForwardOptions,
    head: LogSoftmaxKl,
) -> Result<Var> {
    let hidden = model.forward(scope, &batch.packed, options.recompute)?.hidden;
    scope.tape.apply(head, [&hidden, &scope.param(model.head())])
}

impl Pass {
    /// Runs the policy on a micro-batch; `reference` is given when the exact KL is wanted. The targets that `frozen` names, one entry
    /// for each or none at all, get no gradient: the caller knows that theirs is 0.
    pub fn run(
        model: &Model,
        params: &Arc<Params>,
        batch: &MicroBatch,
        options: ForwardOptions,
        reference: Option<&Arc<Params>>,
        frozen: Vec<bool>,
    ) -> Result<Pass> {
        let reference = match reference {
            Some(params) => Some(Reference {
                hidden: model.infer(params, &batch.packed)?,
                head: params.of(model.head()).value.clone(),
            }),
            None => None,
        };
        let tape = Tape::recording();
        let head = LogSoftmaxKl {
            reference,
            frozen,
            ..LogSoftmaxKl::new(batch.targets.clone(), options.temperature)
        };
        let scores = run(model, &Scope { tape: &tape, params }, batch, options, head)?;
        Ok(Pass { tape, scores })
    }

    /// Log-probability, entropy and exact KL (0 without a reference) of each target: `[T, 3]`, beside the weights.
    pub fn scores(&self) -> &Tensor {
        self.scores.value()
    }

    /// Adds the gradients of the parameters for the gradient by the scores, `[T, 3]`, beside the weights.
    pub fn backward_by(self, dscores: Tensor, sink: &mut dyn GradSink) -> Result<()> {
        self.tape.backward_from(&self.scores, dscores, sink).map(drop)
    }

    /// Gradients of the parameters for `dlogp_t` (and `dkl_t`, by the exact KL) in host memory.
    pub fn backward(self, dlogp_t: &[f32], dkl_t: Option<&[f32]>) -> Result<ParamGrads> {
        let mut dy = Vec::with_capacity(3 * dlogp_t.len());
        for (t, &d) in dlogp_t.iter().enumerate() {
            dy.extend([d, 0.0, dkl_t.map_or(0.0, |kl| kl[t])]);
        }
        let dy = Tensor::new(self.scores().shape(), dy)?;
        let dy = dy.to_device(&self.scores().device(), Purpose::Inputs)?;
        let mut grads = ParamGrads::default();
        self.backward_by(dy, &mut grads)?;
        Ok(grads)
    }
}

/// Runs `work` over the micro-batches, several at a time where that costs little memory, and gives the results in order. `work` adds
/// its gradients to the sink it is given; they reach `sink` micro-batch after micro-batch.
///
/// Each micro-batch in flight in host memory holds gradients of its own, so large models take one at a time and share the threads
/// inside the ops. Nothing of this changes a bit: the gradients are independent and are added in order. A GPU's one stream runs
/// micro-batches one after the other, so there each gradient goes to `sink` as soon as it exists.
///
/// # Errors
/// Those of `work`, `take` and `sink`, which then has got a part of the gradients.
pub fn each_micro_batch<T: Send>(
    params: &Params,
    batches: &[MicroBatch],
    sink: &mut dyn GradSink,
    work: impl Fn(usize, &MicroBatch, &mut dyn GradSink) -> Result<T> + Sync,
    mut take: impl FnMut(T),
) -> Result<()> {
    /// Gradients of all micro-batches in flight stay below this.
    const IN_FLIGHT_BYTES: usize = 256 << 20;
    if params.device().gpu().is_some() {
        return batches.iter().enumerate().try_for_each(|(i, batch)| {
            take(work(i, batch, sink)?);
            Ok(())
        });
    }
    let (_, trainable) = params.count();
    let at_once = rayon::current_num_threads().min(IN_FLIGHT_BYTES / (4 * trainable.max(1))).max(1);
    for (part, chunk) in batches.chunks(at_once).enumerate() {
        let one = |(i, batch)| {
            let mut grads = ParamGrads::default();
            let result = work(part * at_once + i, batch, &mut grads)?;
            Ok((result, grads))
        };
        let done: Vec<Result<(T, ParamGrads)>> = chunk.par_iter().enumerate().map(one).collect();
        for result in done {
            let (result, grads) = result?;
            take(result);
            grads.add_to(sink)?;
        }
    }
    Ok(())
}

/// Fails unless a number of a step is one: such a step is skipped.
///
/// # Errors
/// [`Error::Protect`], as the end of a sentence.
pub fn check_finite(what: &str, value: f64, step: u64) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    Err(Error::Protect(format!("the {what} of step {step} is {value}")))
}
