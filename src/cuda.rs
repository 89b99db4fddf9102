//! The device layer: one GPU, one stream, typed memory, kernels.
//!
//! A [`Gpu`] is a context with a single stream, so that everything happens in the order in which it was asked for, and memory is allocated
//! and freed in that order too. [`Buffer`]s are typed device memory, counted in a [`Ledger`] by their [`Purpose`]. Kernels are called
//! through the launchers of [`kernels`], which `build.rs` generates from the prototypes in `kernels/*.cu`.
//!
//! The driver is opened when it is asked for, never at the start: the program runs on machines without one. Nothing here knows of the
//! emulated driver of `tools/cuemu`; it is a `libcuda.so` like any other.

#[allow(unsafe_code)]
pub mod cublaslt;
pub mod kernels;
pub mod ledger;
pub mod memory;
pub mod products;
mod driver;
mod staging;
mod trace;

pub use driver::{Driver, GpuDescription, probe};
pub use kernels::{Grid, Kernel, Module};
pub use ledger::{Ledger, Purpose};
pub use memory::{Buffer, Const, Element, Mut, TensorMap};

use crate::error::{Error, Result};
use cudarc::driver::{CudaContext, CudaStream, result, sys};
use driver::{capability_error, device_error};
use kernels::Functions;
use products::Products;
use staging::Staging;
use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use trace::Trace;

/// A GPU. Clones share the context, the stream and the ledger.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    // Fields are dropped in this order: what uses the stream before it, that before the context.
    products: Mutex<Products>,
    staging: Mutex<Staging>,
    functions: Mutex<Functions>,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
    ledger: Ledger,
    trace: Trace,
    description: GpuDescription,
}

impl Gpu {
    /// Opens the GPU with this number, 0 being the first that `CUDA_VISIBLE_DEVICES` leaves visible.
    ///
    /// `OTHINK_TRACE=FILE` logs every launch, product of cuBLASLt, copy and allocation of the process to a file.
    ///
    /// # Errors
    /// [`Error::Device`] when there is no driver, no such GPU, a driver older than the images, or a GPU that they do not serve.
    pub fn open(ordinal: usize) -> Result<Gpu> {
        let description = driver::describe(ordinal)?;
        if description.capability < driver::LOWEST_CAPABILITY {
            return Err(capability_error(&description));
        }
        let context = CudaContext::new(ordinal).map_err(|e| device_error("open the GPU", e))?;
        // SAFETY: events would order the streams of a context; there is one, and its order is that of the calls.
        #[allow(unsafe_code)]
        unsafe {
            context.disable_event_tracking();
        }
        let stream = context.new_stream().map_err(|e| device_error("make a stream", e))?;
        memory::keep_freed_memory(&context)?;
        let staging = Staging::new(&context)?;
        let gpu = Gpu(Arc::new(Inner {
            products: Mutex::default(),
            staging: Mutex::new(staging),
            functions: Mutex::default(),
            stream,
            context,
            ledger: Ledger::default(),
            trace: Trace::from_environment()?,
            description,
        }));
        // Whether the driver takes the images shows when it loads one: better now than at the first launch.
        gpu.bind()?;
        let mut functions = gpu.0.functions.lock().unwrap_or_else(PoisonError::into_inner);
        functions.load(&kernels::elementwise::MODULE, &gpu.0.description)?;
        drop(functions);
        Ok(gpu)
    }

    /// Name, compute capability and limits.
    pub fn description(&self) -> &GpuDescription {
        &self.0.description
    }

    /// Compute capability, such as (9, 0).
    pub fn capability(&self) -> (u32, u32) {
        self.0.description.capability
    }

    /// Bytes of shared memory that a block may ask for.
    pub fn shared_memory(&self) -> usize {
        self.0.description.shared_memory_bytes
    }

    /// Number of streaming multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.0.description.multiprocessors
    }

    /// Bytes in use by purpose.
    pub fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    /// Waits for everything asked for so far.
    ///
    /// # Errors
    /// [`Error::Device`] when something of it failed; kernels report their failures here.
    pub fn synchronize(&self) -> Result<()> {
        self.0.stream.synchronize().map_err(|e| device_error("finish the work it was given", e))
    }

    /// Seconds that the GPU spends on what `work` asks of it, by events around it in the stream.
    ///
    /// # Errors
    /// Those of `work`, and [`Error::Device`].
    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        let mark = || {
            self.0
                .stream
                .record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT))
                .map_err(|e| device_error("record an event", e))
        };
        let start = mark()?;
        work()?;
        let end = mark()?;
        let elapsed = start.elapsed_ms(&end).map_err(|e| device_error("time its work", e))?;
        Ok(f64::from(elapsed) / 1e3)
    }

    /// Launches kernel `index` of a module.
    ///
    /// # Safety
    /// `arguments` point to values of the types and in the order of the kernel's prototype, and device pointers among them lead to
    /// memory of this GPU that the kernel may read or write for this grid.
    #[allow(unsafe_code)]
    unsafe fn launch(
        &self,
        module: &'static Module,
        index: usize,
        grid: Grid,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        let kernel = &module.kernels[index];
        let threads: u32 = grid.threads.iter().product();
        if grid.blocks.contains(&0) || threads == 0 || threads > kernel.max_threads {
            return Err(Error::Internal(format!("{} launched with {grid:?}", kernel.name)));
        }
        self.bind()?;
        // SAFETY: the caller's promise.
        let mut launch = || unsafe { self.try_launch(module, index, grid, arguments) };
        match launch() {
            // Memory that was freed is kept; a kernel that is loaded late may need some of it.
            Err(Error::Memory(_)) => {
                self.free_unused()?;
                launch()
            }
            other => other,
        }
    }

    /// As [`Gpu::launch`], once, in a bound context.
    #[allow(unsafe_code)]
    unsafe fn try_launch(
        &self,
        module: &'static Module,
        index: usize,
        grid: Grid,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        let name = module.kernels[index].name;
        let mut functions = self.0.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let function = functions.of(module, index, grid.shared_bytes, &self.0.description)?;
        drop(functions);
        self.0.trace.launch(name, grid);
        let [bx, by, bz] = grid.blocks;
        let [tx, ty, tz] = grid.threads;
        // SAFETY: the function belongs to a module that stays loaded as long as the context; the arguments are the caller's promise.
        let launched = unsafe {
            result::launch_kernel(
                function,
                (bx, by, bz),
                (tx, ty, tz),
                grid.shared_bytes,
                self.0.stream.cu_stream(),
                arguments,
            )
        };
        launched.map_err(|e| device_error(&format!("run {name}"), e))
    }

    /// Makes the context the calling thread's.
    fn bind(&self) -> Result<()> {
        self.0.context.bind_to_thread().map_err(|e| device_error("be used by this thread", e))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // What is asked for may still use the pinned memory and the libraries that go now; a failure has been told before.
        let _ = self.stream.synchronize();
    }
}

/// Whether both are the same GPU's one context.
impl PartialEq for Gpu {
    fn eq(&self, other: &Gpu) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Gpu {}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({})", self.0.description)
    }
}
