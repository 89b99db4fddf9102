//! Where tensors live and arithmetic runs.

use crate::cuda::Gpu;
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
    /// Reads `cpu` or `auto` (the best device there is). Other names fail with exit code 69.
    pub fn parse(name: &str) -> Result<Device> {
        match name {
            "cpu" | "auto" => Ok(Device::Cpu),
            _ => Err(Error::Device(format!(
                "--device {name}: this version trains and samples on the CPU only; use --device cpu (or auto)"
            ))),
        }
    }
}
