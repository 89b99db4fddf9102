//! Matrix products: what one is, and whether cuBLASLt or our own kernels compute it.
//!
//! `OTHINK_GEMM` decides: `auto` (also when unset) takes cuBLASLt where it is found and serves the product, else our kernels; `own` never looks for the
//! library; `cublaslt` fails where it isn't found. Whatever is taken for a product is taken for every number of tokens.

use super::Gpu;
use super::cublaslt::{CublasLt, Description};
use crate::error::{Error, Result};
use std::env;
use std::sync::PoisonError;

/// The variable that chooses a [`Policy`].
const POLICY_VARIABLE: &str = "OTHINK_GEMM";

/// How the factors of `C[M, N] = A B` are stored, row-major all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// A `[M, K]`, B `[N, K]`: `y = x W^T`.
    Nt,
    /// A `[M, K]`, B `[K, N]`: `dx = dy W`.
    Nn,
    /// A `[K, M]`, B `[K, N]`: `dW = dy^T x`.
    Tn,
}

/// An element type of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scalar {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
}

/// A product `C[M, N] = A B (+ bias) (+ C)`, all but where its matrices are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    /// How the factors are stored.
    pub layout: Layout,
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Elements from one row to the next of A, B and C.
    pub strides: [usize; 3],
    /// Bytes, at most 16, that every row of A, B and C begins at a multiple of, and the bias.
    pub alignments: [u32; 4],
    /// Type of A, B and the bias.
    pub factors: Scalar,
    /// Type of C.
    pub product: Scalar,
    /// Whether a row is added to every row of C.
    pub bias: bool,
    /// Whether the old C is added.
    pub accumulate: bool,
}

/// The number of tokens that algorithms are chosen at.
const CANONICAL_TOKENS: usize = 4096;

impl Product {
    /// The dimension that counts tokens, the other two being those of the weights: M, but K in a weight's gradient.
    pub fn tokens(&self) -> usize {
        match self.layout {
            Layout::Nt | Layout::Nn => self.m,
            Layout::Tn => self.k,
        }
    }

    /// The same for another number of tokens.
    pub fn with_tokens(mut self, tokens: usize) -> Product {
        match self.layout {
            Layout::Nt | Layout::Nn => self.m = tokens,
            Layout::Tn => self.k = tokens,
        }
        self
    }

    /// What all products share that differ only in the number of tokens.
    pub fn canonical(self) -> Product {
        self.with_tokens(CANONICAL_TOKENS)
    }

    /// Rows and columns of A, B and C as they are stored.
    pub fn stored(&self) -> [[usize; 2]; 3] {
        let Product { m, n, k, .. } = *self;
        match self.layout {
            Layout::Nt => [[m, k], [n, k], [m, n]],
            Layout::Nn => [[m, k], [k, n], [m, n]],
            Layout::Tn => [[k, m], [k, n], [m, n]],
        }
    }
}

/// Who computes products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// cuBLASLt where it is found.
    Auto,
    /// Our kernels.
    Own,
    /// cuBLASLt, or an error where it isn't found.
    CublasLt,
}

impl Policy {
    fn from_environment() -> Result<Policy> {
        Policy::parse(env::var(POLICY_VARIABLE).as_deref().unwrap_or_default())
    }

    fn parse(text: &str) -> Result<Policy> {
        match text {
            "" | "auto" => Ok(Policy::Auto),
            "own" => Ok(Policy::Own),
            "cublaslt" => Ok(Policy::CublasLt),
            _ => Err(Error::Usage(format!(
                "{POLICY_VARIABLE}={text}: set it to auto, own or cublaslt, or unset it"
            ))),
        }
    }

    /// The library, where it is to be used.
    fn library(self) -> Result<Option<CublasLt>> {
        match self {
            Policy::Own => Ok(None),
            Policy::CublasLt => CublasLt::open().map(Some),
            // A file that was named is wanted: an error then says what is wrong with it.
            Policy::Auto if super::cublaslt::named() => CublasLt::open().map(Some),
            // Why not, `cublaslt::probe` says.
            Policy::Auto => Ok(CublasLt::open().ok()),
        }
    }
}

/// The library as far as it was looked for.
#[derive(Default)]
pub(super) enum Products {
    /// Not yet.
    #[default]
    Undecided,
    /// Our own kernels compute everything.
    Own,
    /// The library computes what it can.
    CublasLt(Box<CublasLt>),
}

impl Products {
    fn new(policy: Policy) -> Result<Products> {
        Ok(policy.library()?.map_or(Products::Own, |library| Products::CublasLt(Box::new(library))))
    }
}

impl Gpu {
    /// Chooses who computes products from now on, when those asked for so far are done; without a call of this `OTHINK_GEMM` does, at the
    /// first product.
    ///
    /// # Errors
    /// [`Error::Device`] where cuBLASLt has to be used and can't, or when something asked for so far failed.
    pub fn set_gemm_policy(&self, policy: Policy) -> Result<()> {
        self.bind()?;
        let chosen = Products::new(policy)?;
        let mut products = self.0.products.lock().unwrap_or_else(PoisonError::into_inner);
        // The library that is dropped here must have nothing running. Behind the lock, no other thread gives it more to do.
        self.synchronize()?;
        *products = chosen;
        Ok(())
    }

    /// The cuBLASLt that computes products; none where our own kernels compute all of them.
    ///
    /// # Errors
    /// [`Error::Usage`] for a wrong `OTHINK_GEMM`; [`Error::Device`] where cuBLASLt has to be used and can't.
    pub fn gemm_library(&self) -> Result<Option<Description>> {
        self.with_products(|products| {
            Ok(match products {
                Products::CublasLt(library) => Some(library.description().clone()),
                _ => None,
            })
        })
    }

    /// Has cuBLASLt compute a product; `Ok(false)` where our own kernels have to.
    ///
    /// # Errors
    /// Those of [`Gpu::gemm_library`], and [`Error::Device`] when the library fails.
    ///
    /// # Safety
    /// The addresses of A, B, the bias (0 without one) and C lead to the matrices that the product describes, in memory of this GPU.
    #[allow(unsafe_code)]
    pub unsafe fn multiply_by_library(&self, product: &Product, addresses: [u64; 4]) -> Result<bool> {
        self.with_products(|products| match products {
            // SAFETY: the caller's promise.
            Products::CublasLt(library) => unsafe { library.multiply(self, product, addresses) },
            _ => Ok(false),
        })
    }

    fn with_products<T>(&self, f: impl FnOnce(&mut Products) -> Result<T>) -> Result<T> {
        self.bind()?;
        let mut products = self.0.products.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*products, Products::Undecided) {
            *products = Products::new(Policy::from_environment()?)?;
        }
        f(&mut products)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_have_names() {
        assert_eq!(Policy::parse("").ok(), Some(Policy::Auto));
        assert_eq!(Policy::parse("own").ok(), Some(Policy::Own));
        assert_eq!(Policy::parse("cublaslt").ok(), Some(Policy::CublasLt));
        let error = Policy::parse("cublas").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("OTHINK_GEMM=cublas: set it to auto, own or cublaslt"), "{error}");
    }
}
