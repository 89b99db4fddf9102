//! The optimiser of a run: in device memory as in host memory.

use crate::compare::{assert_same, on_gpu};
use crate::harness::gpu;
use othink::autograd::{GradSink, ParamGrads, ParamId};
use othink::cuda::{Gpu, Purpose};
use othink::error::{Error, Result};
use othink::nn::Params;
use othink::optim::{AdamW, AdamWConfig, Optimiser};
use othink::rng::{self, Stream};
use othink::tensor::{DType, Device, Placement, Tensor};
use std::sync::Arc;

const CONFIG: AdamWConfig = AdamWConfig { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1 };

/// Frozen and trained ones in turn: in f32 as random numbers are, or as bf16 has them.
const SHAPES: [(&str, &[usize], bool); 6] = [
    ("visual.rounded", &[5, 8], false),
    ("norm", &[17], true),
    ("visual.exact", &[3], false),
    ("w", &[33, 9], true),
    ("last", &[2, 3, 2], true),
    ("visual.end", &[1], false),
];

fn numbers(shape: &[usize], id: u64) -> Tensor {
    let mut stream = Stream::new(9, rng::Purpose::Init, id);
    let n = shape.iter().product();
    Tensor::new(shape, (0..n).map(|_| stream.normal()).collect()).expect("as many as the shape says")
}

fn params() -> Arc<Params> {
    let weights = SHAPES.iter().zip(0..).map(|((name, shape, _), id)| {
        let x = numbers(shape, id);
        let x = if name.ends_with("exact") { x.to_dtype(DType::Bf16).to_dtype(DType::F32) } else { x };
        ((*name).to_owned(), x)
    });
    let mut params = Params::new(weights);
    params.freeze("visual.");
    Arc::new(params)
}

fn placement(gpu: &Gpu, dtype: DType) -> Placement {
    Placement { device: Device::Cuda(gpu.clone()), dtype }
}

/// A model and its optimiser.
struct Run {
    params: Arc<Params>,
    optimiser: Optimiser,
}

impl Run {
    fn new(placement: &Placement) -> Result<Run> {
        let mut params = params();
        let optimiser = Optimiser::new(CONFIG, &mut params, false, placement)?;
        Ok(Run { params, optimiser })
    }

    /// A step on two micro-batches; in step 1 `norm` takes no part, in the others it does in the second one only.
    fn step(&mut self, step: u64, scale: f32) -> Result<f64> {
        self.optimiser.begin()?;
        for part in 0..2 {
            let mut grads = ParamGrads::default();
            for (id, (name, shape, trained)) in SHAPES.iter().enumerate() {
                if !trained || (*name == "norm" && (step == 1 || part == 0)) {
                    continue;
                }
                let numbers = numbers(shape, 100 + 20 * step + 10 * part + id as u64);
                let scaled =
                    Tensor::new(shape, numbers.to_f32().iter().map(|x| x * scale).collect::<Vec<_>>())?;
                let grad = match self.params.of(ParamId(id)).value.gpu() {
                    Some(gpu) => on_gpu(&scaled.to_dtype(DType::F64), DType::F32, gpu),
                    None => scaled,
                };
                grads.add(ParamId(id), grad)?;
            }
            grads.add_to(&mut self.optimiser)?;
        }
        self.optimiser.step(&mut self.params, 1e-2, 1.0)
    }

    fn weights(&self) -> Result<Vec<(String, Vec<u32>)>> {
        let weights = self.optimiser.weights(&self.params)?;
        Ok(weights.iter().map(|(_, p)| (p.name.clone(), bits(&p.value))).collect())
    }
}

fn bits(x: &Tensor) -> Vec<u32> {
    assert_eq!((x.dtype(), x.gpu()), (DType::F32, None));
    x.to_f32().iter().map(|x| x.to_bits()).collect()
}

fn assert_same_state(what: &str, a: &AdamW, b: &AdamW) {
    for (a, b) in a.state().zip(b.state()) {
        assert_eq!(a, b, "{what}");
    }
    assert_eq!(a.state().count(), 3);
}

/// Weights, moments, and what the model sees, which moves under its tensors.
#[test]
fn steps_move_the_models_tensors_as_on_the_cpu() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in [DType::F32, DType::Bf16] {
        let mut host = Run::new(&Placement::HOST)?;
        let mut device = Run::new(&placement(gpu, dtype))?;
        let of_model: Vec<Tensor> = device.params.iter().map(|(_, p)| p.value.clone()).collect();
        let reference = device.params.detached()?;
        assert_eq!(device.weights()?, host.weights()?);
        for step in 0..3 {
            let (a, b) = (host.step(step, 0.5)?, device.step(step, 0.5)?);
            assert!((a - b).abs() <= 1e-13 * a, "{dtype:?}, step {step}: {a} and {b}");
            assert_eq!(device.weights()?, host.weights()?, "{dtype:?}, step {step}");
            assert_same_state("moments", &device.optimiser.state()?, &host.optimiser.state()?);
            for ((_, p), tensor) in host.params.iter().zip(&of_model) {
                assert_same(&p.name, tensor, &p.value.to_dtype(dtype));
            }
        }
        let before = params();
        for ((_, p), (_, reference)) in before.iter().zip(reference.iter()) {
            assert_same("the reference", &reference.value, &p.value.to_dtype(dtype));
        }
        assert_ne!(bits(&before.of(ParamId(3)).value), bits(&host.params.of(ParamId(3)).value));
    }
    Ok(())
}

/// After a step that was given up or skipped, everything is as before it.
#[test]
fn a_step_that_does_not_happen_leaves_nothing() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for placement in [Placement::HOST, placement(gpu, DType::Bf16)] {
        let (mut run, mut plain) = (Run::new(&placement)?, Run::new(&placement)?);
        run.step(0, 0.5)?;
        plain.step(0, 0.5)?;
        assert!(!run.step(1, f32::INFINITY)?.is_finite());
        assert_eq!(run.weights()?, plain.weights()?);
        assert_same_state("moments", &run.optimiser.state()?, &plain.optimiser.state()?);
        // Given up between the micro-batches.
        run.optimiser.begin()?;
        let mut grads = ParamGrads::default();
        let w = Tensor::zeros(&[33, 9], DType::F32).to_device(&placement.device, Purpose::Activations)?;
        grads.add(ParamId(3), w)?;
        grads.add_to(&mut run.optimiser)?;
        for run in [&mut run, &mut plain] {
            run.step(1, 0.5)?;
        }
        assert_eq!(run.weights()?, plain.weights()?);
        assert_same_state("moments", &run.optimiser.state()?, &plain.optimiser.state()?);
    }
    Ok(())
}

/// What one place saves, any place goes on from, to the bit; also where the frozen parameters come from the checkpoint.
#[test]
fn a_run_moves_between_places() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let places = [Placement::HOST, placement(gpu, DType::F32), placement(gpu, DType::Bf16)];
    let mut whole = Run::new(&Placement::HOST)?;
    whole.step(0, 0.5)?;
    whole.step(1, 0.5)?;
    for from in &places {
        let mut first = Run::new(from)?;
        first.step(0, 0.5)?;
        let (weights, state) = (first.optimiser.weights(&first.params)?, first.optimiser.state()?);
        for to in &places {
            let mut second = Run::new(to)?;
            for ((id, p), k) in weights.iter().zip(50..) {
                let other = numbers(p.value.shape(), k);
                second.optimiser.set_weights(&mut second.params, id, &other.to_f32())?;
                second.optimiser.set_weights(&mut second.params, id, &p.value.to_f32())?;
            }
            state.state().try_for_each(|state| second.optimiser.restore(state))?;
            second.step(1, 0.5)?;
            assert_eq!(second.weights()?, whole.weights()?, "from {from:?} to {to:?}");
            assert_same_state("moments", &second.optimiser.state()?, &whole.optimiser.state()?);
            for ((_, p), (_, of_model)) in whole.params.iter().zip(second.params.iter()) {
                assert_same(&p.name, &of_model.value.to_cpu()?, &p.value.to_dtype(to.dtype));
            }
            let too_few = second.optimiser.set_weights(&mut second.params, ParamId(1), &[1.0; 16]);
            assert!(matches!(too_few, Err(Error::Internal(_))));
        }
    }
    Ok(())
}

#[test]
fn memory_is_counted_by_purpose() -> Result<()> {
    if gpu().is_none() {
        return Ok(());
    }
    let gpu = Gpu::open(0)?;
    // Each parameter begins at a multiple of 128 elements.
    let (trained, arena, frozen) = (17 + 297 + 12, 128 + 384 + 128, 40 + 3 + 1);
    for (dtype, weights, masters) in
        [(DType::F32, 4 * (arena + frozen), 0), (DType::Bf16, 2 * (arena + frozen), 4 * arena)]
    {
        let run = Run::new(&placement(&gpu, dtype))?;
        assert_eq!(gpu.ledger().bytes(Purpose::Weights), weights);
        assert_eq!(gpu.ledger().bytes(Purpose::Gradients), 4 * arena);
        let rest = gpu.ledger().bytes(Purpose::Optimiser) - (8 * arena + masters);
        assert!(rest < 1024, "{rest} bytes of tables");
        assert_eq!(gpu.ledger().bytes(Purpose::Activations), 0);
        // The reference shares what is frozen.
        let reference = run.params.detached()?;
        assert_eq!(gpu.ledger().bytes(Purpose::Weights), weights + dtype.size() * trained);
        drop((run, reference));
        assert_eq!(gpu.ledger().to_string(), "nothing");
    }
    Ok(())
}

#[test]
fn what_cannot_be_trained_is_refused() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let narrow = Placement { device: Device::Cpu, dtype: DType::Bf16 };
    assert!(matches!(Run::new(&narrow), Err(Error::Internal(_))));
    let mut run = Run::new(&placement(gpu, DType::F32))?;
    let of_frozen = on_gpu(&Tensor::zeros(&[3], DType::F64), DType::F32, gpu);
    assert!(run.optimiser.add(ParamId(2), of_frozen).unwrap_err().to_string().contains("not trained"));
    Ok(())
}
