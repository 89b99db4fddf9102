//! A quicker algorithm for some numbers of tokens, where it is proven to give the bits of the one that serves all.
//!
//! The algorithm of 4096 tokens takes large tiles, which leave most of a GPU idle while tokens are decoded: on an H100, 64 tokens of Qwen2-VL-2B's
//! `down_proj` take three times as long by it as by the library's own choice. Which algorithms sum alike the library doesn't say (on Hopper
//! all that it proposes do), so they are compared: both multiply numbers that show the order of a sum, and every bit of the products
//! has to agree. A product thus has the same bits whatever this finds.

use super::CublasLt;
use super::library::{Algorithm, Object};
use crate::cuda::kernels::{Grid, gemm as kernels};
use crate::cuda::products::{Layout, Product, Scalar};
use crate::cuda::{Buffer, Gpu, Purpose};
use crate::error::{Error, Result};

/// Smaller weights than this take no time worth saving.
const FEWEST_WEIGHTS: usize = 1 << 18;

/// In how many elements products are compared. In another order more than one of a hundred differs, the sums being what they are (`fill_factor` in
/// `kernels/gemm.cu`).
const COMPARED: usize = 1 << 16;

/// How often the numbers are exchanged at most to come to so many.
const MOST_ROUNDS: usize = 16;

/// The largest matrix that memory is taken for, in elements.
const LARGEST: usize = 1 << 27;

/// How many of the library's proposals are compared.
const PROPOSALS: usize = 3;

/// Numbers of tokens share an algorithm up to the next power of two, between these. With more, the algorithm for all is at its best.
const FEWEST_TOKENS: usize = 16;
const MOST_TOKENS: usize = 8192;

/// Threads of a block of both kernels.
const THREADS: u32 = 256;

impl CublasLt {
    /// The algorithm for a product, `canonical` being the one for any number of tokens.
    pub(super) fn quickest(
        &mut self,
        gpu: &Gpu,
        product: &Product,
        desc: &Object,
        canonical: Algorithm,
    ) -> Result<Algorithm> {
        let tokens = product.tokens().next_power_of_two().max(FEWEST_TOKENS);
        // In a weight's gradient the tokens are what is summed over.
        let is_summed = product.layout == Layout::Tn;
        if is_summed || product.accumulate || product.n * product.k < FEWEST_WEIGHTS || tokens > MOST_TOKENS {
            return Ok(canonical);
        }
        let class = product.with_tokens(tokens);
        if let Some(known) = self.quicker.get(&class) {
            return Ok(*known);
        }
        let found = match self.proven(gpu, &class, desc, &canonical) {
            // Memory that is short changes the time of a product only.
            Err(Error::Memory(_)) => None,
            other => other?,
        };
        gpu.0.trace.choice(|| {
            let Product { layout, n, k, .. } = product;
            let by = if found.is_some() { "an algorithm of their own" } else { "the one for all" };
            format!("of cuBLASLt for up to {tokens} tokens, {layout:?} n {n} k {k}: {by}")
        });
        let algorithm = found.unwrap_or(canonical);
        self.quicker.insert(class, algorithm);
        Ok(algorithm)
    }

    /// The first of the library's proposals for a class of products that isn't the canonical algorithm and gives its bits; none where the
    /// canonical one comes first.
    fn proven(
        &self,
        gpu: &Gpu,
        class: &Product,
        desc: &Object,
        canonical: &Algorithm,
    ) -> Result<Option<Algorithm>> {
        let rounds = COMPARED.div_ceil(class.m * class.n);
        let stored = class.stored();
        let [a, b, c] = [0, 1, 2].map(|i| stored[i][0] * class.strides[i]);
        if rounds > MOST_ROUNDS || a.max(b).max(c) > LARGEST {
            return Ok(None);
        }
        let fewest = if class.m == FEWEST_TOKENS { 1 } else { class.m / 2 + 1 };
        let mut candidates = Vec::new();
        for candidate in self.proposals(class, desc)?.into_iter().take(PROPOSALS) {
            let algorithm = candidate.algorithm;
            if algorithm == *canonical {
                break;
            }
            if self.serves(&candidate, desc, &[class.with_tokens(fewest), *class])? {
                candidates.push(algorithm);
            }
        }
        if candidates.is_empty() {
            return Ok(None);
        }
        let mut a = gpu.alloc::<u32>(words(class.factors, a), Purpose::Workspace)?;
        let mut b = gpu.alloc::<u32>(words(class.factors, b), Purpose::Workspace)?;
        // Between rows that have gaps nothing is written.
        let mut ours = gpu.zeros::<u32>(words(class.product, c), Purpose::Workspace)?;
        let mut theirs = gpu.zeros::<u32>(words(class.product, c), Purpose::Workspace)?;
        fill(gpu, class, Factor::B, 0, &mut b)?;
        for algorithm in candidates {
            let mut different = gpu.zeros::<u32>(1, Purpose::Workspace)?;
            for round in 0..rounds {
                fill(gpu, class, Factor::A, round as u32 + 1, &mut a)?;
                for (algorithm, c) in [(canonical, &mut ours), (&algorithm, &mut theirs)] {
                    let addresses = [a.ptr().address(), b.ptr().address(), c.ptr_mut().address()];
                    // SAFETY: the matrices are as large as the class says.
                    unsafe { self.ask(gpu, class, desc, algorithm, addresses) }?;
                }
                let (grid, n) =
                    (Grid::new(ours.len().div_ceil(THREADS as usize), THREADS)?, ours.len() as i64);
                // SAFETY: both products have n words, `different` has one.
                unsafe {
                    kernels::count_different(gpu, grid, ours.ptr(), theirs.ptr(), different.ptr_mut(), n)
                }?;
            }
            if different.download()? == [0] {
                return Ok(Some(algorithm));
            }
        }
        Ok(None)
    }
}

/// The words of memory that `count` numbers take.
fn words(scalar: Scalar, count: usize) -> usize {
    match scalar {
        Scalar::F32 => count,
        Scalar::Bf16 => count.div_ceil(2),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Factor {
    A,
    B,
}

/// Fills a factor of a product in layout NT or NN with numbers that show the order of the sums.
fn fill(gpu: &Gpu, product: &Product, factor: Factor, seed: u32, x: &mut Buffer<u32>) -> Result<()> {
    let ([rows, columns], stride) = (product.stored()[factor as usize], product.strides[factor as usize]);
    let grid = Grid::new((rows * columns).div_ceil(THREADS as usize), THREADS)?;
    let along_rows = i32::from(factor == Factor::B && product.layout == Layout::Nn);
    let cancels = i32::from(factor == Factor::A);
    let x = x.ptr_mut();
    let [rows, columns, stride] = [rows, columns, stride].map(|size| size as i32);
    // SAFETY: x holds `rows` rows of `stride` numbers of the type; the kernel writes the first `columns` of each.
    unsafe {
        match product.factors {
            Scalar::Bf16 => kernels::fill_factor_bf16(
                gpu,
                grid,
                x.cast(),
                rows,
                columns,
                stride,
                along_rows,
                cancels,
                seed,
            ),
            Scalar::F32 => kernels::fill_factor_f32(
                gpu,
                grid,
                x.cast(),
                rows,
                columns,
                stride,
                along_rows,
                cancels,
                seed,
            ),
        }
    }
}
