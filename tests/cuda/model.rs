//! The whole model on the device: against the reference bundles, and rollout against training, bit for bit.

use crate::common::{
    batches, bits, bundle, decoding, placed, policy, prompts, roll_out, samplings, training_logps,
};
use crate::harness::{gpu, is_real, is_rerun};
use othink::cuda::Gpu;
use othink::parity::bundle::Bundle;
use othink::parity::compare::Verdict;
use othink::processor::ProcessorOptions;
use othink::processor::Prompt;
use othink::report::Progress;
use othink::rollout::sampler::SamplingParams;
use othink::rollout::{Completion, Limits, Request};
use othink::tensor::{DType, Device, Placement};
use othink::train::policy::Policy;
use std::sync::Arc;

fn on(gpu: &Gpu, dtype: DType) -> Placement {
    Placement { device: Device::Cuda(gpu.clone()), dtype }
}

/// A bundle's checkpoint on the device.
fn policy_on(gpu: &Gpu, name: &str, dtype: DType) -> Policy {
    let mut policy = policy(name, DType::F32);
    policy.params = Arc::new(policy.params.placed(&on(gpu, dtype)).unwrap());
    policy
}

fn parity(gpu: &Gpu, name: &str, dtype: DType) {
    let bundle = Bundle::open(&bundle(name)).unwrap();
    let limits = bundle.pixel_limits();
    let options = ProcessorOptions {
        min_pixels: limits.min_pixels,
        max_pixels: limits.max_pixels,
        ..ProcessorOptions::default()
    };
    let policy =
        Policy::load(crate::common::bundle(name).to_str().unwrap(), &options, &Placement::HOST).unwrap();
    let progress = Progress::start("parity", bundle.stages(), true);
    let outcome = othink::parity::run(&policy, &bundle, &on(gpu, dtype), false, &progress).unwrap();
    progress.finish();
    let wrong: Vec<_> = outcome.rows.iter().filter(|row| row.failed()).collect();
    assert!(wrong.is_empty(), "{name} in {}: {wrong:#?}", dtype.name());
    let compared = outcome.rows.iter().filter(|row| matches!(row.verdict, Verdict::Ok)).count();
    assert!(compared > 10, "{name} in {}: {compared} tensors", dtype.name());
}

/// Bundles of every size, head, type of weights and kind of images.
const SHAPES: [&str; 7] = [
    "tied_kv1_odd",
    "qwen2_vl_a",
    "untied_textonly",
    "wide_gqa4_hd32",
    "bf16_sharded",
    "image_kinds",
    "qwen2_5_tied_odd",
];

/// Bundles that launch what those launch: other names of the weights and dialects of the config. `tests/parity.rs` reads them all.
const DIALECTS: [&str; 6] = [
    "dialect_flat_f16",
    "dialect_language_model",
    "dialect_v4_52",
    "dialect_v5",
    "qwen2_5_bf16_sharded",
    "qwen2_5_v4_52",
];

fn bundles(emulated: &[&'static str]) -> Vec<&'static str> {
    match (is_rerun(), is_real()) {
        (true, _) => SHAPES[..1].to_vec(),
        (false, true) => [&SHAPES[..], &DIALECTS].concat(),
        (false, false) => emulated.to_vec(),
    }
}

#[test]
fn parity_in_f32() {
    let Some(gpu) = gpu() else { return };
    bundles(&SHAPES).into_iter().for_each(|name| parity(gpu, name, DType::F32));
}

#[test]
fn parity_in_bf16() {
    let Some(gpu) = gpu() else { return };
    // Of an emulated GPU the sizes and heads that differ most.
    let some = ["tied_kv1_odd", "wide_gqa4_hd32", "bf16_sharded", "qwen2_5_tied_odd"];
    bundles(&some).into_iter().for_each(|name| parity(gpu, name, DType::Bf16));
}

fn kept(completions: &[Vec<Completion>]) -> Vec<f32> {
    completions.iter().flatten().flat_map(|c| c.logps.to_vec().unwrap()).collect()
}

fn tokens(completions: &[Vec<Completion>]) -> Vec<Vec<u32>> {
    completions.iter().flatten().map(|c| c.tokens.clone()).collect()
}

/// The log-probabilities kept at sampling are those of training, in micro-batches of any size, with recomputation or without.
#[test]
fn rollout_log_probs_are_the_training_log_probs() {
    let Some(gpu) = gpu() else { return };
    // Every way of sampling in both types; the other models with the first.
    for (name, dtype, samplings) in [
        ("tied_kv1_odd", DType::F32, samplings()),
        ("qwen2_vl_a", DType::Bf16, samplings()),
        ("qwen2_vl_a", DType::F32, samplings()[..1].to_vec()),
        ("qwen2_5_tied_odd", DType::F32, samplings()[..1].to_vec()),
        ("qwen2_5_tied_odd", DType::Bf16, samplings()[..1].to_vec()),
    ] {
        let policy = policy_on(gpu, name, dtype);
        let prompts = prompts(&policy, name);
        for (i, sampling) in samplings.into_iter().enumerate() {
            let decoding = decoding(&policy, sampling.clone());
            let completions = roll_out(&policy, &decoding, &placed(&prompts), 3, 11);
            let recorded = kept(&completions);
            let temperature = f64::from(sampling.score_temperature());
            // How tokens were drawn is nothing to training: one size is enough for the others.
            for &(size, recompute) in &[(2, true), (1, false), (100, false)][..if i == 0 { 3 } else { 1 }] {
                let batches = batches(&policy, &prompts, &completions, size);
                let trained = training_logps(&policy, &batches, temperature, recompute);
                let what = format!("{name} {dtype:?} {sampling:?}, {size} at a time");
                assert_eq!(bits(&trained), bits(&recorded), "{what}");
            }
            if is_rerun() {
                break;
            }
        }
    }
}

/// A completion does not depend on the prompts and completions beside it, nor on the pages that happen to be free.
#[test]
fn a_prompt_alone_equals_the_prompt_in_any_batch() {
    let Some(gpu) = gpu() else { return };
    for (name, dtype) in [
        ("tied_kv1_odd", DType::F32),
        ("tied_kv1_odd", DType::Bf16),
        ("qwen2_5_tied_odd", DType::F32),
        ("qwen2_5_tied_odd", DType::Bf16),
    ] {
        let policy = policy_on(gpu, name, dtype);
        let prompts = prompts(&policy, name);
        let prompts = placed(&prompts);
        let decoding = decoding(&policy, samplings()[0].clone());
        let together = roll_out(&policy, &decoding, &prompts, 3, 3);
        for (one, expected) in prompts.iter().zip(&together) {
            for group in [1, 3] {
                let alone = &roll_out(&policy, &decoding, &[*one], group, 3)[0];
                assert_eq!(alone[..], expected[..group], "place {}, group of {group}", one.0);
            }
        }
        let backwards: Vec<_> = prompts.iter().rev().copied().collect();
        let mut turned = roll_out(&policy, &decoding, &backwards, 3, 3);
        turned.reverse();
        assert!(turned == together, "in another order");
    }
}

/// When few sequences may grow at once, when the cache has pages for one group only, so that waiting prompts get the pages of those that
/// ended, and when prompts run one by one, every completion has the same bits.
#[test]
fn waiting_prompts_change_nothing() {
    let Some(gpu) = gpu() else { return };
    for dtype in [DType::F32, DType::Bf16] {
        let policy = policy_on(gpu, "tied_kv1_odd", dtype);
        let prompts = prompts(&policy, "tied_kv1_odd");
        // The same prompts at other places of the stream have completions of their own.
        let prompts: Vec<&Prompt> = prompts.iter().chain(&prompts).collect();
        let requests: Vec<Request<'_>> =
            prompts.iter().zip(20..).map(|(prompt, place)| Request { place, prompt }).collect();
        let decoding = decoding(
            &policy,
            SamplingParams { max_new_tokens: 70, min_new_tokens: 1, ..samplings()[0].clone() },
        );
        let detokenize = |ids: &[u32]| policy.detokenize(ids);
        let all = policy.engine(&policy.params, &decoding, &detokenize).limits;
        let generate = |limits: Limits| {
            let mut engine = policy.engine(&policy.params, &decoding, &detokenize);
            engine.limits = limits;
            engine.generate(&requests, 2, 9, &|_| Ok(())).unwrap()
        };
        let want = generate(all);
        let lengths: Vec<usize> = want.iter().flatten().map(|c| c.tokens.len()).collect();
        assert!(
            lengths.iter().any(|&n| n != lengths[0]),
            "completions of equal length end at once: {lengths:?}"
        );
        for limits in [
            Limits { sequences: 2, ..all },
            Limits { sequences: 5, prefill_rows: 1, ..all },
            Limits { pages: Some(0), ..all },
            Limits { pages: Some(20), prefill_rows: 200, ..all },
        ] {
            assert!(generate(limits) == want, "{dtype:?}, {limits:?}");
            if is_rerun() {
                break;
            }
        }
    }
}

/// In f32 the device draws the tokens that the CPU draws.
#[test]
fn the_cpus_tokens() {
    let Some(gpu) = gpu() else { return };
    let name = "tied_kv1_odd";
    let (ours, theirs) = (policy_on(gpu, name, DType::F32), policy(name, DType::F32));
    let prompts = prompts(&theirs, name);
    for sampling in samplings() {
        let decoding = decoding(&theirs, sampling.clone());
        let of = |policy| roll_out(policy, &decoding, &placed(&prompts), 2, 5);
        let (device, cpu) = (of(&ours), of(&theirs));
        assert_eq!(tokens(&device), tokens(&cpu), "{sampling:?}");
        let worst = kept(&device).iter().zip(kept(&cpu)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "{sampling:?}: log-probabilities differ by {worst}");
        if is_rerun() {
            return;
        }
    }
}
