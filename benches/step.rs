//! Whole training steps of the 64-wide random model `tests/bundles/qwen2_vl_a`, images decoded in every step.
//!
//! `Throughput::Elements` counts completion tokens.

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Recipe, Vowels, conversations, grpo_trainer, policy, sft_trainer};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use othink::config::KlEstimator;
use othink::data::Dataset;
use othink::rollout::sampler::SamplingParams;
use othink::tensor::DType;

/// Rollout, reference, forward, backward and AdamW: 8 prompts, 8 completions each, 32 tokens each.
fn bench_grpo(c: &mut Criterion) {
    let mut group = c.benchmark_group("grpo_step");
    group.sample_size(10);
    let rows = conversations("qwen2_vl_a").into_iter().cycle().take(8).collect();
    let samples = Dataset::from_samples(rows).prompts();
    let sampling = SamplingParams { max_new_tokens: 32, min_new_tokens: 32, ..SamplingParams::default() };
    for (name, estimator) in [("k3", KlEstimator::K3), ("full", KlEstimator::Full)] {
        for (memory, recompute) in [("", false), ("_recompute", true)] {
            let recipe = Recipe {
                steps: 1_000_000,
                prompts: 8,
                group: 8,
                micro_batch: 64,
                estimator,
                recompute,
                sampling: sampling.clone(),
                ..Recipe::default()
            };
            let mut trainer =
                grpo_trainer(policy("qwen2_vl_a", DType::F32), &recipe, Box::new(Vowels), samples.rows());
            let mut step = 0;
            group.throughput(Throughput::Elements(8 * 8 * 32));
            group.bench_function(BenchmarkId::new(format!("{name}{memory}"), "8x8x32"), |b| {
                b.iter(|| {
                    let report = trainer.step(step, &samples, &|_| Ok(())).expect("a step").report;
                    assert_eq!(report.sampling_logp_difference_max, 0.0);
                    step += 1;
                });
            });
        }
    }
    group.finish();
}

/// Forward, backward and AdamW on 24 rows.
fn bench_sft(c: &mut Criterion) {
    let mut group = c.benchmark_group("sft_step");
    group.sample_size(10);
    let samples = Dataset::from_samples(conversations("qwen2_vl_a").into_iter().cycle().take(24).collect());
    let mut trainer = sft_trainer(policy("qwen2_vl_a", DType::F32), samples.rows(), 24, 1e-4, false);
    let mut step = 0;
    group.bench_function(BenchmarkId::new("rows", 24), |b| {
        b.iter(|| {
            trainer.step(step, &samples, &|_| Ok(())).expect("a step");
            step += 1;
        });
    });
    group.finish();
}

criterion_group!(benches, bench_grpo, bench_sft);
criterion_main!(benches);
