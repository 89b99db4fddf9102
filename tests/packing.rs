//! A group packed behind one shared prompt is the same computation as its separate sequences: log-probabilities, loss,
//! and the gradient of every parameter, the vision tower's included.

mod common;

use common::*;
use othink::autograd::{ParamGrads, Tape};
use othink::config::KlEstimator;
use othink::model::Model;
use othink::nn::{Params, Scope};
use othink::ops::log_softmax_kl::{LogSoftmaxKl, Reference};
use othink::packed::{Packed, Target};
use othink::processor::{Patches, Prompt};
use othink::rollout::sampler::SamplingParams;
use othink::tensor::{DType, Tensor};
use othink::train::policy::Policy;
use othink::train::update::score;
use std::collections::BTreeMap;
use std::sync::Arc;

const TEMPERATURE: f64 = 0.8;

/// One forward and backward pass: log-prob, entropy and exact KL of each target, and the gradient of
/// `sum (a logp + b entropy + c kl)` with the rows of `weights` as a, b, c.
fn pass(
    model: &Model,
    params: &Arc<Params>,
    reference: &Arc<Params>,
    packed: &Packed,
    targets: &[Target],
    weights: &[f64],
) -> (Vec<f64>, ParamGrads) {
    let tape = Tape::recording();
    let scope = Scope { tape: &tape, params };
    let hidden = model.forward(&scope, packed, false).unwrap().hidden;
    let op = LogSoftmaxKl {
        reference: Some(Reference {
            hidden: model.infer(reference, packed).unwrap(),
            head: reference.of(model.head()).value.clone(),
        }),
        ..LogSoftmaxKl::new(targets.to_vec(), TEMPERATURE)
    };
    let scores = tape.apply(op, [&hidden, &scope.param(model.head())]).unwrap();
    let dtype = scores.value().dtype();
    let dy = Tensor::new(scores.value().shape(), weights.to_vec()).unwrap().to_dtype(dtype);
    let values = scores.value().to_dtype(DType::F64).real::<f64>().to_vec();
    let mut grads = ParamGrads::default();
    tape.backward_from(&scores, dy, &mut grads).unwrap();
    (values, grads)
}

/// A policy in `dtype` and a reference that differs from it everywhere.
fn policy_and_reference(name: &str, dtype: DType) -> (Policy, Arc<Params>) {
    let mut policy = policy(name, DType::F32);
    let mut reference = policy.params.clone();
    for (i, (_, parameter)) in Arc::make_mut(&mut reference).iter_mut().enumerate() {
        let noise = normal(parameter.value.len(), i as u64);
        let values = parameter.value.make_mut::<f32>().unwrap();
        values.iter_mut().zip(noise).for_each(|(w, z)| *w += 0.02 * z as f32);
    }
    policy.params = Arc::new(policy.params.to_dtype(dtype));
    (policy, Arc::new(reference.to_dtype(dtype)))
}

/// Every gradient in f64; a parameter without one has zeros.
fn dense(params: &Params, grads: &ParamGrads) -> BTreeMap<String, Vec<f64>> {
    let of = |id, len| grads.of(id).map_or(vec![0.0; len], |g| g.to_dtype(DType::F64).real::<f64>().to_vec());
    params.iter().map(|(id, p)| (p.name.clone(), of(id, p.value.len()))).collect()
}

fn largest(x: impl IntoIterator<Item = f64>) -> f64 {
    x.into_iter().fold(0.0, |m, x| if x.is_nan() { f64::NAN } else { m.max(x.abs()) })
}

/// The largest difference of two sets of gradients, relative to the largest entry of its tensor, and where.
fn difference(a: &BTreeMap<String, Vec<f64>>, b: &BTreeMap<String, Vec<f64>>) -> (f64, String) {
    let mut worst = (0.0, String::new());
    for (name, a) in a {
        let size = largest(a.iter().copied()).max(f64::MIN_POSITIVE);
        let difference = largest(a.iter().zip(&b[name]).map(|(a, b)| a - b)) / size;
        assert!(!difference.is_nan(), "{name}");
        if difference > worst.0 {
            worst = (difference, name.clone());
        }
    }
    worst
}

/// Completions of unequal length, one of a single token, one with an image placeholder that the policy wrote itself.
fn completions(policy: &Policy) -> Vec<Vec<u32>> {
    let mut completions: Vec<Vec<u32>> =
        [5, 1, 17, 9].iter().enumerate().map(|(i, &n)| random_tokens(n, 90 + i as u64)).collect();
    completions[3][4] = policy.model.config().image_token_id;
    completions
}

/// Packs each prompt's group, and runs the same as separate sequences; gives the packed log-probs, the separate ones,
/// and the largest difference of a gradient.
fn packed_against_separate(name: &str, dtype: DType) -> (Vec<f64>, Vec<f64>, f64, String) {
    let (policy, reference) = policy_and_reference(name, dtype);
    let model = &policy.model;
    let completions = completions(&policy);
    let parts: Vec<&[u32]> = completions.iter().map(Vec::as_slice).collect();
    let tokens: usize = parts.iter().map(|c| c.len()).sum();
    let mut apart = ParamGrads::default();
    let mut separate_scores = Vec::new();
    let mut whole = Packed::default();
    let (mut targets, mut weights) = (Vec::new(), Vec::new());
    for (i, prompt) in prompts(&policy, name).iter().enumerate() {
        let own = normal(3 * tokens, 40 + i as u64);
        targets.extend(whole.push_group(prompt, &parts, policy.layout()).unwrap().concat());
        let mut rest = &own[..];
        for completion in &parts {
            let (sequence, targets) = Packed::separate(prompt, completion, policy.layout()).unwrap();
            let (weights, later) = rest.split_at(3 * completion.len());
            rest = later;
            let (scores, grads) = pass(model, &policy.params, &reference, &sequence, &targets, weights);
            separate_scores.extend(scores);
            grads.add_to(&mut apart).unwrap();
        }
        weights.extend(own);
    }
    let (packed_scores, together) = pass(model, &policy.params, &reference, &whole, &targets, &weights);
    let (together, apart) = (dense(&policy.params, &together), dense(&policy.params, &apart));
    assert!(largest(together["visual.patch_embed.proj.weight"].iter().copied()) > 0.0);
    let (worst, at) = difference(&apart, &together);
    println!("{name} {dtype:?}: largest relative difference of a gradient {worst:.2e}, of {at}");
    (packed_scores, separate_scores, worst, at)
}

#[test]
fn a_packed_group_is_its_separate_sequences() {
    // One image, several in a message and over turns, none; tied and untied heads; one key head and as many as heads.
    for name in ["qwen2_vl_a", "tied_kv1_odd", "untied_textonly", "wide_gqa4_hd32", "qwen2_5_tied_odd"] {
        for (dtype, limit) in [(DType::F32, 1e-5), (DType::F64, 1e-13)] {
            let (packed, separate, worst, at) = packed_against_separate(name, dtype);
            assert!(packed == separate, "{name} {dtype:?}: scores differ");
            assert!(worst < limit, "{name} {dtype:?}: {worst:e} at {at}");
        }
    }
}

/// bf16 rounds every gradient where it is stored, and the separate sequences' are summed in bf16: only the scores can be
/// the same bits.
#[test]
fn bf16_groups_have_the_same_scores() {
    for name in ["qwen2_vl_a", "tied_kv1_odd", "qwen2_5_tied_odd"] {
        let (packed, separate, worst, at) = packed_against_separate(name, DType::Bf16);
        assert!(packed == separate, "{name}: scores differ");
        assert!(worst < 0.05, "{name}: {worst:e} at {at}");
    }
}

/// A central difference of fourth order along `direction`, which is scaled by each tensor's own size.
fn slope(objective: impl Fn(&Arc<Params>) -> f64, params: &Params, direction: &[Vec<f64>]) -> f64 {
    const STEP: f64 = 1e-3;
    let at = |step: f64| {
        let mut moved = params.clone();
        for ((_, parameter), direction) in moved.iter_mut().zip(direction) {
            let values = parameter.value.make_mut::<f64>().unwrap();
            values.iter_mut().zip(direction).for_each(|(w, d)| *w += step * d);
        }
        objective(&Arc::new(moved))
    };
    (8.0 * (at(STEP) - at(-STEP)) - (at(2.0 * STEP) - at(-2.0 * STEP))) / (12.0 * STEP)
}

#[test]
fn the_models_gradient_is_the_slope_of_its_loss() {
    gradient_is_slope("tied_kv1_odd");
    gradient_is_slope("qwen2_5_tied_odd");
}

fn gradient_is_slope(name: &str) {
    let (policy, reference) = policy_and_reference(name, DType::F64);
    let completions = completions(&policy);
    let parts: Vec<&[u32]> = completions.iter().map(Vec::as_slice).collect();
    let prompt = &prompts(&policy, name)[0];
    assert!(prompt.images.len() > 1);
    let (packed, targets) = Packed::group(prompt, &parts, policy.layout()).unwrap();
    let targets = targets.concat();
    // Log-probabilities with either sign, the exact KL as a penalty, entropy left out: a GRPO loss.
    let weights: Vec<f64> = normal(targets.len(), 3).into_iter().flat_map(|a| [a, 0.0, 0.5]).collect();
    let run = |params: &Arc<Params>| pass(&policy.model, params, &reference, &packed, &targets, &weights);
    let objective =
        |params: &Arc<Params>| run(params).0.iter().zip(&weights).map(|(s, w)| s * w).sum::<f64>();
    let (scores, grads) = run(&policy.params);
    assert!(scores.chunks_exact(3).all(|row| row[2] > 0.0), "the KL of two policies is positive");
    let grads = dense(&policy.params, &grads);
    let groups = [
        "",
        "visual.patch_embed",
        "visual.blocks",
        "visual.merger",
        "model.embed",
        "model.layers.0",
        "model.layers.1",
    ];
    for (i, prefix) in groups.into_iter().enumerate() {
        for draw in 0..2 {
            let directions: Vec<Vec<f64>> = policy
                .params
                .iter()
                .enumerate()
                .map(|(n, (_, p))| {
                    let values = p.value.real::<f64>();
                    let inside = p.name.starts_with(prefix);
                    let size = values.iter().map(|w| w * w).sum::<f64>() / values.len() as f64;
                    let scale = if inside { size.sqrt().max(0.01) } else { 0.0 };
                    let id = 1000 + 10 * (100 * i + n) as u64 + draw;
                    normal(values.len(), id).into_iter().map(|z| z * scale).collect()
                })
                .collect();
            let numeric = slope(objective, &policy.params, &directions);
            let each = policy.params.iter().zip(&directions);
            let analytic: f64 =
                each.flat_map(|((_, p), d)| grads[&p.name].iter().zip(d).map(|(g, d)| g * d)).sum();
            let error = (numeric - analytic).abs() / analytic.abs();
            println!("{name} along {prefix:20} {analytic:+.6e}, relative error {error:.1e}");
            assert!(error < 1e-6, "{name}, {prefix}: {numeric} and {analytic}");
        }
    }
}

/// The same prompt with other pixels in its last image.
fn other_pixels(prompt: &Prompt) -> Prompt {
    let mut other = prompt.clone();
    let image = other.images.last_mut().unwrap();
    let bytes: Arc<[u8]> = image.bytes.iter().map(|b| b.wrapping_add(60)).collect();
    *image = Patches { bytes, ..image.clone() };
    other
}

fn group_scores(policy: &Policy, params: &Arc<Params>, groups: &[(&Prompt, &[Vec<u32>])]) -> Vec<Vec<u32>> {
    let groups: Vec<_> = groups
        .iter()
        .map(|(prompt, cs)| othink::batch::Group {
            prompt,
            completions: cs.iter().map(Vec::as_slice).collect(),
        })
        .collect();
    let batches = othink::batch::micro_batches(&groups, usize::MAX, policy.layout()).unwrap();
    let [batch] = &batches[..] else { panic!("one micro-batch") };
    let logps = bits(&score(&policy.model, params, batch, 1.0).unwrap().logp_t);
    batch.offsets.windows(2).map(|ends| logps[ends[0]..ends[1]].to_vec()).collect()
}

#[test]
fn policy_and_reference_see_the_image() {
    for name in ["qwen2_vl_a", "tied_kv1_odd", "qwen2_5_tied_odd"] {
        let (policy, reference) = policy_and_reference(name, DType::F32);
        let prompt = &prompts(&policy, name)[0];
        let (other, completions) = (other_pixels(prompt), completions(&policy));
        for params in [&policy.params, &reference] {
            let seen = group_scores(&policy, params, &[(prompt, &completions)]);
            let changed = group_scores(&policy, params, &[(&other, &completions)]);
            for (a, b) in seen.iter().zip(&changed) {
                assert!(
                    a.iter().zip(b).all(|(a, b)| a != b),
                    "{name}: a log-probability that ignores the image"
                );
            }
        }
    }
}

/// In the first step policy and reference are equal: unless both see the prompt's image, their KL is not exactly 0.
#[test]
fn the_trainers_reference_sees_the_image() {
    for estimator in [KlEstimator::K3, KlEstimator::Full] {
        let samples = othink::data::Dataset::from_samples(conversations("qwen2_vl_a")).prompts();
        let recipe = Recipe { estimator, ..Recipe::default() };
        let mut trainer =
            grpo_trainer(policy("qwen2_vl_a", DType::F32), &recipe, Box::new(Vowels), samples.rows());
        let first = trainer.step(0, &samples, &|_| Ok(())).unwrap().report;
        let second = trainer.step(1, &samples, &|_| Ok(())).unwrap().report;
        assert_eq!(first.kl, Some(0.0), "{estimator:?}");
        assert!(second.kl.unwrap() > 0.0, "{estimator:?}");
        assert_eq!((first.beta, second.beta > first.beta), (0.07, false));
    }
}

#[test]
fn images_follow_their_own_prompt() {
    let (policy, _) = policy_and_reference("tied_kv1_odd", DType::F32);
    let examples = prompts(&policy, "tied_kv1_odd");
    let twin = other_pixels(&examples[0]);
    let cs = completions(&policy);
    // Equal texts with different images stand side by side, another prompt between them.
    let groups: Vec<(&Prompt, &[Vec<u32>])> =
        vec![(&examples[0], &cs), (&examples[1], &cs[..2]), (&twin, &cs), (&examples[0], &cs[1..])];
    let together = group_scores(&policy, &policy.params, &groups);
    let alone: Vec<_> =
        groups.iter().flat_map(|group| group_scores(&policy, &policy.params, &[*group])).collect();
    assert_eq!(together, alone);
    assert_ne!(together[0], together[cs.len() + 2], "the twin has an image of its own");

    let decoding = policy
        .decoding(SamplingParams { max_new_tokens: 6, ..SamplingParams::default() }, &[], true)
        .unwrap();
    let requests: Vec<(u32, &Prompt)> = (0..).zip(groups.iter().map(|group| group.0)).collect();
    let rolled = roll_out(&policy, &decoding, &requests, 3, 9);
    for (request, completions) in requests.iter().zip(&rolled) {
        assert_eq!(&roll_out(&policy, &decoding, &[*request], 3, 9)[0], completions);
    }
}

#[test]
fn completion_offsets_survive_long_prompts() {
    let policy = policy("qwen2_vl_a", DType::F32);
    let mut sample = conversations("qwen2_vl_a")[0].prompt();
    let words = "count the small red squares, then the green circles. ".repeat(40);
    sample.messages[0].content.push(othink::data::Part::Text(words));
    let long = policy.processor.encode(&sample, true).unwrap();
    assert!(long.tokens.len() > 500, "{} tokens", long.tokens.len());
    let short = &prompts(&policy, "qwen2_vl_a")[1];
    let sampling = SamplingParams { max_new_tokens: 11, ..SamplingParams::default() };
    let decoding = policy.decoding(sampling, &[], true).unwrap();
    let rolled = roll_out(&policy, &decoding, &[(0, &long), (1, short)], 3, 2);
    let batch = &batches(&policy, &[long.clone(), short.clone()], &rolled, 6)[0];
    let flat: Vec<_> = rolled.iter().flatten().collect();
    for (completion, ends) in flat.iter().zip(batch.offsets.windows(2)) {
        let tokens: Vec<u32> = batch.targets[ends[0]..ends[1]].iter().map(|t| t.token).collect();
        assert_eq!(tokens, completion.tokens);
    }
    let recorded: Vec<f32> = flat.iter().flat_map(|c| c.logps.to_vec().unwrap()).collect();
    assert_eq!(bits(&score(&policy.model, &policy.params, batch, 1.0).unwrap().logp_t), bits(&recorded));
    for completion in &rolled[0] {
        let (sequence, targets) = Packed::separate(&long, &completion.tokens, policy.layout()).unwrap();
        assert_eq!(targets[0].row, long.tokens.len() - 1);
        let batch = othink::batch::MicroBatch {
            packed: sequence,
            offsets: vec![0, targets.len()],
            targets,
            members: 0..1,
        };
        let alone = score(&policy.model, &policy.params, &batch, 1.0).unwrap().logp_t;
        assert_eq!(bits(&alone), bits(&completion.logps.to_vec().unwrap()));
    }
}
