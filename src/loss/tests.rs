//! The loss against TRL's recorded outputs, finite differences, and its own invariants.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(serde::Deserialize)]
struct Inputs {
    lengths: Vec<usize>,
    mask: Vec<bool>,
    advantages: Vec<f32>,
    logp: Vec<f64>,
    old_logp: Vec<f64>,
    ref_logp: Vec<f64>,
}

#[derive(Debug, serde::Deserialize)]
struct Case {
    inputs: String,
    old: bool,
    loss_type: LossType,
    importance_sampling_level: ImportanceSamplingLevel,
    epsilon: f64,
    epsilon_high: Option<f64>,
    delta: Option<f64>,
    beta: f64,
    use_bias_correction_kl: bool,
    micro_batches: Vec<Vec<usize>>,
    steps_per_generation: usize,
    num_items_in_batch: f64,
    loss: f64,
    loss_f32: f64,
    dlogp: Vec<f64>,
    metrics: BTreeMap<String, f64>,
}

#[derive(serde::Deserialize)]
struct Golden {
    max_completion_length: usize,
    inputs: BTreeMap<String, Inputs>,
    cases: Vec<Case>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../tests/golden/trl_loss.json")).unwrap()
}

fn offsets_of(lengths: &[usize]) -> Vec<usize> {
    let mut offsets = vec![0];
    for length in lengths {
        offsets.push(offsets[offsets.len() - 1] + length);
    }
    offsets
}

/// Runs a recorded case micro-batch by micro-batch: the summed loss, the gradient, the metrics.
fn run<F: Real>(case: &Case, data: &Inputs, max_completion_length: usize) -> (f64, Vec<f64>, LossMetrics) {
    let config = LossConfig {
        loss_type: case.loss_type,
        importance_sampling_level: case.importance_sampling_level,
        epsilon: case.epsilon,
        epsilon_high: case.epsilon_high.unwrap_or(case.epsilon),
        delta: case.delta,
        kl_estimator: if case.use_bias_correction_kl { KlEstimator::K3Unbiased } else { KlEstimator::K3 },
        beta: case.beta,
        max_completion_length,
    };
    let offsets = offsets_of(&data.lengths);
    let typed = |values: &[f64]| -> Vec<F> { values.iter().map(|&v| F::from_f64(v)).collect() };
    let (logp, old, reference) = (typed(&data.logp), typed(&data.old_logp), typed(&data.ref_logp));
    let (mut loss, mut gradient, mut metrics) = (0.0, Vec::new(), LossMetrics::default());
    for rows in &case.micro_batches {
        // The recorded micro-batches are contiguous.
        let (first, end) = (rows[0], rows[rows.len() - 1] + 1);
        let tokens = offsets[first]..offsets[end];
        let part_offsets: Vec<usize> = offsets[first..=end].iter().map(|o| o - offsets[first]).collect();
        let mask = &data.mask[tokens.clone()];
        let window = Window {
            sequences: case.micro_batches.iter().map(Vec::len).sum(),
            tokens: case.num_items_in_batch * case.micro_batches.len() as f64
                / case.steps_per_generation as f64,
            micro_batches: case.micro_batches.len(),
            ..Window::of_batch(&part_offsets, Some(mask))
        };
        let output = grpo_loss(
            &config,
            &LossInputs {
                offsets: &part_offsets,
                logp_t: &logp[tokens.clone()],
                old_logp_t: case.old.then(|| &old[tokens.clone()]),
                ref_logp_t: (case.beta != 0.0).then(|| &reference[tokens.clone()]),
                kl_full_t: None,
                mask_t: Some(mask),
                advantages_b: &data.advantages[first..end],
                window,
            },
        )
        .unwrap();
        loss += output.loss;
        gradient.extend(output.dlogp_t.iter().map(|&d| -> f64 { d.into() }));
        metrics.merge(&output.metrics);
    }
    (loss, gradient, metrics)
}

#[test]
fn equals_trl() {
    let golden = golden();
    assert!(golden.cases.len() >= 80);
    for case in &golden.cases {
        let data = &golden.inputs[&case.inputs];
        let (loss, gradient, metrics) = run::<f64>(case, data, golden.max_completion_length);
        // In f64 only the digits written to the file and the order of sums are left.
        assert!((loss - case.loss).abs() < 1e-12, "{loss}: {case:?}");
        assert_eq!(gradient.len(), case.dlogp.len());
        for (got, want) in gradient.iter().zip(&case.dlogp) {
            assert!((got - want).abs() < 1e-11, "{got} {want}: {case:?}");
        }
        let (loss, gradient, _) = run::<f32>(case, data, golden.max_completion_length);
        assert!((loss - case.loss_f32).abs() < 1e-6, "{loss}: {case:?}");
        for (got, want) in gradient.iter().zip(&case.dlogp) {
            assert!((got - want).abs() < 1e-6, "{got} {want}: {case:?}");
        }
        for (name, &want) in &case.metrics {
            let got = match name.as_str() {
                "kl" => metrics.kl(),
                "clip_ratio/low_mean" => Some(metrics.clip_ratio_low_mean()),
                "clip_ratio/high_mean" => Some(metrics.clip_ratio_high_mean()),
                "clip_ratio/region_mean" => Some(metrics.clip_ratio_region_mean()),
                "clip_ratio/low_min" => metrics.clip_ratio_low_min(),
                "clip_ratio/high_max" => metrics.clip_ratio_high_max(),
                other => panic!("no such metric: {other}"),
            };
            assert!(got.is_some_and(|got| (got - want).abs() < 1e-6), "{name} {got:?} {want}: {case:?}");
        }
    }
}

#[test]
fn the_golden_cases_reach_every_branch() {
    let golden = golden();
    let reached = |name: &str| golden.cases.iter().any(|c| c.metrics.get(name).is_some_and(|&v| v > 0.0));
    assert!(reached("clip_ratio/low_mean") && reached("clip_ratio/high_mean") && reached("kl"));
    // Token gradients that a clip or delta holds at exactly 0 on a token that counts.
    let held = golden.cases.iter().any(|c| {
        c.beta == 0.0
            && c.dlogp.iter().zip(&golden.inputs[&c.inputs].mask).any(|(&d, &mask)| mask && d == 0.0)
    });
    assert!(held);
}

/// A ragged batch with room for every array.
#[derive(Clone, Debug)]
struct Batch {
    offsets: Vec<usize>,
    logp: Vec<f64>,
    old: Vec<f64>,
    reference: Vec<f64>,
    kl_full: Vec<f64>,
    mask: Vec<bool>,
    advantages: Vec<f32>,
}

impl Batch {
    fn inputs(&self, old: bool) -> LossInputs<'_, f64> {
        LossInputs {
            offsets: &self.offsets,
            logp_t: &self.logp,
            old_logp_t: old.then_some(&self.old),
            ref_logp_t: Some(&self.reference),
            kl_full_t: Some(&self.kl_full),
            mask_t: Some(&self.mask),
            advantages_b: &self.advantages,
            window: Window::of_batch(&self.offsets, Some(&self.mask)),
        }
    }
}

fn batch() -> impl Strategy<Value = Batch> {
    prop::collection::vec(0usize..6, 1..5).prop_flat_map(|lengths| {
        let (sequences, tokens) = (lengths.len(), lengths.iter().sum::<usize>());
        // Log-ratios on a grid no mean of which (over up to 5 tokens) comes near a clip bound or
        // delta, where the loss has a kink and finite differences mean nothing.
        let log_ratio = (-14i32..15).prop_map(|k| f64::from(k) * 0.05 + 0.0137);
        let token = (-4.0..-0.05, log_ratio, -1.0..1.0, 0.0..0.5, prop::bool::weighted(0.8));
        (Just(lengths), prop::collection::vec(token, tokens), prop::collection::vec(-2.0f32..2.0, sequences))
            .prop_map(|(lengths, tokens, advantages)| Batch {
                offsets: offsets_of(&lengths),
                logp: tokens.iter().map(|t| t.0).collect(),
                old: tokens.iter().map(|t| t.0 - t.1).collect(),
                reference: tokens.iter().map(|t| t.0 + t.2).collect(),
                kl_full: tokens.iter().map(|t| t.3).collect(),
                mask: tokens.iter().map(|t| t.4).collect(),
                advantages,
            })
    })
}

fn config() -> impl Strategy<Value = LossConfig> {
    let loss_type =
        prop::sample::select(vec![LossType::Grpo, LossType::Dapo, LossType::Bnpo, LossType::DrGrpo]);
    let level = prop::sample::select(vec![ImportanceSamplingLevel::Token, ImportanceSamplingLevel::Sequence]);
    let estimator = prop::sample::select(vec![
        KlEstimator::K1,
        KlEstimator::K2,
        KlEstimator::K3,
        KlEstimator::K3Unbiased,
        KlEstimator::Full,
    ]);
    let delta = prop::sample::select(vec![None, Some(1.1), Some(1.6)]);
    (loss_type, level, estimator, delta, prop::sample::select(vec![0.0, 0.3])).prop_map(
        |(loss_type, importance_sampling_level, kl_estimator, delta, beta)| LossConfig {
            loss_type,
            importance_sampling_level,
            epsilon: 0.2,
            epsilon_high: 0.3,
            delta,
            kl_estimator,
            beta,
            max_completion_length: 8,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gradients_are_those_of_finite_differences(batch in batch(), config in config()) {
        let output = grpo_loss(&config, &batch.inputs(true)).unwrap();
        let h = 1e-6;
        for t in 0..batch.logp.len() {
            let loss_at = |by: f64, full: bool| {
                let mut moved = batch.clone();
                if full { moved.kl_full[t] += by } else { moved.logp[t] += by }
                grpo_loss(&config, &moved.inputs(true)).unwrap().loss
            };
            let slope = |full| (loss_at(h, full) - loss_at(-h, full)) / (2.0 * h);
            prop_assert!((output.dlogp_t[t] - slope(false)).abs() < 1e-7, "{t}: {} {}", output.dlogp_t[t], slope(false));
            if let Some(dkl) = &output.dkl_full_t {
                prop_assert!((dkl[t] - slope(true)).abs() < 1e-7, "{t}: {} {}", dkl[t], slope(true));
            }
        }
    }

    #[test]
    fn on_policy_is_the_limit_of_equal_old_log_probs(batch in batch(), config in config()) {
        let mut equal = batch.clone();
        equal.old.clone_from(&equal.logp);
        let (with, without) = (grpo_loss(&config, &equal.inputs(true)).unwrap(), grpo_loss(&config, &batch.inputs(false)).unwrap());
        prop_assert_eq!(with, without);
    }

    #[test]
    fn masked_tokens_are_never_read(batch in batch(), config in config()) {
        let clean = grpo_loss(&config, &batch.inputs(true)).unwrap();
        let mut poisoned = batch.clone();
        for t in (0..batch.mask.len()).filter(|&t| !batch.mask[t]) {
            for values in [&mut poisoned.logp, &mut poisoned.old, &mut poisoned.reference, &mut poisoned.kl_full] {
                values[t] = f64::NAN;
            }
            prop_assert_eq!(clean.dlogp_t[t], 0.0);
        }
        prop_assert_eq!(clean, grpo_loss(&config, &poisoned.inputs(true)).unwrap());
    }

    #[test]
    fn accumulated_parts_equal_the_whole_batch(batch in batch(), config in config()) {
        prop_assume!(config.loss_type != LossType::Bnpo);
        let whole_inputs = batch.inputs(true);
        let whole = grpo_loss(&config, &whole_inputs).unwrap();
        let (mut loss, mut gradient, mut metrics) = (0.0, Vec::new(), LossMetrics::default());
        for (i, ends) in batch.offsets.windows(2).enumerate() {
            let tokens = ends[0]..ends[1];
            let part = grpo_loss(&config, &LossInputs {
                offsets: &[0, tokens.len()],
                logp_t: &batch.logp[tokens.clone()],
                old_logp_t: Some(&batch.old[tokens.clone()]),
                ref_logp_t: Some(&batch.reference[tokens.clone()]),
                kl_full_t: Some(&batch.kl_full[tokens.clone()]),
                mask_t: Some(&batch.mask[tokens.clone()]),
                advantages_b: &batch.advantages[i..=i],
                window: whole_inputs.window,
            }).unwrap();
            loss += part.loss;
            gradient.extend(part.dlogp_t);
            metrics.merge(&part.metrics);
        }
        prop_assert!((loss - whole.loss).abs() < 1e-14);
        prop_assert_eq!(gradient, whole.dlogp_t);
        prop_assert_eq!(metrics.tokens, whole.metrics.tokens);
        prop_assert_eq!(metrics.clip_ratio_low_mean(), whole.metrics.clip_ratio_low_mean());
        prop_assert_eq!(metrics.clip_ratio_high_max(), whole.metrics.clip_ratio_high_max());
        prop_assert_eq!(metrics.kl().is_some(), whole.metrics.kl().is_some());
    }

    #[test]
    fn the_parts_of_the_loss_add_up(batch in batch(), config in config()) {
        let output = grpo_loss(&config, &batch.inputs(true)).unwrap();
        prop_assert_eq!(output.loss, output.metrics.surrogate_loss + output.metrics.kl_loss);
        let free = LossConfig { beta: 0.0, ..config };
        let without = grpo_loss(&free, &batch.inputs(true)).unwrap();
        prop_assert_eq!(without.loss, output.metrics.surrogate_loss);
        // The KL is measured all the same.
        prop_assert_eq!(without.metrics.kl(), output.metrics.kl());
    }
}

fn paper() -> LossConfig {
    LossConfig {
        loss_type: LossType::Grpo,
        importance_sampling_level: ImportanceSamplingLevel::Token,
        epsilon: 0.2,
        epsilon_high: 0.2,
        delta: None,
        kl_estimator: KlEstimator::K3,
        beta: 0.5,
        max_completion_length: 4,
    }
}

fn one_batch<'a>(
    offsets: &'a [usize],
    logp_t: &'a [f64],
    ref_logp_t: Option<&'a [f64]>,
) -> LossInputs<'a, f64> {
    LossInputs {
        offsets,
        logp_t,
        old_logp_t: None,
        ref_logp_t,
        kl_full_t: None,
        mask_t: None,
        advantages_b: &[1.0, -2.0],
        window: Window::of_batch(offsets, None),
    }
}

#[test]
fn on_policy_by_hand() {
    // Two completions of 1 and 3 tokens, A = 1 and -2, ratio 1, ref/pi = e^0 and 2.
    let logp = [-1.0, -2.0, -2.0, -2.0];
    let two = 2.0f64.ln();
    let reference = [-1.0, -2.0 + two, -2.0, -2.0];
    let k3 = 1.0 - two;
    let inputs = one_batch(&[0, 1, 4], &logp, Some(&reference));
    // grpo: weights 1/2 and 1/6. dapo: 1/4. dr_grpo: 1/8.
    for (loss_type, first, other) in [
        (LossType::Grpo, 0.5, 1.0 / 6.0),
        (LossType::Dapo, 0.25, 0.25),
        (LossType::Bnpo, 0.25, 0.25),
        (LossType::DrGrpo, 0.125, 0.125),
    ] {
        let output = grpo_loss(&LossConfig { loss_type, ..paper() }, &inputs).unwrap();
        let loss = -first + other * (3.0 * 2.0 + 0.5 * k3);
        assert!((output.loss - loss).abs() < 1e-15, "{loss_type:?}: {}, {loss}", output.loss);
        // d k3 / d logp = 1 - ref/pi = -1 at the second token.
        let want = [-first, other * (2.0 - 0.5), other * 2.0, other * 2.0];
        for (got, want) in output.dlogp_t.iter().zip(want) {
            assert!((got - want).abs() < 1e-15, "{loss_type:?}: {got} {want}");
        }
        assert!((output.metrics.kl().unwrap() - k3 / 4.0).abs() < 1e-15);
        assert_eq!(output.metrics.clip_ratio_region_mean(), 0.0);
    }
}

#[test]
fn k1_is_measured_but_left_to_the_reward() {
    let inputs = one_batch(&[0, 1, 2], &[-1.0, -3.0], Some(&[-1.5, -2.0]));
    let output = grpo_loss(&LossConfig { kl_estimator: KlEstimator::K1, ..paper() }, &inputs).unwrap();
    assert_eq!(output.metrics.kl(), Some((0.5 - 1.0) / 2.0));
    assert_eq!((output.metrics.kl_loss, output.dlogp_t), (0.0, vec![-0.5, 1.0]));
}

#[test]
fn zero_advantage_without_beta_gives_no_gradient_at_all() {
    let config = LossConfig { beta: 0.0, ..paper() };
    let inputs = one_batch(&[0, 2, 3], &[-1.0, -0.5, -2.0], None);
    let output = grpo_loss(&config, &LossInputs { advantages_b: &[0.0, 0.0], ..inputs }).unwrap();
    assert_eq!((output.loss, output.dlogp_t), (0.0, vec![0.0; 3]));
}

#[test]
fn nan_reaches_the_loss() {
    let inputs = one_batch(&[0, 1, 2], &[-1.0, f64::NAN], Some(&[-1.0, -1.0]));
    assert!(grpo_loss(&paper(), &inputs).unwrap().loss.is_nan());
}

#[test]
fn a_reference_far_away_does_not_poison_a_run_without_kl() {
    let inputs = one_batch(&[0, 1, 2], &[-1000.0, -1.0], Some(&[-0.1, -1.0]));
    let output = grpo_loss(&LossConfig { beta: 0.0, ..paper() }, &inputs).unwrap();
    assert!(output.loss.is_finite() && output.dlogp_t.iter().all(|d| d.is_finite()));
}

#[test]
fn broken_promises_and_bad_options_are_named() {
    let logp = [-1.0, -2.0];
    let message =
        |config: LossConfig, inputs: LossInputs<f64>| grpo_loss(&config, &inputs).unwrap_err().to_string();
    let inputs = one_batch(&[0, 1, 2], &logp, Some(&logp));
    assert!(message(paper(), LossInputs { ref_logp_t: None, ..inputs }).contains("reference log-probs"));
    assert!(message(paper(), LossInputs { ref_logp_t: Some(&[-1.0]), ..inputs }).contains("ref_logp_t"));
    assert!(message(paper(), LossInputs { mask_t: Some(&[true]), ..inputs }).contains("mask_t"));
    assert!(message(paper(), LossInputs { offsets: &[0, 2], ..inputs }).contains("offsets"));
    assert!(message(paper(), LossInputs { offsets: &[0, 3, 2], ..inputs }).contains("offsets"));
    assert!(message(paper(), LossInputs { offsets: &[0, 1, 3], ..inputs }).contains("offsets"));
    let full = LossConfig { kl_estimator: KlEstimator::Full, ..paper() };
    assert!(message(full, inputs).contains("exact KL"));
    assert!(message(LossConfig { epsilon: -0.1, ..paper() }, inputs).contains("epsilon is -0.1"));
    assert!(message(LossConfig { delta: Some(f64::NAN), ..paper() }, inputs).contains("delta is NaN"));
    let no_length = LossConfig { loss_type: LossType::DrGrpo, max_completion_length: 0, ..paper() };
    assert!(message(no_length, inputs).contains("max_completion_length"));
}
