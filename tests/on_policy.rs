//! The law of determinism, bit for bit on the CPU: a row's result never depends on what else is in the batch,
//! so that the log-probability recorded at sampling is the one that training computes.

mod common;

use common::*;
use othink::config::KlEstimator;
use othink::data::Dataset;
use othink::error::Result;
use othink::model::Model;
use othink::nn::Params;
use othink::packed::Packed;
use othink::processor::Prompt;
use othink::report::Phases;
use othink::reward::{Completed, Reward};
use othink::rollout::kv_cache::{GroupStep, KvCache, prefill, step};
use othink::rollout::sampler::SamplingParams;
use othink::rollout::sequence::FinishReason;
use othink::rollout::stop::StopStrings;
use othink::rollout::{Completion, Decoding, Watch};
use othink::tensor::DType;
use othink::train::grpo::GrpoTrainer;
use othink::train::policy::Policy;
use othink::train::update::{ForwardOptions, TokenScores, forward};
use std::sync::Arc;

/// Bundles of different sizes: with and without grouped heads, tied and untied, several unequal images, text only, windows.
const BUNDLES: [&str; 5] =
    ["qwen2_vl_a", "tied_kv1_odd", "untied_textonly", "wide_gqa4_hd32", "qwen2_5_tied_odd"];

/// Everything of a completion, log-probabilities as bits.
fn exact(completion: &Completion) -> (Vec<u32>, Vec<u32>, FinishReason, String) {
    let Completion { tokens, logps, finish, text } = completion.clone();
    (tokens, bits(&logps.to_vec().unwrap()), finish, text)
}

fn all_exact(completions: &[Vec<Completion>]) -> Vec<(Vec<u32>, Vec<u32>, FinishReason, String)> {
    completions.iter().flatten().map(exact).collect()
}

#[test]
fn a_prompt_alone_equals_the_prompt_in_any_batch() {
    for name in BUNDLES {
        let policy = policy(name, DType::F32);
        let prompts = prompts(&policy, name);
        let prompts = placed(&prompts);
        let decoding = decoding(&policy, plain(12));
        let together = roll_out(&policy, &decoding, &prompts, 4, 3);
        let lengths: Vec<usize> = together.iter().flatten().map(|c| c.tokens.len()).collect();
        assert!(lengths.iter().any(|&l| l != lengths[0]), "{name}: completions of equal length show little");
        for (one, expected) in prompts.iter().zip(&together) {
            for group in [1, 2, 3, 4, 7] {
                let alone = &roll_out(&policy, &decoding, &[*one], group, 3)[0];
                let shared = group.min(4);
                let of = |cs: &[Completion]| cs[..shared].iter().map(exact).collect::<Vec<_>>();
                assert_eq!(of(alone), of(expected), "{name}, place {}, group of {group}", one.0);
            }
        }
        let backwards: Vec<_> = prompts.iter().rev().copied().collect();
        let mut turned = roll_out(&policy, &decoding, &backwards, 4, 3);
        turned.reverse();
        assert_eq!(all_exact(&turned), all_exact(&together), "{name}");
        assert_ne!(
            all_exact(&roll_out(&policy, &decoding, &prompts, 4, 4)),
            all_exact(&together),
            "another seed"
        );
    }
}

#[test]
fn more_sequences_than_grow_side_by_side_change_nothing() {
    let policy = policy("dialect_v5", DType::F32);
    let prompts = prompts(&policy, "dialect_v5");
    let prompts: Vec<(u32, &Prompt)> = (0..3).map(|place| (place, &prompts[0])).collect();
    let decoding = decoding(&policy, plain(3));
    // 3 x 130 sequences do not fit side by side; 3 x 2 do.
    let many = roll_out(&policy, &decoding, &prompts, 130, 3);
    let few = roll_out(&policy, &decoding, &prompts, 2, 3);
    let first: Vec<Vec<Completion>> = many.iter().map(|cs| cs[..2].to_vec()).collect();
    assert_eq!(all_exact(&first), all_exact(&few));
    // Equal prompts at different places of the stream, and members of a group, have draws of their own.
    assert_ne!(many[0], many[1]);
    assert!(many[0][1..].iter().any(|c| c.tokens != many[0][0].tokens));
}

#[test]
fn rollout_log_probs_are_the_training_log_probs() {
    for (name, dtype) in BUNDLES
        .map(|name| (name, DType::F32))
        .into_iter()
        .chain([("qwen2_vl_a", DType::Bf16), ("qwen2_5_bf16_sharded", DType::Bf16)])
    {
        let policy = policy(name, dtype);
        let prompts = prompts(&policy, name);
        let mut chosen: Vec<Vec<Vec<u32>>> = Vec::new();
        for sampling in samplings() {
            let decoding = decoding(&policy, sampling.clone());
            let completions = roll_out(&policy, &decoding, &placed(&prompts), 3, 11);
            let recorded: Vec<f32> =
                completions.iter().flatten().flat_map(|c| c.logps.to_vec().unwrap()).collect();
            let temperature = f64::from(sampling.score_temperature());
            for size in [1, 2, 3, 4, 100] {
                let batches = batches(&policy, &prompts, &completions, size);
                for recompute in [false, true] {
                    let trained = training_logps(&policy, &batches, temperature, recompute);
                    assert_eq!(
                        bits(&trained),
                        bits(&recorded),
                        "{name} {dtype:?} {sampling:?}, {size} at a time"
                    );
                }
            }
            if sampling.min_new_tokens > 0 {
                assert!(completions.iter().flatten().all(|c| c.tokens.len() > sampling.min_new_tokens));
            }
            chosen.push(completions.into_iter().flatten().map(|c| c.tokens).collect());
        }
        // Each set of rules was in force: it chose other tokens than all others.
        for (i, tokens) in chosen.iter().enumerate() {
            assert!(!chosen[..i].contains(tokens), "{name}: rules {i} changed nothing");
        }
    }
}

/// Hidden states of the last prompt row and of every completion row but the last, from the cache.
fn cached_states(
    model: &Model,
    params: &Arc<Params>,
    prompt: &Prompt,
    completion: &[u32],
    policy: &Policy,
) -> Vec<u32> {
    let (packed, _) = Packed::group(prompt, &[], policy.layout()).unwrap();
    let (hidden, caches) = prefill(model, params, &packed).unwrap();
    let width = hidden.matrix().1;
    let mut states = hidden.to_f32()[(packed.len() - 1) * width..].to_vec();
    let mut own = KvCache::new(model.text().depth());
    for (&token, position) in completion.iter().zip(prompt.next_position..).take(completion.len() - 1) {
        let mut groups = [GroupStep { prefix: &caches[0], own: vec![&mut own] }];
        states.extend_from_slice(&step(model, params, &[token], &[position], &mut groups).unwrap().to_f32());
    }
    bits(&states)
}

#[test]
fn cached_decode_is_the_full_forward() {
    for (name, dtype) in
        BUNDLES.map(|name| (name, DType::F32)).into_iter().chain([("tied_kv1_odd", DType::Bf16)])
    {
        let policy = policy(name, dtype);
        for (i, prompt) in prompts(&policy, name).iter().enumerate() {
            let completion = random_tokens(23, i as u64);
            let (whole, targets) = Packed::separate(prompt, &completion, policy.layout()).unwrap();
            let hidden = policy.model.infer(&policy.params, &whole).unwrap();
            let width = hidden.matrix().1;
            let full = &hidden.to_f32()[targets[0].row * width..];
            let cached = cached_states(&policy.model, &policy.params, prompt, &completion, &policy);
            assert_eq!(cached, bits(full), "{name} {dtype:?}, prompt {i}");
        }
    }
}

#[test]
fn threads_change_nothing() {
    for name in ["qwen2_vl_a", "tied_kv1_odd", "qwen2_5_tied_odd"] {
        let run = |threads| {
            on_threads(threads, || {
                let policy = policy(name, DType::F32);
                let prompts = prompts(&policy, name);
                let completions = roll_out(&policy, &decoding(&policy, plain(10)), &placed(&prompts), 3, 1);
                let batch = &batches(&policy, &prompts, &completions, 100)[0];
                let options = ForwardOptions { temperature: 0.8, recompute: false };
                let (scores, pass) = forward(&policy.model, &policy.params, batch, options, None).unwrap();
                let grads = pass.backward(&weights(&scores), None).unwrap();
                (all_exact(&completions), score_bits(&scores), grad_bits(&policy.params, &grads))
            })
        };
        let one = run(1);
        assert_eq!(run(2), one, "{name}, 2 threads");
        assert_eq!(run(3), one, "{name}, 3 threads");
    }
}

fn weights(scores: &TokenScores) -> Vec<f32> {
    normal(scores.logp_t.len(), 1).into_iter().map(|x| x as f32).collect()
}

fn score_bits(scores: &TokenScores) -> [Vec<u32>; 3] {
    [bits(&scores.logp_t), bits(&scores.entropy_t), bits(&scores.kl_t)]
}

#[test]
fn recomputation_changes_no_bit_of_loss_or_gradient() {
    for name in ["qwen2_vl_a", "tied_kv1_odd", "qwen2_5_tied_odd"] {
        let mut policy = policy(name, DType::F32);
        let reference = policy.params.clone();
        edit(&mut policy.params, "model.norm.weight", |w| w.iter_mut().for_each(|w| *w *= 1.3));
        let prompts = prompts(&policy, name);
        let completions = roll_out(&policy, &decoding(&policy, plain(10)), &placed(&prompts), 3, 1);
        for freeze in [false, true] {
            if freeze {
                Arc::make_mut(&mut policy.params).freeze("visual.");
            }
            for batch in batches(&policy, &prompts, &completions, 5) {
                let run = |recompute| {
                    let options = ForwardOptions { temperature: 0.9, recompute };
                    let (scores, pass) =
                        forward(&policy.model, &policy.params, &batch, options, Some(&reference)).unwrap();
                    let slopes = weights(&scores);
                    let grads = pass.backward(&slopes, Some(&slopes)).unwrap();
                    (score_bits(&scores), grad_bits(&policy.params, &grads))
                };
                let kept = run(false);
                assert_eq!(run(true), kept, "{name}");
                let reached = |prefix: &str| kept.1.iter().any(|(name, _)| name.starts_with(prefix));
                assert!(
                    reached("model.layers.0.") && reached("visual.") != freeze,
                    "{name}, frozen: {freeze}"
                );
                assert!(kept.0[2].iter().any(|&kl| kl != 0), "{name}: no KL");
            }
        }
    }
}

#[test]
fn a_grpo_run_depends_on_its_seed_alone() {
    let run = |threads: usize, recipe: Recipe| {
        on_threads(threads, || {
            let rows = conversations("tied_kv1_odd");
            let samples = Dataset::from_samples(rows.clone()).prompts();
            let policy = policy("tied_kv1_odd", DType::F32);
            let before = weight_bits(&policy.params);
            let mut trainer = grpo_trainer(policy, &recipe, Box::new(Vowels), samples.rows());
            let reports: Vec<String> = (0..recipe.steps)
                .map(|step| {
                    let mut outcome = trainer.step(step, &samples, &|_| Ok(())).unwrap();
                    assert_eq!(outcome.report.sampling_logp_difference_max, 0.0, "step {step}");
                    outcome.report.step_time = 0.0;
                    outcome.report.phases = Phases::default();
                    format!("{:?} {:?}", outcome.report, outcome.completions)
                })
                .collect();
            let after = weight_bits(&trainer.policy.params);
            assert_ne!(after, before);
            (reports, after)
        })
    };
    for estimator in [KlEstimator::K3, KlEstimator::Full] {
        let recipe = Recipe { estimator, num_iterations: 2, micro_batch: 2, ..Recipe::default() };
        let first = run(1, recipe.clone());
        assert_eq!(run(2, recipe.clone()), first, "the same run on two threads");
        assert_eq!(run(3, recipe.clone()), first, "the same run on three threads");
        assert_eq!(run(2, Recipe { recompute: true, ..recipe.clone() }), first, "with recomputation");
        assert_ne!(run(2, Recipe { seed: 8, ..recipe }).1, first.1, "another seed is another run");
    }
}

/// Moves the policy away from its reference.
fn away(trainer: &mut GrpoTrainer) {
    edit(&mut trainer.policy.params, "model.norm.weight", |w| w.iter_mut().for_each(|w| *w *= 1.3));
}

fn eight(estimator: KlEstimator, beta: f64) -> Recipe {
    Recipe { steps: 2, estimator, beta: [beta; 2], ..Recipe::default() }
}

/// Targets whose gradient is known to be 0 are left out of the head's backward products: of equal rewards, unless the KL pulls, and of
/// completions that don't count. No bit shows it.
#[test]
fn what_is_left_out_of_the_backward_pass_changes_no_bit() {
    let name = "tied_kv1_odd";
    for (estimator, beta) in [
        (KlEstimator::K3, 0.0),
        (KlEstimator::K3, 0.08),
        (KlEstimator::K1, 0.0),
        (KlEstimator::K1, 0.08),
        (KlEstimator::Full, 0.08),
    ] {
        for (mask_truncated, micro_batch) in [(false, 4), (false, 8), (true, 8)] {
            let stop_strings = ["r", "s", "t"].map(String::from).to_vec();
            let recipe = Recipe { mask_truncated, micro_batch, stop_strings, ..eight(estimator, beta) };
            let less = uneven_steps(name, &recipe, true, away);
            let what = format!("{estimator:?}, beta {beta}, masked {mask_truncated}, by {micro_batch}");
            assert!(less == uneven_steps(name, &recipe, false, away), "{what}");
            assert!(less.weights[0] != less.weights[1], "{what}: nothing moves");
            assert!(less.cut.contains(&true) && less.cut.contains(&false), "{what}: {:?}", less.cut);
        }
    }
}

/// Equal rewards alone teach nothing; the KL pulls on them all the same.
#[test]
fn only_the_kl_moves_a_policy_with_equal_rewards() {
    let samples = Dataset::from_samples(vec![conversations("tied_kv1_odd")[0].prompt(); 2]);
    for (estimator, beta) in [
        (KlEstimator::K2, 0.08),
        (KlEstimator::K3, 0.08),
        (KlEstimator::K3Unbiased, 0.08),
        (KlEstimator::Full, 0.08),
        (KlEstimator::K1, 0.0),
        (KlEstimator::K3, 0.0),
    ] {
        let policy = policy("tied_kv1_odd", DType::F32);
        let mut trainer = grpo_trainer(policy, &eight(estimator, beta), Box::new(EvenInTheFirstRow), 2);
        away(&mut trainer);
        let report = trainer.step(0, &samples, &|_| Ok(())).unwrap().report;
        assert_eq!((report.reward, report.reward_std), (0.5, 0.0));
        assert_eq!(report.grad_norm > 0.0, beta > 0.0, "{estimator:?}: {}", report.grad_norm);
    }
}

#[test]
fn an_sft_run_is_the_same_with_recomputation() {
    let run = |threads: usize, recompute: bool| {
        on_threads(threads, || {
            let samples = Dataset::from_samples(conversations("qwen2_vl_a"));
            let policy = policy("qwen2_vl_a", DType::F32);
            let mut trainer = sft_trainer(policy, samples.rows(), 2, 1e-3, recompute);
            let losses: Vec<u64> = (0..3)
                .map(|step| trainer.step(step, &samples, &|_| Ok(())).unwrap().loss.to_bits())
                .collect();
            (losses, weight_bits(&trainer.policy.params))
        })
    };
    let first = run(1, false);
    assert_eq!(run(2, false), first);
    assert_eq!(run(2, true), first);
}

/// What every completion gets.
struct Equal;

impl Reward for Equal {
    fn name(&self) -> &str {
        "equal"
    }

    fn score(&self, completions: &[Completed<'_>], _: Watch<'_>) -> Result<Vec<Option<f64>>> {
        Ok(vec![Some(1.0); completions.len()])
    }
}

/// Equal rewards give no advantage, but the KL pulls a policy back that has moved: in the loss, or (k1) in the rewards.
#[test]
fn the_kl_pulls_completions_without_advantage() {
    let samples = Dataset::from_samples(conversations("tied_kv1_odd")).prompts();
    for estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3, KlEstimator::Full] {
        let recipe = Recipe { estimator, ..Recipe::default() };
        let policy = policy("tied_kv1_odd", DType::F32);
        let mut trainer = grpo_trainer(policy, &recipe, Box::new(Equal), samples.rows());
        edit(&mut trainer.policy.params, "model.norm.weight", |w| w.iter_mut().for_each(|w| *w *= 1.3));
        let report = trainer.step(0, &samples, &|_| Ok(())).unwrap().report;
        assert!(report.grad_norm > 1e-4, "{estimator:?}: {}", report.grad_norm);
    }
}

/// A policy whose likeliest token is always an image placeholder or an image's end: one of two opposite rows of the
/// head has the largest logit, whatever the hidden state.
fn image_lover() -> Policy {
    let mut policy = policy("qwen2_vl_a", DType::F32);
    let config = policy.model.config();
    let (width, image, end) = (config.text.hidden_size, config.image_token_id, config.vision_end_token_id);
    edit(&mut policy.params, "lm_head.weight", |head| {
        for i in 0..width {
            let x = if i % 2 == 0 { 3.0 } else { -2.0 };
            head[image as usize * width + i] = x;
            head[end as usize * width + i] = -x;
        }
    });
    policy
}

#[test]
fn case_42_vision_tokens_cannot_be_sampled_in_training() {
    let policy = image_lover();
    let prompts = prompts(&policy, "qwen2_vl_a");
    let banned = policy.vision_tokens();
    let config = policy.model.config();
    for id in [
        config.image_token_id,
        config.video_token_id,
        config.vision_start_token_id,
        config.vision_end_token_id,
    ] {
        assert!(banned.contains(&id));
    }
    for greedy in [false, true] {
        let sampling = SamplingParams { greedy, ..plain(10) };
        let share = |training: bool| {
            let decoding = policy.decoding(sampling.clone(), &[], training).unwrap();
            let completions = roll_out(&policy, &decoding, &placed(&prompts), 4, 2);
            let tokens: Vec<u32> = completions.iter().flatten().flat_map(|c| c.tokens.clone()).collect();
            let hits = tokens.iter().filter(|t| banned.contains(t)).count();
            // The ban leaves the log-probabilities as training computes them.
            let recorded: Vec<f32> =
                completions.iter().flatten().flat_map(|c| c.logps.to_vec().unwrap()).collect();
            let batches = batches(&policy, &prompts, &completions, 8);
            assert_eq!(bits(&training_logps(&policy, &batches, 1.0, false)), bits(&recorded));
            hits as f64 / tokens.len() as f64
        };
        assert_eq!(share(true), 0.0, "greedy: {greedy}");
        let without = share(false);
        assert!(without > 0.9, "greedy: {greedy}: without the ban, {without} are vision tokens");
    }
}

#[test]
fn stopping_cuts_a_completion_and_changes_nothing_before() {
    let policy = policy("qwen2_vl_a", DType::F32);
    let prompts = prompts(&policy, "qwen2_vl_a");
    let mut decoding = policy.decoding(plain(24), &[], true).unwrap();
    decoding.stop.eos.clear();
    let whole = roll_out(&policy, &decoding, &placed(&prompts), 2, 5);
    assert!(whole.iter().flatten().all(|c| c.finish == FinishReason::Length && c.tokens.len() == 24));
    let cut = |change: &dyn Fn(&mut Decoding)| {
        let mut decoding = decoding.clone();
        change(&mut decoding);
        roll_out(&policy, &decoding, &placed(&prompts), 2, 5)
    };
    let is_start = |short: &Completion, long: &Completion| {
        assert_eq!(short.tokens, long.tokens[..short.tokens.len()]);
        assert_eq!(
            bits(&short.logps.to_vec().unwrap()),
            bits(&long.logps.to_vec().unwrap()[..short.tokens.len()])
        );
    };

    let shorter = cut(&|d| d.stop.max_new_tokens = 9);
    for (short, long) in shorter.iter().flatten().zip(whole.iter().flatten()) {
        is_start(short, long);
        assert_eq!((short.tokens.len(), short.finish), (9, FinishReason::Length));
    }

    let eos = whole[0][0].tokens[5];
    let ended = cut(&|d| d.stop.eos = vec![eos]);
    for (short, long) in ended.iter().flatten().zip(whole.iter().flatten()) {
        is_start(short, long);
        let end = long.tokens.iter().position(|&t| t == eos);
        assert_eq!(short.tokens.len(), end.map_or(24, |at| at + 1));
        assert_eq!(short.finish, if end.is_some() { FinishReason::Stop } else { FinishReason::Length });
    }

    // The shortest stop string there is in the text: one of its plain characters.
    let text = &whole[0][0].text;
    let letter = text.chars().filter(char::is_ascii_graphic).nth(6).unwrap().to_string();
    let strings = StopStrings::new(vec![letter.clone(), "never written".into()]).unwrap();
    let stopped = cut(&|d| d.stop.strings = strings.clone());
    for (short, long) in stopped.iter().flatten().zip(whole.iter().flatten()) {
        is_start(short, long);
        assert!(!short.text.contains(&letter));
        let found = long.text.contains(&letter);
        assert_eq!(short.finish, if found { FinishReason::StopString } else { FinishReason::Length });
        let kept = policy.detokenize(&short.tokens);
        assert!(
            !found || (kept.starts_with(&short.text) && kept.contains(&letter)),
            "{kept:?} {:?}",
            short.text
        );
    }
    assert_eq!(stopped[0][0].finish, FinishReason::StopString);
}
