//! Launches of `kernels/rope.cu`.

use super::{Angles, Table};
use crate::cuda::kernels::rope as kernels;
use crate::cuda::{Buffer, Const, Gpu, Grid, Mut, Purpose};
use crate::error::{Error, Result};
use crate::ops::launch::{self, dimension};
use crate::tensor::{DType, DeviceReal, Tensor};
use half::bf16;
use std::sync::OnceLock;

/// Threads of a block (the kernels' launch bounds).
const THREADS: u32 = 128;

/// Cosines and sines in device memory: computed there by the first rotation that needs them, shared by all layers.
#[derive(Debug, Default)]
pub(super) struct Tables(OnceLock<[Buffer<f32>; 2]>);

/// Cosines and sines in the GPU's memory.
pub(super) fn tables(gpu: &Gpu, table: &Table) -> Result<(Const<f32>, Const<f32>)> {
    let Tables(kept) = &*table.on_gpu;
    if kept.get().is_none() {
        // Another thread may have been faster; its numbers are the same.
        let _ = kept.set(compute(gpu, &table.angles)?);
    }
    match kept.get() {
        Some([cosines, sines]) if cosines.gpu() == gpu => Ok((cosines.ptr(), sines.ptr())),
        _ => Err(Error::Internal("rope: the angles are in the memory of another GPU".into())),
    }
}

fn compute(gpu: &Gpu, Angles { positions, rows, axis, frequencies }: &Angles) -> Result<[Buffer<f32>; 2]> {
    let n = rows * axis.len();
    let mut cosines = gpu.alloc::<f32>(n, Purpose::Inputs)?;
    let mut sines = gpu.alloc::<f32>(n, Purpose::Inputs)?;
    if n == 0 {
        return Ok([cosines, sines]);
    }
    let [positions, axis] = [positions, axis].map(|list| gpu.upload::<i32>(list, Purpose::Inputs));
    let (positions, axis, frequencies) = (positions?, axis?, gpu.upload(frequencies, Purpose::Inputs)?);
    let (grid, half) = (launch::elements(n, 1)?, dimension("rope", axis.len())?);
    // SAFETY: the results hold `rows` rows of half; every axis has `rows` positions, every angle an axis and a frequency.
    unsafe {
        kernels::rope_angles(
            gpu,
            grid,
            positions.ptr(),
            axis.ptr(),
            frequencies.ptr(),
            cosines.ptr_mut(),
            sines.ptr_mut(),
            *rows as i64,
            half,
        )?;
    }
    Ok([cosines, sines])
}

/// Rotates x `[T, heads * D]` by the table's angles, or back; the caller has checked that they are for T rows of D / 2.
pub(super) fn rotate(gpu: &Gpu, x: &Tensor, table: &Table, forth: bool) -> Result<Tensor> {
    match (x.dtype(), forth) {
        (DType::Bf16, true) => rotate_of::<bf16>(gpu, x, table, kernels::rope_forward_bf16),
        (DType::Bf16, false) => rotate_of::<bf16>(gpu, x, table, kernels::rope_backward_bf16),
        (_, true) => rotate_of::<f32>(gpu, x, table, kernels::rope_forward_f32),
        (_, false) => rotate_of::<f32>(gpu, x, table, kernels::rope_backward_f32),
    }
}

type Rotate<T> = unsafe fn(&Gpu, Grid, Const<T>, Const<f32>, Const<f32>, Mut<T>, i32, i32) -> Result<()>;

fn rotate_of<T: DeviceReal>(gpu: &Gpu, x: &Tensor, table: &Table, kernel: Rotate<T>) -> Result<Tensor> {
    let (rows, width) = x.matrix();
    let (cos, sin) = tables(gpu, table)?;
    let heads = dimension("rope", width / (2 * table.half()))?;
    let half = dimension("rope", table.half())?;
    let from = x.buffer::<T>()?.ptr();
    launch::fill(gpu, x.shape(), |y| {
        // SAFETY: x and y hold `rows` rows of heads * 2 * half elements, the angles `rows` rows of half.
        unsafe { kernel(gpu, Grid::new(rows, THREADS)?, from, cos, sin, y, heads, half) }
    })
}
