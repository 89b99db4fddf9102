//! Launches of `kernels/norm.cu`.

use crate::cuda::kernels::norm as kernels;
use crate::cuda::{Buffer, Const, Gpu, Grid, Mut, Purpose};
use crate::error::{Error, Result};
use crate::ops::launch::{self, dimension, operand, optional, pack};
use crate::tensor::{DType, DeviceReal, Tensor};
use half::bf16;

/// Threads of a block that has rows, and of one that adds partial sums (the kernels' launch bounds).
const THREADS: u32 = 128;
const SUM_THREADS: u32 = 256;

/// The most static shared memory of a kernel that also has dynamic memory, padded as that begins.
const STATIC_SHARED_BYTES: usize = 1024;

/// Columns of a block that adds partial sums.
const SUM_COLUMNS: usize = 32;

/// Rows of which a block of the backward pass adds the weight's gradient: a number of its own, so that the sums are the same
/// on every GPU.
const ROWS_PER_BLOCK: usize = 16;

/// The statistics of the rows `[T]` that the backward pass needs; no mean for RMSNorm.
#[derive(Debug)]
pub(super) struct Statistics {
    mean: Option<Buffer<f32>>,
    rstd: Buffer<f32>,
}

/// The kernels' prototypes: operands, results, partial sums or statistics, sizes, epsilon.
#[rustfmt::skip]
mod prototypes {
    use super::{Const, Gpu, Grid, Mut, Result};

    pub type RmsForward<T> =
        unsafe fn(&Gpu, Grid, Const<T>, Const<T>, Const<T>, Mut<T>, Mut<T>, Mut<f32>, i32, f32) -> Result<()>;
    pub type LayerForward<T> = unsafe fn(
        &Gpu, Grid, Const<T>, Const<T>, Const<T>, Const<T>, Mut<T>, Mut<T>, Mut<f32>, Mut<f32>, i32, f32,
    ) -> Result<()>;
    pub type RmsBackward<T> = unsafe fn(
        &Gpu, Grid, Const<T>, Const<T>, Const<T>, Const<T>, Const<f32>, Mut<T>, Mut<f32>, i32, i32, i32,
    ) -> Result<()>;
    pub type LayerBackward<T> = unsafe fn(
        &Gpu, Grid, Const<T>, Const<T>, Const<T>, Const<T>, Const<f32>, Const<f32>, Mut<T>, Mut<f32>, Mut<f32>,
        i32, i32, i32,
    ) -> Result<()>;
    pub type SumPartials<T> = unsafe fn(&Gpu, Grid, Const<f32>, Mut<T>, i32, i32) -> Result<()>;
}
use prototypes::{LayerBackward, LayerForward, RmsBackward, RmsForward, SumPartials};

/// The kernels of an element type.
struct Kernels<T> {
    rms_forward: RmsForward<T>,
    layer_forward: LayerForward<T>,
    rms_backward: RmsBackward<T>,
    layer_backward: LayerBackward<T>,
    sum_partials: SumPartials<T>,
}

const BF16: Kernels<bf16> = Kernels {
    rms_forward: kernels::rms_norm_forward_bf16,
    layer_forward: kernels::layer_norm_forward_bf16,
    rms_backward: kernels::rms_norm_backward_bf16,
    layer_backward: kernels::layer_norm_backward_bf16,
    sum_partials: kernels::norm_sum_partials_bf16,
};
const F32: Kernels<f32> = Kernels {
    rms_forward: kernels::rms_norm_forward_f32,
    layer_forward: kernels::layer_norm_forward_f32,
    rms_backward: kernels::rms_norm_backward_f32,
    layer_backward: kernels::layer_norm_backward_f32,
    sum_partials: kernels::norm_sum_partials_f32,
};

/// What was normalised, its norm, and the rows' statistics: of x, or of x + residual. LayerNorm has a bias.
pub(super) fn forward(
    gpu: &Gpu,
    [x, w]: [&Tensor; 2],
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    eps: f64,
) -> Result<(Tensor, Tensor, Statistics)> {
    match x.dtype() {
        DType::Bf16 => forward_of(gpu, [x, w], bias, residual, eps as f32, &BF16),
        _ => forward_of(gpu, [x, w], bias, residual, eps as f32, &F32),
    }
}

fn forward_of<T: DeviceReal>(
    gpu: &Gpu,
    [x, w]: [&Tensor; 2],
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    eps: f32,
    kernels: &Kernels<T>,
) -> Result<(Tensor, Tensor, Statistics)> {
    let (rows, width) = x.matrix();
    let (from, weight) =
        (operand::<T>(gpu, "norm", x, rows * width)?.ptr(), operand::<T>(gpu, "norm", w, width)?.ptr());
    let bias_at = optional(gpu, "norm", bias, width)?;
    let residual_at = optional(gpu, "norm", residual, rows * width)?;
    let mut mean = bias.map(|_| launch::alloc::<f32>(gpu, rows)).transpose()?;
    let mut rstd = launch::alloc::<f32>(gpu, rows)?;
    let mut sum = residual.map(|_| launch::alloc::<T>(gpu, x.len())).transpose()?;
    let columns = dimension("norm", width)?;
    let y = launch::fill(gpu, x.shape(), |y| {
        let grid = Grid::new(rows, THREADS)?;
        let h = sum.as_mut().map_or(Mut::null(), Buffer::ptr_mut);
        // SAFETY: x, y and, where there is a residual, it and h hold `rows` rows of `width` elements, weight and bias one; the
        // statistics have one element for each row. Without a residual the kernel doesn't touch h, without a bias it isn't LayerNorm.
        unsafe {
            match &mut mean {
                None => {
                    let rstd = rstd.ptr_mut();
                    (kernels.rms_forward)(gpu, grid, from, residual_at, weight, h, y, rstd, columns, eps)
                }
                Some(mean) => {
                    let (mean, rstd) = (mean.ptr_mut(), rstd.ptr_mut());
                    let [x, r, w, b] = [from, residual_at, weight, bias_at];
                    (kernels.layer_forward)(gpu, grid, x, r, w, b, h, y, mean, rstd, columns, eps)
                }
            }
        }
    })?;
    let normalised = match sum {
        Some(h) => Tensor::from_buffer(x.shape(), h)?,
        None => x.clone(),
    };
    Ok((normalised, y, Statistics { mean, rstd }))
}

/// `(dx, dw, db)` for the norm of x; `past` is the gradient that reaches x past the norm. No db for RMSNorm.
pub(super) fn backward(
    gpu: &Gpu,
    [x, w]: [&Tensor; 2],
    statistics: &Statistics,
    dy: &Tensor,
    past: Option<&Tensor>,
) -> Result<(Tensor, Tensor, Option<Tensor>)> {
    match x.dtype() {
        DType::Bf16 => backward_of(gpu, [x, w], statistics, dy, past, &BF16),
        _ => backward_of(gpu, [x, w], statistics, dy, past, &F32),
    }
}

fn backward_of<T: DeviceReal>(
    gpu: &Gpu,
    [x, w]: [&Tensor; 2],
    statistics: &Statistics,
    dy: &Tensor,
    past: Option<&Tensor>,
    kernels: &Kernels<T>,
) -> Result<(Tensor, Tensor, Option<Tensor>)> {
    let (rows, width) = x.matrix();
    let [from, d] = [x, dy].map(|x| operand::<T>(gpu, "norm", x, rows * width).map(Buffer::ptr));
    let (from, d, weight) = (from?, d?, operand::<T>(gpu, "norm", w, width)?.ptr());
    let past = optional(gpu, "norm", past, rows * width)?;
    let blocks = rows.div_ceil(ROWS_PER_BLOCK);
    let partial = || gpu.alloc::<f32>(blocks * width, Purpose::Workspace);
    let (mut dw, mut db) = (partial()?, statistics.mean.as_ref().map(|_| partial()).transpose()?);
    let [t, columns, per_block] = [rows, width, ROWS_PER_BLOCK].map(|n| dimension("norm", n));
    let (t, columns, per_block) = (t?, columns?, per_block?);
    let dx = launch::fill(gpu, x.shape(), |dx| {
        let sums = if db.is_some() { 2 } else { 1 };
        let shared = sums * width.next_multiple_of(pack::<T>()) * size_of::<f32>();
        if shared + STATIC_SHARED_BYTES > gpu.shared_memory() {
            return Err(Error::Device(format!(
                "a norm over {width} elements needs {shared} bytes of shared memory; the GPU has {}",
                gpu.shared_memory()
            )));
        }
        let grid = Grid::new(blocks, THREADS)?.shared(shared);
        let rstd = statistics.rstd.ptr();
        // SAFETY: x, dy, dx and, unless it is null, `past` hold `rows` rows of `width` elements, the weight one, the statistics one
        // element for each row; the partial sums have a row for each block. Shared memory is what the kernel asks for.
        unsafe {
            let (x, w, dw) = (from, weight, dw.ptr_mut());
            match (&statistics.mean, &mut db) {
                (Some(mean), Some(db)) => {
                    let (mean, db) = (mean.ptr(), db.ptr_mut());
                    (kernels.layer_backward)(
                        gpu, grid, x, w, d, past, mean, rstd, dx, dw, db, t, columns, per_block,
                    )
                }
                _ => (kernels.rms_backward)(gpu, grid, x, w, d, past, rstd, dx, dw, t, columns, per_block),
            }
        }
    })?;
    let sum = |partial: &Buffer<f32>| {
        launch::fill(gpu, w.shape(), |sums| {
            let grid = Grid::new(width.div_ceil(SUM_COLUMNS), SUM_THREADS)?;
            // SAFETY: `partial` holds `blocks` rows of `width` elements, `sums` one.
            unsafe {
                (kernels.sum_partials)(gpu, grid, partial.ptr(), sums, dimension("norm", blocks)?, columns)
            }
        })
    };
    Ok((dx, sum(&dw)?, db.as_ref().map(sum).transpose()?))
}
