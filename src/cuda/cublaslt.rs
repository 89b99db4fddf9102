//! Matrix products by cuBLASLt, NVIDIA's library, where it is installed.
//!
//! The library is opened at run time, by declarations of our own for the few functions that are used. Looked for are, in this order: the file that
//! `OTHINK_CUBLASLT` names (then nothing else), what the system finds under the library's name, `lib64` below `CUDA_HOME`, `CUDA_PATH` and
//! `/usr/local/cuda*`, and where pip puts it, below `VIRTUAL_ENV`, `CONDA_PREFIX`, `~/.local` and the `python3` on `PATH`.
//!
//! **The row law.** Left to itself, the library chooses another algorithm, and so another order of summation, for another number of rows. Here it is
//! asked once per shape of the weights ([`Product::canonical`]), at one number of tokens, for algorithms that split no sum and reduce nothing
//! across blocks; the first that it also accepts at other numbers of tokens serves all of them. Where there is none, our own kernels
//! serve all of them.

use super::Gpu;
use super::products::{Layout, Product, Scalar};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::env;
use std::error::Error as _;
use std::ffi::c_void;
use std::fmt;
use std::fs;
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
type Handle = *mut c_void;

/// `cublasLtMatmulAlgo_t`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Algorithm {
    data: [u64; 8],
}

/// `cublasLtMatmulHeuristicResult_t`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Candidate {
    algorithm: Algorithm,
    workspace_bytes: usize,
    status: Status,
    waves: f32,
    reserved: [i32; 4],
}

/// The library's numbers, under its names without `CUBLASLT_`.
mod code {
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
        struct Functions {
            $($name: unsafe extern "C" fn($($argument),*) -> Status,)*
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
struct Object {
    handle: Handle,
    destroy: unsafe extern "C" fn(Handle) -> Status,
}

impl Object {
    /// The object that `create` makes.
    fn new(
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

fn succeeded(what: &str, status: Status) -> Result<()> {
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

struct Library {
    functions: Functions,
    description: Description,
    // Last, so that it is closed last.
    _library: libloading::Library,
}

/// Looks for the library.
///
/// # Errors
/// [`Error::Device`] when it isn't there or can't be opened, with where it was looked for.
pub fn probe() -> Result<Description> {
    find(|library| Ok(library.description))
}

/// What `open` makes of the first library that it takes.
fn find<T>(open: impl Fn(Library) -> std::result::Result<T, String>) -> Result<T> {
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
            Err(problem) if candidate.is_absolute() => problems.push(problem),
            Err(_) => {}
        }
    }
    Err(Error::Device(format!(
        "cuBLASLt was not found ({}); looked for by name, in CUDA_HOME, CUDA_PATH and /usr/local/cuda*, and among pip's packages; \
         {FILE_VARIABLE}=FILE names it{}",
        NAMES.join(", "),
        problems.iter().map(|problem| format!("; {problem}")).collect::<String>()
    )))
}

/// Whether the environment says which file it is.
pub(super) fn named() -> bool {
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
        let functions = Functions::find(&library).map_err(|e| reason(&e))?;
        let path = if file.is_absolute() {
            file.to_path_buf()
        } else {
            mapped_file(file).unwrap_or_else(|| file.to_path_buf())
        };
        let description =
            Description { path, version: (version / 10_000, version / 100 % 100, version % 100) };
        Ok(Library { functions, description, _library: library })
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

/// The library at work on a GPU, with the algorithms chosen so far.
pub(super) struct CublasLt {
    algorithms: HashMap<Product, Option<Algorithm>>,
    // Before the library, whose object it is.
    handle: Object,
    library: Library,
}

/// The numbers of tokens besides the canonical one that an algorithm has to be accepted for.
const OTHER_TOKENS: [usize; 6] = [1, 2, 3, 17, 128, 1021];

/// How many of the library's proposals are looked at.
const PROPOSALS: usize = 32;

impl CublasLt {
    /// Opens the library for the GPU, whose context has to be current: the newest one that its driver serves.
    pub fn open() -> Result<CublasLt> {
        find(|library| {
            let functions = &library.functions;
            // SAFETY: the call fills one handle.
            let handle =
                Object::new("start", functions.destroy, |handle| unsafe { (functions.create)(handle) });
            let handle = handle.map_err(|e| format!("{}: {e}", library.description.path.display()))?;
            Ok(CublasLt { algorithms: HashMap::new(), handle, library })
        })
    }

    pub fn description(&self) -> &Description {
        &self.library.description
    }

    /// Asks the GPU for the product; `Ok(false)`, with nothing asked, where the library doesn't serve products like this one.
    ///
    /// # Safety
    /// The addresses lead to the matrices that the product describes.
    pub unsafe fn multiply(
        &mut self,
        gpu: &Gpu,
        product: &Product,
        [a, b, bias, c]: [u64; 4],
    ) -> Result<bool> {
        let desc = self.desc(product, bias)?;
        let canonical = product.canonical();
        let algorithm = match self.algorithms.get(&canonical) {
            Some(known) => *known,
            None => {
                let chosen = self.choose(&canonical, &desc)?;
                self.algorithms.insert(canonical, chosen);
                chosen
            }
        };
        let Some(algorithm) = algorithm else { return Ok(false) };
        let [layout_a, layout_b, layout_c] = self.layouts(product)?;
        let (one, beta) = (1.0_f32, f32::from(u8::from(product.accumulate)));
        // SAFETY: handles and algorithm are the library's; the matrices are the caller's promise. Its A is our B: see `layouts`.
        let status = unsafe {
            (self.library.functions.matmul)(
                self.handle.handle,
                desc.handle,
                (&raw const one).cast(),
                b as *const c_void,
                layout_b.handle,
                a as *const c_void,
                layout_a.handle,
                (&raw const beta).cast(),
                c as *const c_void,
                layout_c.handle,
                c as *mut c_void,
                layout_c.handle,
                &raw const algorithm,
                null_mut(),
                0,
                gpu.0.stream.cu_stream().cast(),
            )
        };
        succeeded(&format!("multiply as it had said it could: {product:?}"), status)?;
        Ok(true)
    }

    /// The algorithm for all products whose canonical form this is.
    fn choose(&self, canonical: &Product, desc: &Object) -> Result<Option<Algorithm>> {
        // The library's own kernels want their bias aligned, and in the product's type.
        if canonical.bias && (canonical.alignments[3] < 16 || canonical.factors != canonical.product) {
            return Ok(None);
        }
        for candidate in self.proposals(canonical, desc)? {
            let algorithm = candidate.algorithm;
            let mut fits = candidate.status == 0 && self.sums_in_one_piece(&algorithm);
            for tokens in OTHER_TOKENS.into_iter().chain([canonical.tokens()]) {
                fits = fits && self.accepted(&canonical.with_tokens(tokens), desc, &algorithm)?;
            }
            if fits {
                return Ok(Some(algorithm));
            }
        }
        Ok(None)
    }

    /// What the library would do, the best first; nothing where it can't.
    fn proposals(&self, product: &Product, desc: &Object) -> Result<Vec<Candidate>> {
        let functions = &self.library.functions;
        // SAFETY: the call fills one handle.
        let preference = Object::new("state a preference", functions.preference_destroy, |handle| unsafe {
            (functions.preference_create)(handle)
        })?;
        let set = |attribute, value: *const c_void, bytes| {
            // SAFETY: the value has as many bytes as are named, and is copied.
            let status = unsafe { (functions.preference_set)(preference.handle, attribute, value, bytes) };
            succeeded("take a preference", status)
        };
        // Without room to leave parts of sums in, blocks can't share a sum.
        let workspace = 0_u64;
        set(code::MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast(), size_of_val(&workspace))?;
        let [a, b, c, _] = product.alignments;
        for (attribute, value) in [
            (code::MATMUL_PREF_REDUCTION_SCHEME_MASK, code::REDUCTION_SCHEME_NONE),
            (code::MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
            (code::MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
            (code::MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
            (code::MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c),
        ] {
            set(attribute, (&raw const value).cast(), size_of_val(&value))?;
        }
        let [layout_a, layout_b, layout_c] = self.layouts(product)?;
        let mut found = [Candidate::default(); PROPOSALS];
        let mut count = 0;
        // SAFETY: there is room for as many results as are asked for.
        let status = unsafe {
            (functions.heuristic)(
                self.handle.handle,
                desc.handle,
                layout_b.handle,
                layout_a.handle,
                layout_c.handle,
                layout_c.handle,
                preference.handle,
                PROPOSALS as i32,
                found.as_mut_ptr(),
                &raw mut count,
            )
        };
        // A product that the library doesn't know how to compute is an ordinary answer.
        let count = if status == 0 { count as usize } else { 0 };
        Ok(found[..count.min(PROPOSALS)].to_vec())
    }

    /// Whether one block computes the whole sum of an element.
    fn sums_in_one_piece(&self, algorithm: &Algorithm) -> bool {
        let read = |attribute| {
            let (mut value, mut written) = (0_u32, 0);
            // SAFETY: both attributes are 32-bit numbers.
            let status = unsafe {
                (self.library.functions.config_get)(
                    algorithm,
                    attribute,
                    (&raw mut value).cast(),
                    size_of_val(&value),
                    &raw mut written,
                )
            };
            (status == 0).then_some(value)
        };
        read(code::ALGO_CONFIG_SPLITK_NUM).is_some_and(|parts| parts <= 1)
            && read(code::ALGO_CONFIG_REDUCTION_SCHEME) == Some(code::REDUCTION_SCHEME_NONE)
    }

    /// Whether the algorithm computes this product without a workspace.
    fn accepted(&self, product: &Product, desc: &Object, algorithm: &Algorithm) -> Result<bool> {
        let [layout_a, layout_b, layout_c] = self.layouts(product)?;
        let mut result = Candidate::default();
        // SAFETY: handles and algorithm are the library's; one result is filled.
        let status = unsafe {
            (self.library.functions.check)(
                self.handle.handle,
                desc.handle,
                layout_b.handle,
                layout_a.handle,
                layout_c.handle,
                layout_c.handle,
                algorithm,
                &raw mut result,
            )
        };
        Ok(status == 0 && result.status == 0 && result.workspace_bytes == 0)
    }

    /// What is done to the factors and the sums.
    fn desc(&self, product: &Product, bias: u64) -> Result<Object> {
        let functions = &self.library.functions;
        // SAFETY: the call fills one handle.
        let desc = Object::new("describe a product", functions.desc_destroy, |handle| unsafe {
            (functions.desc_create)(handle, code::COMPUTE_32F, code::R_32F)
        })?;
        let set = |attribute, value: *const c_void, bytes| {
            // SAFETY: the value has as many bytes as are named, and is copied.
            succeeded("describe a product", unsafe {
                (functions.desc_set)(desc.handle, attribute, value, bytes)
            })
        };
        let (trans_a, trans_b) = match product.layout {
            Layout::Nt => (code::OP_T, code::OP_N),
            Layout::Nn => (code::OP_N, code::OP_N),
            Layout::Tn => (code::OP_N, code::OP_T),
        };
        set(code::MATMUL_DESC_TRANSA, (&raw const trans_a).cast(), size_of_val(&trans_a))?;
        set(code::MATMUL_DESC_TRANSB, (&raw const trans_b).cast(), size_of_val(&trans_b))?;
        if product.bias {
            let epilogue = code::EPILOGUE_BIAS;
            set(code::MATMUL_DESC_EPILOGUE, (&raw const epilogue).cast(), size_of_val(&epilogue))?;
            set(code::MATMUL_DESC_BIAS_POINTER, (&raw const bias).cast(), size_of_val(&bias))?;
        }
        Ok(desc)
    }

    /// A, B and C. The library's matrices are column-major: our rows are its columns, so that it sees every matrix transposed, and computes
    /// C^T = B^T A^T.
    fn layouts(&self, product: &Product) -> Result<[Object; 3]> {
        let functions = &self.library.functions;
        let make = |scalar, [rows, columns]: [usize; 2], stride: usize| {
            let scalar = match scalar {
                Scalar::F32 => code::R_32F,
                Scalar::Bf16 => code::R_16BF,
            };
            // SAFETY: the call fills one handle.
            Object::new("describe a matrix", functions.layout_destroy, |handle| unsafe {
                (functions.layout_create)(handle, scalar, columns as u64, rows as u64, stride as i64)
            })
        };
        let [a, b, c] = product.stored();
        let [stride_a, stride_b, stride_c] = product.strides;
        Ok([
            make(product.factors, a, stride_a)?,
            make(product.factors, b, stride_b)?,
            make(product.product, c, stride_c)?,
        ])
    }
}
