//! Fused operations: one file each, with formula, CPU loop, gradient and tests.
//!
//! Arithmetic runs in f32 (f64 for gradient checks); bf16 tensors are widened on reading and rounded once,
//! when a result is stored. A row's result never depends on the other rows of a batch: every reduction runs
//! in one fixed order over the row alone.

pub mod activation;
pub mod attention;
pub mod elementwise;
pub mod embedding;
pub mod gemm;
pub mod linear;
pub mod log_softmax_kl;
pub mod norm;
pub mod patch_embed;
pub mod rope;
mod launch;

use crate::tensor::Real;
use rayon::prelude::*;

/// What one call of an op costs at least, by its formula: the benches' measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations; a multiply-add is two.
    pub flops: u64,
    /// Bytes that have to be read and written, each once.
    pub bytes: u64,
}

/// Work below this many multiply-adds (tens of microseconds) costs less than handing it to other threads.
pub(crate) const SERIAL_LIMIT: usize = 1 << 21;

/// `f(0) .. f(count - 1)`, on all threads when all of it together costs enough multiply-adds.
pub(crate) fn tasks<T: Send>(count: usize, cost: usize, f: impl Fn(usize) -> T + Send + Sync) -> Vec<T> {
    if cost < SERIAL_LIMIT {
        (0..count).map(f).collect()
    } else {
        (0..count).into_par_iter().map(f).collect()
    }
}

/// Number of partial sums of [`sum`]; one vector register of f32.
const LANES: usize = 8;

/// The sum of `f(0) .. f(n-1)` in one fixed order: lane j adds the terms with index = j mod 8 from the left,
/// then the lanes are added as a tree. Trailing zeros change nothing.
#[inline(always)]
pub(crate) fn sum<R: Real>(n: usize, f: impl Fn(usize) -> R) -> R {
    let mut lanes = [R::ZERO; LANES];
    let whole = n / LANES * LANES;
    for base in (0..whole).step_by(LANES) {
        for (j, lane) in lanes.iter_mut().enumerate() {
            *lane += f(base + j);
        }
    }
    for i in whole..n {
        lanes[i - whole] += f(i);
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// The inner product of two rows, in the order of [`sum`].
#[inline(always)]
pub(crate) fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    sum(n, |i| a[i] * b[i])
}

/// Largest element; negative infinity for an empty row.
#[inline(always)]
pub(crate) fn max<R: Real>(row: &[R]) -> R {
    row.iter().fold(R::NEG_INFINITY, |m, &x| m.larger(x))
}
