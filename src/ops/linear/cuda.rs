//! The linear layer on the GPU: products of [`gemm`](crate::ops::gemm::cuda), and `kernels/column_sums.cu` for the gradient of the bias.

use crate::cuda::kernels::column_sums as kernels;
use crate::cuda::{Const, Gpu, Grid, Mut, Purpose};
use crate::error::Result;
use crate::ops::gemm::Into;
use crate::ops::gemm::cuda::{Factor, Gemm, Layout, Matrix, MatrixMut};
use crate::ops::launch::{self, operand};
use crate::tensor::{DType, DeviceReal, Tensor};
use half::bf16;

/// `y = x W^T (+ b)`.
pub(super) fn forward(gpu: &Gpu, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let shape = [x.matrix().0, w.matrix().0];
    match x.dtype() {
        DType::Bf16 => product::<bf16>(gpu, Layout::Nt, x, w, bias, &shape),
        _ => product::<f32>(gpu, Layout::Nt, x, w, bias, &shape),
    }
}

/// `dx = dy W`, of the shape of x.
pub(super) fn input_gradient(gpu: &Gpu, w: &Tensor, dy: &Tensor, shape: &[usize]) -> Result<Tensor> {
    match dy.dtype() {
        DType::Bf16 => product::<bf16>(gpu, Layout::Nn, dy, w, None, shape),
        _ => product::<f32>(gpu, Layout::Nn, dy, w, None, shape),
    }
}

/// `dW = dy^T x`, of the shape of W.
pub(super) fn weight_gradient(gpu: &Gpu, x: &Tensor, dy: &Tensor, shape: &[usize]) -> Result<Tensor> {
    match dy.dtype() {
        DType::Bf16 => product::<bf16>(gpu, Layout::Tn, dy, x, None, shape),
        _ => product::<f32>(gpu, Layout::Tn, dy, x, None, shape),
    }
}

/// The product of two tensors as a tensor of this shape.
fn product<T: Factor<T>>(
    gpu: &Gpu,
    layout: Layout,
    a: &Tensor,
    b: &Tensor,
    bias: Option<&Tensor>,
    shape: &[usize],
) -> Result<Tensor> {
    fn matrix<T: DeviceReal>(x: &Tensor) -> Result<Matrix<'_, T>> {
        let (rows, columns) = x.matrix();
        Matrix::new(x.buffer::<T>()?, rows, columns)
    }
    let columns = shape.last().copied().unwrap_or(1);
    let len: usize = shape.iter().product();
    let mut c = gpu.alloc::<T>(len, Purpose::Activations)?;
    Gemm {
        layout,
        a: matrix::<T>(a)?,
        b: matrix::<T>(b)?,
        bias: bias.map(Tensor::buffer::<T>).transpose()?,
        c: MatrixMut::new(&mut c, len / columns.max(1), columns)?,
        into: Into::Overwrite,
    }
    .run()?;
    Tensor::from_buffer(shape, c)
}

/// Sums of the columns of a matrix, as a tensor of this shape.
pub(super) fn column_sums(gpu: &Gpu, x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    match x.dtype() {
        DType::Bf16 => column_sums_of::<bf16>(gpu, x, shape, kernels::column_sums_bf16),
        _ => column_sums_of::<f32>(gpu, x, shape, kernels::column_sums_f32),
    }
}

type ColumnSums<T> = unsafe fn(&Gpu, Grid, Const<T>, Mut<T>, i32, i32) -> Result<()>;

fn column_sums_of<T: DeviceReal>(
    gpu: &Gpu,
    x: &Tensor,
    shape: &[usize],
    kernel: ColumnSums<T>,
) -> Result<Tensor> {
    // Columns and threads of a block.
    const COLUMNS: usize = 32;
    const THREADS: u32 = 1024;
    let rows = x.matrix().0;
    let columns: usize = shape.iter().product();
    let from = operand::<T>(gpu, "linear", x, rows * columns)?.ptr();
    let (m, n) = (launch::dimension("linear", rows)?, launch::dimension("linear", columns)?);
    let grid = Grid::new(columns.div_ceil(COLUMNS), THREADS)?;
    // SAFETY: x holds rows * columns elements and the sums `columns`; the kernel touches no others.
    launch::fill(gpu, shape, |sums| unsafe { kernel(gpu, grid, from, sums, m, n) })
}
