//! Element-by-element sums, columns of a matrix, and changes of the element type.

#[allow(unsafe_code)]
mod cuda;

use super::Cost;
use crate::autograd::Op;
use crate::dispatch;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// The elements of x as `dtype`, where x is: rounded to nearest even where that is narrower.
///
/// # Errors
/// On a GPU [`Error::Internal`] for float64, and those of allocating and launching.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    match x.gpu() {
        Some(gpu) if dtype != x.dtype() => cuda::cast(gpu, x, dtype),
        _ => Ok(x.to_dtype(dtype)),
    }
}

/// Operations and bytes of [`cast`] for n elements.
pub fn cast_cost(n: usize, from: DType, to: DType) -> Cost {
    Cost { flops: 0, bytes: (n * (from.size() + to.size())) as u64 }
}

/// `y = a + b` for equal shapes: the residual connection. `da = db = dy`.
pub struct Add;

impl Add {
    /// Operations and bytes of the sum of n elements; the gradient costs nothing.
    pub fn cost(n: usize, dtype: DType) -> Cost {
        Cost { flops: n as u64, bytes: (3 * n * dtype.size()) as u64 }
    }
}

impl Op<2> for Add {
    const NAME: &'static str = "add";
    type Saved = ();

    fn forward(&self, [a, b]: [&Tensor; 2]) -> Result<(Tensor, ())> {
        if a.shape() != b.shape() || a.dtype() != b.dtype() {
            return Err(Error::Internal(format!("add: shapes {:?} and {:?}", a.shape(), b.shape())));
        }
        if let Some(gpu) = a.gpu() {
            return Ok((cuda::add(gpu, a, b)?, ()));
        }
        dispatch!(a.dtype(), R => {
            let y: Vec<R> = a.real::<R>().iter().zip(b.real::<R>().iter()).map(|(&a, &b)| a + b).collect();
            Ok((Tensor::rounded(a.shape(), y, a.dtype())?, ()))
        })
    }

    fn backward(&self, (): (), dy: &Tensor, _: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        Ok([Some(dy.clone()), Some(dy.clone())])
    }
}

/// Columns `from .. from + width` of a matrix `[T, W]`: the parts of a fused projection.
pub struct Columns {
    /// First column.
    pub from: usize,
    /// Number of columns.
    pub width: usize,
}

impl Columns {
    /// Operations and bytes of cutting `width` columns out of `rows` rows.
    pub fn forward_cost(rows: usize, width: usize, dtype: DType) -> Cost {
        Cost { flops: 0, bytes: (2 * rows * width * dtype.size()) as u64 }
    }

    /// Operations and bytes of putting their gradient back among `total` columns.
    pub fn backward_cost(rows: usize, width: usize, total: usize, dtype: DType) -> Cost {
        Cost { flops: 0, bytes: (rows * (width + total) * dtype.size()) as u64 }
    }
}

impl Op<1> for Columns {
    const NAME: &'static str = "columns";
    type Saved = usize;

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, usize)> {
        let (rows, total) = x.matrix();
        let (from, to) = (self.from, self.from + self.width);
        if to > total {
            return Err(Error::Internal(format!("columns {from}..{to} of shape {:?}", x.shape())));
        }
        if let Some(gpu) = x.gpu() {
            return Ok((cuda::columns(gpu, x, from, self.width)?, total));
        }
        dispatch!(x.dtype(), R => {
            let data = x.real::<R>();
            let y: Vec<R> = data.chunks_exact(total).flat_map(|row| row[from..to].iter().copied()).collect();
            Ok((Tensor::rounded(&[rows, self.width], y, x.dtype())?, total))
        })
    }

    fn backward(&self, total: usize, dy: &Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let rows = dy.rows_of(Self::NAME, self.width)?;
        if let Some(gpu) = dy.gpu() {
            return Ok([Some(cuda::columns_backward(gpu, dy, self.from, total)?)]);
        }
        dispatch!(dy.dtype(), R => {
            let mut dx = vec![R::default(); rows * total];
            for (dx, dy) in dx.chunks_exact_mut(total).zip(dy.real::<R>().chunks_exact(self.width)) {
                dx[self.from..self.from + self.width].copy_from_slice(dy);
            }
            Ok([Some(Tensor::rounded(&[rows, total], dx, dy.dtype())?)])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::gradcheck::{gradcheck, random};

    #[test]
    fn add_gradient() -> Result<()> {
        let (a, b) = (random(&[3, 5], 1)?, random(&[3, 5], 2)?);
        assert!(gradcheck(|| Add, [&a, &b])? < 1e-9);
        assert!(Add.forward([&a, &random(&[5, 3], 1)?]).is_err());
        Ok(())
    }

    #[test]
    fn columns_cut_and_put_back() -> Result<()> {
        let x = Tensor::new(&[2, 3], vec![1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0])?;
        let (y, _) = Columns { from: 1, width: 2 }.forward([&x])?;
        assert_eq!(y.real::<f32>().as_ref(), [2.0, 3.0, 5.0, 6.0]);
        assert!(gradcheck(|| Columns { from: 2, width: 3 }, [&random(&[3, 7], 1)?])? < 1e-9);
        assert!(Columns { from: 2, width: 2 }.forward([&x]).is_err());
        Ok(())
    }
}
