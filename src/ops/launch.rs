//! What the launch functions of the ops share: checked operands, grids, sizes.

use crate::cuda::{Buffer, Const, Element, Gpu, Grid, Mut, Purpose};
use crate::error::{Error, Result};
use crate::tensor::{DeviceReal, Tensor};

/// Threads of a block of the kernels that work element by element (their launch bounds).
const THREADS: usize = 256;

/// A grid of 256 threads a block, with `per_thread` of n elements for each.
pub(super) fn elements(n: usize, per_thread: usize) -> Result<Grid> {
    Grid::new(n.div_ceil(per_thread * THREADS), THREADS as u32)
}

/// Elements in 128 bits: what a thread of most kernels has (PACK in kernels/common.cuh).
pub(super) const fn pack<T>() -> usize {
    16 / size_of::<T>()
}

/// The device memory of an operand that a kernel takes to hold `len` elements of type T.
///
/// # Errors
/// [`Error::Internal`] when it holds another number, another type, or is not in this GPU's memory.
pub(super) fn operand<'a, T: DeviceReal>(
    gpu: &Gpu,
    op: &str,
    x: &'a Tensor,
    len: usize,
) -> Result<&'a Buffer<T>> {
    if x.len() != len {
        return Err(Error::Internal(format!(
            "{op}: an operand of shape {:?} instead of {len} elements",
            x.shape()
        )));
    }
    let buffer = x.buffer::<T>()?;
    if buffer.gpu() != gpu {
        return Err(Error::Internal(format!("{op}: operands in the memory of two GPUs")));
    }
    Ok(buffer)
}

/// The address of an operand (see [`operand`]), null for one that is absent.
pub(super) fn optional<T: DeviceReal>(
    gpu: &Gpu,
    op: &str,
    x: Option<&Tensor>,
    len: usize,
) -> Result<Const<T>> {
    x.map_or_else(|| Ok(Const::null()), |x| Ok(operand(gpu, op, x, len)?.ptr()))
}

/// A size as the kernels take dimensions.
///
/// # Errors
/// [`Error::Internal`] when it is not below 2^31.
pub(super) fn dimension(op: &str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::Internal(format!("{op}: a dimension of {n}")))
}

/// A new tensor whose elements `fill` writes; it is not called for none.
pub(super) fn fill<T: DeviceReal>(
    gpu: &Gpu,
    shape: &[usize],
    fill: impl FnOnce(Mut<T>) -> Result<()>,
) -> Result<Tensor> {
    let mut y = alloc(gpu, shape.iter().product())?;
    if !y.is_empty() {
        fill(y.ptr_mut())?;
    }
    Tensor::from_buffer(shape, y)
}

/// Memory for the result of an op.
pub(super) fn alloc<T: Element>(gpu: &Gpu, len: usize) -> Result<Buffer<T>> {
    gpu.alloc(len, Purpose::Activations)
}
