//! AdamW and the gradient norm against the CPU's optimiser.

use crate::compare::on_gpu;
use crate::harness::gpu;
use othink::error::Result;
use othink::optim::cuda::DeviceAdamW;
use othink::optim::{AdamW, AdamWConfig, ParamGroup, clip_coefficient, global_grad_norm};
use othink::rng::{Purpose, Stream};
use othink::tensor::{DType, Tensor};

const CONFIG: AdamWConfig = AdamWConfig { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1 };

fn numbers(n: usize, id: u64, scale: f32) -> Vec<f32> {
    let mut stream = Stream::new(5, Purpose::Init, id);
    (0..n).map(|_| scale * stream.normal()).collect()
}

fn groups(lengths: &[usize]) -> Vec<ParamGroup> {
    let group = |(i, &len): (usize, &usize)| ParamGroup { name: format!("p{i}"), len, decay: i % 2 == 0 };
    lengths.iter().enumerate().map(group).collect()
}

/// The optimiser of the CPU and that of the GPU with the same weights.
struct Pair {
    cpu: AdamW,
    weights: Vec<Vec<f32>>,
    gpu: DeviceAdamW,
}

impl Pair {
    fn new(lengths: &[usize], dtype: DType) -> Result<Option<Pair>> {
        let Some(device) = gpu() else { return Ok(None) };
        let weights: Vec<_> = lengths.iter().enumerate().map(|(i, &n)| numbers(n, i as u64, 1.0)).collect();
        let mut gpu = DeviceAdamW::new(device, CONFIG, groups(lengths), dtype)?;
        for (i, values) in weights.iter().enumerate() {
            gpu.set_weights(i, values)?;
        }
        Ok(Some(Pair { cpu: AdamW::new(CONFIG, groups(lengths))?, weights, gpu }))
    }

    /// A step of both with these gradients (those of a parameter are added up). Gives the norm on the GPU.
    fn step(
        &mut self,
        gradients: &[Option<Vec<Vec<f32>>>],
        learning_rate: f64,
        max_grad_norm: f64,
    ) -> Result<f64> {
        let device = gpu().expect("it made this pair");
        self.gpu.zero_gradients()?;
        let mut sums = Vec::new();
        for (i, parts) in gradients.iter().enumerate() {
            let mut sum: Option<Vec<f32>> = None;
            for part in parts.iter().flatten() {
                let x = Tensor::new(&[part.len()], part.clone())?;
                self.gpu.add_gradient(i, &on_gpu(&x, DType::F32, device))?;
                match &mut sum {
                    Some(sum) => sum.iter_mut().zip(part).for_each(|(sum, &x)| *sum += x),
                    None => sum = Some(part.clone()),
                }
            }
            sums.push(sum);
        }
        let norm = self.gpu.step(learning_rate, max_grad_norm)?;
        let present: Vec<&[f32]> = sums.iter().flatten().map(Vec::as_slice).collect();
        let want = global_grad_norm(&present);
        if !want.is_finite() {
            assert!(!norm.is_finite(), "{norm}, CPU {want}");
            return Ok(norm);
        }
        // Both are sums in f64.
        assert!((norm - want).abs() <= 1e-13 * want, "{norm}, CPU {want}");
        let mut pairs: Vec<_> =
            self.weights.iter_mut().map(Vec::as_mut_slice).zip(sums.iter().map(Option::as_deref)).collect();
        self.cpu.step(&mut pairs, learning_rate, clip_coefficient(want, max_grad_norm))?;
        Ok(norm)
    }

    /// Weights, their bf16 copy, moments and step counts are the same to the bit.
    fn assert_same(&self) -> Result<()> {
        for (i, (values, state)) in self.weights.iter().zip(self.cpu.state()).enumerate() {
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&self.gpu.weights(i)?), bits(values), "weights {i}");
            assert_eq!(self.gpu.state(i)?.view(), state);
            let of_model = self.gpu.tensor(i, &[values.len()])?;
            let rounded = Tensor::new(&[values.len()], values.clone())?.to_dtype(of_model.dtype());
            crate::compare::assert_same(&format!("tensor {i}"), &of_model, &rounded);
        }
        Ok(())
    }
}

/// One, a few, nothing, one past a pack and a block, more than two chunks.
const LENGTHS: [usize; 7] = [1, 3, 0, 17, 1025, 9000, 4096];

fn gradients(step: u64) -> Vec<Option<Vec<Vec<f32>>>> {
    let of = |(i, &n): (usize, &usize)| {
        // The last but one has no gradient in the second step, the fourth only in the third.
        let absent = (i == 5 && step == 1) || (i == 3 && step != 2);
        // In the last step so small that the 1e-6 beside the norm counts.
        let scale = if step == 3 { 1e-8 } else { 0.1 };
        let parts =
            || (0..1 + i as u64 % 2).map(|k| numbers(n, 100 + 10 * step + k + i as u64, scale)).collect();
        (!absent).then(parts)
    };
    LENGTHS.iter().enumerate().map(of).collect()
}

#[test]
fn several_steps_have_the_cpus_bits() -> Result<()> {
    for dtype in [DType::F32, DType::Bf16] {
        let Some(mut pair) = Pair::new(&LENGTHS, dtype)? else { return Ok(()) };
        // The model holds its tensors while the optimiser writes them.
        let of_model = pair.gpu.tensor(5, &[100, 90])?;
        assert_eq!(of_model.dtype(), dtype);
        pair.assert_same()?;
        // Clipped; far below the limit; without one.
        for (step, max_grad_norm) in [(0, 1.0), (1, 1e6), (2, 0.0), (3, 1e-7)] {
            pair.step(&gradients(step), 1e-2 / (1 + step) as f64, max_grad_norm)?;
            pair.assert_same()?;
            let now = pair.gpu.tensor(5, &[100, 90])?;
            crate::compare::assert_same("the tensor from before", &of_model, &now.to_cpu()?);
        }
    }
    Ok(())
}

/// More chunks than the second stage of the norm has threads; squares that f32 can't hold.
#[test]
fn the_norm_of_many_parameters() -> Result<()> {
    let lengths = [3; 300];
    let Some(mut pair) = Pair::new(&lengths, DType::F32)? else { return Ok(()) };
    let gradients: Vec<_> = (0..300).map(|i| Some(vec![numbers(3, i, 1e25)])).collect();
    let norm = pair.step(&gradients, 1e-3, 1.0)?;
    assert!(norm > 1e26);
    pair.assert_same()?;
    let none: Vec<Option<Vec<Vec<f32>>>> = vec![None; 300];
    assert_eq!(pair.step(&none, 1e-3, 1.0)?, 0.0);
    pair.assert_same()
}

/// A norm that is NaN or infinite changes nothing, and the next step goes on from there.
#[test]
fn a_gradient_that_is_no_number_changes_nothing() -> Result<()> {
    let Some(mut pair) = Pair::new(&LENGTHS, DType::Bf16)? else { return Ok(()) };
    pair.step(&gradients(0), 1e-2, 1.0)?;
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for max_grad_norm in [0.0, 1.0] {
            let mut broken = gradients(1);
            broken[1].as_mut().expect("it has one")[0][2] = bad;
            assert!(!pair.step(&broken, 1e-2, max_grad_norm)?.is_finite());
            pair.assert_same()?;
        }
    }
    pair.step(&gradients(2), 1e-2, 1.0)?;
    pair.assert_same()
}

/// State goes from the CPU to the GPU and back; the runs go on with the same bits.
#[test]
fn a_checkpoint_of_one_is_one_of_the_other() -> Result<()> {
    let Some(mut pair) = Pair::new(&LENGTHS, DType::Bf16)? else { return Ok(()) };
    pair.step(&gradients(0), 1e-2, 1.0)?;
    let Some(mut resumed) = Pair::new(&LENGTHS, DType::Bf16)? else { return Ok(()) };
    for (i, state) in pair.cpu.state().enumerate() {
        resumed.gpu.restore(state)?;
        resumed.cpu.restore(pair.gpu.state(i)?.view())?;
        resumed.gpu.set_weights(i, &pair.weights[i])?;
        resumed.weights[i] = pair.gpu.weights(i)?;
    }
    resumed.assert_same()?;
    for pair in [&mut pair, &mut resumed] {
        pair.step(&gradients(1), 1e-2, 1.0)?;
        pair.assert_same()?;
    }
    assert_eq!(pair.weights, resumed.weights);
    let state = pair.gpu.state(1)?;
    let other = othink::optim::TensorState { name: "other", ..state.view() };
    assert!(resumed.gpu.restore(other).unwrap_err().to_string().contains("`other`"));
    Ok(())
}

/// Gradients in bf16 are added in f32; two runs have the same bits.
#[test]
fn gradients_are_added_in_f32() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    let lengths = [1, 17, 2049, 4096];
    let run = |dtype: DType| -> Result<Vec<Vec<f32>>> {
        let mut adamw = DeviceAdamW::new(device, CONFIG, groups(&lengths), DType::F32)?;
        for (i, &n) in lengths.iter().enumerate() {
            for k in 0..3 {
                // Numbers that bf16 holds, with sums that it doesn't.
                let x = numbers(n, k + 10 * i as u64, 1.0 / (1 << (4 * k)) as f32);
                let x = Tensor::new(&[n], x)?.to_dtype(DType::Bf16);
                adamw.add_gradient(i, &on_gpu(&x.to_dtype(DType::F64), dtype, device))?;
            }
        }
        adamw.step(1e-2, 1.0)?;
        (0..lengths.len()).map(|i| Ok(adamw.state(i)?.exp_avg)).collect()
    };
    let wide = run(DType::F32)?;
    assert_eq!(wide, run(DType::Bf16)?);
    assert_eq!(wide, run(DType::F32)?);
    Ok(())
}

#[test]
fn mismatches_are_refused() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    let mut adamw = DeviceAdamW::new(device, CONFIG, groups(&[3]), DType::F32)?;
    let two = Tensor::new(&[2], vec![1.0_f32, 2.0])?;
    assert!(adamw.set_weights(0, &[1.0]).is_err());
    assert!(adamw.add_gradient(0, &on_gpu(&two, DType::F32, device)).is_err());
    assert!(adamw.add_gradient(1, &on_gpu(&two, DType::F32, device)).is_err());
    assert!(adamw.add_gradient(0, &Tensor::new(&[3], vec![0.0_f32; 3])?).is_err(), "host memory");
    let bad = AdamWConfig { beta2: 1.0, ..CONFIG };
    assert!(DeviceAdamW::new(device, bad, vec![], DType::F32).is_err());
    let mut nothing = DeviceAdamW::new(device, CONFIG, vec![], DType::Bf16)?;
    assert_eq!(nothing.step(1e-2, 1.0)?, 0.0);
    Ok(())
}
