//! What several test files need: the bundles as policies, their examples, rollouts, trainers.

// Each test file is a program of its own and uses a part of this.
#![allow(dead_code)]

use othink::autograd::ParamGrads;
use othink::batch::{Group, MicroBatch, micro_batches};
use othink::config::{ImportanceSamplingLevel, KlEstimator, LossType, LrSchedulerType, ScaleRewards};
use othink::data::{Dataset, ImageSource, Message, Part, Sample};
use othink::error::Result;
use othink::kl::{BetaController, BetaSchedule, Othink};
use othink::loss::LossConfig;
use othink::nn::Params;
use othink::optim::{AdamWConfig, LrSchedule};
use othink::processor::{ProcessorOptions, Prompt};
use othink::reward::{Completed, Reward, RewardSet};
use othink::rng::{Purpose, Stream};
use othink::rollout::sampler::SamplingParams;
use othink::rollout::{Completion, Decoding, Request, Watch};
use othink::tensor::{DType, Placement};
use othink::train::grpo::{GrpoOptions, GrpoTrainer, ReferenceSync};
use othink::train::policy::Policy;
use othink::train::sft::{SftOptions, SftTrainer};
use othink::train::trainer::Trainer;
use othink::train::{stream, update};
use serde_json::Value;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Folder of a bundle under `tests/bundles`, or below the folder that `OTHINK_TEST_BUNDLES` names: `tools/gpu-check` carries them along with a test
/// program to other machines.
pub fn bundle(name: &str) -> PathBuf {
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bundles");
    std::env::var_os("OTHINK_TEST_BUNDLES").map_or_else(here, PathBuf::from).join(name)
}

/// A bundle's checkpoint.
pub fn policy(name: &str, dtype: DType) -> Policy {
    let placement = Placement { dtype, ..Placement::HOST };
    Policy::load(bundle(name).to_str().unwrap(), &ProcessorOptions::default(), &placement).unwrap()
}

/// The bundle's conversations, each ending with its completion as the assistant's message.
pub fn conversations(name: &str) -> Vec<Sample> {
    let text = std::fs::read_to_string(bundle(name).join("inputs.json")).unwrap();
    let inputs: Value = serde_json::from_str(&text).unwrap();
    let examples = inputs["examples"].as_array().unwrap();
    examples.iter().enumerate().map(|(row, example)| conversation(name, row, example)).collect()
}

fn conversation(name: &str, row: usize, example: &Value) -> Sample {
    let mut images = Vec::new();
    let mut part = |part: &Value| match part["image"].as_str() {
        Some(path) => {
            images.push(ImageSource::File(bundle(name).join(path)));
            Part::Image(images.len() - 1)
        }
        None => Part::Text(part["text"].as_str().unwrap().to_string()),
    };
    let mut messages = Vec::new();
    for message in example["messages"].as_array().unwrap() {
        let content = match &message["content"] {
            Value::String(text) => vec![Part::Text(text.clone())],
            parts => parts.as_array().unwrap().iter().map(&mut part).collect(),
        };
        messages.push(Message { role: message["role"].as_str().unwrap().into(), content });
    }
    let answer = example["completion"].as_str().unwrap().trim_end_matches("<|im_end|>").to_string();
    messages.push(Message { role: "assistant".into(), content: vec![Part::Text(answer)] });
    Sample { row, messages, images, ..Sample::default() }
}

/// The bundle's prompts, without the answers.
pub fn prompts(policy: &Policy, name: &str) -> Vec<Prompt> {
    conversations(name).iter().map(|c| policy.processor.encode(&c.prompt(), true).unwrap()).collect()
}

/// Prompts with their answers' tokens.
pub fn answered(policy: &Policy, name: &str) -> Vec<(Prompt, Vec<u32>)> {
    conversations(name).iter().map(|c| policy.processor.encode_with_completion(c).unwrap()).collect()
}

/// Standard normal numbers; `id` picks the stream.
pub fn normal(n: usize, id: u64) -> Vec<f64> {
    let mut stream = Stream::new(5, Purpose::Init, id);
    (0..n).map(|_| f64::from(stream.normal())).collect()
}

/// Tokens that are neither special nor end a completion, at random.
pub fn random_tokens(n: usize, id: u64) -> Vec<u32> {
    let mut stream = Stream::new(6, Purpose::Task, id);
    (0..n).map(|_| stream.below(450)).collect()
}

/// Writes into one parameter.
pub fn edit(params: &mut Arc<Params>, name: &str, change: impl FnOnce(&mut [f32])) {
    let (_, parameter) = Arc::make_mut(params).iter_mut().find(|(_, p)| p.name == name).unwrap();
    change(parameter.value.make_mut().unwrap());
}

/// All weights, by name, as digests of their bits.
pub fn weight_bits(params: &Params) -> Vec<(String, u64)> {
    params.iter().map(|(_, p)| (p.name.clone(), digest(&p.value.to_f32()))).collect()
}

/// All gradients, by the name of their parameter, as digests of their bits.
pub fn grad_bits(params: &Params, grads: &ParamGrads) -> Vec<(String, u64)> {
    grads.iter().map(|(id, g)| (params.of(id).name.clone(), digest(&g.to_f32()))).collect()
}

/// A hash of the bits of many numbers: short in messages.
fn digest(x: &[f32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bits(x).hash(&mut hasher);
    hasher.finish()
}

/// The bits of some numbers: 0 and -0 differ, a NaN equals itself.
pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Rules of training, except that every eighth token ends a completion: so their lengths differ.
pub fn decoding(policy: &Policy, sampling: SamplingParams) -> Decoding {
    let mut decoding = policy.decoding(sampling, &[], true).unwrap();
    decoding.stop.eos = (0..policy.model.config().text.vocab_size as u32).step_by(8).collect();
    decoding
}

pub fn plain(max_new_tokens: usize) -> SamplingParams {
    SamplingParams { max_new_tokens, ..SamplingParams::default() }
}

/// Every rule that moves a token's choice but must not move its kept log-probability.
pub fn samplings() -> Vec<SamplingParams> {
    let base = plain(14);
    vec![
        base.clone(),
        SamplingParams { temperature: 0.7, top_p: 0.8, min_new_tokens: 5, ..base.clone() },
        SamplingParams { temperature: 1.6, top_k: 12, repetition_penalty: 1.4, ..base.clone() },
        SamplingParams {
            temperature: 0.9,
            min_p: 0.2,
            repetition_penalty: 0.8,
            min_new_tokens: 3,
            ..base.clone()
        },
        SamplingParams { greedy: true, temperature: 0.0, repetition_penalty: 1.2, ..base },
    ]
}

pub fn placed(prompts: &[Prompt]) -> Vec<(u32, &Prompt)> {
    (10..).zip(prompts).collect()
}

/// Completions of prompts at their places of the stream.
pub fn roll_out(
    policy: &Policy,
    decoding: &Decoding,
    prompts: &[(u32, &Prompt)],
    group: usize,
    seed: u64,
) -> Vec<Vec<Completion>> {
    let detokenize = |ids: &[u32]| policy.detokenize(ids);
    let requests: Vec<_> = prompts.iter().map(|&(place, prompt)| Request { place, prompt }).collect();
    policy
        .engine(&policy.params, decoding, &detokenize)
        .generate(&requests, group, seed, &|_| Ok(()))
        .unwrap()
}

/// Prompts and completions cut into micro-batches, as the trainer does it.
pub fn batches(
    policy: &Policy,
    prompts: &[Prompt],
    completions: &[Vec<Completion>],
    size: usize,
) -> Vec<MicroBatch> {
    let groups: Vec<_> = prompts
        .iter()
        .zip(completions)
        .map(|(prompt, cs)| Group { prompt, completions: cs.iter().map(|c| c.tokens.as_slice()).collect() })
        .collect();
    micro_batches(&groups, size, policy.layout()).unwrap()
}

/// The log-probabilities that the training forward gives for all completions, in order.
pub fn training_logps(
    policy: &Policy,
    batches: &[MicroBatch],
    temperature: f64,
    recompute: bool,
) -> Vec<f32> {
    let options = update::ForwardOptions { temperature, recompute };
    let scores = batches
        .iter()
        .map(|batch| update::forward(&policy.model, &policy.params, batch, options, None).unwrap().0.logp_t);
    scores.collect::<Vec<_>>().concat()
}

/// Runs on a pool of so many threads.
pub fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

/// The numbers of a small GRPO run.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub steps: u64,
    pub prompts: usize,
    pub group: usize,
    pub micro_batch: usize,
    pub num_iterations: usize,
    pub estimator: KlEstimator,
    /// Least and greatest KL weight.
    pub beta: [f64; 2],
    pub stop_strings: Vec<String>,
    pub mask_truncated: bool,
    /// Dynamic sampling, if at all.
    pub max_resample_times: Option<usize>,
    pub log_exact_kl: bool,
    pub reference_sync: Option<ReferenceSync>,
    pub learning_rate: f64,
    pub recompute: bool,
    pub placement: Placement,
    pub sampling: SamplingParams,
    pub seed: u64,
}

impl Default for Recipe {
    fn default() -> Recipe {
        Recipe {
            steps: 4,
            prompts: 2,
            group: 4,
            micro_batch: 4,
            num_iterations: 1,
            estimator: KlEstimator::K3,
            beta: [0.04, 0.1],
            stop_strings: Vec::new(),
            mask_truncated: false,
            max_resample_times: None,
            log_exact_kl: false,
            reference_sync: None,
            learning_rate: 1e-3,
            recompute: false,
            placement: Placement::HOST,
            sampling: SamplingParams { max_new_tokens: 8, ..SamplingParams::default() },
            seed: 7,
        }
    }
}

/// A GRPO-D run over `rows` rows with one reward.
pub fn grpo_trainer(policy: Policy, recipe: &Recipe, reward: Box<dyn Reward>, rows: usize) -> GrpoTrainer {
    let completions = recipe.prompts * recipe.group;
    assert_eq!(completions % recipe.micro_batch, 0);
    let options = GrpoOptions {
        num_generations: recipe.group,
        micro_batch: recipe.micro_batch,
        accumulation: completions / recipe.micro_batch,
        num_iterations: recipe.num_iterations,
        scale_rewards: ScaleRewards::Group,
        loss: LossConfig {
            loss_type: LossType::Grpo,
            importance_sampling_level: ImportanceSamplingLevel::Token,
            epsilon: 0.2,
            epsilon_high: 0.2,
            delta: None,
            kl_estimator: recipe.estimator,
            beta: 0.0,
            max_completion_length: recipe.sampling.max_new_tokens,
        },
        mask_truncated: recipe.mask_truncated,
        max_resample_times: recipe.max_resample_times,
        log_exact_kl: recipe.log_exact_kl,
        reference_sync: recipe.reference_sync,
        prompt_limit: 1024,
        schedule: constant(recipe.learning_rate),
        max_grad_norm: 1.0,
        recompute: recipe.recompute,
        placement: recipe.placement.clone(),
        seed: recipe.seed,
    };
    let decoding = policy.decoding(recipe.sampling.clone(), &recipe.stop_strings, true).unwrap();
    let rewards = RewardSet::from_rewards(vec![reward], &[]).unwrap();
    let [beta_min, beta_max] = recipe.beta;
    let schedule = BetaSchedule::Othink(Othink { beta_min, beta_max, exploration_ratio: 0.3 });
    let beta = BetaController::new(schedule, recipe.steps).unwrap();
    let stream = stream::Stream::new(rows, recipe.seed, true).unwrap();
    GrpoTrainer::new(policy, options, decoding, rewards, beta, AdamWConfig::default(), stream).unwrap()
}

/// An SFT run over `rows` rows, all of them in every step.
pub fn sft_trainer(
    policy: Policy,
    rows: usize,
    micro_batch: usize,
    learning_rate: f64,
    recompute: bool,
) -> SftTrainer {
    sft_trainer_at(Placement::HOST, policy, rows, micro_batch, learning_rate, recompute)
}

/// The same, anywhere.
pub fn sft_trainer_at(
    placement: Placement,
    policy: Policy,
    rows: usize,
    micro_batch: usize,
    learning_rate: f64,
    recompute: bool,
) -> SftTrainer {
    let options = SftOptions {
        micro_batch,
        accumulation: rows.div_ceil(micro_batch),
        max_length: 1024,
        schedule: constant(learning_rate),
        max_grad_norm: 1.0,
        recompute,
        placement,
    };
    let stream = stream::Stream::new(rows, 0, false).unwrap();
    SftTrainer::new(policy, options, AdamWConfig::default(), stream).unwrap()
}

fn constant(peak: f64) -> LrSchedule {
    LrSchedule { scheduler_type: LrSchedulerType::Constant, peak, warmup_steps: 0, total_steps: 1 }
}

/// Share of the completion's characters that are vowels: a random policy writes some, a trained one more.
pub struct Vowels;

impl Reward for Vowels {
    fn name(&self) -> &str {
        "vowels"
    }

    fn score(&self, completions: &[Completed<'_>], _: Watch<'_>) -> Result<Vec<Option<f64>>> {
        let share = |c: &Completed<'_>| {
            let vowels = c.text.chars().filter(|&c| "aeiou".contains(c)).count();
            Some(vowels as f64 / c.text.chars().count().max(1) as f64)
        };
        Ok(completions.iter().map(share).collect())
    }
}

/// [`Vowels`], save that the completions of the first row are all worth the same.
pub struct EvenInTheFirstRow;

impl Reward for EvenInTheFirstRow {
    fn name(&self) -> &str {
        "vowels"
    }

    fn score(&self, completions: &[Completed<'_>], watch: Watch<'_>) -> Result<Vec<Option<f64>>> {
        let scores = Vowels.score(completions, watch)?.into_iter().zip(completions);
        Ok(scores.map(|(score, c)| if c.sample.row == 0 { Some(0.5) } else { score }).collect())
    }
}

/// What [`uneven_steps`] did.
#[derive(PartialEq)]
pub struct UnevenSteps {
    /// Bits of the gradient norms.
    pub norms: Vec<u64>,
    /// Bits of the weights after each step.
    pub weights: Vec<Vec<(String, u64)>>,
    /// Which completions were cut by the length limit.
    pub cut: Vec<bool>,
}

/// Steps over the bundle's first two rows, of which one has equal rewards, with what has no gradient left out of the head's backward
/// products, or with nothing left out. `prepare` comes before the first step.
pub fn uneven_steps(
    name: &str,
    recipe: &Recipe,
    leave_out: bool,
    prepare: impl FnOnce(&mut GrpoTrainer),
) -> UnevenSteps {
    let samples = Dataset::from_samples(conversations(name)).view(vec![0, 1]).prompts();
    let mut trainer = grpo_trainer(policy(name, DType::F32), recipe, Box::new(EvenInTheFirstRow), 2);
    if !leave_out {
        trainer.leave_nothing_out();
    }
    prepare(&mut trainer);
    let mut steps = UnevenSteps { norms: Vec::new(), weights: Vec::new(), cut: Vec::new() };
    for step in 0..recipe.steps {
        let outcome = trainer.step(step, &samples, &|_| Ok(())).unwrap();
        let of_first = outcome.completions.iter().filter(|c| c.row == 0);
        assert_eq!(of_first.count(), recipe.group, "one of the prompts is the first row");
        steps.norms.push(outcome.report.grad_norm.to_bits());
        steps.weights.push(weight_bits(&Trainer::weights(&trainer).unwrap()));
        steps.cut.extend(outcome.completions.iter().map(|c| c.truncated));
    }
    steps
}
