//! The loss, its metrics and its gradient against `othink::loss` on the host.

use crate::compare::on_gpu;
use crate::harness::{gpu, is_checked};
use othink::config::{ImportanceSamplingLevel, LossType};
use othink::cuda::Gpu;
use othink::error::Result;
use othink::kl::KlEstimator;
use othink::loss::{
    LossConfig, Sampled, ScoreInputs, ScoreOutput, Window, k1_penalty_of_scores, loss_of_scores,
};
use othink::rng::{Purpose as StreamPurpose, Stream};
use othink::tensor::{DType, Tensor};

/// Completions of no token, of one, round the number of threads, and of several turns of them.
const LENGTHS: [usize; 8] = [0, 1, 127, 128, 129, 3, 300, 17];

struct Batch {
    offsets: Vec<usize>,
    begins: Vec<usize>,
    counts: Vec<bool>,
    advantages: Vec<f32>,
    scores: Tensor,
    reference: Tensor,
    sampled: Tensor,
}

impl Batch {
    /// Log-ratios on both sides of every bound; what was sampled lies in reverse order, with gaps.
    fn new(lengths: &[usize]) -> Batch {
        let mut stream = Stream::new(31, StreamPurpose::Init, lengths.len() as u64);
        let mut normal = |size: f32| size * stream.normal();
        let mut offsets = vec![0];
        lengths.iter().for_each(|length| offsets.push(offsets[offsets.len() - 1] + length));
        let tokens = offsets[lengths.len()];
        let (mut begins, mut sampled) = (vec![0; lengths.len()], Vec::new());
        let logps: Vec<f32> = (0..tokens).map(|_| -normal(1.0).abs() - 0.01).collect();
        for b in (0..lengths.len()).rev() {
            sampled.push(f32::NAN);
            begins[b] = sampled.len();
            // Ratios of whole sequences are clipped too, on both sides.
            let mean = if b % 2 == 0 { 0.6 } else { -0.6 };
            sampled.extend(logps[offsets[b]..offsets[b + 1]].iter().map(|logp| logp + mean + normal(0.2)));
        }
        let scores = logps.iter().flat_map(|&logp| [logp, normal(2.0).abs(), normal(0.3).abs()]);
        let scores = Tensor::new(&[tokens, 3], scores.collect::<Vec<f32>>()).expect("three for each");
        // The last two columns of the reference's are never read.
        let reference = logps.iter().flat_map(|&logp| [logp + normal(0.5), f32::NAN, f32::NAN]);
        let reference = Tensor::new(&[tokens, 3], reference.collect::<Vec<f32>>()).expect("three for each");
        Batch {
            counts: (0..lengths.len()).map(|b| b != 3).collect(),
            advantages: (0..lengths.len()).map(|b| [1.5, 0.7, -0.3, -1.1, 2.3, 0.0][b % 6]).collect(),
            sampled: Tensor::new(&[sampled.len()], sampled).expect("a list"),
            offsets,
            begins,
            scores,
            reference,
        }
    }

    fn on_gpu(&self, gpu: &Gpu) -> Batch {
        let up = |x: &Tensor| on_gpu(x, DType::F32, gpu);
        Batch {
            offsets: self.offsets.clone(),
            begins: self.begins.clone(),
            counts: self.counts.clone(),
            advantages: self.advantages.clone(),
            scores: up(&self.scores),
            reference: up(&self.reference),
            sampled: up(&self.sampled),
        }
    }

    fn sampled(&self) -> Sampled<'_> {
        Sampled { values: &self.sampled, begins: &self.begins }
    }

    fn inputs(&self, off_policy: bool, with_kl: bool) -> ScoreInputs<'_> {
        ScoreInputs {
            offsets: &self.offsets,
            scores: &self.scores,
            sampled: self.sampled(),
            off_policy,
            reference: with_kl.then_some(&self.reference),
            exact_kl: with_kl,
            counts_b: &self.counts,
            advantages_b: &self.advantages,
            window: Window { sequences: 11, tokens: 901.5, micro_batches: 2, micro_batch_tokens: 449.0 },
        }
    }
}

fn configs() -> Vec<LossConfig> {
    let mut configs = Vec::new();
    for loss_type in [LossType::Grpo, LossType::Dapo, LossType::Bnpo, LossType::DrGrpo] {
        for importance_sampling_level in [ImportanceSamplingLevel::Token, ImportanceSamplingLevel::Sequence] {
            for kl_estimator in [
                KlEstimator::K1,
                KlEstimator::K2,
                KlEstimator::K3,
                KlEstimator::K3Unbiased,
                KlEstimator::Full,
            ] {
                for delta in [None, Some(1.1), Some(1.6)] {
                    for beta in [0.0, 0.3] {
                        configs.push(LossConfig {
                            loss_type,
                            importance_sampling_level,
                            epsilon: 0.2,
                            epsilon_high: 0.3,
                            delta,
                            kl_estimator,
                            beta,
                            max_completion_length: 256,
                        });
                    }
                }
            }
        }
    }
    configs
}

/// Sums in another order, in f64: equal but for its rounding.
fn assert_near(what: &str, ours: f64, want: f64) {
    assert!((ours - want).abs() <= 1e-12 * want.abs().max(1.0), "{what}: {ours:?} instead of {want:?}");
}

fn assert_same(what: &str, ours: &ScoreOutput, want: &ScoreOutput) {
    assert_near(&format!("{what}: loss"), ours.loss, want.loss);
    let (m, n) = (&ours.metrics, &want.metrics);
    for (name, ours, want) in [
        ("surrogate", m.surrogate_loss, n.surrogate_loss),
        ("KL loss", m.kl_loss, n.kl_loss),
        ("KL", m.kl().unwrap_or(-1.0), n.kl().unwrap_or(-1.0)),
        ("entropy", ours.entropy_sum, want.entropy_sum),
        ("difference", ours.difference_sum, want.difference_sum),
    ] {
        assert_near(&format!("{what}: {name}"), ours, want);
    }
    let counted = |o: &ScoreOutput| {
        let m = &o.metrics;
        let means = [m.clip_ratio_low_mean(), m.clip_ratio_high_mean(), m.clip_ratio_region_mean()];
        (m.tokens, means, m.clip_ratio_low_min(), m.clip_ratio_high_max(), o.difference_max)
    };
    assert_eq!(counted(ours), counted(want), "{what}");
    let on_host = ours.dscores.to_cpu().expect("a device that works");
    assert_eq!(on_host.shape(), want.dscores.shape());
    for (i, (ours, want)) in on_host.real::<f32>().iter().zip(want.dscores.real::<f32>().iter()).enumerate() {
        // The f64 numbers before the one rounding differ in their last places.
        let unit = f32::EPSILON * want.abs();
        assert!((ours - want).abs() <= unit, "{what}: gradient {i} is {ours:?} instead of {want:?}");
    }
}

#[test]
fn every_option() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let host = Batch::new(&LENGTHS);
    let ours = host.on_gpu(gpu);
    let (mut low, mut high) = ([false; 2], [false; 2]);
    for (i, config) in configs().iter().enumerate().filter(|(i, _)| !is_checked() || i % 7 == 0) {
        for (off_policy, with_kl) in [(true, true), (false, true), (true, false)] {
            if config.beta > 0.0 && !with_kl && config.kl_estimator != KlEstimator::K1 {
                continue;
            }
            let want = loss_of_scores(config, &host.inputs(off_policy, with_kl))?;
            let got = loss_of_scores(config, &ours.inputs(off_policy, with_kl))?;
            assert_same(&format!("{i}: {config:?}, off-policy {off_policy}, KL {with_kl}"), &got, &want);
            let level = config.importance_sampling_level as usize;
            low[level] |= got.metrics.clip_ratio_low_mean() > 0.0;
            high[level] |= got.metrics.clip_ratio_high_mean() > 0.0;
        }
    }
    assert_eq!((low, high), ([true; 2], [true; 2]), "ratios on both sides of the range at both levels");
    Ok(())
}

fn plain(kl_estimator: KlEstimator, importance_sampling_level: ImportanceSamplingLevel) -> LossConfig {
    LossConfig {
        loss_type: LossType::Grpo,
        importance_sampling_level,
        epsilon: 0.25,
        epsilon_high: 0.5,
        delta: None,
        kl_estimator,
        beta: 0.5,
        max_completion_length: 8,
    }
}

/// More completions than the totals' block has threads, some without tokens or left out. Sums of some thousand terms of either sign
/// differ by the rounding of each addition: n units of the last place of the largest partial sum, far below the bound.
#[test]
fn more_completions_than_threads() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for count in [128, 129, 300] {
        let lengths: Vec<usize> = (0..count).map(|b| [5, 0, 1, 9][b % 4]).collect();
        let mut host = Batch::new(&lengths);
        host.counts = (0..count).map(|b| b % 11 != 4).collect();
        for level in [ImportanceSamplingLevel::Token, ImportanceSamplingLevel::Sequence] {
            let config = plain(KlEstimator::K3, level);
            let want = loss_of_scores(&config, &host.inputs(true, true))?;
            let got = loss_of_scores(&config, &host.on_gpu(gpu).inputs(true, true))?;
            assert_same(&format!("{count} completions, {level:?}"), &got, &want);
        }
        host.counts = vec![false; count];
        let config = plain(KlEstimator::K3, ImportanceSamplingLevel::Token);
        let want = loss_of_scores(&config, &host.inputs(true, true))?;
        let got = loss_of_scores(&config, &host.on_gpu(gpu).inputs(true, true))?;
        assert_same("all left out", &got, &want);
        assert_eq!((got.metrics.clip_ratio_low_min(), got.metrics.kl()), (None, None));
    }
    Ok(())
}

/// The least and the greatest share of clipped ratios, by hand: of completions on different warps, in the middle of the others.
#[test]
fn shares_of_clipped_ratios() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let mut host = Batch::new(&[4; 200]);
    host.counts = vec![true; 200];
    // All ratios are far below the range, and clipped where the advantage is negative; in one completion a half is 1.
    host.advantages = vec![-1.0; 200];
    let logps: Vec<f32> = host.scores.real::<f32>().chunks(3).map(|row| row[0]).collect();
    let sampled = host.sampled.make_mut::<f32>()?;
    for (b, &begin) in host.begins.iter().enumerate() {
        for t in 0..4 {
            sampled[begin + t] = logps[4 * b + t] + if b == 150 && t < 2 { 0.0 } else { 1.0 };
        }
    }
    let config = plain(KlEstimator::K3, ImportanceSamplingLevel::Token);
    let got = loss_of_scores(&config, &host.on_gpu(gpu).inputs(true, true))?.metrics;
    assert_eq!((got.clip_ratio_low_min(), got.clip_ratio_low_mean()), (Some(0.5), 798.0 / 800.0));
    assert_eq!((got.clip_ratio_high_max(), got.clip_ratio_high_mean()), (Some(0.0), 0.0));
    // Far above, and clipped where the advantage is positive, in one completion only.
    sampled_above(&mut host, &logps)?;
    let got = loss_of_scores(&config, &host.on_gpu(gpu).inputs(true, true))?.metrics;
    assert_eq!((got.clip_ratio_low_min(), got.clip_ratio_low_mean()), (Some(0.0), 0.0));
    assert_eq!((got.clip_ratio_high_max(), got.clip_ratio_high_mean()), (Some(0.75), 3.0 / 800.0));
    Ok(())
}

/// Ratios of 1, but for three of completion 70, which has a positive advantage.
fn sampled_above(host: &mut Batch, logps: &[f32]) -> Result<()> {
    host.advantages[70] = 1.0;
    let sampled = host.sampled.make_mut::<f32>()?;
    for (b, &begin) in host.begins.iter().enumerate() {
        for t in 0..4 {
            sampled[begin + t] = logps[4 * b + t] - if b == 70 && t < 3 { 1.0 } else { 0.0 };
        }
    }
    Ok(())
}

/// Ratios at the bounds exactly, where `min` ties and a clip passes the gradient.
#[test]
fn at_the_bounds() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for advantage in [2.0, -2.0, 0.0] {
        for delta in [None, Some(1.0), Some(0.5)] {
            let mut host = Batch::new(&[4]);
            host.advantages = vec![advantage];
            let ours = host.on_gpu(gpu);
            for epsilon in [0.0, 0.25] {
                for level in [ImportanceSamplingLevel::Token, ImportanceSamplingLevel::Sequence] {
                    let config =
                        LossConfig { epsilon, epsilon_high: epsilon, delta, ..plain(KlEstimator::K3, level) };
                    let want = loss_of_scores(&config, &host.inputs(false, true))?;
                    let got = loss_of_scores(&config, &ours.inputs(false, true))?;
                    assert_same(&format!("{config:?}, advantage {advantage}"), &got, &want);
                }
            }
        }
    }
    Ok(())
}

/// What is no number is told, and does not reach the other completions' gradients; left out, it is not even read.
#[test]
fn what_is_no_number() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for level in [ImportanceSamplingLevel::Token, ImportanceSamplingLevel::Sequence] {
        let config = plain(KlEstimator::K3, level);
        let mut host = Batch::new(&[2, 140, 3]);
        host.counts = vec![true; 3];
        host.scores.make_mut::<f32>()?[3 * (2 + 135)] = f32::NAN;
        let got = loss_of_scores(&config, &host.on_gpu(gpu).inputs(true, true))?;
        assert!(got.loss.is_nan() && got.difference_sum.is_nan() && got.difference_max.is_nan());
        let d = got.dscores.to_cpu()?;
        let d = d.real::<f32>();
        assert!(d[3 * 137].is_nan() && d[..6].iter().chain(&d[3 * 142..]).all(|d| d.is_finite()));
        host.counts[1] = false;
        let got = loss_of_scores(&config, &host.on_gpu(gpu).inputs(true, true))?;
        let want = loss_of_scores(&config, &host.inputs(true, true))?;
        assert!(got.loss.is_finite() && got.difference_max.is_nan());
        assert_near("the loss of the others", got.loss, want.loss);
        assert!(got.dscores.to_cpu()?.real::<f32>()[6..3 * 142].iter().all(|&d| d == 0.0));
    }
    Ok(())
}

/// A completion has the same bits alone and in a batch.
#[test]
fn completions_alone() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let config = plain(KlEstimator::K3Unbiased, ImportanceSamplingLevel::Sequence);
    let host = Batch::new(&LENGTHS);
    let all = loss_of_scores(&config, &host.on_gpu(gpu).inputs(true, true))?.dscores.to_cpu()?;
    for b in [1, 4, 6] {
        let rows = 3 * host.offsets[b]..3 * host.offsets[b + 1];
        let cut = |x: &Tensor| Tensor::new(&[LENGTHS[b], 3], x.real::<f32>()[rows.clone()].to_vec());
        let alone = Batch {
            offsets: vec![0, LENGTHS[b]],
            begins: vec![host.begins[b]],
            counts: vec![host.counts[b]],
            advantages: vec![host.advantages[b]],
            scores: cut(&host.scores)?,
            reference: cut(&host.reference)?,
            sampled: host.sampled.clone(),
        };
        let one = loss_of_scores(&config, &alone.on_gpu(gpu).inputs(true, true))?.dscores.to_cpu()?;
        assert_eq!(one.real::<f32>()[..], all.real::<f32>()[rows]);
    }
    Ok(())
}

#[test]
fn penalties() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let host = Batch::new(&LENGTHS);
    let ours = host.on_gpu(gpu);
    let got = k1_penalty_of_scores(&ours.offsets, &ours.sampled(), &ours.reference)?;
    let want = k1_penalty_of_scores(&host.offsets, &host.sampled(), &host.reference)?;
    assert_eq!(got.len(), LENGTHS.len());
    got.iter().zip(&want).for_each(|(&got, &want)| assert_near("a penalty", got, want));
    Ok(())
}

#[test]
fn no_completions() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for level in [ImportanceSamplingLevel::Token, ImportanceSamplingLevel::Sequence] {
        let host = Batch::new(&[]);
        let ours = host.on_gpu(gpu);
        let config = plain(KlEstimator::Full, level);
        let got = loss_of_scores(&config, &ours.inputs(true, true))?;
        assert_same("nothing", &got, &loss_of_scores(&config, &host.inputs(true, true))?);
        assert!(k1_penalty_of_scores(&ours.offsets, &ours.sampled(), &ours.reference)?.is_empty());
    }
    Ok(())
}

#[test]
fn refuses_what_does_not_fit() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let host = Batch::new(&[2, 3]);
    let ours = host.on_gpu(gpu);
    let config = plain(KlEstimator::K3, ImportanceSamplingLevel::Token);
    let message = |inputs: ScoreInputs<'_>| match loss_of_scores(&config, &inputs) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    };
    let inputs = ours.inputs(true, true);
    assert_eq!(message(inputs), "");
    assert!(message(ScoreInputs { sampled: host.sampled(), ..inputs }).contains("on Cpu"));
    assert!(message(ScoreInputs { reference: Some(&host.reference), ..inputs }).contains("reference scores"));
    assert!(message(ScoreInputs { reference: None, ..inputs }).contains("reference log-probs"));
    assert!(message(ScoreInputs { advantages_b: &[1.0], ..inputs }).contains("in 1 completions"));
    let outside = Sampled { values: &ours.sampled, begins: &[0, 5] };
    assert!(message(ScoreInputs { sampled: outside, ..inputs }).contains("sampled at 5"));
    assert!(k1_penalty_of_scores(&[0, 2, 4], &ours.sampled(), &ours.reference).is_err());
    assert!(k1_penalty_of_scores(&[1, 2, 5], &ours.sampled(), &ours.reference).is_err());
    Ok(())
}
