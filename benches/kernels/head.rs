//! The scores of tokens, and the loss over them.

use super::meter::{Meter, normal};
use criterion::Criterion;
use othink::autograd::Op;
use othink::config::{ImportanceSamplingLevel, LossType};
use othink::cuda::Purpose;
use othink::kl::KlEstimator;
use othink::loss::{self, LossConfig, Sampled, ScoreInputs, Window, loss_of_scores, supervised_loss};
use othink::ops::Cost;
use othink::ops::elementwise::cast;
use othink::ops::log_softmax_kl::cuda::{logits, sampled_log_probs};
use othink::ops::log_softmax_kl::{LogSoftmaxKl, Reference, Target};
use othink::tensor::{DType, Tensor};

fn op(rows: usize, vocab: usize, reference: Option<&Reference>) -> LogSoftmaxKl {
    let targets = (0..rows).map(|row| Target { row, token: (row * 7919 % vocab) as u32 }).collect();
    LogSoftmaxKl { reference: reference.cloned(), ..LogSoftmaxKl::new(targets, 0.9) }
}

/// Scores alone, and with the exact KL against a reference of the same shape.
pub fn log_softmax_kl(meter: &Meter, criterion: &mut Criterion) {
    let (rows, width, vocab) = (meter.size(8192, 64), meter.size(1536, 256), meter.size(151_936, 512));
    let few = [&[3, width][..], &[vocab / 64, width], &[3, 3], &[3, width], &[vocab / 64, width]];
    meter.check_function("log_softmax_kl", few, |[hidden, head, dy, reference_hidden, reference_head]| {
        let reference = Reference { hidden: reference_hidden.clone(), head: reference_head.clone() };
        let op = op(3, vocab / 64, Some(&reference));
        let (scores, saved) = op.forward([hidden, head])?;
        // Scores are f32 whatever the hidden states are.
        let dy = if dy.dtype() == DType::Bf16 { cast(dy, DType::F32)? } else { dy.clone() };
        Ok([scores].into_iter().chain(op.backward(saved, &dy, [true; 2])?.into_iter().flatten()).collect())
    });
    let [hidden, reference_hidden] = [1, 2].map(|id| meter.normal(&[rows, width], id));
    let [head, reference_head] = [3, 4].map(|id| meter.normal(&[vocab, width], id));
    let dy = normal(&[rows, 3], DType::F32, 5)
        .to_device(&meter.device, Purpose::Activations)
        .expect("room for a gradient");
    let shape = format!("{rows}x{vocab}x{width}");
    let reference = Reference { hidden: reference_hidden, head: reference_head };
    for (name, reference) in [("log_softmax", None), ("log_softmax_kl", Some(&reference))] {
        let op = || op(rows, vocab, reference);
        let forward = || op().forward([&hidden, &head]);
        let [fwd, bwd] = [LogSoftmaxKl::forward_cost, LogSoftmaxKl::backward_cost]
            .map(|cost| cost(rows, (vocab, width), reference.is_some(), meter.dtype));
        meter.bench(criterion, [name, "fwd", &shape], fwd, || Ok(()), |()| forward().map(drop));
        let backward = |saved| op().backward(saved, &dy, [true; 2]).map(drop);
        meter.bench(criterion, [name, "bwd", &shape], bwd, || Ok(forward()?.1), backward);
    }
}

/// The log-probabilities of a decoding step's tokens; on the CPU the sampler forms them itself.
pub fn sampled(meter: &Meter, criterion: &mut Criterion) {
    let Some(gpu) = meter.gpu() else { return };
    let (rows, vocab, width) = (256, meter.size(151_936, 512), 64);
    let z = logits(&meter.normal(&[rows, width], 1), &meter.normal(&[vocab, width], 2)).expect("a product");
    let ints = |f: &dyn Fn(usize) -> i32| {
        gpu.upload(&(0..rows).map(f).collect::<Vec<i32>>(), Purpose::Inputs).expect("room for tokens")
    };
    let (tokens, slots) = (ints(&|b| (b * 7919 % vocab) as i32), ints(&|b| b as i32));
    let mut out = gpu.zeros::<f32>(rows, Purpose::Inputs).expect("room for log-probabilities");
    let n = (rows * vocab) as u64;
    let work = |()| sampled_log_probs(&z, &tokens, &slots, 0.9, &mut out);
    let shape = format!("{rows}x{vocab}");
    meter.bench(
        criterion,
        ["sampled_log_probs", "fwd", &shape],
        Cost { flops: 4 * n, bytes: 4 * n },
        || Ok(()),
        work,
    );
    assert!(out.download().expect("a device that works").iter().all(|logp| *logp < 0.0));
}

/// The loss of supervised fine-tuning over 8192 tokens.
pub fn supervised(meter: &Meter, criterion: &mut Criterion) {
    let tokens = 8192;
    let host = normal(&[tokens, 3], DType::F32, 1).to_dtype(DType::F32);
    let here = host.to_device(&meter.device, Purpose::Activations).expect("room for scores");
    let loss = |x| supervised_loss(x, 1.0 / tokens as f64).expect("scores").loss;
    let (ours, plain) = (loss(&here), loss(&host));
    assert!((ours - plain).abs() <= 1e-12, "a loss of {ours} instead of {plain}");
    let work = |()| supervised_loss(&here, 1.0 / tokens as f64).map(drop);
    let cost = loss::supervised::cuda::cost(tokens);
    meter.bench(criterion, ["supervised_loss", "fwd", &tokens.to_string()], cost, || Ok(()), work);
}

/// 64 completions of 128 tokens.
pub fn grpo_loss(meter: &Meter, criterion: &mut Criterion) {
    let (completions, length) = (64, 128);
    let tokens = completions * length;
    let offsets: Vec<usize> = (0..=completions).map(|b| b * length).collect();
    let host = [
        normal(&[tokens, 3], DType::F32, 1),
        normal(&[tokens, 3], DType::F32, 2),
        normal(&[tokens], DType::F32, 3),
    ];
    let place = |x: &Tensor| x.to_device(&meter.device, Purpose::Activations).expect("room for scores");
    let here = host.each_ref().map(place);
    let advantages: Vec<f32> = (0..completions).map(|b| b as f32 / 32.0 - 1.0).collect();
    let counts = vec![true; completions];
    let run = |[scores, reference, sampled]: [&Tensor; 3]| {
        let config = LossConfig {
            loss_type: LossType::Grpo,
            importance_sampling_level: ImportanceSamplingLevel::Token,
            epsilon: 0.2,
            epsilon_high: 0.2,
            delta: None,
            kl_estimator: KlEstimator::K3,
            beta: 0.04,
            max_completion_length: length,
        };
        loss_of_scores(
            &config,
            &ScoreInputs {
                offsets: &offsets,
                scores,
                sampled: Sampled { values: sampled, begins: &offsets[..completions] },
                off_policy: true,
                reference: Some(reference),
                exact_kl: false,
                counts_b: &counts,
                advantages_b: &advantages,
                window: Window::of_batch(&offsets, None),
            },
        )
    };
    let loss = |x| run(x).expect("inputs that fit").loss;
    let (ours, plain) = (loss(here.each_ref()), loss(host.each_ref()));
    assert!((ours - plain).abs() <= 1e-12 * plain.abs(), "a loss of {ours} instead of {plain}");
    let work = |()| run(here.each_ref()).map(drop);
    let shape = format!("{completions}x{length}");
    meter.bench(criterion, ["grpo_loss", "fwd", &shape], loss::cuda::cost(tokens, true), || Ok(()), work);
}
