//! AdamW with the gradient norm, and the advantages of a batch.

use super::meter::{Meter, normal};
use criterion::Criterion;
use othink::advantage::{self, ScaleRewards, group_advantages};
use othink::cuda::Purpose;
use othink::ops::Cost;
use othink::optim::cuda::DeviceAdamW;
use othink::optim::{AdamW, AdamWConfig, ParamGroup, clip_coefficient, global_grad_norm};
use othink::tensor::DType;

/// On the GPU 256 million parameters, of which 28 matrices; time grows with their number from far fewer on.
pub fn adamw(meter: &Meter, criterion: &mut Criterion) {
    let (matrices, len) = (meter.size(28, 4), meter.size(8960 * 1024, 1 << 16));
    let params: Vec<ParamGroup> =
        (0..matrices).map(|i| ParamGroup { name: format!("matrix{i}"), len, decay: true }).collect();
    let config = AdamWConfig { weight_decay: 0.01, ..AdamWConfig::default() };
    let n = matrices * len;
    let shape = format!("{n} parameters");
    let cost = DeviceAdamW::cost(n, meter.dtype);
    let gradient = normal(&[len], DType::F32, 1);
    match meter.gpu() {
        Some(gpu) => {
            let mut optimiser =
                DeviceAdamW::new(gpu, config, params, DType::Bf16).expect("room for the optimiser");
            let gradient =
                gradient.to_device(&meter.device, Purpose::Gradients).expect("room for a gradient");
            for index in 0..matrices {
                optimiser.add_gradient(index, &gradient).expect("a gradient of the parameter's length");
            }
            let add = |()| optimiser.add_gradient(0, &gradient);
            let sums = Cost { flops: len as u64, bytes: 12 * len as u64 };
            meter.bench(
                criterion,
                ["accumulate_gradient", "fwd", &format!("{len} numbers")],
                sums,
                || Ok(()),
                add,
            );
            let step = |()| optimiser.step(1e-6, 1.0).map(drop);
            meter.bench(criterion, ["adamw", "fwd", &shape], cost, || Ok(()), step);
        }
        None => {
            let mut optimiser = AdamW::new(config, params).expect("hyper-parameters in their ranges");
            let gradient = gradient.real::<f32>();
            let gradients: Vec<&[f32]> = (0..matrices).map(|_| gradient.as_ref()).collect();
            let mut weights: Vec<Vec<f32>> = (0..matrices).map(|_| vec![0.5; len]).collect();
            let step = |()| {
                let clip = clip_coefficient(global_grad_norm(&gradients), 1.0);
                let mut params: Vec<(&mut [f32], Option<&[f32]>)> =
                    weights.iter_mut().zip(&gradients).map(|(w, &g)| (&mut w[..], Some(g))).collect();
                optimiser.step(&mut params, 1e-6, clip)
            };
            meter.bench(criterion, ["adamw", "fwd", &shape], cost, || Ok(()), step);
        }
    }
}

/// 64 prompts of 8 completions.
pub fn group_advantage(meter: &Meter, criterion: &mut Criterion) {
    let rewards: Vec<f64> = (0..512).map(|i| f64::from(i % 5)).collect();
    let cost = advantage::cuda::cost(rewards.len());
    let shape = "64x8";
    match meter.gpu() {
        Some(gpu) => {
            let expected =
                group_advantages(&rewards, 8, ScaleRewards::Group).expect("whole groups").advantages_pg;
            let rewards = gpu.upload(&rewards, Purpose::Inputs).expect("room for rewards");
            let ours =
                advantage::cuda::group_advantages(&rewards, 8, ScaleRewards::Group).expect("whole groups");
            assert_eq!(ours.download().expect("a device that works"), expected);
            let work = |()| advantage::cuda::group_advantages(&rewards, 8, ScaleRewards::Group).map(drop);
            meter.bench(criterion, ["group_advantage", "fwd", shape], cost, || Ok(()), work);
        }
        None => {
            let work = |()| group_advantages(&rewards, 8, ScaleRewards::Group).map(drop);
            meter.bench(criterion, ["group_advantage", "fwd", shape], cost, || Ok(()), work);
        }
    }
}
