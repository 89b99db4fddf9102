//! GRPO-D on the device: after the CPU step by step, to the bit with itself, and without numbers that go back and forth.

use crate::common::{Recipe, Vowels, conversations, grpo_trainer, policy, prompts};
use crate::harness::{VARIABLE, gpu, is_checked, is_rerun};
use othink::config::KlEstimator;
use othink::cuda::Gpu;
use othink::data::Sample;
use othink::rollout::sampler::SamplingParams;
use othink::tensor::{DType, Device, Placement};
use othink::train::grpo::GrpoTrainer;
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

const BUNDLE: &str = "tied_kv1_odd";

fn on(gpu: &Gpu, dtype: DType) -> Placement {
    Placement { device: Device::Cuda(gpu.clone()), dtype }
}

fn samples() -> Vec<Sample> {
    conversations(BUNDLE).iter().map(Sample::prompt).collect()
}

fn trainer(recipe: &Recipe, rows: usize) -> GrpoTrainer {
    grpo_trainer(policy(BUNDLE, DType::F32), recipe, Box::new(Vowels), rows)
}

/// The numbers of some steps: loss, gradient norm, KL, entropy, largest difference between sampling and training.
fn steps(recipe: &Recipe) -> Vec<[f64; 5]> {
    let samples = samples();
    let mut trainer = trainer(recipe, samples.len());
    let reports = (0..recipe.steps).map(|step| trainer.step(step, &samples, &|_| Ok(())).unwrap().report);
    reports.map(|r| [r.loss, r.grad_norm, r.kl.unwrap(), r.entropy, r.sampling_logp_difference_max]).collect()
}

fn close(a: f64, b: f64, scale: f64) -> bool {
    (a - b).abs() <= 1e-5 * scale.max(b.abs())
}

/// Five steps of each kind of loss follow the CPU's to 1e-5 relative in f32. Sampling and training agree to the bit.
#[test]
fn steps_follow_the_cpus() {
    let Some(gpu) = gpu() else { return };
    let long = SamplingParams { max_new_tokens: 12, temperature: 0.9, ..SamplingParams::default() };
    let base = Recipe { steps: 5, micro_batch: 4, sampling: long, ..Recipe::default() };
    let recipes = [
        base.clone(),
        Recipe { estimator: KlEstimator::Full, recompute: true, ..base.clone() },
        Recipe { estimator: KlEstimator::K1, micro_batch: 8, ..base.clone() },
        Recipe { num_iterations: 2, estimator: KlEstimator::K3Unbiased, ..base },
    ];
    for recipe in if is_rerun() { &recipes[..1] } else { &recipes[..] } {
        let cpu = steps(recipe);
        let device = steps(&Recipe { placement: on(gpu, DType::F32), ..recipe.clone() });
        for (step, (ours, theirs)) in device.iter().zip(&cpu).enumerate() {
            let what = format!("{:?}, step {step}: {ours:?} and {theirs:?}", recipe.estimator);
            assert_eq!((ours[4], theirs[4]), (0.0, 0.0), "{what}");
            // A loss is a small difference of terms of the size of the advantages, about 1.
            for (i, scale) in [(0, 0.01), (1, 0.0), (2, 1e-3), (3, 0.0)] {
                assert!(close(ours[i], theirs[i], scale), "number {i}: {what}");
            }
        }
        assert!(cpu.iter().any(|step| step[2] > 1e-4), "the policy has not moved: {cpu:?}");
    }
}

/// Two runs are equal, and recomputing activations changes no bit, in f32 and bf16.
#[test]
fn runs_are_equal_to_the_bit() {
    let Some(gpu) = gpu() else { return };
    for dtype in [DType::F32, DType::Bf16] {
        let recipe = Recipe { steps: 2, placement: on(gpu, dtype), ..Recipe::default() };
        let run = steps(&recipe);
        assert_eq!(steps(&recipe), run, "{dtype:?}");
        let again = Recipe { recompute: true, ..recipe };
        assert_eq!(steps(&again), run, "{dtype:?}, recomputed");
        assert!(run.iter().all(|step| step[4] == 0.0), "{run:?}");
        if is_checked() {
            return;
        }
    }
}

/// Only in the process that [`a_step_copies_back_tokens_and_little_else`] starts: a step under the trace.
#[test]
fn one_traced_step() {
    if std::env::var_os("OTHINK_TRACE").is_none() || std::env::var_os("OTHINK_TRACED_STEP").is_none() {
        return;
    }
    let Some(gpu) = gpu() else { return };
    let samples = samples();
    let sampling =
        SamplingParams { max_new_tokens: 12, repetition_penalty: 1.1, ..SamplingParams::default() };
    let placement = on(gpu, DType::Bf16);
    let recipe = Recipe { steps: 2, sampling, placement, estimator: KlEstimator::Full, ..Recipe::default() };
    let mut trainer = trainer(&recipe, samples.len());
    let mark = |name: &str| {
        let path = std::env::var_os("OTHINK_TRACE").unwrap();
        let mut file = fs::File::options().append(true).open(path).unwrap();
        std::io::Write::write_all(&mut file, format!("mark {name}\n").as_bytes()).unwrap();
    };
    mark("begin");
    let outcome = trainer.step(0, &samples, &|_| Ok(())).unwrap();
    mark("end");
    let tokens: usize = outcome.completions.iter().map(|c| c.length).sum();
    mark(&format!("tokens {tokens}"));
}

/// A step's log shows every op's kernel; what it copies to the host is sampled tokens and at most 64 KiB.
#[test]
fn a_step_copies_back_tokens_and_little_else() {
    if std::env::var_os(VARIABLE).is_some() || gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "grpo::one_traced_step", "--test-threads", "1"])
        .env("OTHINK_TRACE", &trace)
        .env("OTHINK_TRACED_STEP", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let text = fs::read_to_string(&trace).unwrap();
    let marks: Vec<usize> =
        text.lines().enumerate().filter(|(_, l)| l.starts_with("mark ")).map(|(i, _)| i).collect();
    let lines: Vec<&str> = text.lines().collect();
    let tokens: usize = lines[marks[2]].strip_prefix("mark tokens ").unwrap().parse().unwrap();
    let step = &lines[marks[0] + 1..marks[1]];
    let back = step.iter().filter_map(|line| {
        line.strip_prefix("copy device to host ")?.strip_suffix(" bytes")?.parse::<usize>().ok()
    });
    let back: usize = back.sum();
    assert!(tokens > 20 && back >= 4 * tokens, "{tokens} tokens, {back} bytes");
    assert!(back <= 4 * tokens + (64 << 10), "{tokens} tokens, {back} bytes");
    let launched: BTreeSet<&str> =
        step.iter().filter_map(|line| line.strip_prefix("launch ")?.split(' ').next()).collect();
    let ops = [
        "patch_embed",
        "rope",
        "rms_norm",
        "layer_norm",
        "attention",
        "decode",
        "paged_store",
        "swiglu",
        "gelu",
        "quick_gelu",
        "embedding",
        "log_softmax_kl_forward",
        "log_softmax_kl_backward",
        "sample_forward",
        "sampled_log_probs",
        "grpo_loss",
        "column_sums",
        "grad_norm",
        "adamw_step",
        "group_advantage",
        "columns",
        "backward_queries",
        "backward_keys",
        "accumulate",
    ];
    for op in ops {
        assert!(launched.iter().any(|name| name.contains(op)), "{op} is not among {launched:?}");
    }
    let products =
        step.iter().any(|line| line.starts_with("product ")) || launched.iter().any(|n| n.contains("gemm"));
    assert!(products, "no product: {launched:?}");
}

/// The steps above go through the vision tower.
#[test]
fn the_bundle_has_images() {
    let host = policy(BUNDLE, DType::F32);
    assert!(prompts(&host, BUNDLE).iter().any(|prompt| !prompt.images.is_empty()));
}
