//! Where a tensor's elements live.

use super::dtype::DType;
use crate::cuda::Buffer;
use crate::error::Result;
use half::bf16;

/// The elements of a tensor, by place and type.
#[derive(Debug)]
pub enum Storage {
    /// f32 elements in host memory.
    F32(Vec<f32>),
    /// f64 elements in host memory.
    F64(Vec<f64>),
    /// bf16 elements in host memory.
    Bf16(Vec<bf16>),
    /// f32 elements in device memory.
    CudaF32(Buffer<f32>),
    /// bf16 elements in device memory.
    CudaBf16(Buffer<bf16>),
}

impl Storage {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Storage::F32(x) => x.len(),
            Storage::F64(x) => x.len(),
            Storage::Bf16(x) => x.len(),
            Storage::CudaF32(x) => x.len(),
            Storage::CudaBf16(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match self {
            Storage::F32(_) | Storage::CudaF32(_) => DType::F32,
            Storage::F64(_) => DType::F64,
            Storage::Bf16(_) | Storage::CudaBf16(_) => DType::Bf16,
        }
    }

    /// Whether its device memory is part of an allocation that others see too.
    pub fn is_view(&self) -> bool {
        match self {
            Storage::CudaF32(x) => x.is_shared(),
            Storage::CudaBf16(x) => x.is_shared(),
            _ => false,
        }
    }

    /// A copy in the same place, in memory of its own.
    ///
    /// # Errors
    /// Those of allocating device memory.
    pub fn try_clone(&self) -> Result<Storage> {
        Ok(match self {
            Storage::F32(x) => Storage::F32(x.clone()),
            Storage::F64(x) => Storage::F64(x.clone()),
            Storage::Bf16(x) => Storage::Bf16(x.clone()),
            Storage::CudaF32(x) => Storage::CudaF32(x.try_clone()?),
            Storage::CudaBf16(x) => Storage::CudaBf16(x.try_clone()?),
        })
    }
}
