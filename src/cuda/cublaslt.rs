//! Matrix products by cuBLASLt, NVIDIA's library, where it is installed.
//!
//! The library is opened at run time, by declarations of our own for the few functions that are used. Looked for are, in this order: the file that
//! `OTHINK_CUBLASLT` names (then nothing else), what the system finds under the library's name, `lib64` below `CUDA_HOME`, `CUDA_PATH` and
//! `/usr/local/cuda*`, and where pip puts it, below `VIRTUAL_ENV`, `CONDA_PREFIX`, `~/.local` and the `python3` on `PATH`.
//!
//! **The row law.** Left to itself, the library chooses another algorithm, and so another order of summation, for another number of rows. Here it is
//! asked once per shape of the weights ([`Product::canonical`]), at one number of tokens, for algorithms that split no sum and reduce nothing
//! across blocks; the first that it also accepts at other numbers of tokens serves all of them (`choice`). Where there is none, our own kernels
//! serve all of them. Another algorithm takes its place for some numbers of tokens once it has been proven to give the same bits
//! (`quicker`).

mod choice;
mod library;
mod quicker;

pub use library::Description;
pub(super) use library::named;

use super::Gpu;
use super::products::{Layout, Product, Scalar};
use crate::error::Result;
use library::{Algorithm, Library, Object, code, find, succeeded};
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::null_mut;

/// Looks for the library and starts it, for the GPU whose context is current: as after any call of a [`Gpu`] in this thread.
///
/// # Errors
/// [`Error::Device`](crate::error::Error::Device) when it can't be used, with where it was looked for and what is wrong with what was found:
/// the reason why [`Policy::Auto`](super::products::Policy::Auto) leaves products to our kernels.
pub fn probe() -> Result<Description> {
    CublasLt::open().map(|started| started.library.description)
}

/// The library at work on a GPU, with the algorithms chosen so far.
pub(super) struct CublasLt {
    /// By canonical product.
    algorithms: HashMap<Product, Option<Algorithm>>,
    /// By product at the number of tokens that stands for its class.
    quicker: HashMap<Product, Algorithm>,
    // Before the library, whose object it is.
    handle: Object,
    library: Library,
}

impl CublasLt {
    /// Opens the library for the GPU, whose context has to be current: the newest one that its driver serves.
    pub fn open() -> Result<CublasLt> {
        find(|library| {
            let functions = &library.functions;
            // SAFETY: the call fills one handle.
            let handle =
                Object::new("start", functions.destroy, |handle| unsafe { (functions.create)(handle) });
            let handle = handle.map_err(|e| format!("{}: {e}", library.description.path.display()))?;
            Ok(CublasLt { algorithms: HashMap::new(), quicker: HashMap::new(), handle, library })
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
        let algorithm = self.quickest(gpu, product, &desc, algorithm)?;
        // SAFETY: the caller's promise.
        unsafe { self.ask(gpu, product, &desc, &algorithm, [a, b, c]) }?;
        gpu.0.trace.product(|| {
            let Product { layout, m, n, k, factors, product, .. } = product;
            format!("by cuBLASLt {layout:?} {m}x{n}x{k} {factors:?} to {product:?}")
        });
        Ok(true)
    }

    /// Asks the GPU for the product by an algorithm.
    ///
    /// # Safety
    /// The addresses lead to matrices as the product describes them, and `desc` to its bias.
    unsafe fn ask(
        &self,
        gpu: &Gpu,
        product: &Product,
        desc: &Object,
        algorithm: &Algorithm,
        [a, b, c]: [u64; 3],
    ) -> Result<()> {
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
                algorithm,
                null_mut(),
                0,
                gpu.0.stream.cu_stream().cast(),
            )
        };
        succeeded(format_args!("multiply as it had said it could: {product:?}"), status)
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
