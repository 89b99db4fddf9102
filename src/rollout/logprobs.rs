//! The log-probabilities kept at sampling.

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// The log-probabilities of one completion's tokens: a part of a flat f32 tensor that all completions of a rollout share.
///
/// They stay on the device where they were computed, which is where training compares with them.
#[derive(Clone, Debug)]
pub struct LogProbs {
    values: Tensor,
    begin: usize,
    len: usize,
}

impl LogProbs {
    /// `len` elements of `values` from `begin` on.
    ///
    /// # Errors
    /// [`Error::Internal`] when there are fewer.
    pub fn new(values: Tensor, begin: usize, len: usize) -> Result<LogProbs> {
        if begin.checked_add(len).is_none_or(|end| end > values.len()) {
            return Err(Error::Internal(format!(
                "log-probabilities {begin} and {len} more of {}",
                values.len()
            )));
        }
        Ok(LogProbs { values, begin, len })
    }

    /// Those of several completions, one behind the other in one host tensor.
    ///
    /// # Errors
    /// None that can happen.
    pub fn of_host(logps_b: &[Vec<f32>]) -> Result<Vec<LogProbs>> {
        let flat = logps_b.concat();
        let values = Tensor::new(&[flat.len()], flat)?;
        let mut begin = 0;
        logps_b
            .iter()
            .map(|logps| {
                let part = LogProbs::new(values.clone(), begin, logps.len());
                begin += logps.len();
                part
            })
            .collect()
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The tensor that they are a part of.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// The index of the first in [`LogProbs::values`].
    pub fn begin(&self) -> usize {
        self.begin
    }

    /// A copy in host memory.
    ///
    /// # Errors
    /// Those of copying device memory.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        match self.values.gpu() {
            Some(_) => self.values.buffer::<f32>()?.download_at(self.begin, self.len),
            None => Ok(self.values.to_f32()[self.begin..self.begin + self.len].to_vec()),
        }
    }
}

/// Whether both hold the same numbers, wherever they are.
impl PartialEq for LogProbs {
    fn eq(&self, other: &LogProbs) -> bool {
        matches!((self.to_vec(), other.to_vec()), (Ok(a), Ok(b)) if a == b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_share_a_tensor() {
        let parts = LogProbs::of_host(&[vec![-1.0, -2.0], vec![], vec![-3.0]]).unwrap();
        assert_eq!(parts[2].begin(), 2);
        let lists: Vec<Vec<f32>> = parts.iter().map(|part| part.to_vec().unwrap()).collect();
        assert_eq!(lists, [vec![-1.0, -2.0], vec![], vec![-3.0]]);
        assert!(parts[1].is_empty() && parts[0].len() == 2 && parts[0] != parts[2]);
        assert!(LogProbs::new(parts[0].values().clone(), 2, 2).is_err());
    }
}
