//! Launch of `kernels/supervised_loss.cu`.

use crate::cuda::kernels::supervised_loss as kernels;
use crate::cuda::{Gpu, Grid, Purpose};
use crate::error::Result;
use crate::ops::Cost;
use crate::tensor::Tensor;

/// Threads of the one block (the kernel's launch bounds).
const THREADS: u32 = 256;

/// Operations and bytes of the sums and the gradient of t tokens: whole lines of the scores are read for two columns.
pub fn cost(t: usize) -> Cost {
    Cost { flops: 2 * t as u64, bytes: 24 * t as u64 }
}

/// The sums of the first two columns of `scores` `[T, 3]` f32, copied to the host, and `[T, 3]` rows of `slope`, 0, 0.
pub(super) fn sums_and_gradient(gpu: &Gpu, scores: &Tensor, slope: f32) -> Result<([f64; 2], Tensor)> {
    let tokens = scores.matrix().0;
    let scores = scores.buffer::<f32>()?;
    let mut gradient = gpu.alloc::<f32>(3 * tokens, Purpose::Activations)?;
    let mut sums = gpu.alloc::<f64>(2, Purpose::Workspace)?;
    let (from, to, result) = (scores.ptr(), gradient.ptr_mut(), sums.ptr_mut());
    // SAFETY: scores and gradient hold 3 numbers for each of the tokens, the sums are two.
    unsafe {
        kernels::supervised_loss_f32(gpu, Grid::new(1, THREADS)?, from, to, tokens as i64, slope, result)?;
    }
    let sums = sums.download()?;
    Ok(([sums[0], sums[1]], Tensor::from_buffer(&[tokens, 3], gradient)?))
}
