//! Which of the library's algorithms serves a product, whatever its number of tokens: see the row law of [`super`].

use super::CublasLt;
use super::library::{Algorithm, Candidate, Object, code, succeeded};
use crate::cuda::products::{Product, Scalar};
use crate::error::Result;
use std::ffi::c_void;

/// The numbers of tokens besides the canonical one that an algorithm has to be accepted for.
const OTHER_TOKENS: [usize; 6] = [1, 2, 3, 17, 128, 1021];

/// How many of the library's proposals are looked at.
const PROPOSALS: usize = 32;

/// The most room that an algorithm may ask for. Newer ones draw their tiles from a counter of 4 bytes where they are given one, and do without where
/// not; parts of sums take more.
const COUNTER_BYTES: usize = 16;

impl CublasLt {
    /// The algorithm for all products whose canonical form this is.
    pub(super) fn choose(&self, canonical: &Product, desc: &Object) -> Result<Option<Algorithm>> {
        // The library's own kernels want their bias aligned, and in the product's type.
        if canonical.bias && (canonical.alignments[3] < 16 || canonical.factors != canonical.product) {
            return Ok(None);
        }
        // To an old C of bf16 cuBLASLt 13.1 was seen to add a product that it had rounded before.
        if canonical.accumulate && canonical.product == Scalar::Bf16 {
            return Ok(None);
        }
        let all = OTHER_TOKENS.map(|tokens| canonical.with_tokens(tokens));
        for candidate in self.proposals(canonical, desc)? {
            if self.serves(&candidate, desc, &all)? && self.accepted(canonical, desc, &candidate.algorithm)? {
                return Ok(Some(candidate.algorithm));
            }
        }
        Ok(None)
    }

    /// Whether an algorithm computes each of these products, without a share of any sum left to other blocks.
    pub(super) fn serves(&self, candidate: &Candidate, desc: &Object, products: &[Product]) -> Result<bool> {
        if candidate.status != 0 || !self.sums_in_one_piece(&candidate.algorithm) {
            return Ok(false);
        }
        for product in products {
            if !self.accepted(product, desc, &candidate.algorithm)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What the library would do, the best first; nothing where it can't.
    pub(super) fn proposals(&self, product: &Product, desc: &Object) -> Result<Vec<Candidate>> {
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

    /// Whether the algorithm computes this product without room for parts of sums.
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
        Ok(status == 0 && result.status == 0 && result.workspace_bytes <= COUNTER_BYTES)
    }
}
