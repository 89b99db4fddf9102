//! RMSNorm (Zhang and Sennrich 2019) and LayerNorm (Ba et al. 2016) over the last dimension, alone and behind a residual
//! addition.
//!
//! RMSNorm: `y = w * x * rstd`, `rstd = 1 / sqrt(mean(x^2) + eps)`.
//! LayerNorm: `y = w * xhat + b`, `xhat = (x - mean) * rstd`, `rstd = 1 / sqrt(var + eps)` (biased variance).
//! Gradients with `g = dy * w`: RMSNorm `dx = rstd * (g - xhat * mean(g * xhat))`;
//! LayerNorm `dx = rstd * (g - mean(g) - xhat * mean(g * xhat))`; `dw = sum over rows of dy * xhat`, `db = sum of dy`.
//! With a residual addition: `h = x + r`, `y = norm(h)`, both are results; `dh = norm's dx + the gradient of h itself`, which is
//! the gradient of x and of r.
//! Shapes: x, r, h, y `[T, C]`; w, b `[C]`. Statistics are f32; saved: what was normalised, w and, on a GPU, the statistics of
//! each row (the CPU forms them again).
//! Rounding for bf16: h; the normalised value before RMSNorm's weight (as transformers does); results. dh is rounded once.

#[allow(unsafe_code)]
mod cuda;

use super::elementwise::Add;
use super::{Cost, sum};
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

/// What the backward pass of a norm needs.
pub struct Saved {
    /// What was normalised: the op's input, or the sum of both.
    x: Tensor,
    w: Tensor,
    /// For tensors in device memory.
    statistics: Option<cuda::Statistics>,
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

/// `(dx, dw, db)`; db is empty for RMSNorm. `past`: the gradient that reaches x past the norm.
fn backward<R: Real>(
    x: &Tensor,
    w: &Tensor,
    dy: &Tensor,
    past: Option<&Tensor>,
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
    if let Some(past) = past {
        dx.iter_mut().zip(past.real::<R>().iter()).for_each(|(dx, &d)| *dx += d);
    }
    (dx, dw, db)
}

/// x (with a residual: the sum), and its norm.
fn normalise(
    op: &str,
    [x, w]: [&Tensor; 2],
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    eps: f64,
) -> Result<(Tensor, Saved)> {
    check(op, x, w)?;
    bias.map_or(Ok(0), |b| check(op, x, b))?;
    if let Some(r) = residual.filter(|r| r.shape() != x.shape() || r.dtype() != x.dtype()) {
        return Err(Error::Internal(format!("{op}: x {:?}, residual {:?}", x.shape(), r.shape())));
    }
    if let Some(gpu) = x.gpu() {
        let (x, y, statistics) = cuda::forward(gpu, [x, w], bias, residual, eps)?;
        return Ok((y, Saved { x, w: w.clone(), statistics: Some(statistics) }));
    }
    let x = match residual {
        Some(r) => Add.forward([x, r])?.0,
        None => x.clone(),
    };
    let y = dispatch!(x.dtype(), R => forward::<R>(&x, w, bias, eps)?);
    Ok((y, Saved { x, w: w.clone(), statistics: None }))
}

/// `(dx, dw, db)` of what was normalised; no db for RMSNorm.
fn differentiate(
    Saved { x, w, statistics }: &Saved,
    dy: &Tensor,
    past: Option<&Tensor>,
    eps: f64,
    centred: bool,
) -> Result<(Tensor, Tensor, Option<Tensor>)> {
    if let (Some(gpu), Some(statistics)) = (x.gpu(), statistics) {
        return cuda::backward(gpu, [x, w], statistics, dy, past);
    }
    dispatch!(x.dtype(), R => {
        let (dx, dw, db) = backward::<R>(x, w, dy, past, eps, centred);
        let db = if centred { Some(Tensor::rounded(w.shape(), db, w.dtype())?) } else { None };
        Ok((Tensor::rounded(x.shape(), dx, x.dtype())?, Tensor::rounded(w.shape(), dw, w.dtype())?, db))
    })
}

/// Operations and bytes of a norm of `[rows, width]` forward; `vectors` of `[width]` are read.
fn forward_cost(
    rows: usize,
    width: usize,
    vectors: usize,
    flops: usize,
    residual: bool,
    dtype: DType,
) -> Cost {
    let tensors = if residual { 4 } else { 2 };
    let flops = flops + usize::from(residual);
    Cost {
        flops: (flops * rows * width) as u64,
        bytes: ((tensors * rows + vectors) * width * dtype.size()) as u64,
    }
}

/// The same backward; `vectors` of `[width]` are read or written.
fn backward_cost(
    rows: usize,
    width: usize,
    vectors: usize,
    flops: usize,
    residual: bool,
    dtype: DType,
) -> Cost {
    let tensors = if residual { 4 } else { 3 };
    let flops = flops + usize::from(residual);
    Cost {
        flops: (flops * rows * width) as u64,
        bytes: ((tensors * rows + vectors) * width * dtype.size()) as u64,
    }
}

impl RmsNorm {
    /// Operations and bytes forward of `[rows, width]`, of [`add_rms_norm`] with a residual.
    pub fn forward_cost(rows: usize, width: usize, residual: bool, dtype: DType) -> Cost {
        forward_cost(rows, width, 1, 4, residual, dtype)
    }

    /// Operations and bytes backward.
    pub fn backward_cost(rows: usize, width: usize, residual: bool, dtype: DType) -> Cost {
        backward_cost(rows, width, 2, 9, residual, dtype)
    }
}

impl LayerNorm {
    /// Operations and bytes forward of `[rows, width]`, of [`add_layer_norm`] with a residual.
    pub fn forward_cost(rows: usize, width: usize, residual: bool, dtype: DType) -> Cost {
        forward_cost(rows, width, 2, 8, residual, dtype)
    }

    /// Operations and bytes backward.
    pub fn backward_cost(rows: usize, width: usize, residual: bool, dtype: DType) -> Cost {
        backward_cost(rows, width, 3, 13, residual, dtype)
    }
}

impl Op<2> for RmsNorm {
    const NAME: &'static str = "rms_norm";
    type Saved = Saved;

    fn forward(&self, inputs: [&Tensor; 2]) -> Result<(Tensor, Saved)> {
        normalise(Self::NAME, inputs, None, None, self.eps)
    }

    fn backward(&self, saved: Saved, dy: &Tensor, _: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        let (dx, dw, _) = differentiate(&saved, dy, None, self.eps, false)?;
        Ok([Some(dx), Some(dw)])
    }
}

impl Op<3> for LayerNorm {
    const NAME: &'static str = "layer_norm";
    type Saved = Saved;

    fn forward(&self, [x, w, b]: [&Tensor; 3]) -> Result<(Tensor, Saved)> {
        normalise(Self::NAME, [x, w], Some(b), None, self.eps)
    }

    fn backward(&self, saved: Saved, dy: &Tensor, _: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
        let (dx, dw, db) = differentiate(&saved, dy, None, self.eps, true)?;
        Ok([Some(dx), Some(dw), db])
    }
}

/// `h = x + residual` and `y = RMSNorm(h)` in one pass over memory: `(h, y, saved)`.
///
/// # Errors
/// [`Error::Internal`] for shapes or types that don't fit.
pub fn add_rms_norm(x: &Tensor, residual: &Tensor, w: &Tensor, eps: f64) -> Result<(Tensor, Tensor, Saved)> {
    let (y, saved) = normalise("add_rms_norm", [x, w], None, Some(residual), eps)?;
    Ok((saved.x.clone(), y, saved))
}

/// The gradients of [`add_rms_norm`] for those of y and, unless nobody else uses it, h: `(dh, dw)`, where dh is the gradient of
/// both x and the residual.
///
/// # Errors
/// [`Error::Internal`] for shapes or types that don't fit.
pub fn add_rms_norm_backward(
    saved: &Saved,
    dy: &Tensor,
    dh: Option<&Tensor>,
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    let (dh, dw, _) = differentiate(saved, dy, dh, eps, false)?;
    Ok((dh, dw))
}

/// `h = x + residual` and `y = LayerNorm(h)` in one pass over memory: `(h, y, saved)`.
///
/// # Errors
/// [`Error::Internal`] for shapes or types that don't fit.
pub fn add_layer_norm(
    x: &Tensor,
    residual: &Tensor,
    [w, b]: [&Tensor; 2],
    eps: f64,
) -> Result<(Tensor, Tensor, Saved)> {
    let (y, saved) = normalise("add_layer_norm", [x, w], Some(b), Some(residual), eps)?;
    Ok((saved.x.clone(), y, saved))
}

/// The gradients of [`add_layer_norm`] for those of y and, unless nobody else uses it, h: `(dh, dw, db)`, where dh is the
/// gradient of both x and the residual.
///
/// # Errors
/// [`Error::Internal`] for shapes or types that don't fit.
pub fn add_layer_norm_backward(
    saved: &Saved,
    dy: &Tensor,
    dh: Option<&Tensor>,
    eps: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    match differentiate(saved, dy, dh, eps, true)? {
        (dh, dw, Some(db)) => Ok((dh, dw, db)),
        _ => Err(Error::Internal("add_layer_norm_backward of what add_rms_norm saved".into())),
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

    /// Both results of a residual norm one above the other, as an op that gradcheck can take.
    struct Behind {
        centred: bool,
    }

    impl Op<4> for Behind {
        const NAME: &'static str = "behind";
        type Saved = Saved;

        fn forward(&self, [x, r, w, b]: [&Tensor; 4]) -> Result<(Tensor, Saved)> {
            let (h, y, saved) = match self.centred {
                true => add_layer_norm(x, r, [w, b], 1e-6)?,
                false => add_rms_norm(x, r, w, 1e-6)?,
            };
            let both = [h.real::<f64>(), y.real::<f64>()].concat();
            Ok((Tensor::new(&[2, x.len()], both)?, saved))
        }

        fn backward(&self, saved: Saved, d: &Tensor, _: [bool; 4]) -> Result<[Option<Tensor>; 4]> {
            let half = |i: usize| {
                let n = saved.x.len();
                Tensor::new(saved.x.shape(), d.real::<f64>()[i * n..(i + 1) * n].to_vec())
            };
            let (dh, dy) = (half(0)?, half(1)?);
            let (dx, dw, db) = match self.centred {
                true => {
                    let (dx, dw, db) = add_layer_norm_backward(&saved, &dy, Some(&dh), 1e-6)?;
                    (dx, dw, Some(db))
                }
                false => {
                    let (dx, dw) = add_rms_norm_backward(&saved, &dy, Some(&dh), 1e-6)?;
                    (dx, dw, None)
                }
            };
            Ok([Some(dx.clone()), Some(dx), Some(dw), db])
        }
    }

    #[test]
    fn gradients_behind_a_residual() -> Result<()> {
        let (x, r, w, b) = (random(&[3, 5], 1)?, random(&[3, 5], 2)?, random(&[5], 3)?, random(&[5], 4)?);
        assert!(gradcheck(|| Behind { centred: false }, [&x, &r, &w, &b])? < 1e-7);
        assert!(gradcheck(|| Behind { centred: true }, [&x, &r, &w, &b])? < 1e-7);
        // The same as both one after the other; without a gradient of h, the norm's alone.
        let (h, y, saved) = add_rms_norm(&x, &r, &w, 1e-6)?;
        let sum = Add.forward([&x, &r])?.0;
        let (apart, saved_apart) = RmsNorm { eps: 1e-6 }.forward([&sum, &w])?;
        assert_eq!((h.real::<f64>(), y.real::<f64>()), (sum.real(), apart.real()));
        let [dx, _] = RmsNorm { eps: 1e-6 }.backward(saved_apart, &x, [true; 2])?;
        let (dh, _) = add_rms_norm_backward(&saved, &x, None, 1e-6)?;
        assert_eq!(Some(dh.real::<f64>().to_vec()), dx.map(|dx| dx.real::<f64>().to_vec()));
        assert!(add_rms_norm(&x, &random(&[5, 3], 2)?, &w, 1e-6).is_err());
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
