//! Training does what it is for: the loss falls, the reward rises, and a broken model stops the run.

mod common;

use common::*;
use othink::config::KlEstimator;
use othink::data::Dataset;
use othink::error::Error;
use othink::rollout::sampler::SamplingParams;
use othink::tensor::DType;
use othink::train::policy::Policy;

#[test]
fn sft_learns_a_batch_by_heart() {
    let samples = Dataset::from_samples(conversations("qwen2_vl_a"));
    let mut trainer = sft_trainer(policy("qwen2_vl_a", DType::F32), samples.rows(), 2, 3e-3, true);
    let losses: Vec<f64> =
        (0..40).map(|step| trainer.step(step, &samples, &|_| Ok(())).unwrap().loss).collect();
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    println!("loss {first:.3} -> {last:.4}");
    assert!(
        first > 600_f64.ln(),
        "{first}: a random policy does no better than a uniform guess over 600 tokens"
    );
    assert!(last < 0.1 * first, "{losses:?}");
}

/// Mean reward of the first and of the last quarter of a run.
fn rewards(recipe: &Recipe) -> (f64, f64) {
    let samples = Dataset::from_samples(conversations("qwen2_vl_a")).prompts();
    let mut trainer =
        grpo_trainer(policy("qwen2_vl_a", DType::F32), recipe, Box::new(Vowels), samples.rows());
    let mut means = Vec::new();
    for step in 0..recipe.steps {
        let report = trainer.step(step, &samples, &|_| Ok(())).unwrap().report;
        if step % recipe.num_iterations as u64 == 0 {
            assert_eq!(report.sampling_logp_difference_max, 0.0, "step {step} is off-policy");
        }
        assert!(report.kl.unwrap() >= 0.0 && report.grad_norm.is_finite());
        means.push(report.reward);
    }
    let quarter = means.len() / 4;
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    (mean(&means[..quarter]), mean(&means[means.len() - quarter..]))
}

#[test]
fn grpo_raises_the_reward() {
    let paper = Recipe {
        steps: 32,
        prompts: 3,
        group: 8,
        micro_batch: 12,
        learning_rate: 3e-3,
        sampling: SamplingParams { max_new_tokens: 10, ..SamplingParams::default() },
        ..Recipe::default()
    };
    let reused = Recipe { steps: 48, num_iterations: 2, estimator: KlEstimator::K3Unbiased, ..paper.clone() };
    for recipe in [paper, reused] {
        let (first, last) = rewards(&recipe);
        println!(
            "{:?}, {} iterations: reward {first:.3} -> {last:.3}",
            recipe.estimator, recipe.num_iterations
        );
        assert!(last > first + 0.15, "{recipe:?}: {first} -> {last}");
    }
}

fn poisoned(value: f32) -> Policy {
    let mut policy = policy("qwen2_vl_a", DType::F32);
    edit(&mut policy.params, "model.layers.1.mlp.down_proj.weight", |w| w[5] = value);
    policy
}

#[test]
fn a_loss_that_is_no_number_stops_the_run() {
    let samples = Dataset::from_samples(conversations("qwen2_vl_a"));
    for value in [f32::NAN, f32::INFINITY] {
        let mut sft = sft_trainer(poisoned(value), samples.rows(), 4, 1e-3, false);
        let before = weight_bits(&sft.policy.params);
        let error = sft.step(0, &samples, &|_| Ok(())).err().unwrap();
        assert!(matches!(&error, Error::Protect(m) if m.contains("step 0") && m.contains("NaN")), "{error}");
        assert_eq!(error.exit_code(), 70);
        assert_eq!(weight_bits(&sft.policy.params), before, "the weights are left as they were");

        let prompts = samples.prompts();
        let mut grpo = grpo_trainer(poisoned(value), &Recipe::default(), Box::new(Vowels), prompts.rows());
        let error = grpo.step(0, &prompts, &|_| Ok(())).err().unwrap();
        assert!(matches!(&error, Error::Protect(m) if m.contains("NaN")), "{error}");
        assert_eq!(weight_bits(&grpo.policy.params), before);
    }
}

/// The loss is finite, but one gradient overflows: activations near the largest f32, which the next matrix scales back,
/// meet large derivatives.
#[test]
fn a_gradient_that_is_no_number_stops_the_run() {
    let samples = Dataset::from_samples(conversations("qwen2_vl_a"));
    let mut policy = policy("qwen2_vl_a", DType::F32);
    let scale = |name: &str, by: f32, policy: &mut Policy| {
        edit(&mut policy.params, name, |w| w.iter_mut().for_each(|w| *w *= by));
    };
    scale("model.layers.0.mlp.up_proj.weight", 1e37, &mut policy);
    scale("model.layers.0.mlp.down_proj.weight", 1e-37, &mut policy);
    scale("lm_head.weight", 1e4, &mut policy);
    let before = weight_bits(&policy.params);
    let mut sft = sft_trainer(policy, samples.rows(), 4, 1e-3, false);
    let error = sft.step(0, &samples, &|_| Ok(())).err().unwrap();
    assert!(matches!(&error, Error::Protect(m) if m.starts_with("the gradient norm of step 0")), "{error}");
    assert_eq!(weight_bits(&sft.policy.params), before);
}
