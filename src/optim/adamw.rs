//! AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101).
//!
//! As `torch.optim.AdamW` computes it, per element and in f32, with `t` the tensor's own step:
//!
//! ```text
//! p = p * (1 - lr * weight_decay)
//! m = m + (1 - beta1) * (g - m)
//! v = beta2 * v + (1 - beta2) * g^2
//! p = p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
//! ```
//!
//! Scalars are formed in f64 and rounded once. Each element is independent, so the work is cut
//! into chunks for the thread pool without touching a bit of the result. A tensor without a
//! gradient (no image in the batch, so none for the vision tower) keeps value, moments and step.
//!
//! Memory: 8 bytes of state per parameter. Traffic: 28 bytes per parameter and step.

use rayon::prelude::*;

use super::cuda::HostState;
use crate::error::{Error, Result};

/// Elements per unit of parallel work: 16 KB of each of the four arrays stay in the L2 cache.
const CHUNK: usize = 4096;

/// The hyper-parameters, with the names of the options that set them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// `adam_beta1`.
    pub beta1: f64,
    /// `adam_beta2`.
    pub beta2: f64,
    /// `adam_epsilon`.
    pub epsilon: f64,
    /// `weight_decay`.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    /// The defaults of Hugging Face's `TrainingArguments`.
    fn default() -> Self {
        AdamWConfig { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// One parameter tensor, as the optimiser sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamGroup {
    /// The parameter's name, under which its state is saved.
    pub name: String,
    /// Elements.
    pub len: usize,
    /// Whether weight decay applies. Hugging Face's trainer exempts biases and norms, which in
    /// Qwen2-VL are exactly the tensors of rank 1.
    pub decay: bool,
}

/// The state of one tensor, as a checkpoint holds it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorState<'a> {
    /// The parameter's name.
    pub name: &'a str,
    /// Updates made.
    pub step: u64,
    /// First moment, `m`.
    pub exp_avg: &'a [f32],
    /// Second moment, `v`.
    pub exp_avg_sq: &'a [f32],
}

impl TensorState<'_> {
    /// The index of the parameter it belongs to.
    ///
    /// # Errors
    /// [`Error::Input`] if none has this name or the lengths differ.
    pub(super) fn place_among<'a>(&self, params: impl Iterator<Item = &'a ParamGroup>) -> Result<usize> {
        let Some((place, param)) = params.enumerate().find(|(_, param)| param.name == self.name) else {
            return Err(Error::Input(format!(
                "the checkpoint has optimiser state of `{}`, which this run does not train; \
                 resume with the options the run was started with",
                self.name
            )));
        };
        for (moment, saved) in [("exp_avg", self.exp_avg), ("exp_avg_sq", self.exp_avg_sq)] {
            if saved.len() != param.len {
                return Err(Error::Input(format!(
                    "the checkpoint's {moment} of `{}` has {} elements; the parameter has {}",
                    self.name,
                    saved.len(),
                    param.len
                )));
            }
        }
        Ok(place)
    }
}

#[derive(Clone, Debug)]
struct Slot {
    param: ParamGroup,
    step: u64,
    exp_avg: Vec<f32>,
    exp_avg_sq: Vec<f32>,
}

/// The optimiser's state over a list of parameters.
#[derive(Clone, Debug)]
pub struct AdamW {
    config: AdamWConfig,
    slots: Vec<Slot>,
}

/// The scalars of one tensor's update, rounded to f32.
#[derive(Clone, Copy)]
pub(super) struct Update {
    clip: f32,
    pub(super) keep: f32,
    pub(super) one_minus_beta1: f32,
    pub(super) beta2: f32,
    pub(super) one_minus_beta2: f32,
    pub(super) bias_correction2_sqrt: f32,
    pub(super) epsilon: f32,
    pub(super) negative_step_size: f32,
}

impl AdamW {
    /// Zero state for `params`, in the order in which [`AdamW::step`] will be given them.
    ///
    /// # Errors
    /// [`Error::Usage`] if a hyper-parameter is out of its range.
    pub fn new(config: AdamWConfig, params: Vec<ParamGroup>) -> Result<Self> {
        config.check()?;
        let slots = params
            .into_iter()
            .map(|param| Slot {
                step: 0,
                exp_avg: vec![0.0; param.len],
                exp_avg_sq: vec![0.0; param.len],
                param,
            })
            .collect();
        Ok(AdamW { config, slots })
    }

    /// State that a GPU held.
    pub(super) fn of_states(config: AdamWConfig, states: Vec<(ParamGroup, HostState)>) -> Self {
        let slot = |(param, state): (ParamGroup, HostState)| Slot {
            param,
            step: state.step,
            exp_avg: state.exp_avg,
            exp_avg_sq: state.exp_avg_sq,
        };
        AdamW { config, slots: states.into_iter().map(slot).collect() }
    }

    /// One update in place. `params` pairs each parameter with its gradient, in the order given
    /// to [`AdamW::new`]; gradients are multiplied by `clip_coef` ([`super::clip_coefficient`])
    /// on the way in.
    ///
    /// # Errors
    /// [`Error::Internal`] if the list does not match the state; nothing has been changed then.
    pub fn step(
        &mut self,
        params: &mut [(&mut [f32], Option<&[f32]>)],
        learning_rate: f64,
        clip_coef: f64,
    ) -> Result<()> {
        if params.len() != self.slots.len() {
            return Err(Error::Internal(format!(
                "AdamW holds the state of {} tensors and was given {}",
                self.slots.len(),
                params.len()
            )));
        }
        for (slot, (values, grad)) in self.slots.iter().zip(params.iter()) {
            if values.len() != slot.param.len || grad.is_some_and(|grad| grad.len() != slot.param.len) {
                return Err(Error::Internal(format!(
                    "AdamW holds {} elements of `{}` and was given {} with a gradient of {:?}",
                    slot.param.len,
                    slot.param.name,
                    values.len(),
                    grad.map(<[f32]>::len)
                )));
            }
        }
        let mut work = Vec::new();
        for (slot, (values, grad)) in self.slots.iter_mut().zip(params.iter_mut()) {
            let Some(grad) = grad else { continue };
            slot.step += 1;
            let update = self.config.update(slot.step, slot.param.decay, learning_rate, clip_coef);
            let moments = slot.exp_avg.chunks_mut(CHUNK).zip(slot.exp_avg_sq.chunks_mut(CHUNK));
            work.extend(
                values.chunks_mut(CHUNK).zip(grad.chunks(CHUNK)).zip(moments).map(
                    |((values, grad), (exp_avg, exp_avg_sq))| (update, values, grad, exp_avg, exp_avg_sq),
                ),
            );
        }
        work.into_par_iter().for_each(|(update, values, grad, exp_avg, exp_avg_sq)| {
            update.apply(values, grad, exp_avg, exp_avg_sq);
        });
        Ok(())
    }

    /// The state of every tensor, in order, to be saved.
    pub fn state(&self) -> impl Iterator<Item = TensorState<'_>> {
        self.slots.iter().map(|slot| TensorState {
            name: &slot.param.name,
            step: slot.step,
            exp_avg: &slot.exp_avg,
            exp_avg_sq: &slot.exp_avg_sq,
        })
    }

    /// Puts back the saved state of one tensor.
    ///
    /// # Errors
    /// [`Error::Input`] if no parameter has this name or the lengths differ.
    pub fn restore(&mut self, state: TensorState) -> Result<()> {
        let place = state.place_among(self.slots.iter().map(|slot| &slot.param))?;
        let slot = &mut self.slots[place];
        slot.step = state.step;
        slot.exp_avg.copy_from_slice(state.exp_avg);
        slot.exp_avg_sq.copy_from_slice(state.exp_avg_sq);
        Ok(())
    }
}

impl AdamWConfig {
    /// # Errors
    /// [`Error::Usage`] if a hyper-parameter is out of its range.
    pub(super) fn check(&self) -> Result<()> {
        for (option, value, below_one) in [
            ("adam_beta1", self.beta1, true),
            ("adam_beta2", self.beta2, true),
            ("adam_epsilon", self.epsilon, false),
            ("weight_decay", self.weight_decay, false),
        ] {
            if !value.is_finite() || value < 0.0 || (below_one && value >= 1.0) {
                let range =
                    if below_one { "at least 0 and below 1" } else { "a finite number of at least 0" };
                return Err(Error::Usage(format!("{option} is {value}; it must be {range}")));
            }
        }
        Ok(())
    }

    /// The scalars of update number `step` (from 1).
    pub(super) fn update(&self, step: u64, decay: bool, learning_rate: f64, clip_coef: f64) -> Update {
        let bias_correction = |beta: f64| 1.0 - beta.powf(step as f64);
        let weight_decay = if decay { self.weight_decay } else { 0.0 };
        Update {
            clip: clip_coef as f32,
            keep: (1.0 - learning_rate * weight_decay) as f32,
            one_minus_beta1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            one_minus_beta2: (1.0 - self.beta2) as f32,
            bias_correction2_sqrt: bias_correction(self.beta2).sqrt() as f32,
            epsilon: self.epsilon as f32,
            negative_step_size: (-learning_rate / bias_correction(self.beta1)) as f32,
        }
    }
}

impl Update {
    /// Updates one chunk. The four slices have the same length.
    fn apply(self, values: &mut [f32], grad: &[f32], exp_avg: &mut [f32], exp_avg_sq: &mut [f32]) {
        for (((p, &g), m), v) in values.iter_mut().zip(grad).zip(exp_avg).zip(exp_avg_sq) {
            let g = g * self.clip;
            *p *= self.keep;
            *m += self.one_minus_beta1 * (g - *m);
            *v = self.beta2 * *v + self.one_minus_beta2 * g * g;
            let denominator = v.sqrt() / self.bias_correction2_sqrt + self.epsilon;
            *p += self.negative_step_size * *m / denominator;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn param(name: &str, len: usize, decay: bool) -> ParamGroup {
        ParamGroup { name: name.into(), len, decay }
    }

    #[test]
    fn first_step_moves_by_the_learning_rate() {
        // m / (1 - beta1) = g and sqrt(v / (1 - beta2)) = |g|: the update is lr * sign(g).
        let mut adamw = AdamW::new(AdamWConfig::default(), vec![param("w", 3, true)]).unwrap();
        let mut w = [1.0f32, -2.0, 0.5];
        adamw.step(&mut [(&mut w, Some(&[0.3, -40.0, 0.0]))], 0.125, 1.0).unwrap();
        for (got, want) in w.iter().zip([0.875, -1.875, 0.5]) {
            assert!((got - want).abs() < 2e-7, "{w:?}");
        }
    }

    #[test]
    fn decay_is_decoupled_and_per_tensor() {
        let config = AdamWConfig { weight_decay: 0.5, ..AdamWConfig::default() };
        let mut adamw = AdamW::new(config, vec![param("w", 1, true), param("b", 1, false)]).unwrap();
        let (mut w, mut b) = ([8.0f32], [8.0f32]);
        adamw.step(&mut [(&mut w, Some(&[0.0])), (&mut b, Some(&[0.0]))], 0.25, 1.0).unwrap();
        assert_eq!((w, b), ([7.0], [8.0]));
    }

    #[test]
    fn a_tensor_without_gradient_is_left_alone() {
        let mut adamw =
            AdamW::new(AdamWConfig::default(), vec![param("a", 2, true), param("b", 2, true)]).unwrap();
        let (mut a, mut b) = ([1.0f32, 2.0], [3.0f32, 4.0]);
        for _ in 0..2 {
            adamw.step(&mut [(&mut a, Some(&[1.0, -1.0])), (&mut b, None)], 0.1, 1.0).unwrap();
        }
        assert_eq!(b, [3.0, 4.0]);
        let state: Vec<_> = adamw.state().collect();
        assert_eq!((state[0].step, state[1].step), (2, 0));
        assert_eq!(state[1].exp_avg, [0.0; 2]);
        assert_eq!(state[0].name, "a");
    }

    #[test]
    fn restored_state_continues_bit_for_bit_over_many_chunks() {
        let n = 3 * CHUNK + 17;
        let grad = |step: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7 + step * 13) % 29) as f32 / 9.0 - 1.5).collect()
        };
        let config = AdamWConfig { weight_decay: 0.01, ..AdamWConfig::default() };
        let mut whole = AdamW::new(config, vec![param("w", n, true)]).unwrap();
        let mut w: Vec<f32> = (0..n).map(|i| (i as f32).sin()).collect();
        whole.step(&mut [(&mut w, Some(&grad(0)))], 1e-2, 0.7).unwrap();

        let mut resumed = AdamW::new(config, vec![param("w", n, true)]).unwrap();
        resumed.restore(whole.state().next().unwrap()).unwrap();
        let mut w_resumed = w.clone();
        whole.step(&mut [(&mut w, Some(&grad(1)))], 1e-2, 1.0).unwrap();
        resumed.step(&mut [(&mut w_resumed, Some(&grad(1)))], 1e-2, 1.0).unwrap();
        assert_eq!(w, w_resumed);
        assert_eq!(whole.state().next(), resumed.state().next());

        // An element's result does not depend on where chunks begin.
        let mut shifted = AdamW::new(config, vec![param("w", n - 5, true)]).unwrap();
        let mut w_shifted: Vec<f32> = (5..n).map(|i| (i as f32).sin()).collect();
        shifted.step(&mut [(&mut w_shifted, Some(&grad(0)[5..]))], 1e-2, 0.7).unwrap();
        shifted.step(&mut [(&mut w_shifted, Some(&grad(1)[5..]))], 1e-2, 1.0).unwrap();
        assert_eq!(w[5..], w_shifted);
    }

    #[test]
    fn mismatches_are_refused() {
        let mut adamw = AdamW::new(AdamWConfig::default(), vec![param("w", 2, true)]).unwrap();
        let mut w = [1.0f32, 2.0];
        assert!(matches!(adamw.step(&mut [], 0.1, 1.0), Err(Error::Internal(_))));
        assert!(matches!(adamw.step(&mut [(&mut w, Some(&[1.0]))], 0.1, 1.0), Err(Error::Internal(_))));
        assert_eq!(w, [1.0, 2.0]);
        let state = |name, exp_avg| TensorState { name, step: 1, exp_avg, exp_avg_sq: &[0.0; 2] };
        assert!(adamw.restore(state("other", &[0.0; 2])).unwrap_err().to_string().contains("`other`"));
        assert!(adamw.restore(state("w", &[0.0; 3])).unwrap_err().to_string().contains("3 elements"));
        let bad = AdamWConfig { beta2: 1.0, ..AdamWConfig::default() };
        assert!(AdamW::new(bad, vec![]).unwrap_err().to_string().contains("adam_beta2"));
    }

    /// Five steps of `torch.optim.AdamW` with clipping and a warm-up (`tools/reference/make_trl_golden.py`).
    #[test]
    fn equals_torch() {
        #[derive(serde::Deserialize)]
        struct Step {
            learning_rate: f64,
            grad_norm: f64,
            grads: Vec<Vec<f32>>,
            params: Vec<Vec<f32>>,
        }
        #[derive(serde::Deserialize)]
        struct Run {
            beta1: f64,
            beta2: f64,
            epsilon: f64,
            weight_decay: f64,
            max_grad_norm: f64,
            decay: Vec<bool>,
            start: Vec<Vec<f32>>,
            steps: Vec<Step>,
        }
        #[derive(serde::Deserialize)]
        struct Golden {
            adamw: Vec<Run>,
        }
        let golden: Golden =
            serde_json::from_str(include_str!("../../tests/golden/torch_optim.json")).unwrap();
        assert!(golden.adamw.len() >= 2);
        for run in golden.adamw {
            let config = AdamWConfig {
                beta1: run.beta1,
                beta2: run.beta2,
                epsilon: run.epsilon,
                weight_decay: run.weight_decay,
            };
            let mut params = run.start;
            let described =
                params.iter().zip(&run.decay).map(|(p, &decay)| param("p", p.len(), decay)).collect();
            let mut adamw = AdamW::new(config, described).unwrap();
            assert_eq!(run.steps.len(), 5);
            for step in run.steps {
                let grads: Vec<&[f32]> = step.grads.iter().map(Vec::as_slice).collect();
                let norm = super::super::global_grad_norm(&grads);
                assert!((norm / step.grad_norm - 1.0).abs() < 1e-6, "{norm}, torch {}", step.grad_norm);
                let clip = super::super::clip_coefficient(norm, run.max_grad_norm);
                let mut pairs: Vec<_> =
                    params.iter_mut().map(Vec::as_mut_slice).zip(grads.into_iter().map(Some)).collect();
                adamw.step(&mut pairs, step.learning_rate, clip).unwrap();
                for (got, want) in params.iter().flatten().zip(step.params.iter().flatten()) {
                    assert!((got - want).abs() <= 1e-7 * want.abs().max(1.0), "{got}, torch {want}");
                }
            }
        }
    }
}
