//! Where the library is found, and what of it is used: declarations of our own for a few functions.

use crate::error::{Error, Result};
use std::env;
use std::error::Error as _;
use std::ffi::c_void;
use std::fmt;
use std::fs;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::ptr::null_mut;

/// The variable that names the library's file.
const FILE_VARIABLE: &str = "OTHINK_CUBLASLT";

/// File names, the newest first.
const NAMES: [&str; 3] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];

/// The lowest version whose interface is the one declared here.
const LOWEST_VERSION: usize = 120_000;

/// `cublasStatus_t`; 0 is success.
type Status = i32;
/// An opaque object of the library.
pub type Handle = *mut c_void;

/// `cublasLtMatmulAlgo_t`.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Algorithm {
    data: [u64; 8],
}

/// `cublasLtMatmulHeuristicResult_t`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Candidate {
    pub algorithm: Algorithm,
    pub workspace_bytes: usize,
    pub status: Status,
    waves: f32,
    reserved: [i32; 4],
}

/// The library's numbers, under its names without `CUBLASLT_`.
pub mod code {
    pub const COMPUTE_32F: i32 = 68;
    pub const OP_N: i32 = 0;
    pub const OP_T: i32 = 1;
    pub const R_32F: i32 = 0;
    pub const R_16BF: i32 = 14;
    pub const MATMUL_DESC_TRANSA: i32 = 3;
    pub const MATMUL_DESC_TRANSB: i32 = 4;
    pub const MATMUL_DESC_EPILOGUE: i32 = 7;
    pub const MATMUL_DESC_BIAS_POINTER: i32 = 8;
    pub const EPILOGUE_BIAS: i32 = 4;
    pub const MATMUL_PREF_MAX_WORKSPACE_BYTES: i32 = 1;
    pub const MATMUL_PREF_REDUCTION_SCHEME_MASK: i32 = 3;
    pub const MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: i32 = 5;
    pub const MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: i32 = 6;
    pub const MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: i32 = 7;
    pub const MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: i32 = 8;
    pub const REDUCTION_SCHEME_NONE: u32 = 0;
    pub const ALGO_CONFIG_SPLITK_NUM: i32 = 2;
    pub const ALGO_CONFIG_REDUCTION_SCHEME: i32 = 3;
}

macro_rules! functions {
    ($($name:ident = $symbol:literal ($($argument:ty),*);)*) => {
        /// The functions that are used.
        pub struct Functions {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> Status,)*
        }

        impl Functions {
            fn find(library: &libloading::Library) -> std::result::Result<Functions, libloading::Error> {
                // SAFETY: the types are those of cublasLt.h, which are the same in the versions from `LOWEST_VERSION` on.
                unsafe { Ok(Functions { $($name: *library.get($symbol)?,)* }) }
            }
        }
    };
}

functions! {
    create = "cublasLtCreate" (*mut Handle);
    destroy = "cublasLtDestroy" (Handle);
    desc_create = "cublasLtMatmulDescCreate" (*mut Handle, i32, i32);
    desc_destroy = "cublasLtMatmulDescDestroy" (Handle);
    desc_set = "cublasLtMatmulDescSetAttribute" (Handle, i32, *const c_void, usize);
    layout_create = "cublasLtMatrixLayoutCreate" (*mut Handle, i32, u64, u64, i64);
    layout_destroy = "cublasLtMatrixLayoutDestroy" (Handle);
    preference_create = "cublasLtMatmulPreferenceCreate" (*mut Handle);
    preference_destroy = "cublasLtMatmulPreferenceDestroy" (Handle);
    preference_set = "cublasLtMatmulPreferenceSetAttribute" (Handle, i32, *const c_void, usize);
    heuristic = "cublasLtMatmulAlgoGetHeuristic" (Handle, Handle, Handle, Handle, Handle, Handle, Handle, i32, *mut Candidate, *mut i32);
    check = "cublasLtMatmulAlgoCheck" (Handle, Handle, Handle, Handle, Handle, Handle, *const Algorithm, *mut Candidate);
    config_get = "cublasLtMatmulAlgoConfigGetAttribute" (*const Algorithm, i32, *mut c_void, usize, *mut usize);
    matmul = "cublasLtMatmul" (
        Handle, Handle, *const c_void, *const c_void, Handle, *const c_void, Handle, *const c_void, *const c_void, Handle, *mut c_void,
        Handle, *const Algorithm, *mut c_void, usize, *mut c_void
    );
}

/// An object of the library, destroyed when dropped.
pub struct Object {
    pub handle: Handle,
    destroy: unsafe extern "C" fn(Handle) -> Status,
}

impl Object {
    /// The object that `create` makes.
    pub fn new(
        what: &str,
        destroy: unsafe extern "C" fn(Handle) -> Status,
        create: impl FnOnce(*mut Handle) -> Status,
    ) -> Result<Object> {
        let mut handle = null_mut();
        succeeded(what, create(&raw mut handle))?;
        Ok(Object { handle, destroy })
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: the object was made by the library and is destroyed once.
        unsafe {
            (self.destroy)(self.handle);
        }
    }
}

// SAFETY: handles name objects of the library that belong to no thread.
unsafe impl Send for Object {}

/// `what` is put into words only where it is needed.
pub fn succeeded(what: impl fmt::Display, status: Status) -> Result<()> {
    match status {
        0 => Ok(()),
        _ => Err(Error::Device(format!(
            "cuBLASLt cannot {what} (cublasStatus_t {status}); set OTHINK_GEMM=own to do without it"
        ))),
    }
}

/// The library that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its file, or the name under which the system found it.
    pub path: PathBuf,
    /// Major, minor and patch version.
    pub version: (usize, usize, usize),
}

/// `cuBLASLt 13.0.2 (/usr/local/cuda/lib64/libcublasLt.so.13)`.
impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor, patch) = self.version;
        write!(f, "cuBLASLt {major}.{minor}.{patch} ({})", self.path.display())
    }
}

/// The library, opened for as long as the process runs.
pub struct Library {
    pub functions: Functions,
    pub description: Description,
}

/// What `open` makes of the first library that it takes; without one [`Error::Device`], which says where it was looked for and why what was
/// found can't be used.
pub fn find<T>(open: impl Fn(Library) -> std::result::Result<T, String>) -> Result<T> {
    let try_file = |file: &Path| Library::load(file).and_then(&open);
    if let Some(file) = variable(FILE_VARIABLE) {
        return try_file(&file).map_err(|problem| {
            Error::Device(format!(
                "{FILE_VARIABLE}: {problem}; name a libcublasLt.so of CUDA 12 or newer, or unset the variable"
            ))
        });
    }
    let by_name = NAMES.iter().map(PathBuf::from);
    let files = folders()
        .into_iter()
        .flat_map(|folder| NAMES.map(|name| folder.join(name)))
        .filter(|file| file.is_file());
    let mut problems = Vec::new();
    for candidate in by_name.chain(files) {
        match try_file(&candidate) {
            Ok(opened) => return Ok(opened),
            Err(problem) if is_absence(&problem, &candidate) => {}
            Err(problem) => problems.push(problem),
        }
    }
    Err(Error::Device(format!(
        "cuBLASLt was not found ({}); looked for by name, in CUDA_HOME, CUDA_PATH and /usr/local/cuda*, and among pip's packages; \
         {FILE_VARIABLE}=FILE names it{}",
        NAMES.join(", "),
        problems.iter().map(|problem| format!("; {problem}")).collect::<String>()
    )))
}

/// Whether the system says no more than that it has no library of that name.
fn is_absence(problem: &str, name: &Path) -> bool {
    problem.starts_with(&*name.to_string_lossy()) && problem.contains("cannot open shared object file")
}

/// Whether the environment says which file it is.
pub fn named() -> bool {
    variable(FILE_VARIABLE).is_some()
}

/// A path that the environment gives.
fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

impl Library {
    fn load(file: &Path) -> std::result::Result<Library, String> {
        // SAFETY: opening a library runs its initialisers, which is what NVIDIA's is installed for.
        let library = unsafe { libloading::Library::new(file) }.map_err(|e| reason(&e))?;
        // SAFETY: the type is that of cublasLt.h.
        let version = unsafe {
            let version = library.get::<unsafe extern "C" fn() -> usize>("cublasLtGetVersion");
            version.map_err(|e| reason(&e))?()
        };
        if version < LOWEST_VERSION {
            return Err(format!("{}: version {version} is older than CUDA 12", file.display()));
        }
        // Never closed: its kernels may still run on a GPU and its threads and exit handlers in the process after its last object is gone.
        let library = ManuallyDrop::new(library);
        let functions = Functions::find(&library).map_err(|e| reason(&e))?;
        let path = if file.is_absolute() {
            file.to_path_buf()
        } else {
            mapped_file(file).unwrap_or_else(|| file.to_path_buf())
        };
        let description =
            Description { path, version: (version / 10_000, version / 100 % 100, version % 100) };
        Ok(Library { functions, description })
    }
}

/// What the system says of a library that it doesn't open, or of a function that isn't there.
fn reason(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// The file of a library that the system found by its name, as Linux tells it.
fn mapped_file(name: &Path) -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let mut files = maps.lines().filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..])));
    files.find(|file| {
        file.file_name().is_some_and(|found| found.to_string_lossy().starts_with(&*name.to_string_lossy()))
    })
}

/// The folders where a toolkit or pip puts the library.
fn folders() -> Vec<PathBuf> {
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable);
    let installed = matching(Path::new("/usr/local"), "cuda");
    let mut found: Vec<PathBuf> = toolkits.chain(installed).map(|toolkit| toolkit.join("lib64")).collect();

    let path = env::var_os("PATH").unwrap_or_default();
    let python = env::split_paths(&path).map(|folder| folder.join("python3")).find(|file| file.is_file());
    // Of a virtual environment, and of the Python that it was made with.
    let of_python = python.into_iter().flat_map(|file| [file.canonicalize().ok(), Some(file)]).flatten();
    let of_python = of_python.filter_map(|file| Some(file.parent()?.parent()?.to_path_buf()));
    let named = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable);
    let own = variable("HOME").map(|home| home.join(".local"));
    for prefix in named.chain(own).chain(of_python) {
        found.push(prefix.join("lib"));
        for python in matching(&prefix.join("lib"), "python3") {
            for packages in ["site-packages", "dist-packages"] {
                let nvidia = python.join(packages).join("nvidia");
                found.extend(["cu13/lib", "cublas/lib"].map(|below| nvidia.join(below)));
            }
        }
    }
    found
}

/// The entries of a folder whose names begin like this, the highest version first.
fn matching(folder: &Path, start: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(start))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found.reverse();
    found
}
