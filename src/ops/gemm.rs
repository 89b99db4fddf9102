//! Matrix product on the CPU with one accumulation order for every shape. On a GPU: [`cuda`].
//!
//! **The law.** `c[i][j]` is the chain `acc = fma(a[i][p], b[p][j], acc)` over p = 0, 1, .. k-1, starting
//! from 0 (or from the old `c[i][j]`). Blocking, threads, the vector width and the size of m and n change
//! nothing of it: partial sums wait in `c` between blocks of k, which is exact. So a row's result never
//! depends on the other rows, and the same bits come from any machine.

#[allow(unsafe_code)]
pub mod cuda;

use super::{Cost, SERIAL_LIMIT};
use crate::tensor::dtype::{DType, Real};
use rayon::prelude::*;

/// A read-only matrix view: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct View<'a, R> {
    data: &'a [R],
    row_stride: usize,
    col_stride: usize,
}

impl<'a, R> View<'a, R> {
    /// Row-major with rows `stride` elements apart.
    pub fn rows(data: &'a [R], stride: usize) -> Self {
        View { data, row_stride: stride, col_stride: 1 }
    }

    /// The transpose of a row-major matrix whose rows are `stride` elements apart.
    pub fn transposed(data: &'a [R], stride: usize) -> Self {
        View { data, row_stride: 1, col_stride: stride }
    }
}

/// Whether the product replaces the old content or continues its accumulation chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Into {
    /// `c = a b`.
    Overwrite,
    /// `c = c + a b`, the old c being the start of each chain.
    Accumulate,
}

/// Cost of `c[m, n] = a[m, k] b[k, n]` with `a` and `b` of type `factors` and `c` of type `product`.
pub fn cost((m, n, k): (usize, usize, usize), factors: DType, product: DType) -> Cost {
    let (m, n, k) = (m as u64, n as u64, k as u64);
    Cost {
        flops: 2 * m * n * k,
        bytes: (m * k + n * k) * factors.size() as u64 + m * n * product.size() as u64,
    }
}

const MR: usize = 6;
const NR: usize = 16;
/// Depth of one block: a packed panel of b (KC x NR) stays in the first-level cache.
const KC: usize = 384;
/// Rows of one task.
const MC: usize = 48;
/// Columns of one task.
const NC: usize = 256;

/// `c[m, n] (+)= a[m, k] b[k, n]`, c row-major with rows `ldc` elements apart.
///
/// Panics when a view is too short for its shape, which is a bug of the caller.
pub fn gemm<R: Real>(
    (m, n, k): (usize, usize, usize),
    a: View<'_, R>,
    b: View<'_, R>,
    c: &mut [R],
    ldc: usize,
    into: Into,
) {
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if into == Into::Overwrite {
            c.chunks_mut(ldc).take(m).for_each(|row| row[..n].fill(R::ZERO));
        }
        return;
    }
    let panels = n.div_ceil(NR);
    let serial = m * n * k < SERIAL_LIMIT || rayon::current_num_threads() == 1;
    let mut packed = vec![R::ZERO; panels * NR * k.min(KC)];
    for p0 in (0..k).step_by(KC) {
        let kc = KC.min(k - p0);
        let fresh = p0 == 0 && into == Into::Overwrite;
        let panel_len = kc * NR;
        let pack = |(panel, out): (usize, &mut [R])| pack_b(b, p0, panel * NR, n, out);
        let packed = &mut packed[..panels * panel_len];
        if serial {
            packed.chunks_mut(panel_len).enumerate().for_each(pack);
        } else {
            packed.par_chunks_mut(panel_len).enumerate().for_each(pack);
        }
        let packed = &*packed;
        let block = |(block, c): (usize, &mut [R])| {
            let i0 = block * MC;
            row_block((MC.min(m - i0), n, kc), a, (i0, p0), packed, c, ldc, fresh);
        };
        if serial {
            c.chunks_mut(MC * ldc).take(m.div_ceil(MC)).enumerate().for_each(block);
        } else if m > MC {
            c.par_chunks_mut(MC * ldc).take(m.div_ceil(MC)).enumerate().for_each(block);
        } else {
            wide_block((m, n, kc), a, p0, packed, c, ldc, fresh);
        }
    }
}

/// Few rows, many columns: the columns are shared among the threads. Each computes a block of its own,
/// because disjoint column ranges of one row-major buffer cannot be lent out safely at once.
fn wide_block<R: Real>(
    (m, n, kc): (usize, usize, usize),
    a: View<'_, R>,
    p0: usize,
    packed: &[R],
    c: &mut [R],
    ldc: usize,
    fresh: bool,
) {
    let start = &*c;
    let blocks: Vec<Vec<R>> = (0..n.div_ceil(NC))
        .into_par_iter()
        .map(|block| {
            let j0 = block * NC;
            let nc = NC.min(n - j0);
            let mut own = vec![R::ZERO; m * nc];
            if !fresh {
                for i in 0..m {
                    own[i * nc..(i + 1) * nc].copy_from_slice(&start[i * ldc + j0..i * ldc + j0 + nc]);
                }
            }
            row_block((m, nc, kc), a, (0, p0), &packed[j0 * kc..], &mut own, nc, fresh);
            own
        })
        .collect();
    for (block, own) in blocks.iter().enumerate() {
        let j0 = block * NC;
        let nc = NC.min(n - j0);
        for i in 0..m {
            c[i * ldc + j0..i * ldc + j0 + nc].copy_from_slice(&own[i * nc..(i + 1) * nc]);
        }
    }
}

/// Copies columns `j0 .. j0 + NR` of b, rows `p0 .. p0 + kc`, to `out[p][j]`; columns past n are zero.
fn pack_b<R: Real>(b: View<'_, R>, p0: usize, j0: usize, n: usize, out: &mut [R]) {
    let width = NR.min(n - j0);
    if b.col_stride == 1 {
        for (p, row) in out.chunks_exact_mut(NR).enumerate() {
            let at = (p0 + p) * b.row_stride + j0;
            row[..width].copy_from_slice(&b.data[at..at + width]);
            row[width..].fill(R::ZERO);
        }
        return;
    }
    if width < NR {
        out.fill(R::ZERO);
    }
    let (rows, _) = out.as_chunks_mut::<NR>();
    for j in 0..width {
        let base = (j0 + j) * b.col_stride + p0 * b.row_stride;
        strided(b.data, base, b.row_stride, rows, |row, x| row[j] = x);
    }
}

/// Hands `rows[p]` and `data[base + p * stride]` to `put`, for every p.
#[inline(always)]
fn strided<R: Real, const W: usize>(
    data: &[R],
    base: usize,
    stride: usize,
    rows: &mut [[R; W]],
    put: impl Fn(&mut [R; W], R),
) {
    if stride == 1 {
        rows.iter_mut().zip(&data[base..]).for_each(|(row, &x)| put(row, x));
    } else {
        rows.iter_mut().zip(data[base..].iter().step_by(stride)).for_each(|(row, &x)| put(row, x));
    }
}

/// Rows `i0 .. i0 + m` of the product for one block of k, from packed b; `c` starts at row i0.
fn row_block<R: Real>(
    (m, n, kc): (usize, usize, usize),
    a: View<'_, R>,
    (i0, p0): (usize, usize),
    packed: &[R],
    c: &mut [R],
    ldc: usize,
    fresh: bool,
) {
    let mut a_panels = vec![R::ZERO; m.div_ceil(MR) * MR * kc];
    for (t, panel) in a_panels.chunks_exact_mut(MR * kc).enumerate() {
        let rows = MR.min(m - t * MR);
        let (steps, _) = panel.as_chunks_mut::<MR>();
        for r in 0..rows {
            let base = (i0 + t * MR + r) * a.row_stride + p0 * a.col_stride;
            strided(a.data, base, a.col_stride, steps, |step, x| step[r] = x);
        }
    }
    for (panel_index, b_panel) in packed.chunks_exact(NR * kc).take(n.div_ceil(NR)).enumerate() {
        let j0 = panel_index * NR;
        let width = NR.min(n - j0);
        for (t, a_panel) in a_panels.chunks_exact(MR * kc).enumerate() {
            let rows = MR.min(m - t * MR);
            let tile = &mut c[t * MR * ldc + j0..];
            match rows {
                1 => micro::<R, 1>(a_panel, b_panel, tile, ldc, width, fresh),
                2 => micro::<R, 2>(a_panel, b_panel, tile, ldc, width, fresh),
                3 => micro::<R, 3>(a_panel, b_panel, tile, ldc, width, fresh),
                4 => micro::<R, 4>(a_panel, b_panel, tile, ldc, width, fresh),
                5 => micro::<R, 5>(a_panel, b_panel, tile, ldc, width, fresh),
                _ => micro::<R, 6>(a_panel, b_panel, tile, ldc, width, fresh),
            }
        }
    }
}

/// An `M x NR` tile: the accumulators live in registers over the whole block of k.
///
/// For that they must not be touched by an index or a length that isn't constant: the rows are written out, whatever the
/// optimiser would make of a loop, and c is read and written by way of a copy.
#[inline(never)]
fn micro<R: Real, const M: usize>(a: &[R], b: &[R], c: &mut [R], ldc: usize, width: usize, fresh: bool) {
    let mut tile = [[R::ZERO; NR]; M];
    if !fresh {
        for (i, row) in tile.iter_mut().enumerate() {
            row[..width].copy_from_slice(&c[i * ldc..i * ldc + width]);
        }
    }
    let mut acc = tile;
    let (a_rows, _) = a.as_chunks::<MR>();
    let (b_rows, _) = b.as_chunks::<NR>();
    for (a, b) in a_rows.iter().zip(b_rows) {
        if M > 0 {
            multiply_add(&mut acc[0], a[0], b);
        }
        if M > 1 {
            multiply_add(&mut acc[1], a[1], b);
        }
        if M > 2 {
            multiply_add(&mut acc[2], a[2], b);
        }
        if M > 3 {
            multiply_add(&mut acc[3], a[3], b);
        }
        if M > 4 {
            multiply_add(&mut acc[4], a[4], b);
        }
        if M > 5 {
            multiply_add(&mut acc[5], a[5], b);
        }
    }
    tile = acc;
    for (i, row) in tile.iter().enumerate() {
        c[i * ldc..i * ldc + width].copy_from_slice(&row[..width]);
    }
}

/// `acc + a b`, element by element.
#[inline(always)]
fn multiply_add<R: Real>(acc: &mut [R; NR], a: R, b: &[R; NR]) {
    for j in 0..NR {
        acc[j] = a.mul_add(b[j], acc[j]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    fn random(len: usize, id: u64) -> Vec<f32> {
        let mut s = Stream::new(11, Purpose::Init, id);
        (0..len).map(|_| s.normal()).collect()
    }

    /// The law, one element at a time.
    fn chain(m: usize, n: usize, k: usize, a: &[f32], b: &[f32], c: &mut [f32]) {
        for i in 0..m {
            for j in 0..n {
                for p in 0..k {
                    c[i * n + j] = a[i * k + p].mul_add(b[p * n + j], c[i * n + j]);
                }
            }
        }
    }

    fn transpose(rows: usize, cols: usize, x: &[f32]) -> Vec<f32> {
        (0..cols * rows).map(|i| x[(i % rows) * cols + i / rows]).collect()
    }

    #[test]
    fn every_layout_and_size_is_the_same_chain() {
        for (m, n, k) in
            [(1, 1, 1), (1, 17, 3), (3, 5, 400), (7, 33, 769), (49, 16, 5), (97, 300, 64), (2, 600, 900)]
        {
            let (a, b) = (random(m * k, 1), random(k * n, 2));
            let mut want = vec![0.0; m * n];
            chain(m, n, k, &a, &b, &mut want);
            let (at, bt) = (transpose(m, k, &a), transpose(k, n, &b));
            for va in [View::rows(&a, k), View::transposed(&at, m)] {
                for vb in [View::rows(&b, n), View::transposed(&bt, k)] {
                    let mut c = vec![9.0; m * n];
                    gemm((m, n, k), va, vb, &mut c, n, Into::Overwrite);
                    assert_eq!(c, want, "{m} x {n} x {k}");
                }
            }
            let mut twice = want.clone();
            chain(m, n, k, &a, &b, &mut twice);
            gemm((m, n, k), View::rows(&a, k), View::rows(&b, n), &mut want, n, Into::Accumulate);
            assert_eq!(want, twice);
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_number_of_rows() {
        for n in [33, 64, 128, 1000] {
            let (k, full) = (513, 70);
            let (a, w) = (random(full * k, 3), random(n * k, 4));
            let mut all = vec![0.0; full * n];
            gemm((full, n, k), View::rows(&a, k), View::transposed(&w, k), &mut all, n, Into::Overwrite);
            for m in 1..=full {
                let mut some = vec![0.0; m * n];
                let rows = &a[(full - m) * k..];
                gemm((m, n, k), View::rows(rows, k), View::transposed(&w, k), &mut some, n, Into::Overwrite);
                assert_eq!(some, all[(full - m) * n..], "m = {m}, n = {n}");
            }
        }
    }

    #[test]
    fn threads_change_nothing() {
        let (m, n, k) = (130, 520, 400);
        let (a, b) = (random(m * k, 5), random(k * n, 6));
        let product = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("thread pool");
            let mut c = vec![0.0; m * n];
            pool.install(|| {
                gemm((m, n, k), View::rows(&a, k), View::rows(&b, n), &mut c, n, Into::Overwrite)
            });
            c
        };
        assert_eq!(product(1), product(3));
    }
}
