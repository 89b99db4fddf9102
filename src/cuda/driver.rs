//! Finding the driver and its GPUs, and saying what is wrong with them.

use super::kernels::{Module, TOOLKIT, Toolkit};
use super::ledger::Bytes;
use super::{Gpu, Purpose};
use crate::error::{Error, Result};
use cudarc::driver::{DriverError, result, sys};
use std::ffi::CStr;
use std::fmt;

/// The lowest compute capability the kernels are written for: bf16 on tensor cores, asynchronous copies.
pub(super) const LOWEST_CAPABILITY: (u32, u32) = (8, 0);

/// The lowest version of the driver's interface the device layer is written for: that of R525, the first of CUDA 12.
const LOWEST_DRIVER: (u32, u32) = (12, 0);

/// The installed driver and what it sees.
#[derive(Debug)]
pub struct Driver {
    /// The newest CUDA version it serves.
    pub version: (u32, u32),
    /// Its GPUs, in the order of their numbers.
    pub gpus: Vec<GpuDescription>,
}

/// What is known of a GPU without using it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuDescription {
    /// Its number.
    pub ordinal: usize,
    /// Its product name.
    pub name: String,
    /// Compute capability, such as (9, 0).
    pub capability: (u32, u32),
    /// Bytes of its memory.
    pub memory_bytes: usize,
    /// Bytes of shared memory that a block may ask for.
    pub shared_memory_bytes: usize,
    /// Number of streaming multiprocessors.
    pub multiprocessors: u32,
}

/// `NVIDIA H200 (compute capability 9.0, 139.8 GiB)`.
impl fmt::Display for GpuDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.capability;
        write!(f, "{} (compute capability {major}.{minor}, {})", self.name, Bytes(self.memory_bytes))
    }
}

/// What makes room.
const LOWER: &str = "lower --per_device_train_batch_size, --num_generations or --max_completion_length, or set --gradient_checkpointing";

/// Looks for the driver and its GPUs; uses none of them.
///
/// # Errors
/// [`Error::Device`] when there is no driver, when it cannot be used, or when it sees no GPU.
pub fn probe() -> Result<Driver> {
    let (version, count) = initialise()?;
    Ok(Driver { version, gpus: (0..count).map(query).collect::<Result<_>>()? })
}

/// The GPU with this number, if driver and images agree with each other.
pub(super) fn describe(ordinal: usize) -> Result<GpuDescription> {
    let (version, count) = initialise()?;
    if ordinal >= count {
        return Err(Error::Device(format!(
            "there is no GPU {ordinal}: the driver sees {count}, numbered from 0 (CUDA_VISIBLE_DEVICES chooses which)"
        )));
    }
    check_versions(version, TOOLKIT.as_ref())?;
    query(ordinal)
}

/// The driver's version and its number of GPUs.
fn initialise() -> Result<((u32, u32), usize)> {
    // SAFETY: opening a driver library runs its initialisers, which is what it is installed for.
    #[allow(unsafe_code)]
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Device(
            "no NVIDIA driver was found (libcuda.so.1); install one of version R525 or newer, or compute on the CPU (--device cpu)"
                .into(),
        ));
    }
    result::init().map_err(|e| match e.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => Error::Device(
            "the NVIDIA driver sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES, or compute on the CPU (--device cpu)".into(),
        ),
        _ => Error::Device(format!(
            "the NVIDIA driver cannot be used: {}; check that nvidia-smi runs, or compute on the CPU (--device cpu)",
            describe_error(e)
        )),
    })?;
    let mut version = 0;
    // SAFETY: the call fills one number.
    #[allow(unsafe_code)]
    unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .map_err(|e| device_error("tell its driver's version", e))?;
    let version = (version as u32 / 1000, version as u32 % 1000 / 10);
    if version < LOWEST_DRIVER {
        return Err(Error::Device(format!(
            "the NVIDIA driver serves CUDA {}.{}; update it to R525 or newer, or compute on the CPU (--device cpu)",
            version.0, version.1
        )));
    }
    let count = result::device::get_count().map_err(|e| device_error("be counted", e))?;
    Ok((version, count as usize))
}

fn query(ordinal: usize) -> Result<GpuDescription> {
    use sys::CUdevice_attribute as Attribute;
    let ask = || -> std::result::Result<GpuDescription, DriverError> {
        let device = result::device::get(ordinal as i32)?;
        // SAFETY: the device is one that the driver has just named.
        #[allow(unsafe_code)]
        let attribute =
            |attribute| unsafe { result::device::get_attribute(device, attribute) }.map(|value| value as u32);
        // SAFETY: as above.
        #[allow(unsafe_code)]
        let memory_bytes = unsafe { result::device::total_mem(device) }?;
        Ok(GpuDescription {
            ordinal,
            name: result::device::get_name(device)?,
            capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            memory_bytes,
            shared_memory_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
                as usize,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        })
    };
    ask().map_err(|e| device_error("be queried", e))
}

/// A driver serves images of its own major version and of older ones.
fn check_versions(driver: (u32, u32), toolkit: Option<&Toolkit>) -> Result<()> {
    match toolkit {
        Some(toolkit) if driver.0 < toolkit.version.0 => Err(Error::Device(format!(
            "the NVIDIA driver serves CUDA {}.{}, but the kernels were compiled by nvcc {}.{}; update the driver{}, or build with an \
             nvcc of CUDA {}",
            driver.0,
            driver.1,
            toolkit.version.0,
            toolkit.version.1,
            if toolkit.version.0 == 13 { " to R580 or newer" } else { "" },
            driver.0
        ))),
        _ => Ok(()),
    }
}

/// [`Error::Device`] for a GPU that is too old.
pub(super) fn capability_error(gpu: &GpuDescription) -> Error {
    let (major, minor) = LOWEST_CAPABILITY;
    Error::Device(format!(
        "GPU {} is too old: {gpu}; the kernels need compute capability {major}.{minor} or newer (Ampere); compute on the CPU (--device cpu)",
        gpu.ordinal
    ))
}

/// [`Error::Device`] for an image that the driver does not take.
pub(super) fn image_error(module: &Module, gpu: &GpuDescription, error: DriverError) -> Error {
    use sys::CUresult as Code;
    let Some(toolkit) = &TOOLKIT else {
        return Error::Device(format!(
            "this program holds no CUDA kernels: no nvcc was found when it was built; install the CUDA toolkit (then touch build.rs) or run \
             tools/get-nvcc, and build it again (the driver says {})",
            describe_error(error)
        ));
    };
    match error.0 {
        Code::CUDA_ERROR_NO_BINARY_FOR_GPU
        | Code::CUDA_ERROR_INVALID_IMAGE
        | Code::CUDA_ERROR_INVALID_PTX
        | Code::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => Error::Device(format!(
            "the kernels were compiled for {}, which this GPU does not take: {gpu} ({}); build again with OTHINK_CUDA_ARCHS=sm_{}{}{}",
            toolkit.targets.join(" "),
            describe_error(error),
            gpu.capability.0,
            gpu.capability.1,
            // Only the architecture of that very GPU has wgmma.
            if gpu.capability == (9, 0) { "a" } else { "" }
        )),
        _ => device_error(&format!("load the kernels of {}", module.stem), error),
    }
}

/// [`Error::Device`] for a call that failed, [`Error::Memory`] where memory was what it lacked; `action` completes "the GPU cannot".
pub(super) fn device_error(action: &str, error: DriverError) -> Error {
    let message = format!("the GPU cannot {action}: {}", describe_error(error));
    match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::Memory(format!("{message}; {LOWER}")),
        _ => Error::Device(message),
    }
}

/// [`Error::Memory`] with what the memory is used for.
pub(super) fn out_of_memory(gpu: &Gpu, bytes: usize, purpose: Purpose) -> Error {
    let description = gpu.description();
    Error::Memory(format!(
        "the GPU is out of memory: {} more for {purpose} do not fit beside {} (of {}); {LOWER}",
        Bytes(bytes),
        gpu.ledger(),
        Bytes(description.memory_bytes)
    ))
}

/// `CUDA_ERROR_ILLEGAL_ADDRESS (an illegal memory access was encountered)`.
fn describe_error(error: DriverError) -> String {
    let text = error.error_string().map(CStr::to_string_lossy);
    text.map_or_else(|_| format!("{:?}", error.0), |text| format!("{:?} ({text})", error.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_must_be_as_new_as_the_images() {
        let toolkit = Toolkit { version: (13, 0), targets: &["sm_90a"] };
        assert!(check_versions((13, 0), Some(&toolkit)).is_ok());
        assert!(check_versions((14, 1), Some(&toolkit)).is_ok());
        assert!(check_versions((12, 9), None).is_ok());
        let error = check_versions((12, 9), Some(&toolkit)).unwrap_err();
        assert_eq!(error.exit_code(), 69);
        let text = error.to_string();
        assert!(
            text.contains("serves CUDA 12.9") && text.contains("nvcc 13.0") && text.contains("R580"),
            "{text}"
        );
    }

    #[test]
    fn a_gpu_that_is_too_old_is_named() {
        let gpu = GpuDescription {
            ordinal: 1,
            name: "Tesla V100".into(),
            capability: (7, 0),
            memory_bytes: 16 << 30,
            shared_memory_bytes: 96 << 10,
            multiprocessors: 80,
        };
        let text = capability_error(&gpu).to_string();
        assert!(text.contains("GPU 1 is too old: Tesla V100 (compute capability 7.0, 16.0 GiB)"), "{text}");
    }
}
