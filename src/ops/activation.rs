//! SwiGLU, QuickGELU and GELU.
//!
//! SwiGLU (Shazeer 2020): `y = silu(g) * u`, `silu(g) = g s`, `s = 1 / (1 + e^-g)`;
//! `dg = dy u s (1 + g (1 - s))`, `du = dy g s`.
//! QuickGELU (CLIP): `y = x s(1.702 x)`; `dy/dx = s + 1.702 x s (1 - s)`.
//! GELU (Hendrycks and Gimpel 2016, exact): `y = x Phi(x)`, `dy/dx = Phi(x) + x phi(x)`.
//! Element by element, any equal shapes; f32 arithmetic, one rounding at the store (transformers rounds silu(g)
//! to bf16 before the product; we do too).

#[allow(unsafe_code)]
mod cuda;

use super::Cost;
use crate::autograd::Op;
use crate::dispatch;
use crate::error::{Error, Result};
use crate::tensor::dtype::round_bf16;
use crate::tensor::{DType, Real, Tensor};
use rayon::prelude::*;

/// Elements per parallel task.
const CHUNK: usize = 1 << 16;

fn map<R: Real>(x: &[R], f: impl Fn(R) -> R + Sync) -> Vec<R> {
    if x.len() <= CHUNK {
        return x.iter().map(|&x| f(x)).collect();
    }
    let mut y = x.to_vec();
    y.par_chunks_mut(CHUNK).for_each(|c| c.iter_mut().for_each(|x| *x = f(*x)));
    y
}

fn zip<R: Real>(a: &[R], b: &[R], f: impl Fn(R, R) -> R + Sync) -> Vec<R> {
    if a.len() <= CHUNK {
        return a.iter().zip(b).map(|(&a, &b)| f(a, b)).collect();
    }
    let mut y = a.to_vec();
    y.par_chunks_mut(CHUNK)
        .zip(b.par_chunks(CHUNK))
        .for_each(|(a, b)| a.iter_mut().zip(b).for_each(|(a, &b)| *a = f(*a, b)));
    y
}

#[inline(always)]
fn sigmoid<R: Real>(x: R) -> R {
    R::ONE / (R::ONE + (-x).exp())
}

/// Operations and bytes of an activation of n elements with `operands` tensors in and out: an exponential or error function
/// counts as one operation.
fn cost(n: usize, operands: usize, flops: usize, dtype: DType) -> Cost {
    Cost { flops: (flops * n) as u64, bytes: (operands * n * dtype.size()) as u64 }
}

/// `silu(gate) * up`.
pub struct SwiGlu;

impl SwiGlu {
    /// Operations and bytes for n elements of the result.
    pub fn forward_cost(n: usize, dtype: DType) -> Cost {
        cost(n, 3, 6, dtype)
    }

    /// Operations and bytes of both gradients.
    pub fn backward_cost(n: usize, dtype: DType) -> Cost {
        cost(n, 5, 12, dtype)
    }
}

impl Op<2> for SwiGlu {
    const NAME: &'static str = "swiglu";
    type Saved = (Tensor, Tensor);

    fn forward(&self, [gate, up]: [&Tensor; 2]) -> Result<(Tensor, Self::Saved)> {
        if gate.shape() != up.shape() || gate.dtype() != up.dtype() {
            return Err(Error::Internal(format!("swiglu: shapes {:?} and {:?}", gate.shape(), up.shape())));
        }
        if let Some(gpu) = gate.gpu() {
            return Ok((cuda::swiglu(gpu, gate, up)?, (gate.clone(), up.clone())));
        }
        let y = dispatch!(gate.dtype(), R => {
            let (g, u) = (gate.real::<R>(), up.real::<R>());
            // Two loops, since one that may round is not made one of vectors.
            let y = match gate.dtype() {
                DType::Bf16 => zip(&g, &u, |g, u| R::of(f64::from(round_bf16((g * sigmoid(g)).f64() as f32))) * u),
                _ => zip(&g, &u, |g, u| g * sigmoid(g) * u),
            };
            Tensor::rounded(gate.shape(), y, gate.dtype())?
        });
        Ok((y, (gate.clone(), up.clone())))
    }

    fn backward(&self, (gate, up): Self::Saved, dy: &Tensor, _: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        if let Some(gpu) = gate.gpu() {
            let (d_gate, d_up) = cuda::swiglu_backward(gpu, &gate, &up, dy)?;
            return Ok([Some(d_gate), Some(d_up)]);
        }
        dispatch!(gate.dtype(), R => {
            let (g, u, d) = (gate.real::<R>(), up.real::<R>(), dy.real::<R>());
            let slope = zip(&g, &u, |g, u| {
                let s = sigmoid(g);
                u * s * (R::ONE + g * (R::ONE - s))
            });
            let dg = zip(&slope, &d, |s, d| s * d);
            let du = zip(&g, &d, |g, d| d * g * sigmoid(g));
            let out = |x| Tensor::rounded(gate.shape(), x, gate.dtype());
            Ok([Some(out(dg)?), Some(out(du)?)])
        })
    }
}

/// `x * sigmoid(1.702 x)`.
pub struct QuickGelu;

impl QuickGelu {
    /// Operations and bytes for n elements.
    pub fn forward_cost(n: usize, dtype: DType) -> Cost {
        cost(n, 2, 5, dtype)
    }

    /// Operations and bytes of the gradient.
    pub fn backward_cost(n: usize, dtype: DType) -> Cost {
        cost(n, 3, 10, dtype)
    }
}

impl Op<1> for QuickGelu {
    const NAME: &'static str = "quick_gelu";
    type Saved = Tensor;

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, Tensor)> {
        if let Some(gpu) = x.gpu() {
            return Ok((cuda::quick_gelu(gpu, x)?, x.clone()));
        }
        let y = dispatch!(x.dtype(), R => {
            let y = map::<R>(&x.real(), |x| x * sigmoid(R::of(1.702) * x));
            Tensor::rounded(x.shape(), y, x.dtype())?
        });
        Ok((y, x.clone()))
    }

    fn backward(&self, x: Tensor, dy: &Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        if let Some(gpu) = x.gpu() {
            return Ok([Some(cuda::quick_gelu_backward(gpu, &x, dy)?)]);
        }
        dispatch!(x.dtype(), R => {
            let dx = zip::<R>(&x.real(), &dy.real(), |x, d| {
                let a = R::of(1.702);
                let s = sigmoid(a * x);
                d * (s + a * x * s * (R::ONE - s))
            });
            Ok([Some(Tensor::rounded(x.shape(), dx, x.dtype())?)])
        })
    }
}

/// `x * Phi(x)` with the error function.
pub struct Gelu;

impl Gelu {
    /// Operations and bytes for n elements.
    pub fn forward_cost(n: usize, dtype: DType) -> Cost {
        cost(n, 2, 5, dtype)
    }

    /// Operations and bytes of the gradient.
    pub fn backward_cost(n: usize, dtype: DType) -> Cost {
        cost(n, 3, 10, dtype)
    }
}

fn phi_cdf<R: Real>(x: R) -> R {
    R::of(0.5) * (R::ONE + (x * R::of(std::f64::consts::FRAC_1_SQRT_2)).erf())
}

impl Op<1> for Gelu {
    const NAME: &'static str = "gelu";
    type Saved = Tensor;

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, Tensor)> {
        if let Some(gpu) = x.gpu() {
            return Ok((cuda::gelu(gpu, x)?, x.clone()));
        }
        let y = dispatch!(x.dtype(), R => {
            Tensor::rounded(x.shape(), map::<R>(&x.real(), |x| x * phi_cdf(x)), x.dtype())?
        });
        Ok((y, x.clone()))
    }

    fn backward(&self, x: Tensor, dy: &Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        if let Some(gpu) = x.gpu() {
            return Ok([Some(cuda::gelu_backward(gpu, &x, dy)?)]);
        }
        dispatch!(x.dtype(), R => {
            let dx = zip::<R>(&x.real(), &dy.real(), |x, d| {
                let density = (x * x * R::of(-0.5)).exp() * R::of(1.0 / (2.0 * std::f64::consts::PI).sqrt());
                d * (phi_cdf(x) + x * density)
            });
            Ok([Some(Tensor::rounded(x.shape(), dx, x.dtype())?)])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::gradcheck::{gradcheck, random};

    #[test]
    fn values() -> Result<()> {
        let x = Tensor::new(&[2], vec![1.0_f64, -2.0])?;
        let y = Gelu.forward([&x])?.0;
        // Phi(1) = 0.841344746068543, Phi(-2) = 0.022750131948179.
        assert!((y.real::<f64>()[0] - 0.841_344_746_068_543).abs() < 1e-14);
        assert!((y.real::<f64>()[1] + 2.0 * 0.022_750_131_948_179).abs() < 1e-14);
        let q = QuickGelu.forward([&x])?.0;
        assert!((q.real::<f64>()[0] - 1.0 / (1.0 + (-1.702_f64).exp())).abs() < 1e-15);
        let s = SwiGlu.forward([&x, &Tensor::new(&[2], vec![3.0_f64, 5.0])?])?.0;
        assert!((s.real::<f64>()[1] + 10.0 / (1.0 + 2.0_f64.exp())).abs() < 1e-14);
        Ok(())
    }

    #[test]
    fn gradients() -> Result<()> {
        let (a, b) = (random(&[3, 17], 1)?, random(&[3, 17], 2)?);
        assert!(gradcheck(|| SwiGlu, [&a, &b])? < 1e-7);
        assert!(gradcheck(|| QuickGelu, [&a])? < 1e-7);
        assert!(gradcheck(|| Gelu, [&a])? < 1e-7);
        assert!(SwiGlu.forward([&a, &random(&[17, 3], 2)?]).is_err());
        Ok(())
    }
}
