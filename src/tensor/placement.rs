//! Where and in which type a run computes.

use super::{DType, Device};

/// The device that a model is put on, and the type of its weights and activations there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Where tensors live and arithmetic runs.
    pub device: Device,
    /// f32, or bf16 with f32 master weights in training.
    pub dtype: DType,
}

impl Placement {
    /// Host memory, f32.
    pub fn cpu() -> Placement {
        Placement { device: Device::Cpu, dtype: DType::F32 }
    }
}
