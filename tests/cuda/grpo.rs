//! GRPO-D on the device: after the CPU step by step, to the bit with itself, and without numbers that go back and forth.

use crate::common::{
    EvenInTheFirstRow, Recipe, Vowels, conversations, grpo_trainer, policy, prompts, uneven_steps,
};
use crate::harness::{gpu, is_checked, is_rerun, is_rerun_in_order};
use othink::checkpoint::{
    Identity, OnExisting, ResumeState, SavePlan, SavedRun, Snapshot, TrainerState, write_folder,
};
use othink::config::KlEstimator;
use othink::cuda::Gpu;
use othink::data::Dataset;
use othink::disk::SystemDisk;
use othink::nn::Params;
use othink::report::StepReport;
use othink::rollout::sampler::SamplingParams;
use othink::tensor::{DType, Device, Placement, Tensor};
use othink::train::grpo::{GrpoTrainer, ReferenceSync};
use othink::train::policy::Policy;
use othink::train::trainer::Trainer;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

const BUNDLE: &str = "tied_kv1_odd";

fn on(gpu: &Gpu, dtype: DType) -> Placement {
    Placement { device: Device::Cuda(gpu.clone()), dtype }
}

fn samples() -> Dataset {
    Dataset::from_samples(conversations(BUNDLE)).prompts()
}

fn trainer(recipe: &Recipe, rows: usize) -> GrpoTrainer {
    grpo_trainer(policy(BUNDLE, DType::F32), recipe, Box::new(Vowels), rows)
}

/// The policy, each weight in f32 moved by `by` units in its last place, up or down.
fn nudged(by: u32) -> Policy {
    let mut policy = policy(BUNDLE, DType::F32);
    let weights = policy.params.iter().map(|(_, parameter)| {
        let values = parameter.value.to_f32();
        let moved = values.iter().zip(0_u32..).map(|(x, i)| match x.abs().to_bits() {
            // Zero, or next to it.
            size if size < by => *x,
            size if i.wrapping_mul(0x9e37_79b9) >> 31 == 0 => f32::from_bits(size + by).copysign(*x),
            size => f32::from_bits(size - by).copysign(*x),
        });
        (parameter.name.clone(), Tensor::new(parameter.value.shape(), moved.collect::<Vec<_>>()).unwrap())
    });
    policy.params = Arc::new(Params::new(weights.collect::<Vec<_>>()));
    policy
}

/// The numbers of some steps: loss, gradient norm, KL, entropy, largest difference between sampling and training.
fn steps(recipe: &Recipe) -> Vec<[f64; 5]> {
    let samples = samples();
    let mut trainer = trainer(recipe, samples.rows());
    let reports = (0..recipe.steps).map(|step| trainer.step(step, &samples, &|_| Ok(())).unwrap().report);
    reports.map(|r| [r.loss, r.grad_norm, r.kl.unwrap(), r.entropy, r.sampling_logp_difference_max]).collect()
}

fn close(a: f64, b: f64, scale: f64) -> bool {
    (a - b).abs() <= 1e-5 * scale.max(b.abs())
}

/// Steps of each kind of loss follow the CPU's to 1e-5 relative in f32. Sampling and training agree to the bit.
#[test]
fn steps_follow_the_cpus() {
    let Some(gpu) = gpu() else { return };
    // The checker has seen every access after fewer.
    let (most, max_new_tokens) = if is_checked() { (3, 6) } else { (5, 12) };
    let long = SamplingParams { max_new_tokens, temperature: 0.9, ..SamplingParams::default() };
    let base = Recipe { steps: 3, micro_batch: 4, sampling: long, ..Recipe::default() };
    let recipes = [
        Recipe { steps: most, ..base.clone() },
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

/// Dynamic sampling, the exact KL beside the estimates, and a reference that follows the policy and is saved in the middle.
#[test]
fn more_state_follows_the_cpus_and_goes_on_to_the_bit() {
    let Some(gpu) = gpu() else { return };
    if is_rerun_in_order() {
        return;
    }
    let sync = ReferenceSync { every: 2, mixup_alpha: 0.6, resets_optimizer: true };
    let base = Recipe {
        steps: 4,
        prompts: 1,
        max_resample_times: Some(1),
        log_exact_kl: true,
        reference_sync: Some(sync),
        ..Recipe::default()
    };
    let samples = samples();
    let trainer_of =
        |policy, recipe: &Recipe| grpo_trainer(policy, recipe, Box::new(EvenInTheFirstRow), samples.rows());
    let new = |recipe: &Recipe| trainer_of(policy(BUNDLE, DType::F32), recipe);
    let go_on = |trainer: &mut GrpoTrainer, steps: std::ops::Range<u64>| -> Vec<StepReport> {
        steps.map(|step| trainer.step(step, &samples, &|_| Ok(())).unwrap().report).collect()
    };
    // Gradient norm, KL and its three estimates.
    let numbers = |report: &StepReport| -> [f64; 5] {
        let estimates = report.kl_estimates.map(Option::unwrap);
        [report.grad_norm, report.kl.unwrap(), estimates[0], estimates[1], estimates[2]]
    };
    let cpu = go_on(&mut new(&base), 0..4);
    assert!(cpu.iter().any(|report| report.refills.unwrap().dropped > 0), "{cpu:?}");
    // AdamW makes full steps along gradients that are little but rounding errors. How far that carries the CPU from itself, its weights
    // being nudged by their last bits, is what these numbers are worth.
    let nudged: Vec<Vec<StepReport>> =
        (1..4).map(|by| go_on(&mut trainer_of(nudged(by), &base), 0..4)).collect();
    for dtype in if is_checked() { &[DType::F32][..] } else { &[DType::F32, DType::Bf16] } {
        let recipe = Recipe { placement: on(gpu, *dtype), ..base.clone() };
        let mut trainer = new(&recipe);
        let mut device = go_on(&mut trainer, 0..3);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint-3");
        save(&trainer, &path, 3);
        device.extend(go_on(&mut trainer, 3..4));
        for (step, (ours, theirs)) in device.iter().zip(&cpu).enumerate().filter(|_| *dtype == DType::F32) {
            assert_eq!(ours.refills, theirs.refills);
            let (ours, theirs) = (numbers(ours), numbers(theirs));
            for i in 0..5 {
                let off = (ours[i] - theirs[i]).abs();
                let worth =
                    nudged.iter().map(|run| (numbers(&run[step])[i] - theirs[i]).abs()).fold(0.0, f64::max);
                assert!(
                    off <= 2.0 * worth + 1e-5 * theirs[i].abs().max(1e-2),
                    "step {step}, number {i}: {} and {}, which are worth {worth:.1e}",
                    ours[i],
                    theirs[i]
                );
            }
        }
        let mut resumed = new(&recipe);
        Trainer::restore(&mut resumed, SavedRun::read(&path).unwrap(), &samples).unwrap();
        let again = go_on(&mut resumed, 3..4);
        let numbers = |report: &StepReport| (report.loss, report.grad_norm, report.kl, report.kl_estimates);
        assert_eq!(numbers(&again[0]), numbers(&device[3]), "{dtype:?}");
        assert!(device[3].kl.unwrap() > 0.0);
    }
}

/// Writes the checkpoint of a run after `step` steps.
fn save(trainer: &GrpoTrainer, dir: &Path, step: u64) {
    let parts = Trainer::state(trainer).unwrap();
    let identity = Identity {
        command: "grpo".into(),
        options: Default::default(),
        model_hash: "m".into(),
        dataset_hash: "d".into(),
        max_steps: 4,
    };
    let state = TrainerState {
        global_step: step,
        num_input_tokens_seen: parts.tokens,
        identity,
        beta: parts.beta,
        guard: Default::default(),
        evaluated_step: 0,
        best: None,
        stream: parts.stream,
        reference_synced: parts.reference.as_ref().map(|reference| reference.synced),
    };
    let reference = parts.reference.map(|reference| reference.weights);
    let resume = ResumeState { state, optimiser: parts.optimiser, rollout: parts.rollout, reference };
    let snapshot = Snapshot { step, params: trainer.weights().unwrap(), resume: Some(resume) };
    let plan = SavePlan::like(&trainer.policy.folder).unwrap();
    write_folder(&SystemDisk, dir, OnExisting::Replace, |folder| snapshot.write(folder, &plan)).unwrap();
}

/// What has no gradient is left out of the head's backward products, whole micro-batches of it and single targets, and no bit shows it.
#[test]
fn what_is_left_out_of_the_backward_pass_changes_no_bit() {
    let Some(gpu) = gpu() else { return };
    if is_rerun() {
        return;
    }
    let sampling = SamplingParams { max_new_tokens: 16, ..SamplingParams::default() };
    let stop_strings: Vec<String> = ["r"].map(String::from).to_vec();
    let types = [(DType::F32, 4), (DType::Bf16, 8)];
    for (estimator, beta, types) in [
        (KlEstimator::K3, 0.0, &types[..1]),
        (KlEstimator::K3, 0.08, &types[..]),
        (KlEstimator::K1, 0.08, &types[1..]),
    ] {
        for &(dtype, micro_batch) in types {
            // The policy leaves its reference in the first step.
            let recipe = Recipe {
                steps: 2,
                micro_batch,
                estimator,
                beta: [beta; 2],
                stop_strings: stop_strings.clone(),
                mask_truncated: true,
                learning_rate: 1e-2,
                placement: on(gpu, dtype),
                sampling: sampling.clone(),
                ..Recipe::default()
            };
            let less = uneven_steps(BUNDLE, &recipe, true, |_| ());
            let what = format!("{estimator:?}, beta {beta}, {dtype:?}");
            assert!(less == uneven_steps(BUNDLE, &recipe, false, |_| ()), "{what}");
            assert!(less.weights[0] != less.weights[1], "{what}: nothing moves");
            assert!(less.cut.contains(&true) && less.cut.contains(&false), "{what}: {:?}", less.cut);
        }
    }
}

/// Two runs are equal, and recomputing activations changes no bit, in f32 and bf16.
#[test]
fn runs_are_equal_to_the_bit() {
    let Some(gpu) = gpu() else { return };
    if is_checked() {
        return;
    }
    for dtype in [DType::F32, DType::Bf16] {
        let recipe = Recipe { steps: 2, placement: on(gpu, dtype), ..Recipe::default() };
        let run = steps(&recipe);
        assert_eq!(steps(&recipe), run, "{dtype:?}");
        let again = Recipe { recompute: true, ..recipe };
        assert_eq!(steps(&again), run, "{dtype:?}, recomputed");
        assert!(run.iter().all(|step| step[4] == 0.0), "{run:?}");
    }
}

/// Only in the processes that [`a_step_copies_back_tokens_and_little_else`] starts: a step under the trace.
#[test]
fn one_traced_step() {
    let Some(new_tokens) = std::env::var("OTHINK_TRACED_TOKENS").ok().and_then(|n| n.parse().ok()) else {
        return;
    };
    let Some(gpu) = gpu() else { return };
    let samples = samples();
    let sampling = SamplingParams {
        min_new_tokens: new_tokens,
        max_new_tokens: new_tokens,
        repetition_penalty: 1.1,
        ..SamplingParams::default()
    };
    let placement = on(gpu, DType::Bf16);
    let recipe = Recipe { steps: 2, sampling, placement, estimator: KlEstimator::Full, ..Recipe::default() };
    let mut trainer = trainer(&recipe, samples.rows());
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

/// A step's lines of the log, and the tokens that it sampled.
fn traced_step(new_tokens: usize) -> (Vec<String>, usize) {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "grpo::one_traced_step", "--test-threads", "1"])
        .env("OTHINK_TRACE", &trace)
        .env("OTHINK_TRACED_TOKENS", new_tokens.to_string())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let text = fs::read_to_string(&trace).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let marks: Vec<usize> = (0..lines.len()).filter(|&i| lines[i].starts_with("mark ")).collect();
    let tokens = lines[marks[2]].strip_prefix("mark tokens ").unwrap().parse().unwrap();
    (lines[marks[0] + 1..marks[1]].iter().map(|line| (*line).to_owned()).collect(), tokens)
}

fn bytes_back(step: &[String]) -> usize {
    let bytes = |line: &String| {
        line.strip_prefix("copy device to host ")?.strip_suffix(" bytes")?.parse::<usize>().ok()
    };
    step.iter().filter_map(bytes).sum()
}

/// What a step copies to the host is the sampled tokens, 4 bytes each, and sums whose number the number of tokens does not change: far
/// less than 64 KiB. Its log shows every op's kernel.
#[test]
fn a_step_copies_back_tokens_and_little_else() {
    if std::env::var_os("OTHINK_TRACED_TOKENS").is_some() || is_rerun() || gpu().is_none() {
        return;
    }
    let ((step, tokens), (longer, more)) = (traced_step(12), traced_step(24));
    assert_eq!((tokens, more), (8 * 12, 8 * 24));
    let rest = bytes_back(&step) - 4 * tokens;
    assert_eq!(bytes_back(&longer) - 4 * more, rest, "something of each token comes back");
    assert!(rest > 0 && rest <= 4 << 10, "{rest} bytes beside the tokens");
    let launched: BTreeSet<&str> =
        step.iter().filter_map(|line| line.strip_prefix("launch ")?.split(' ').next()).collect();
    let kernels = [
        "patch_embed_forward_bf16",
        "patch_embed_backward_bf16",
        "rope_angles",
        "rope_forward_bf16",
        "rope_backward_bf16",
        "rms_norm_forward_bf16",
        "rms_norm_backward_bf16",
        "layer_norm_forward_bf16",
        "layer_norm_backward_bf16",
        "attention_d16_forward_bf16",
        "attention_d16_backward_queries_bf16",
        "attention_d16_backward_keys_bf16",
        "attention_d16_decode_bf16",
        "paged_store_bf16",
        "swiglu_forward_bf16",
        "swiglu_backward_bf16",
        "quick_gelu_forward_bf16",
        "quick_gelu_backward_bf16",
        "gelu_forward_bf16",
        "gelu_backward_bf16",
        "embedding_forward_bf16",
        "embedding_backward_bf16",
        "columns_forward_bf16",
        "add_forward_bf16",
        "column_sums_bf16",
        "log_softmax_kl_forward_f32",
        "log_softmax_kl_backward_bf16",
        "sample_forward_f32",
        "sampled_log_probs_forward_f32",
        "group_advantage_forward_f32",
        "accumulate_bf16",
        "grad_norm_partial_f32",
        "grad_norm_finish_f32",
        "adamw_step_bf16",
    ];
    let missing: Vec<&str> = kernels.into_iter().filter(|kernel| !launched.contains(kernel)).collect();
    assert!(missing.is_empty(), "{missing:?} are not among {launched:?}");
    assert!(launched.iter().any(|kernel| kernel.starts_with("grpo_loss")), "{launched:?}");
    let products = step.iter().any(|line| line.starts_with("product "));
    assert!(products || launched.iter().any(|kernel| kernel.starts_with("gemm")), "no product: {launched:?}");
}

/// The steps above go through the vision tower.
#[test]
fn the_bundle_has_images() {
    let host = policy(BUNDLE, DType::F32);
    assert!(prompts(&host, BUNDLE).iter().any(|prompt| !prompt.images.is_empty()));
}
