//! Launches of `kernels/elementwise.cu`.

use crate::cuda::kernels::elementwise as kernels;
use crate::cuda::{Const, Gpu, Grid, Mut, Purpose};
use crate::error::Result;
use crate::ops::launch::{self, dimension, operand, pack};
use crate::tensor::{DType, DeviceReal, Tensor};
use half::bf16;

/// Threads of a block of the kernels that copy columns.
const COLUMNS_THREADS: u32 = 128;

pub(super) fn add(gpu: &Gpu, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    match a.dtype() {
        DType::Bf16 => add_of::<bf16>(gpu, a, b, kernels::add_forward_bf16),
        _ => add_of::<f32>(gpu, a, b, kernels::add_forward_f32),
    }
}

type Add<T> = unsafe fn(&Gpu, Grid, Const<T>, Const<T>, Mut<T>, i64) -> Result<()>;

fn add_of<T: DeviceReal>(gpu: &Gpu, a: &Tensor, b: &Tensor, kernel: Add<T>) -> Result<Tensor> {
    let n = a.len();
    let (pa, pb) = (operand::<T>(gpu, "add", a, n)?.ptr(), operand::<T>(gpu, "add", b, n)?.ptr());
    launch::fill(gpu, a.shape(), |y| {
        // SAFETY: a, b and y hold n elements; the kernel touches no element beyond n.
        unsafe { kernel(gpu, launch::elements(n, pack::<T>())?, pa, pb, y, n as i64) }
    })
}

pub(super) fn cast(gpu: &Gpu, x: &Tensor, dtype: DType) -> Result<Tensor> {
    match (x.dtype(), dtype) {
        (DType::F32, DType::Bf16) => cast_of::<f32, bf16>(gpu, x, kernels::cast_to_bf16),
        (DType::Bf16, DType::F32) => cast_of::<bf16, f32>(gpu, x, kernels::cast_to_f32),
        _ => Err(crate::error::Error::Internal(format!(
            "{} has no {} on a GPU",
            x.dtype().name(),
            dtype.name()
        ))),
    }
}

type Cast<X, Y> = unsafe fn(&Gpu, Grid, Const<X>, Mut<Y>, i64) -> Result<()>;

fn cast_of<X: DeviceReal, Y: DeviceReal>(gpu: &Gpu, x: &Tensor, kernel: Cast<X, Y>) -> Result<Tensor> {
    let n = x.len();
    let from = x.buffer::<X>()?.ptr();
    launch::fill(gpu, x.shape(), |y| {
        // SAFETY: x and y hold n elements; the kernel touches no element beyond n.
        unsafe { kernel(gpu, launch::elements(n, pack::<bf16>())?, from, y, n as i64) }
    })
}

/// Columns `from .. from + width` of x `[T, total]`.
pub(super) fn columns(gpu: &Gpu, x: &Tensor, from: usize, width: usize) -> Result<Tensor> {
    match x.dtype() {
        DType::Bf16 => columns_of::<bf16>(gpu, x, from, width, kernels::columns_forward_bf16),
        _ => columns_of::<f32>(gpu, x, from, width, kernels::columns_forward_f32),
    }
}

type Columns<T> = unsafe fn(&Gpu, Grid, Const<T>, Mut<T>, i32, i32, i32) -> Result<()>;

fn columns_of<T: DeviceReal>(
    gpu: &Gpu,
    x: &Tensor,
    from: usize,
    width: usize,
    kernel: Columns<T>,
) -> Result<Tensor> {
    let (rows, total) = x.matrix();
    let part = x.buffer::<T>()?.ptr().offset(from);
    let [total, columns] = [dimension("columns", total)?, dimension("columns", width)?];
    launch::fill(gpu, &[rows, width], |y| {
        // SAFETY: x holds rows of `total` elements and the caller has checked that from + width are not more; y holds as many
        // rows of `width`.
        unsafe { kernel(gpu, Grid::new(rows, COLUMNS_THREADS)?, part, y, total, columns, columns) }
    })
}

/// dy `[T, width]` as columns `from ..` of a matrix `[T, total]` of zeros.
pub(super) fn columns_backward(gpu: &Gpu, dy: &Tensor, from: usize, total: usize) -> Result<Tensor> {
    match dy.dtype() {
        DType::Bf16 => columns_backward_of::<bf16>(gpu, dy, from, total, kernels::columns_forward_bf16),
        _ => columns_backward_of::<f32>(gpu, dy, from, total, kernels::columns_forward_f32),
    }
}

fn columns_backward_of<T: DeviceReal>(
    gpu: &Gpu,
    dy: &Tensor,
    from: usize,
    total: usize,
    kernel: Columns<T>,
) -> Result<Tensor> {
    let (rows, width) = dy.matrix();
    let part = dy.buffer::<T>()?.ptr();
    let mut dx = gpu.zeros::<T>(rows * total, Purpose::Activations)?;
    if !dy.is_empty() {
        let at = dx.ptr_mut().offset(from);
        let [columns, total] = [dimension("columns", width)?, dimension("columns", total)?];
        // SAFETY: dy holds rows of `width` elements, dx as many of `total`, which the forward pass has found to be at least
        // from + width.
        unsafe { kernel(gpu, Grid::new(rows, COLUMNS_THREADS)?, part, at, columns, total, columns)? };
    }
    Tensor::from_buffer(&[rows, total], dx)
}
