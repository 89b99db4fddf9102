//! Linear layer: `y = x W^T (+ b)`.
//!
//! Shapes: x `[T, I]`, W `[O, I]` (Hugging Face's layout), b `[O]`, y `[T, O]`.
//! Gradients: `dx = dy W`, `dW = dy^T x`, `db = sum of dy over rows`, all f32 sums.
//! Rounding: once, at the store of y (bias included). Cost: 2 T I O FLOPs forward, twice that backward.

#[allow(unsafe_code)]
mod cuda;

use super::Cost;
use super::gemm::{self, Into, View, gemm};
use crate::autograd::Op;
use crate::dispatch;
use crate::error::{Error, Result};
use crate::tensor::{DType, Real, Tensor};

/// `x W^T`.
pub struct Linear;

/// `x W^T + b`.
pub struct LinearBias;

fn product(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (rows, inner) = x.matrix();
    let (out, w_inner) = w.matrix();
    if inner != w_inner || x.dtype() != w.dtype() || bias.is_some_and(|b| b.len() != out) {
        return Err(Error::Internal(format!(
            "linear: x {:?} {}, weight {:?} {}, bias {:?}",
            x.shape(),
            x.dtype().name(),
            w.shape(),
            w.dtype().name(),
            bias.map(Tensor::shape)
        )));
    }
    if let Some(gpu) = x.gpu() {
        return cuda::forward(gpu, x, w, bias);
    }
    dispatch!(x.dtype(), R => {
        let mut y = vec![R::ZERO; rows * out];
        let (xs, ws) = (x.real::<R>(), w.real::<R>());
        gemm((rows, out, inner), View::rows(&xs, inner), View::transposed(&ws, inner), &mut y, out, Into::Overwrite);
        if let Some(bias) = bias {
            let bias = bias.real::<R>();
            for row in y.chunks_exact_mut(out) {
                row.iter_mut().zip(bias.iter()).for_each(|(y, &b)| *y += b);
            }
        }
        Tensor::rounded(&[rows, out], y, x.dtype())
    })
}

/// `(dx, dW)` for the inputs that need them.
fn gradients(x: &Tensor, w: &Tensor, dy: &Tensor, needs: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let (rows, inner) = x.matrix();
    let (out, _) = w.matrix();
    if let Some(gpu) = x.gpu() {
        let dx = needs[0].then(|| cuda::input_gradient(gpu, w, dy, x.shape())).transpose()?;
        let dw = needs[1].then(|| cuda::weight_gradient(gpu, x, dy, w.shape())).transpose()?;
        return Ok([dx, dw]);
    }
    dispatch!(x.dtype(), R => {
        let dys = dy.real::<R>();
        let mut dx = None;
        if needs[0] {
            let mut data = vec![R::ZERO; rows * inner];
            let ws = w.real::<R>();
            gemm((rows, inner, out), View::rows(&dys, out), View::rows(&ws, inner), &mut data, inner, Into::Overwrite);
            dx = Some(Tensor::rounded(x.shape(), data, x.dtype())?);
        }
        let mut dw = None;
        if needs[1] {
            let mut data = vec![R::ZERO; out * inner];
            let xs = x.real::<R>();
            gemm((out, inner, rows), View::transposed(&dys, out), View::rows(&xs, inner), &mut data, inner, Into::Overwrite);
            dw = Some(Tensor::rounded(w.shape(), data, w.dtype())?);
        }
        Ok([dx, dw])
    })
}

/// Sums of the columns of dy, as the bias' gradient of this shape.
fn bias_gradient(dy: &Tensor, shape: &[usize]) -> Result<Tensor> {
    match dy.gpu() {
        Some(gpu) => cuda::column_sums(gpu, dy, shape),
        None => {
            dispatch!(dy.dtype(), R => Tensor::rounded(shape, column_sums(&dy.real::<R>(), dy.matrix().1), dy.dtype()))
        }
    }
}

/// Cost of `x W^T` for x `[rows, inner]` and W `[out, inner]`, of a bias too.
pub fn forward_cost((rows, inner, out): (usize, usize, usize), bias: bool, dtype: DType) -> Cost {
    let product = gemm::cost((rows, out, inner), dtype, dtype);
    let (sums, row) = if bias { (rows * out, out) } else { (0, 0) };
    Cost { flops: product.flops + sums as u64, bytes: product.bytes + (row * dtype.size()) as u64 }
}

/// Cost of the gradients of x, W and, if there is one, the bias, each product reading its own factors.
pub fn backward_cost((rows, inner, out): (usize, usize, usize), bias: bool, dtype: DType) -> Cost {
    let dx = gemm::cost((rows, inner, out), dtype, dtype);
    let dw = gemm::cost((out, inner, rows), dtype, dtype);
    let (sums, elements) = if bias { (rows * out, rows * out + out) } else { (0, 0) };
    Cost {
        flops: dx.flops + dw.flops + sums as u64,
        bytes: dx.bytes + dw.bytes + (elements * dtype.size()) as u64,
    }
}

/// Sums of the columns, rows added in order.
pub(crate) fn column_sums<R: Real>(x: &[R], width: usize) -> Vec<R> {
    let mut sums = vec![R::ZERO; width];
    for row in x.chunks_exact(width) {
        sums.iter_mut().zip(row).for_each(|(s, &x)| *s += x);
    }
    sums
}

impl Op<2> for Linear {
    const NAME: &'static str = "linear";
    type Saved = (Tensor, Tensor);

    fn forward(&self, [x, w]: [&Tensor; 2]) -> Result<(Tensor, Self::Saved)> {
        Ok((product(x, w, None)?, (x.clone(), w.clone())))
    }

    fn backward(&self, (x, w): Self::Saved, dy: &Tensor, needs: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        gradients(&x, &w, dy, needs)
    }
}

impl Op<3> for LinearBias {
    const NAME: &'static str = "linear";
    type Saved = (Tensor, Tensor, Vec<usize>);

    fn forward(&self, [x, w, b]: [&Tensor; 3]) -> Result<(Tensor, Self::Saved)> {
        Ok((product(x, w, Some(b))?, (x.clone(), w.clone(), b.shape().to_vec())))
    }

    fn backward(&self, (x, w, b): Self::Saved, dy: &Tensor, needs: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
        let [dx, dw] = gradients(&x, &w, dy, [needs[0], needs[1]])?;
        let db = needs[2].then(|| bias_gradient(dy, &b)).transpose()?;
        Ok([dx, dw, db])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::gradcheck::{gradcheck, random};

    #[test]
    fn hand_computed() -> Result<()> {
        let x = Tensor::new(&[2, 2], vec![1.0_f32, 2.0, 3.0, 4.0])?;
        let w = Tensor::new(&[3, 2], vec![1.0_f32, 0.0, 0.0, 1.0, 1.0, -1.0])?;
        let b = Tensor::new(&[3], vec![10.0_f32, 20.0, 30.0])?;
        assert_eq!(
            LinearBias.forward([&x, &w, &b])?.0.real::<f32>().as_ref(),
            [11., 22., 29., 13., 24., 29.]
        );
        Ok(())
    }

    #[test]
    fn costs_by_hand() {
        // y: 8 sums of 3 products, 8 additions; x, W, b and y once each.
        let forward = Cost { flops: 2 * 24 + 8, bytes: 2 * (6 + 12 + 4 + 8) };
        assert_eq!(forward_cost((2, 3, 4), true, DType::Bf16), forward);
        // dx reads dy and W, dW dy and x, db dy.
        let backward = Cost { flops: 4 * 24 + 8, bytes: 4 * ((8 + 12 + 6) + (8 + 6 + 12) + (8 + 4)) };
        assert_eq!(backward_cost((2, 3, 4), true, DType::F32), backward);
    }

    #[test]
    fn gradients_over_odd_shapes() -> Result<()> {
        for (t, i, o) in [(1, 1, 1), (3, 5, 17), (5, 17, 3)] {
            let (x, w, b) = (random(&[t, i], 1)?, random(&[o, i], 2)?, random(&[o], 3)?);
            assert!(gradcheck(|| LinearBias, [&x, &w, &b])? < 1e-7);
            assert!(gradcheck(|| Linear, [&x, &w])? < 1e-7);
        }
        assert!(Linear.forward([&random(&[2, 3], 1)?, &random(&[4, 5], 2)?]).is_err());
        Ok(())
    }
}
