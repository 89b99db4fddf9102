//! Where tensors live and arithmetic runs.

use super::DType;
use crate::config::{DeviceChoice, DtypeChoice};
use crate::cuda::{Gpu, probe};
use crate::error::{Error, Result};

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// Host memory and threads.
    Cpu,
    /// Device memory and kernels.
    Cuda(Gpu),
}

impl Device {
    /// Opens the device asked for. With `auto`, that is the first GPU, and the CPU where there is none; where there is one that
    /// cannot be used, the CPU, and the reason.
    ///
    /// # Errors
    /// [`Error::Device`] for a GPU that is asked for by name and is not there or cannot be used.
    pub fn open(choice: DeviceChoice) -> Result<(Device, Option<Error>)> {
        match choice {
            DeviceChoice::Cpu => Ok((Device::Cpu, None)),
            DeviceChoice::Cuda(ordinal) => Ok((Device::Cuda(Gpu::open(ordinal)?), None)),
            DeviceChoice::Auto => match probe() {
                Ok(driver) if !driver.gpus.is_empty() => Ok(match Gpu::open(0) {
                    Ok(gpu) => (Device::Cuda(gpu), None),
                    Err(reason) => (Device::Cpu, Some(reason)),
                }),
                _ => Ok((Device::Cpu, None)),
            },
        }
    }

    /// The GPU; none for the CPU.
    pub fn gpu(&self) -> Option<&Gpu> {
        match self {
            Device::Cpu => None,
            Device::Cuda(gpu) => Some(gpu),
        }
    }
}

/// Where a model's weights and activations are, and of what type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Their device.
    pub device: Device,
    /// Their type: f32 or bf16.
    pub dtype: DType,
}

impl Placement {
    /// f32 in host memory.
    pub const HOST: Placement = Placement { device: Device::Cpu, dtype: DType::F32 };

    /// The type asked for on a device; `auto` is f32 on the CPU and bf16 on a GPU.
    pub fn new(device: Device, dtype: DtypeChoice) -> Placement {
        let dtype = match (dtype, &device) {
            (DtypeChoice::F32, _) | (DtypeChoice::Auto, Device::Cpu) => DType::F32,
            (DtypeChoice::Bf16, _) | (DtypeChoice::Auto, Device::Cuda(_)) => DType::Bf16,
        };
        Placement { device, dtype }
    }
}
