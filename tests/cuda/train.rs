//! Supervised training on the GPU against the CPU's, and where a run goes on.

use crate::common::{conversations, normal, policy, sft_trainer_at};
use crate::harness::{gpu, is_rerun, is_rerun_in_order};
use othink::checkpoint::{
    Identity, OnExisting, ResumeState, SavePlan, SavedRun, Snapshot, TrainerState, write_folder,
};
use othink::cuda::{Gpu, Purpose};
use othink::data::{Dataset, Message, Part, Sample};
use othink::disk::SystemDisk;
use othink::error::{Error, Result};
use othink::model::Model;
use othink::model::weights::parameters;
use othink::nn::Params;
use othink::report::SftReport;
use othink::tensor::{DType, Device, Placement, Tensor};
use othink::train::policy::Policy;
use othink::train::sft::SftTrainer;
use othink::train::trainer::Trainer;
use std::path::Path;
use std::sync::Arc;

fn on(gpu: &Gpu, dtype: DType) -> Placement {
    Placement { device: Device::Cuda(gpu.clone()), dtype }
}

/// What a run is made of.
#[derive(Clone)]
struct Run {
    bundle: &'static str,
    placement: Placement,
    micro_batch: usize,
    recompute: bool,
    freeze: bool,
}

impl Run {
    fn trainer(&self) -> SftTrainer {
        let mut policy = policy(self.bundle, DType::F32);
        if self.freeze {
            Arc::make_mut(&mut policy.params).freeze("visual.");
        }
        let rows = self.samples().rows();
        sft_trainer_at(self.placement.clone(), policy, rows, self.micro_batch, 1e-3, self.recompute)
    }

    fn samples(&self) -> Dataset {
        Dataset::from_samples(conversations(self.bundle))
    }

    fn steps(&self, trainer: &mut SftTrainer, steps: std::ops::Range<u64>) -> Result<Vec<SftReport>> {
        let samples = self.samples();
        steps.map(|step| trainer.step(step, &samples, &|_| Ok(()))).collect()
    }
}

/// Everything that a checkpoint is made of, as bits.
#[derive(Debug, PartialEq)]
struct State {
    weights: Vec<(String, Vec<u32>)>,
    moments: Vec<(String, u64, Vec<u32>, Vec<u32>)>,
    tokens: u64,
}

fn state(trainer: &SftTrainer) -> Result<State> {
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let (weights, parts) = (trainer.weights()?, Trainer::state(trainer)?);
    let moments = parts.optimiser.state();
    Ok(State {
        weights: weights.iter().map(|(_, p)| (p.name.clone(), bits(&p.value.to_f32()))).collect(),
        moments: moments.map(|s| (s.name.to_owned(), s.step, bits(s.exp_avg), bits(s.exp_avg_sq))).collect(),
        tokens: parts.tokens,
    })
}

fn is_near(a: f64, b: f64, relative: f64) -> bool {
    (a - b).abs() <= relative * b.abs()
}

#[test]
fn steps_in_f32_follow_the_cpus() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    if is_rerun() {
        return Ok(());
    }
    // None of these has a gradient so near 0 that its sign is rounding's: AdamW's first step has that sign and full size.
    for (bundle, freeze) in [
        ("qwen2_vl_a", false),
        ("qwen2_vl_a", true),
        ("tied_kv1_odd", false),
        ("qwen2_5_bf16_sharded", false),
        ("qwen2_5_bf16_sharded", true),
    ] {
        let host = Run { bundle, placement: Placement::HOST, micro_batch: 2, recompute: false, freeze };
        let device = Run { placement: on(gpu, DType::F32), ..host.clone() };
        let want = host.steps(&mut host.trainer(), 0..3)?;
        let mut trainer = device.trainer();
        let reports = device.steps(&mut trainer, 0..3)?;
        for (got, want) in reports.iter().zip(&want) {
            let (a, b) = (got.loss, want.loss);
            assert!(is_near(a, b, 1e-5), "{bundle}, step {}: loss {a}, CPU {b}", want.step);
            let (a, b) = (got.grad_norm, want.grad_norm);
            assert!(is_near(a, b, 1e-4), "{bundle}, step {}: norm {a}, CPU {b}", want.step);
            assert_eq!(got.num_tokens, want.num_tokens);
        }
        assert!(want[2].loss < want[0].loss);
        assert_eq!(trainer.policy.params.iter().filter(|(_, p)| p.value.gpu().is_none()).count(), 0);
    }
    Ok(())
}

#[test]
fn a_run_in_bf16_learns_in_f32() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    if is_rerun() {
        return Ok(());
    }
    let host = Run {
        bundle: "qwen2_vl_a",
        placement: Placement::HOST,
        micro_batch: 8,
        recompute: false,
        freeze: false,
    };
    let device = Run { placement: on(gpu, DType::Bf16), ..host.clone() };
    let want = host.steps(&mut host.trainer(), 0..3)?;
    let mut trainer = device.trainer();
    let reports = device.steps(&mut trainer, 0..3)?;
    for (got, want) in reports.iter().zip(&want) {
        // A result of bf16 is off by up to 2^-9 of itself, and the loss is a mean over many.
        assert!(is_near(got.loss, want.loss, 4e-3), "loss {}, CPU {}", got.loss, want.loss);
        assert!(
            is_near(got.grad_norm, want.grad_norm, 5e-2),
            "norm {}, CPU {}",
            got.grad_norm,
            want.grad_norm
        );
    }
    // What is saved is what is trained, not the model's rounded copy of it.
    let mut rounded = 0;
    for ((_, saved), (_, of_model)) in trainer.weights()?.iter().zip(trainer.policy.params.iter()) {
        let narrow = saved.value.to_dtype(DType::Bf16);
        crate::compare::assert_same(&saved.name, &of_model.value, &narrow);
        rounded += usize::from(narrow.to_dtype(DType::F32).to_f32() != saved.value.to_f32());
    }
    assert!(rounded > 20, "{rounded} parameters have more digits than bf16");
    Ok(())
}

/// Neither where a block's activations come from nor a second run nor the size of micro-batches of whole rows changes what is computed.
#[test]
fn two_runs_and_recomputation_change_no_bit() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in [DType::F32, DType::Bf16] {
        let run = |recompute| -> Result<_> {
            let placement = on(gpu, dtype);
            let run = Run { bundle: "tied_kv1_odd", placement, micro_batch: 2, recompute, freeze: false };
            let mut trainer = run.trainer();
            let losses: Vec<u64> =
                run.steps(&mut trainer, 0..2)?.iter().map(|report| report.loss.to_bits()).collect();
            Ok((losses, state(&trainer)?))
        };
        let first = run(false)?;
        assert!(run(false)? == first, "{dtype:?}: a second run");
        assert!(run(true)? == first, "{dtype:?}: recomputation");
    }
    Ok(())
}

/// A tied model on the CPU of which the weights are most, and one short conversation without images.
fn wide() -> Result<(Policy, Dataset)> {
    let mut policy = policy("tied_kv1_odd", DType::F32);
    let mut config = policy.model.config().clone();
    (config.text.num_hidden_layers, config.text.intermediate_size) = (16, 256);
    let weights = parameters(&config).into_iter().zip(0..).map(|((name, shape), id)| {
        let noise = normal(shape.iter().product(), id).into_iter();
        // Near 1 for a norm's weights.
        let mean = if shape.len() == 1 && name.ends_with("weight") { 1.0 } else { 0.0 };
        Ok((name, Tensor::new(&shape, noise.map(|x| (mean + 0.1 * x) as f32).collect::<Vec<_>>())?))
    });
    policy.params = Arc::new(Params::new(weights.collect::<Result<Vec<_>>>()?));
    policy.model = Model::new(config, &policy.processor.image_config().normalisation)?;
    let message =
        |role: &str, text: &str| Message { role: role.into(), content: vec![Part::Text(text.into())] };
    let messages = vec![message("system", "a"), message("user", "b"), message("assistant", "c")];
    Ok((policy, Dataset::from_samples(vec![Sample { messages, ..Sample::default() }])))
}

/// Each gradient is added to the arena as soon as it exists, and freed: at no time are all of them held beside it. What arrives there is
/// what the CPU has.
#[test]
fn gradients_are_not_held_twice() -> Result<()> {
    if gpu().is_none() || is_rerun() {
        return Ok(());
    }
    let want = {
        let (policy, samples) = wide()?;
        sft_trainer_at(Placement::HOST, policy, 1, 1, 1e-3, true).step(0, &samples, &|_| Ok(()))?
    };
    for (dtype, relative) in [(DType::F32, 1e-4), (DType::Bf16, 5e-2)] {
        // A ledger of its own.
        let gpu = Gpu::open(0)?;
        let (policy, samples) = wide()?;
        let language = policy.params.iter().filter(|(_, p)| !p.name.starts_with("visual."));
        let gradients = dtype.size() * language.map(|(_, p)| p.value.len()).sum::<usize>();
        let mut trainer = sft_trainer_at(on(&gpu, dtype), policy, 1, 1, 1e-3, true);
        let arena = gpu.ledger().bytes(Purpose::Gradients);
        let got = trainer.step(0, &samples, &|_| Ok(()))?;
        let (a, b) = (got.grad_norm, want.grad_norm);
        assert!(is_near(a, b, relative), "{dtype:?}: norm {a}, CPU {b}");
        let peak = |purpose| gpu.ledger().peak_bytes(purpose);
        let beside = peak(Purpose::Activations) + peak(Purpose::Gradients) - arena;
        assert!(
            2 * beside < gradients,
            "{dtype:?}: {beside} bytes beside the arena, {gradients} of gradients"
        );
    }
    Ok(())
}

fn save(trainer: &SftTrainer, step: u64, dir: &Path) -> Result<()> {
    let parts = Trainer::state(trainer)?;
    let identity = Identity {
        command: "sft".into(),
        options: Default::default(),
        model_hash: "m".into(),
        dataset_hash: "d".into(),
        max_steps: 4,
    };
    let state = TrainerState {
        global_step: step,
        num_input_tokens_seen: parts.tokens,
        identity,
        beta: None,
        guard: Default::default(),
        evaluated_step: 0,
        best: None,
        stream: None,
        reference_synced: None,
    };
    let resume = Some(ResumeState { state, optimiser: parts.optimiser, rollout: None, reference: None });
    let snapshot = Snapshot { step, params: trainer.weights()?, resume };
    let plan = SavePlan::like(&trainer.policy.folder)?;
    write_folder(&SystemDisk, dir, OnExisting::Replace, |folder| snapshot.write(folder, &plan))
}

/// A checkpoint holds the same state wherever it was made and wherever it is read; on the GPU that made it, the run goes on as if it
/// had not stopped.
#[test]
fn a_checkpoint_goes_there_and_back() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    if is_rerun_in_order() {
        return Ok(());
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let places = [Placement::HOST, on(gpu, DType::F32), on(gpu, DType::Bf16)];
    // Stored in f32, and in bf16, which keeps the master weights beside the model.
    for bundle in ["tied_kv1_odd", "bf16_sharded"] {
        for from in &places {
            let run = Run { bundle, placement: from.clone(), micro_batch: 8, recompute: false, freeze: true };
            let mut trainer = run.trainer();
            run.steps(&mut trainer, 0..1)?;
            let dir = folder.path().join(bundle);
            save(&trainer, 1, &dir)?;
            let saved = state(&trainer)?;
            run.steps(&mut trainer, 1..2)?;
            for to in &places {
                let resumed_run = Run { placement: to.clone(), ..run.clone() };
                let mut resumed = resumed_run.trainer();
                resumed.restore(SavedRun::read(&dir)?, &run.samples())?;
                assert!(state(&resumed)? == saved, "{bundle} from {from:?} to {to:?}");
                if from == to {
                    resumed_run.steps(&mut resumed, 1..2)?;
                    assert!(state(&resumed)? == state(&trainer)?, "{bundle} goes on at {from:?}");
                }
            }
        }
    }
    Ok(())
}

/// A step that is stopped or skipped leaves the trainer as it was, and gives its memory back.
#[test]
fn a_step_happens_whole_or_not_at_all() -> Result<()> {
    if gpu().is_none() {
        return Ok(());
    }
    // A ledger of its own.
    let gpu = Gpu::open(0)?;
    let run = Run {
        bundle: "tied_kv1_odd",
        placement: on(&gpu, DType::Bf16),
        micro_batch: 1,
        recompute: true,
        freeze: false,
    };
    let mut trainer = run.trainer();
    let samples = run.samples();
    let held = [Purpose::Weights, Purpose::Gradients, Purpose::Optimiser].map(|p| gpu.ledger().bytes(p));
    run.steps(&mut trainer, 0..1)?;
    let before = state(&trainer)?;
    let looks = std::sync::atomic::AtomicUsize::new(0);
    let stopped =
        trainer.step(1, &samples, &|_| match looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            2 => Err(Error::Interrupted("by the test".into())),
            _ => Ok(()),
        });
    assert!(matches!(stopped, Err(Error::Interrupted(_))));
    assert!(state(&trainer)? == before);
    let mut other = run.trainer();
    run.steps(&mut other, 0..2)?;
    run.steps(&mut trainer, 1..2)?;
    assert!(state(&trainer)? == state(&other)?, "the step after it");
    drop(other);
    let now = [Purpose::Weights, Purpose::Gradients, Purpose::Optimiser].map(|p| gpu.ledger().bytes(p));
    assert_eq!(now, held);
    assert_eq!(gpu.ledger().bytes(Purpose::Activations), 0);
    drop(trainer);
    for purpose in [Purpose::Weights, Purpose::Gradients, Purpose::Optimiser] {
        assert_eq!(gpu.ledger().bytes(purpose), 0, "{purpose}");
    }
    Ok(())
}
