//! Tensors in device memory.

use super::storage::Storage;
use super::{DType, Device, Tensor};
use crate::cuda::kernels::elementwise;
use crate::cuda::{Buffer, Const, Element, Gpu, Grid, Mut, Purpose};
use crate::error::{Error, Result};
use half::bf16;
use std::sync::Arc;

type Add<T> = unsafe fn(&Gpu, Grid, Const<T>, Const<T>, Mut<T>, i64) -> Result<()>;

/// A type that tensors in device memory have.
pub trait DeviceReal: Element {
    /// As a tensor's type.
    const DTYPE: DType;
    /// A tensor's storage made of a buffer.
    fn store(buffer: Buffer<Self>) -> Storage;
    /// The buffer of a storage of exactly this type.
    fn view(storage: &Storage) -> Option<&Buffer<Self>>;
    /// The same, for a sole owner to write.
    fn view_mut(storage: &mut Storage) -> Option<&mut Buffer<Self>>;
}

impl DeviceReal for f32 {
    const DTYPE: DType = DType::F32;
    fn store(buffer: Buffer<f32>) -> Storage {
        Storage::CudaF32(buffer)
    }
    fn view(storage: &Storage) -> Option<&Buffer<f32>> {
        if let Storage::CudaF32(buffer) = storage { Some(buffer) } else { None }
    }
    fn view_mut(storage: &mut Storage) -> Option<&mut Buffer<f32>> {
        if let Storage::CudaF32(buffer) = storage { Some(buffer) } else { None }
    }
}

impl DeviceReal for bf16 {
    const DTYPE: DType = DType::Bf16;
    fn store(buffer: Buffer<bf16>) -> Storage {
        Storage::CudaBf16(buffer)
    }
    fn view(storage: &Storage) -> Option<&Buffer<bf16>> {
        if let Storage::CudaBf16(buffer) = storage { Some(buffer) } else { None }
    }
    fn view_mut(storage: &mut Storage) -> Option<&mut Buffer<bf16>> {
        if let Storage::CudaBf16(buffer) = storage { Some(buffer) } else { None }
    }
}

impl Tensor {
    /// Wraps device memory. Fails when the count is not the shape's.
    pub fn from_buffer<T: DeviceReal>(shape: &[usize], buffer: Buffer<T>) -> Result<Tensor> {
        Tensor::with_storage(shape, T::store(buffer))
    }

    /// The GPU whose memory holds the elements; none for host memory.
    pub fn gpu(&self) -> Option<&Gpu> {
        match &*self.storage {
            Storage::CudaF32(buffer) => Some(buffer.gpu()),
            Storage::CudaBf16(buffer) => Some(buffer.gpu()),
            _ => None,
        }
    }

    /// Where the elements are.
    pub fn device(&self) -> Device {
        self.gpu().map_or(Device::Cpu, |gpu| Device::Cuda(gpu.clone()))
    }

    /// The device memory. Fails for host memory and for another type.
    pub fn buffer<T: DeviceReal>(&self) -> Result<&Buffer<T>> {
        T::view(&self.storage).ok_or_else(|| self.not_a_buffer(T::DTYPE))
    }

    /// The same elements in memory of their own: a view's owner may write what it shows. In host memory, where that can't be, the
    /// tensor itself.
    ///
    /// # Errors
    /// Those of allocating and copying device memory.
    pub fn detached(&self) -> Result<Tensor> {
        if !self.storage.is_view() {
            return Ok(self.clone());
        }
        Ok(Tensor { shape: self.shape.clone(), storage: Arc::new(self.storage.try_clone()?) })
    }

    /// The device memory for writing; copied first when somebody else holds it too, or views it.
    pub fn buffer_mut<T: DeviceReal>(&mut self) -> Result<&mut Buffer<T>> {
        let error = self.not_a_buffer(T::DTYPE);
        T::view_mut(self.storage_mut()?).ok_or(error)
    }

    fn not_a_buffer(&self, dtype: DType) -> Error {
        let place = if self.gpu().is_some() { "device" } else { "host" };
        Error::Internal(format!(
            "a {} tensor in {place} memory was used as {} in device memory",
            self.dtype().name(),
            dtype.name()
        ))
    }

    /// The same elements on a device, counted there under `purpose`.
    ///
    /// # Errors
    /// [`Error::Internal`] for f64, which only the CPU has; those of allocating and copying device memory.
    pub fn to_device(&self, device: &Device, purpose: Purpose) -> Result<Tensor> {
        if self.device() == *device {
            return Ok(self.clone());
        }
        let storage = match (&*self.storage, device) {
            (Storage::F32(x), Device::Cuda(gpu)) => Storage::CudaF32(gpu.upload(x, purpose)?),
            (Storage::Bf16(x), Device::Cuda(gpu)) => Storage::CudaBf16(gpu.upload(x, purpose)?),
            (Storage::F64(_), Device::Cuda(_)) => {
                return Err(Error::Internal("float64 tensors stay on the CPU".into()));
            }
            (Storage::CudaF32(x), Device::Cpu) => Storage::F32(x.download()?),
            (Storage::CudaBf16(x), Device::Cpu) => Storage::Bf16(x.download()?),
            _ => return Err(Error::Internal("a copy between two GPUs".into())),
        };
        Ok(Tensor { shape: self.shape.clone(), storage: Arc::new(storage) })
    }

    /// The same elements in host memory.
    ///
    /// # Errors
    /// Those of copying device memory.
    pub fn to_cpu(&self) -> Result<Tensor> {
        self.to_device(&Device::Cpu, Purpose::Activations)
    }

    /// The elements as f32 in host memory, wherever they are.
    ///
    /// # Errors
    /// Those of copying device memory.
    pub fn download_f32(&self) -> Result<Vec<f32>> {
        Ok(self.to_cpu()?.to_f32().into_owned())
    }

    /// `self += other`, both of one shape, type and GPU.
    pub(super) fn accumulate_on_gpu(&mut self, other: &Tensor) -> Result<()> {
        match self.dtype() {
            DType::Bf16 => self.accumulate_of::<bf16>(other, elementwise::add_forward_bf16),
            _ => self.accumulate_of::<f32>(other, elementwise::add_forward_f32),
        }
    }

    fn accumulate_of<T: DeviceReal>(&mut self, other: &Tensor, add: Add<T>) -> Result<()> {
        /// Threads of a block, and bytes of each operand that one of them has.
        const THREADS: usize = 256;
        const PACK_BYTES: usize = 16;
        let (n, b) = (self.len(), other.buffer::<T>()?.ptr());
        let sum = self.buffer_mut::<T>()?;
        if n == 0 {
            return Ok(());
        }
        let gpu = sum.gpu().clone();
        let grid = Grid::new(n.div_ceil(THREADS * PACK_BYTES / size_of::<T>()), THREADS as u32)?;
        // SAFETY: both hold n elements; the kernel allows the sum to stand in the place of the first operand.
        unsafe { add(&gpu, grid, sum.ptr(), b, sum.ptr_mut(), n as i64) }
    }
}
