//! Launches of `kernels/activation.cu`.

use crate::cuda::kernels::activation as kernels;
use crate::cuda::{Const, Gpu, Grid, Mut};
use crate::error::Result;
use crate::ops::launch::{self, operand, pack};
use crate::tensor::{DType, DeviceReal, Tensor};
use half::bf16;

type Forward1<T> = unsafe fn(&Gpu, Grid, Const<T>, Mut<T>, i64) -> Result<()>;
type Forward2<T> = unsafe fn(&Gpu, Grid, Const<T>, Const<T>, Mut<T>, i64) -> Result<()>;
type Backward2<T> = unsafe fn(&Gpu, Grid, Const<T>, Const<T>, Const<T>, Mut<T>, Mut<T>, i64) -> Result<()>;

pub(super) fn swiglu(gpu: &Gpu, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match gate.dtype() {
        DType::Bf16 => zip::<bf16>(gpu, "swiglu", gate, up, kernels::swiglu_forward_bf16),
        _ => zip::<f32>(gpu, "swiglu", gate, up, kernels::swiglu_forward_f32),
    }
}

/// `(dgate, dup)`.
pub(super) fn swiglu_backward(
    gpu: &Gpu,
    gate: &Tensor,
    up: &Tensor,
    dy: &Tensor,
) -> Result<(Tensor, Tensor)> {
    match gate.dtype() {
        DType::Bf16 => swiglu_backward_of::<bf16>(gpu, gate, up, dy, kernels::swiglu_backward_bf16),
        _ => swiglu_backward_of::<f32>(gpu, gate, up, dy, kernels::swiglu_backward_f32),
    }
}

fn swiglu_backward_of<T: DeviceReal>(
    gpu: &Gpu,
    gate: &Tensor,
    up: &Tensor,
    dy: &Tensor,
    kernel: Backward2<T>,
) -> Result<(Tensor, Tensor)> {
    let n = gate.len();
    let [g, u, d] = [gate, up, dy].map(|x| operand::<T>(gpu, "swiglu", x, n).map(|x| x.ptr()));
    let (g, u, d) = (g?, u?, d?);
    let mut d_up = launch::alloc::<T>(gpu, n)?;
    let d_gate = launch::fill(gpu, gate.shape(), |d_gate| {
        // SAFETY: all five hold n elements; the kernel touches no element beyond n.
        unsafe { kernel(gpu, launch::elements(n, pack::<T>())?, g, u, d, d_gate, d_up.ptr_mut(), n as i64) }
    })?;
    Ok((d_gate, Tensor::from_buffer(gate.shape(), d_up)?))
}

pub(super) fn quick_gelu(gpu: &Gpu, x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::Bf16 => map::<bf16>(gpu, x, kernels::quick_gelu_forward_bf16),
        _ => map::<f32>(gpu, x, kernels::quick_gelu_forward_f32),
    }
}

pub(super) fn quick_gelu_backward(gpu: &Gpu, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::Bf16 => zip::<bf16>(gpu, "quick_gelu", x, dy, kernels::quick_gelu_backward_bf16),
        _ => zip::<f32>(gpu, "quick_gelu", x, dy, kernels::quick_gelu_backward_f32),
    }
}

pub(super) fn gelu(gpu: &Gpu, x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::Bf16 => map::<bf16>(gpu, x, kernels::gelu_forward_bf16),
        _ => map::<f32>(gpu, x, kernels::gelu_forward_f32),
    }
}

pub(super) fn gelu_backward(gpu: &Gpu, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::Bf16 => zip::<bf16>(gpu, "gelu", x, dy, kernels::gelu_backward_bf16),
        _ => zip::<f32>(gpu, "gelu", x, dy, kernels::gelu_backward_f32),
    }
}

fn map<T: DeviceReal>(gpu: &Gpu, x: &Tensor, kernel: Forward1<T>) -> Result<Tensor> {
    let n = x.len();
    let from = x.buffer::<T>()?.ptr();
    launch::fill(gpu, x.shape(), |y| {
        // SAFETY: x and y hold n elements; the kernel touches no element beyond n.
        unsafe { kernel(gpu, launch::elements(n, pack::<T>())?, from, y, n as i64) }
    })
}

fn zip<T: DeviceReal>(gpu: &Gpu, op: &str, a: &Tensor, b: &Tensor, kernel: Forward2<T>) -> Result<Tensor> {
    let n = a.len();
    let (pa, pb) = (operand::<T>(gpu, op, a, n)?.ptr(), operand::<T>(gpu, op, b, n)?.ptr());
    launch::fill(gpu, a.shape(), |y| {
        // SAFETY: a, b and y hold n elements; the kernel touches no element beyond n.
        unsafe { kernel(gpu, launch::elements(n, pack::<T>())?, pa, pb, y, n as i64) }
    })
}
