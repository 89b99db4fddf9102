//! Launch of `kernels/supervised_loss.cu`.

use crate::cuda::kernels::supervised_loss as kernels;
use crate::cuda::{Gpu, Grid, Purpose};
use crate::error::Result;
use crate::ops::Cost;
use crate::tensor::Tensor;

/// Threads of the one block (the kernel's launch bounds).
const THREADS: u32 = 256;

/// Operations and bytes of the sum and the gradient of t tokens: whole lines of the scores are read for one column.
pub fn cost(t: usize) -> Cost {
    Cost { flops: t as u64, bytes: 24 * t as u64 }
}

/// The sum of the first column of `scores` `[T, 3]` f32, copied to the host, and `[T, 3]` rows of `slope`, 0, 0.
pub(super) fn sum_and_gradient(gpu: &Gpu, scores: &Tensor, slope: f32) -> Result<(f64, Tensor)> {
    let tokens = scores.matrix().0;
    let scores = scores.buffer::<f32>()?;
    let mut gradient = gpu.alloc::<f32>(3 * tokens, Purpose::Activations)?;
    let mut sum = gpu.alloc::<f64>(1, Purpose::Workspace)?;
    let (from, to, result) = (scores.ptr(), gradient.ptr_mut(), sum.ptr_mut());
    // SAFETY: scores and gradient hold 3 numbers for each of the tokens, the sum is one.
    unsafe {
        kernels::supervised_loss_f32(gpu, Grid::new(1, THREADS)?, from, to, tokens as i64, slope, result)?;
    }
    Ok((sum.download()?[0], Tensor::from_buffer(&[tokens, 3], gradient)?))
}
