//! RMSNorm (Zhang and Sennrich 2019) and LayerNorm (Ba et al. 2016) over the last dimension.
//!
//! RMSNorm: `y = w * x * rstd`, `rstd = 1 / sqrt(mean(x^2) + eps)`.
//! LayerNorm: `y = w * xhat + b`, `xhat = (x - mean) * rstd`, `rstd = 1 / sqrt(var + eps)` (biased variance).
//! Gradients with `g = dy * w`: RMSNorm `dx = rstd * (g - xhat * mean(g * xhat))`;
//! LayerNorm `dx = rstd * (g - mean(g) - xhat * mean(g * xhat))`; `dw = sum over rows of dy * xhat`, `db = sum of dy`.
//! Shapes: x, y `[T, C]`; w, b `[C]`. Statistics are f32; saved: x, w and the statistics of each row.
//! Rounding for bf16: the normalised value before the weight (as transformers' RMSNorm does), then the result.

use super::sum;
use crate::autograd::Op;
use crate::dispatch;
use crate::error::{Error, Result};
use crate::tensor::dtype::round_bf16;
use crate::tensor::{DType, Real, Tensor};

/// RMSNorm with its epsilon.
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f64,
}

/// LayerNorm with its epsilon.
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f64,
}

/// Per row: mean (0 for RMSNorm) and reciprocal standard deviation.
type RowStatistics<R> = Vec<(R, R)>;

fn statistics<R: Real>(x: &[R], width: usize, eps: f64, centred: bool) -> RowStatistics<R> {
    let n = R::of(width as f64);
    x.chunks_exact(width)
        .map(|row| {
            let mean = if centred { sum(width, |i| row[i]) / n } else { R::ZERO };
            let square = sum(width, |i| (row[i] - mean) * (row[i] - mean)) / n;
            (mean, R::ONE / (square + R::of(eps)).sqrt())
        })
        .collect()
}

fn check(op: &str, x: &Tensor, w: &Tensor) -> Result<usize> {
    let (_, width) = x.matrix();
    if w.len() != width || w.dtype() != x.dtype() {
        return Err(Error::Internal(format!("{op}: x {:?}, weight {:?}", x.shape(), w.shape())));
    }
    Ok(width)
}

fn forward<R: Real>(x: &Tensor, w: &Tensor, b: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let (_, width) = x.matrix();
    let (xs, ws) = (x.real::<R>(), w.real::<R>());
    let bs = b.map(|b| b.real::<R>());
    let stats = statistics(&xs, width, eps, b.is_some());
    let mut y = Vec::with_capacity(xs.len());
    let round_first = x.dtype() == DType::Bf16 && b.is_none();
    for (row, (mean, rstd)) in xs.chunks_exact(width).zip(stats) {
        for i in 0..width {
            let mut xhat = (row[i] - mean) * rstd;
            if round_first {
                xhat = R::of(f64::from(round_bf16(xhat.f64() as f32)));
            }
            let bias = bs.as_ref().map_or(R::ZERO, |b| b[i]);
            y.push(xhat * ws[i] + bias);
        }
    }
    Tensor::rounded(x.shape(), y, x.dtype())
}

/// `(dx, dw, db)`; db is empty for RMSNorm.
fn backward<R: Real>(
    x: &Tensor,
    w: &Tensor,
    dy: &Tensor,
    eps: f64,
    centred: bool,
) -> (Vec<R>, Vec<R>, Vec<R>) {
    let (_, width) = x.matrix();
    let n = R::of(width as f64);
    let (xs, ws, dys) = (x.real::<R>(), w.real::<R>(), dy.real::<R>());
    let stats = statistics(&xs, width, eps, centred);
    let mut dx = Vec::with_capacity(xs.len());
    let mut dw = vec![R::ZERO; width];
    let mut db = vec![R::ZERO; if centred { width } else { 0 }];
    for ((row, dy), (mean, rstd)) in xs.chunks_exact(width).zip(dys.chunks_exact(width)).zip(stats) {
        let xhat = |i: usize| (row[i] - mean) * rstd;
        let projection = sum(width, |i| dy[i] * ws[i] * xhat(i)) / n;
        let centre = if centred { sum(width, |i| dy[i] * ws[i]) / n } else { R::ZERO };
        for i in 0..width {
            dx.push(rstd * (dy[i] * ws[i] - centre - xhat(i) * projection));
            dw[i] += dy[i] * xhat(i);
        }
        db.iter_mut().zip(dy).for_each(|(s, &d)| *s += d);
    }
    (dx, dw, db)
}

impl Op<2> for RmsNorm {
    const NAME: &'static str = "rms_norm";
    type Saved = (Tensor, Tensor);

    fn forward(&self, [x, w]: [&Tensor; 2]) -> Result<(Tensor, Self::Saved)> {
        check(Self::NAME, x, w)?;
        let y = dispatch!(x.dtype(), R => forward::<R>(x, w, None, self.eps)?);
        Ok((y, (x.clone(), w.clone())))
    }

    fn backward(&self, (x, w): Self::Saved, dy: &Tensor, _: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        dispatch!(x.dtype(), R => {
            let (dx, dw, _) = backward::<R>(&x, &w, dy, self.eps, false);
            Ok([Some(Tensor::rounded(x.shape(), dx, x.dtype())?), Some(Tensor::rounded(w.shape(), dw, w.dtype())?)])
        })
    }
}

impl Op<3> for LayerNorm {
    const NAME: &'static str = "layer_norm";
    type Saved = (Tensor, Tensor);

    fn forward(&self, [x, w, b]: [&Tensor; 3]) -> Result<(Tensor, Self::Saved)> {
        check(Self::NAME, x, w)?;
        check(Self::NAME, x, b)?;
        let y = dispatch!(x.dtype(), R => forward::<R>(x, w, Some(b), self.eps)?);
        Ok((y, (x.clone(), w.clone())))
    }

    fn backward(&self, (x, w): Self::Saved, dy: &Tensor, _: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
        dispatch!(x.dtype(), R => {
            let (dx, dw, db) = backward::<R>(&x, &w, dy, self.eps, true);
            Ok([
                Some(Tensor::rounded(x.shape(), dx, x.dtype())?),
                Some(Tensor::rounded(w.shape(), dw, w.dtype())?),
                Some(Tensor::rounded(w.shape(), db, w.dtype())?),
            ])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::gradcheck::{gradcheck, random};

    #[test]
    fn hand_computed() -> Result<()> {
        let x = Tensor::new(&[1, 2], vec![3.0_f32, 4.0])?;
        let (w, b) = (Tensor::new(&[2], vec![1.0_f32, 2.0])?, Tensor::new(&[2], vec![0.5_f32, 0.5])?);
        // rms = sqrt(12.5); centred: mean 3.5, deviation 0.5.
        let rms = RmsNorm { eps: 0.0 }.forward([&x, &w])?.0;
        let want = [3.0 / 12.5_f32.sqrt(), 8.0 / 12.5_f32.sqrt()];
        assert!(rms.real::<f32>().iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6));
        let ln = LayerNorm { eps: 0.0 }.forward([&x, &w, &b])?.0;
        assert_eq!(ln.real::<f32>().as_ref(), [-0.5, 2.5]);
        Ok(())
    }

    #[test]
    fn gradients_over_odd_shapes() -> Result<()> {
        for (t, c) in [(1, 3), (3, 5), (2, 17)] {
            let (x, w, b) = (random(&[t, c], 1)?, random(&[c], 2)?, random(&[c], 3)?);
            assert!(gradcheck(|| RmsNorm { eps: 1e-6 }, [&x, &w])? < 1e-7);
            assert!(gradcheck(|| LayerNorm { eps: 1e-6 }, [&x, &w, &b])? < 1e-7);
        }
        assert!(RmsNorm { eps: 0.0 }.forward([&random(&[2, 3], 1)?, &random(&[4], 2)?]).is_err());
        Ok(())
    }
}
