//! Attention on a GPU for every head dimension up to 128.
//!
//! The kernels have the multiples of 16. Heads of another dimension are filled up with zeros, which add nothing to any product, and
//! the results are cut back; the scores are scaled by the dimension that the heads really have.

use super::{Attention, Heads, Saved, cuda};
use crate::autograd::Op;
use crate::cuda::Gpu;
use crate::error::Result;
use crate::ops::elementwise::Columns;
use crate::tensor::Tensor;

impl Heads {
    /// With the least dimension that the kernels have for these.
    pub(super) fn wide(self) -> Heads {
        Heads { dim: self.dim.next_multiple_of(16), ..self }
    }

    /// What scores are multiplied by to be exponents of 2: log2(e) / sqrt(D).
    pub(super) fn exponent(self) -> f32 {
        (std::f64::consts::LOG2_E / (self.dim as f64).sqrt()) as f32
    }

    /// `[T, heads * D]` with heads as wide as the kernels'.
    pub(super) fn widen(self, x: &Tensor) -> Result<Tensor> {
        let wide = self.wide().dim;
        if wide == self.dim {
            return Ok(x.clone());
        }
        let (rows, width) = x.matrix();
        let heads = width / self.dim;
        let columns = Columns { from: 0, width: self.dim };
        let [y] = columns.backward(wide, &x.reshape(&[rows * heads, self.dim])?, [true])?;
        y.unwrap_or_else(|| x.clone()).reshape(&[rows, heads * wide])
    }

    /// The inverse of [`Heads::widen`].
    pub(super) fn narrow(self, x: &Tensor) -> Result<Tensor> {
        let wide = self.wide().dim;
        if wide == self.dim {
            return Ok(x.clone());
        }
        let (rows, width) = x.matrix();
        let heads = width / wide;
        let (y, _) = Columns { from: 0, width: self.dim }.forward([&x.reshape(&[rows * heads, wide])?])?;
        y.reshape(&[rows, heads * self.dim])
    }
}

impl Attention {
    fn wide(&self) -> Attention {
        Attention { heads: self.heads.wide(), segments: self.segments.clone(), causal: self.causal }
    }
}

/// o, and what the backward pass needs. The caller has checked shapes and segments.
pub(super) fn forward(gpu: &Gpu, op: &Attention, inputs: [&Tensor; 3]) -> Result<(Tensor, Saved)> {
    let [q, k, v] = inputs.map(|x| op.heads.widen(x));
    let (q, k, v) = (q?, k?, v?);
    let (o, lse) = cuda::forward(gpu, &op.wide(), [&q, &k, &v], op.heads.exponent())?;
    Ok((op.heads.narrow(&o)?, Saved { q, k, v, o, lse }))
}

/// dq, dk, dv.
pub(super) fn backward(gpu: &Gpu, op: &Attention, saved: &Saved, dy: &Tensor) -> Result<[Option<Tensor>; 3]> {
    let dy = op.heads.widen(dy)?;
    let [dq, dk, dv] = cuda::backward(gpu, &op.wide(), saved, &dy, op.heads.exponent())?;
    let [dq, dk, dv] = [dq, dk, dv].map(|d| op.heads.narrow(&d).map(Some));
    Ok([dq?, dk?, dv?])
}
