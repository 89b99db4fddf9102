//! The emulated driver, called as cudarc's users call a real one.

use crate::cuemu::{self, Flavour, Libraries};
use cudarc::driver::sys;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;

/// Calls a function of the driver; the error is `code text`.
macro_rules! cu {
    ($name:ident($($argument:expr),* $(,)?)) => {
        // SAFETY: the emulated driver checks the handles and addresses that it is given; all else here are references.
        $crate::driver::checked(unsafe { cudarc::driver::sys::$name($($argument),*) })
    };
}
pub(crate) use cu;

pub type Result<T> = std::result::Result<T, String>;

pub fn checked(code: sys::CUresult) -> Result<()> {
    let mut text: *const c_char = ptr::null();
    // SAFETY: the driver gives a string that stays.
    let text = unsafe {
        match (code, sys::cuGetErrorString(code, &raw mut text)) {
            (sys::CUresult::CUDA_SUCCESS, _) => return Ok(()),
            (_, sys::CUresult::CUDA_SUCCESS) => CStr::from_ptr(text).to_string_lossy(),
            _ => "?".into(),
        }
    };
    Err(format!("{code:?} {text}"))
}

/// The flavour that a mode, such as `check sched=random seed=3`, begins with.
pub fn flavour(mode: &str) -> Flavour {
    if mode.starts_with("check") { Flavour::Check } else { Flavour::Fast }
}

pub struct Driver {
    library: &'static Library,
    pub libraries: Libraries,
    pub flavour: Flavour,
}

impl Driver {
    /// Loads the driver of a mode, and configures it.
    pub fn load(mode: &str) -> Result<Driver> {
        let configuration = mode.split_once(' ').map_or("", |(_, configuration)| configuration);
        let flavour = flavour(mode);
        let libraries = cuemu::build(&[], flavour)?;
        let driver = Driver { library: open(&libraries.driver)?, libraries, flavour };
        // Without a call the environment's configuration holds.
        match configuration.is_empty() || driver.configure(configuration) == 0 {
            true => Ok(driver),
            false => Err(format!("the emulator refuses {configuration}")),
        }
    }

    pub fn configure(&self, text: &str) -> c_int {
        let text = CString::new(text).expect("no NUL");
        // SAFETY: the function's signature; the text outlives the call.
        unsafe {
            let configure =
                self.library.get::<unsafe extern "C" fn(*const c_char) -> c_int>(b"cuemu_configure\0");
            configure.expect("the emulator has it")(text.as_ptr())
        }
    }

    /// What the checks and the guard pages found.
    pub fn reports(&self) -> String {
        // SAFETY: the function's signature; the string stays.
        unsafe {
            let reports = self.library.get::<unsafe extern "C" fn() -> *const c_char>(b"cuemu_reports\0");
            CStr::from_ptr(reports.expect("the emulator has it")()).to_string_lossy().into_owned()
        }
    }
}

fn open(path: &Path) -> Result<&'static Library> {
    // SAFETY: the library is the project's own.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    // It stays: cudarc finds it by its name.
    Ok(Box::leak(Box::new(library.map_err(|e| e.to_string())?)))
}

/// Initialises the driver and makes the context of its device current.
pub fn initialise() -> Result<()> {
    cu!(cuInit(0))?;
    let mut context = ptr::null_mut();
    cu!(cuDevicePrimaryCtxRetain(&raw mut context, 0))?;
    cu!(cuCtxSetCurrent(context))
}

/// Loads a twin by its path.
pub fn load_twin(path: &Path) -> Result<sys::CUmodule> {
    let path = CString::new(path.to_str().expect("UTF-8")).expect("no NUL");
    let mut module = ptr::null_mut();
    cu!(cuModuleLoad(&raw mut module, path.as_ptr()))?;
    Ok(module)
}

/// Loads an image: here a manifest.
pub fn load_image(image: &str) -> Result<sys::CUmodule> {
    let image = CString::new(image).expect("no NUL");
    let mut module = ptr::null_mut();
    cu!(cuModuleLoadData(&raw mut module, image.as_ptr().cast()))?;
    Ok(module)
}

pub fn function(module: sys::CUmodule, name: &str) -> Result<sys::CUfunction> {
    let name = CString::new(name).expect("no NUL");
    let mut function = ptr::null_mut();
    cu!(cuModuleGetFunction(&raw mut function, module, name.as_ptr()))?;
    Ok(function)
}

/// `n` floats of device memory that nothing has written.
pub fn allocate(n: usize) -> Result<u64> {
    let mut address = 0;
    cu!(cuMemAlloc_v2(&raw mut address, 4 * n))?;
    Ok(address)
}

pub fn upload(data: &[f32]) -> Result<u64> {
    let address = allocate(data.len())?;
    cu!(cuMemcpyHtoD_v2(address, data.as_ptr().cast(), size_of_val(data)))?;
    Ok(address)
}

pub fn download(address: u64, n: usize) -> Result<Vec<f32>> {
    let mut data = vec![0.0f32; n];
    cu!(cuMemcpyDtoH_v2(data.as_mut_ptr().cast(), address, 4 * n))?;
    Ok(data)
}

#[derive(Clone, Copy)]
pub struct Shape {
    pub blocks: u32,
    pub threads: u32,
    pub shared: u32,
}

/// Launches a kernel of `plants.cu`.
pub fn launch(
    f: sys::CUfunction,
    shape: Shape,
    stream: sys::CUstream,
    p: u64,
    q: u64,
    bug: i32,
) -> Result<()> {
    let mut arguments: [*mut c_void; 3] = [
        (&raw const p).cast_mut().cast(),
        (&raw const q).cast_mut().cast(),
        (&raw const bug).cast_mut().cast(),
    ];
    let Shape { blocks, threads, shared } = shape;
    cu!(cuLaunchKernel(
        f,
        blocks,
        1,
        1,
        threads,
        1,
        1,
        shared,
        stream,
        arguments.as_mut_ptr(),
        ptr::null_mut()
    ))
}

pub fn synchronize() -> Result<()> {
    cu!(cuCtxSynchronize())
}
