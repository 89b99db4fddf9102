//! Cross-entropy on given tokens, over the same scores as the policy's loss.

#[allow(unsafe_code)]
pub mod cuda;

use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// `-weight * sum(logp)` over all tokens, and its gradient by the scores, `[T, 3]` beside them: `-weight` in the column of
/// the log-probabilities, 0 in the others.
///
/// `scores` `[T, 3]` f32, of [`LogSoftmaxKl`](crate::ops::log_softmax_kl::LogSoftmaxKl), in nats. The sum is formed in
/// f64, on the CPU from the first token to the last, on a GPU in another order, which `T` alone decides.
///
/// # Errors
/// [`Error::Internal`](crate::error::Error::Internal) for another shape or type; those of allocating and launching.
pub fn supervised_loss(scores: &Tensor, weight: f64) -> Result<(f64, Tensor)> {
    let tokens = scores.rows_of("supervised_loss", 3)?;
    if let Some(gpu) = scores.gpu() {
        let (sum, dscores) = cuda::sum_and_gradient(gpu, scores, -weight as f32)?;
        return Ok((-sum * weight, dscores));
    }
    let rows = scores.to_dtype(DType::F32);
    let logps = rows.real::<f32>().chunks_exact(3).map(|row| f64::from(row[0])).sum::<f64>();
    let gradient = [-weight as f32, 0.0, 0.0].repeat(tokens);
    Ok((-logps * weight, Tensor::new(&[tokens, 3], gradient)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() -> Result<()> {
        let scores = Tensor::new(&[3, 3], vec![-1.0_f32, 9.0, 9.0, -2.5, 9.0, 9.0, -0.5, 9.0, 9.0])?;
        let (loss, gradient) = supervised_loss(&scores, 0.25)?;
        assert_eq!(loss, 1.0);
        assert_eq!(gradient.shape(), [3, 3]);
        assert_eq!(gradient.to_f32()[..], [-0.25, 0.0, 0.0].repeat(3));
        let (nothing, gradient) = supervised_loss(&Tensor::zeros(&[0, 3], DType::F32), 1.0)?;
        assert_eq!((nothing, gradient.shape()), (0.0, &[0, 3][..]));
        assert!(supervised_loss(&Tensor::zeros(&[3, 2], DType::F32), 1.0).is_err());
        Ok(())
    }
}
