//! The loss of supervised fine-tuning against the CPU's.

use crate::compare::{assert_same, normal, on_gpu};
use crate::harness::gpu;
use othink::error::Result;
use othink::loss::supervised_loss;
use othink::tensor::{DType, Tensor};

/// Both are sums in f64, in two orders; gradients are the same bits.
#[test]
fn sums_and_gradients_are_the_cpus() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for tokens in [0, 1, 3, 17, 255, 256, 257, 1000, 4097] {
        let scores = normal(&[tokens, 3], DType::F32, tokens as u64).to_dtype(DType::F32);
        let weight = 1.0 / (tokens.max(1) as f64);
        let host = supervised_loss(&scores, weight)?;
        let on_device = on_gpu(&scores, DType::F32, gpu);
        let device = supervised_loss(&on_device, weight)?;
        let size = |column: usize| -> f64 {
            scores.to_f32().chunks_exact(3).map(|row| f64::from(row[column].abs())).sum()
        };
        for (ours, theirs, size) in
            [(device.loss, host.loss, weight * size(0)), (device.entropy, host.entropy, size(1))]
        {
            assert!((ours - theirs).abs() <= 1e-15 * size, "{tokens} tokens: {ours}, CPU {theirs}");
        }
        assert_same(&format!("{tokens} tokens"), &device.dscores, &host.dscores);
        let again = supervised_loss(&on_device, weight)?;
        assert_eq!(again.loss.to_bits(), device.loss.to_bits(), "a second run");
        assert_eq!(again.entropy.to_bits(), device.entropy.to_bits(), "a second run");
    }
    Ok(())
}

#[test]
fn what_is_no_number_stays() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for bad in [f32::NAN, f32::NEG_INFINITY] {
        let mut scores = vec![-1.0_f32; 3 * 300];
        scores[3 * 299] = bad;
        let scores = on_gpu(&Tensor::new(&[300, 3], scores)?, DType::F32, gpu);
        assert!(!supervised_loss(&scores, 0.5)?.loss.is_finite());
    }
    assert!(supervised_loss(&on_gpu(&normal(&[4, 2], DType::F32, 1), DType::F32, gpu), 1.0).is_err());
    assert!(supervised_loss(&on_gpu(&normal(&[4, 3], DType::F32, 1), DType::Bf16, gpu), 1.0).is_err());
    Ok(())
}
