//! Cross-entropy on given tokens, over the same scores as the policy's loss.

#[allow(unsafe_code)]
pub mod cuda;

use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// What [`supervised_loss`] gives.
#[derive(Clone, Debug)]
pub struct Supervised {
    /// `-weight * sum(logp)`, nats.
    pub loss: f64,
    /// Sum of the entropies of the predictions, nats.
    pub entropy: f64,
    /// The loss's gradient by the scores, `[T, 3]` beside them.
    pub dscores: Tensor,
}

/// `-weight * sum(logp)` over all tokens, and its gradient by the scores: `-weight` in the column of the log-probabilities, 0
/// in the others.
///
/// `scores` `[T, 3]` f32, of [`LogSoftmaxKl`](crate::ops::log_softmax_kl::LogSoftmaxKl), in nats. The sums are formed in
/// f64, on the CPU from the first token to the last, on a GPU in another order, which `T` alone decides.
///
/// # Errors
/// [`Error::Internal`](crate::error::Error::Internal) for another shape or type; those of allocating and launching.
pub fn supervised_loss(scores: &Tensor, weight: f64) -> Result<Supervised> {
    let tokens = scores.rows_of("supervised_loss", 3)?;
    let ([logps, entropy], dscores) = if let Some(gpu) = scores.gpu() {
        cuda::sums_and_gradient(gpu, scores, -weight as f32)?
    } else {
        let rows = scores.to_dtype(DType::F32);
        let sum = |column: usize| rows.real::<f32>().chunks_exact(3).map(|row| f64::from(row[column])).sum();
        let dscores = [-weight as f32, 0.0, 0.0].repeat(tokens);
        ([sum(0), sum(1)], Tensor::new(&[tokens, 3], dscores)?)
    };
    Ok(Supervised { loss: -logps * weight, entropy, dscores })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() -> Result<()> {
        let scores = Tensor::new(&[3, 3], vec![-1.0_f32, 2.0, 9.0, -2.5, 3.0, 9.0, -0.5, 4.5, 9.0])?;
        let Supervised { loss, entropy, dscores } = supervised_loss(&scores, 0.25)?;
        assert_eq!((loss, entropy, dscores.shape()), (1.0, 9.5, &[3, 3][..]));
        assert_eq!(dscores.to_f32()[..], [-0.25, 0.0, 0.0].repeat(3));
        let nothing = supervised_loss(&Tensor::zeros(&[0, 3], DType::F32), 1.0)?;
        assert_eq!((nothing.loss, nothing.entropy, nothing.dscores.shape()), (0.0, 0.0, &[0, 3][..]));
        assert!(supervised_loss(&Tensor::zeros(&[3, 2], DType::F32), 1.0).is_err());
        Ok(())
    }
}
