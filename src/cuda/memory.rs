//! Typed device memory.

use super::driver::{device_error, out_of_memory};
use super::{Gpu, Purpose};
use crate::error::{Error, Result};
use cudarc::driver::{CudaContext, CudaSlice, DevicePtr, DeviceRepr, DriverError, result, sys};
use half::bf16;
use std::marker::PhantomData;
use std::sync::{Arc, PoisonError};

/// A type that device memory holds.
pub trait Element: DeviceRepr + bytemuck::Pod + std::fmt::Debug + Send + Sync {}

impl Element for f32 {}
impl Element for f64 {}
impl Element for bf16 {}
impl Element for u8 {}
impl Element for i32 {}
impl Element for u32 {}
impl Element for i64 {}
impl Element for u64 {}

/// A device address that a kernel reads `T`s from.
#[derive(Debug)]
#[repr(transparent)]
pub struct Const<T>(u64, PhantomData<T>);

/// A device address that a kernel writes `T`s to, or reads and writes.
#[derive(Debug)]
#[repr(transparent)]
pub struct Mut<T>(u64, PhantomData<T>);

macro_rules! address {
    ($name:ident) => {
        impl<T> Clone for $name<T> {
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<T> Copy for $name<T> {}
        impl<T> $name<T> {
            /// No memory, for an argument that a kernel takes as absent.
            pub fn null() -> Self {
                Self(0, PhantomData)
            }

            /// The address `elements` further on.
            pub fn offset(self, elements: usize) -> Self {
                Self(self.0 + (elements * size_of::<T>()) as u64, PhantomData)
            }

            /// The address as a number.
            pub fn address(self) -> u64 {
                self.0
            }
        }
    };
}

address!(Const);
address!(Mut);

impl<T> Mut<T> {
    /// The same address, of memory that is to hold another type.
    pub(super) fn cast<U>(self) -> Mut<U> {
        Mut(self.0, PhantomData)
    }
}

impl<T> From<Mut<T>> for Const<T> {
    fn from(pointer: Mut<T>) -> Const<T> {
        Const(pointer.0, PhantomData)
    }
}

/// A tensor map of the TMA unit, as `cuTensorMapEncodeTiled` fills it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct TensorMap(pub [u64; 16]);

/// Device memory of `len` elements: an allocation, or a piece of one ([`Buffer::view`]). The allocation is freed, in the order of the
/// stream, when the last buffer in it is dropped.
#[derive(Debug)]
pub struct Buffer<T: Element> {
    allocation: Arc<Allocation<T>>,
    start: usize,
    len: usize,
}

/// Memory as the driver gave it, which the ledger counts.
#[derive(Debug)]
struct Allocation<T: Element> {
    slice: CudaSlice<T>,
    bytes: usize,
    purpose: Purpose,
    gpu: Gpu,
}

impl Gpu {
    /// Uninitialised memory for `len` elements.
    ///
    /// # Errors
    /// [`Error::Memory`] when there is not enough, with what it is used for and what to lower.
    pub fn alloc<T: Element>(&self, len: usize, purpose: Purpose) -> Result<Buffer<T>> {
        let bytes = len * size_of::<T>();
        let allocate = || {
            // The driver gives no memory for nothing.
            let len = len.max(1);
            // SAFETY: the elements are plain data, for which any bytes are values; a kernel or copy writes them before they are read.
            #[allow(unsafe_code)]
            unsafe {
                self.0.stream.alloc::<T>(len)
            }
        };
        let exhausted = |e: &DriverError| e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        let slice = match allocate() {
            // Memory that was freed is kept for the next allocation, cut as it is: hand it all back, then ask again.
            Err(e) if exhausted(&e) => {
                self.free_unused()?;
                allocate()
            }
            other => other,
        };
        let slice = slice.map_err(|e| match exhausted(&e) {
            true => out_of_memory(self, bytes, purpose),
            false => device_error("allocate memory", e),
        })?;
        self.0.ledger.add(purpose, bytes);
        self.0.trace.allocation(purpose, bytes);
        let allocation = Allocation { slice, bytes, purpose, gpu: self.clone() };
        Ok(Buffer { allocation: Arc::new(allocation), start: 0, len })
    }

    /// Hands back to the driver what its pool keeps of freed memory.
    pub(super) fn free_unused(&self) -> Result<()> {
        self.synchronize()?;
        trim_pool(&self.0.context)
    }

    /// Bytes that can be allocated: what no program on the GPU uses, and what the pool keeps of freed memory. Waits for the work
    /// asked for, whose memory is freed with it.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn free_bytes(&self) -> Result<usize> {
        self.bind()?;
        self.synchronize()?;
        let (free, _) = result::mem_get_info().map_err(|e| device_error("say how much memory is free", e))?;
        let mut kept = 0;
        with_pool(&self.0.context, |pool| {
            let reserved = pool_bytes(pool, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
            kept = reserved.saturating_sub(pool_bytes(
                pool,
                sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT,
            )?);
            Ok(())
        })?;
        Ok(free + kept as usize)
    }

    /// Memory of zeros.
    ///
    /// # Errors
    /// As [`Gpu::alloc`].
    pub fn zeros<T: Element>(&self, len: usize, purpose: Purpose) -> Result<Buffer<T>> {
        let mut buffer = self.alloc(len, purpose)?;
        buffer.fill_zero()?;
        Ok(buffer)
    }

    /// A copy of host memory.
    ///
    /// # Errors
    /// As [`Gpu::alloc`].
    pub fn upload<T: Element>(&self, data: &[T], purpose: Purpose) -> Result<Buffer<T>> {
        let mut buffer = self.alloc(data.len(), purpose)?;
        buffer.write(data)?;
        Ok(buffer)
    }
}

impl<T: Element> Buffer<T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What it holds.
    pub fn purpose(&self) -> Purpose {
        self.allocation.purpose
    }

    /// The GPU it belongs to.
    pub fn gpu(&self) -> &Gpu {
        &self.allocation.gpu
    }

    /// The `len` elements from `start` on, in the same memory: what is written through one shows in the other, in the order of the
    /// stream.
    ///
    /// # Errors
    /// [`Error::Internal`] for more elements than there are.
    pub fn view(&self, start: usize, len: usize) -> Result<Buffer<T>> {
        self.within(start, len)?;
        Ok(Buffer { allocation: self.allocation.clone(), start: self.start + start, len })
    }

    /// Whether another buffer lies in the same allocation.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.allocation) > 1
    }

    /// The first element's address, for reading.
    pub fn ptr(&self) -> Const<T> {
        Const(self.allocation.slice.device_ptr(&self.gpu().0.stream).0, PhantomData).offset(self.start)
    }

    /// The first element's address, for writing. Views of the same memory see what is written.
    pub fn ptr_mut(&mut self) -> Mut<T> {
        Mut(self.ptr().address(), PhantomData)
    }

    /// Sets every byte to 0.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn fill_zero(&mut self) -> Result<()> {
        let (at, bytes) = (self.ptr_mut().address(), self.len * size_of::<T>());
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        self.gpu().0.trace.zero(bytes);
        // SAFETY: the range is this buffer's.
        #[allow(unsafe_code)]
        let set = unsafe { result::memset_d8_async(at, 0, bytes, self.gpu().0.stream.cu_stream()) };
        set.map_err(|e| device_error("set memory to zero", e))
    }

    /// Copies host memory of the same length in.
    ///
    /// # Errors
    /// [`Error::Internal`] for another length, [`Error::Device`].
    pub fn write(&mut self, data: &[T]) -> Result<()> {
        self.same_length(data.len())?;
        self.write_at(0, data)
    }

    /// Copies host memory to the elements from `start` on.
    ///
    /// # Errors
    /// [`Error::Internal`] for more elements than there are, [`Error::Device`].
    pub fn write_at(&mut self, start: usize, data: &[T]) -> Result<()> {
        self.within(start, data.len())?;
        self.bind()?;
        let at = self.ptr_mut().offset(start).address();
        let inner = &self.gpu().0;
        inner.trace.copy("host to device", size_of_val(data));
        let mut staging = inner.staging.lock().unwrap_or_else(PoisonError::into_inner);
        staging.upload(&inner.stream, bytemuck::cast_slice(data), at)
    }

    /// Copies the elements to the host; waits for them.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn download(&self) -> Result<Vec<T>> {
        self.download_at(0, self.len)
    }

    /// Copies `len` elements from `start` on to the host; waits for them.
    ///
    /// # Errors
    /// [`Error::Internal`] for more elements than there are, [`Error::Device`].
    pub fn download_at(&self, start: usize, len: usize) -> Result<Vec<T>> {
        self.within(start, len)?;
        let mut data = vec![T::zeroed(); len];
        self.bind()?;
        let inner = &self.gpu().0;
        inner.trace.copy("device to host", size_of_val(&data[..]));
        let mut staging = inner.staging.lock().unwrap_or_else(PoisonError::into_inner);
        staging.download(
            &inner.stream,
            self.ptr().offset(start).address(),
            bytemuck::cast_slice_mut(&mut data),
        )?;
        Ok(data)
    }

    /// Copies another buffer of the same length in.
    ///
    /// # Errors
    /// [`Error::Internal`] for another length or GPU, [`Error::Device`].
    pub fn copy_from(&mut self, other: &Buffer<T>) -> Result<()> {
        self.same_length(other.len)?;
        if self.gpu() != other.gpu() {
            return Err(Error::Internal("a copy between the memory of two GPUs".into()));
        }
        let bytes = self.len * size_of::<T>();
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        self.gpu().0.trace.copy("device to device", bytes);
        let (to, from) = (self.ptr_mut().address(), other.ptr().address());
        // SAFETY: both ranges are as long as the buffers, which have the same number of elements.
        #[allow(unsafe_code)]
        let copied = unsafe { result::memcpy_dtod_async(to, from, bytes, self.gpu().0.stream.cu_stream()) };
        copied.map_err(|e| device_error("copy memory", e))
    }

    /// A copy in memory of its own, with the same purpose.
    ///
    /// # Errors
    /// As [`Gpu::alloc`].
    pub fn try_clone(&self) -> Result<Buffer<T>> {
        let mut copy = self.gpu().alloc(self.len, self.purpose())?;
        copy.copy_from(self)?;
        Ok(copy)
    }

    fn same_length(&self, len: usize) -> Result<()> {
        if len == self.len {
            return Ok(());
        }
        Err(Error::Internal(format!("{len} elements copied to device memory for {}", self.len)))
    }

    fn within(&self, start: usize, len: usize) -> Result<()> {
        if start.checked_add(len).is_some_and(|end| end <= self.len) {
            return Ok(());
        }
        Err(Error::Internal(format!("elements {start} and {len} more of {} in device memory", self.len)))
    }

    fn bind(&self) -> Result<()> {
        self.gpu().bind()
    }
}

impl<T: Element> Drop for Allocation<T> {
    fn drop(&mut self) {
        self.gpu.0.ledger.remove(self.purpose, self.bytes);
    }
}

/// The driver's pool keeps what is freed instead of handing it back at every synchronisation.
pub(super) fn keep_freed_memory(context: &Arc<CudaContext>) -> Result<()> {
    with_pool(context, |pool| {
        let mut all = u64::MAX;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: this attribute's value is a 64-bit number.
        #[allow(unsafe_code)]
        unsafe {
            result::mem_pool::set_attribute(pool, threshold, (&raw mut all).cast())
        }
    })
}

fn trim_pool(context: &Arc<CudaContext>) -> Result<()> {
    // SAFETY: the pool is the device's own; what is in use stays.
    #[allow(unsafe_code)]
    with_pool(context, |pool| unsafe { result::mem_pool::trim_to(pool, 0) })
}

fn with_pool(context: &Arc<CudaContext>, f: impl FnOnce(sys::CUmemoryPool) -> Result2) -> Result<()> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    // SAFETY: the device is the context's.
    #[allow(unsafe_code)]
    let pool = unsafe { result::device::get_default_mem_pool(context.cu_device()) };
    pool.and_then(f).map_err(|e| device_error("set up its memory pool", e))
}

/// A count of the pool's.
fn pool_bytes(
    pool: sys::CUmemoryPool,
    attribute: sys::CUmemPool_attribute,
) -> std::result::Result<u64, DriverError> {
    let mut bytes = 0_u64;
    // SAFETY: the counts are 64-bit numbers.
    #[allow(unsafe_code)]
    unsafe {
        result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast())?;
    }
    Ok(bytes)
}

type Result2 = std::result::Result<(), DriverError>;
