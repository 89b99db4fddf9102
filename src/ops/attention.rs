//! Attention over packed segments, with an optional shared prefix.
//!
//! Row i of a segment attends to all rows of its prefix segment, then to the rows of its own segment (to rows
//! `<= i` when causal): `o_i = sum_j p_ij v_j`, `p_ij = softmax_j(q_i k_j / sqrt(D))`. With G completions as segments
//! whose prefix is the prompt, this is exactly attention over G separate sequences, the prompt computed once.
//! Attention within each image, or within windows of it (rows ordered window by window), is a segment for each, not causal.
//! Grouped-query: query head h uses key/value head `h / (H / K)`.
//!
//! Shapes: q, o `[T, H * D]`; k, v `[T, K * D]`. Saved: q, k, v, o and the log of each row's normaliser.
//! Gradients, with `P` recomputed from the saved normaliser and `delta_i = sum_d do_id o_id`:
//! `dV = P^T dO`, `dS = P * (dO V^T - delta) / sqrt(D)`, `dQ = dS K`, `dK = dS^T Q`
//! (Dao et al. 2022, algorithm 4). f32 softmax.
//!
//! Order: scores and outputs are the chains of `gemm` over D and over the keys, prefix first; the softmax sum
//! runs over the keys in the order of `ops::sum`. Rows of a block see zeros behind their last key, which change
//! no sum. So prefill, decode from a cache ([`decode`]) and training give the same bits.
//!
//! On a GPU: `kernels/flash_attention.cu`. Keys come in tiles of 64, prefix first, each range cut from its own start; a row's
//! sums run over its tiles in that order with online softmax (Milakov and Gimelshein 2018), in f32. In bf16 the products
//! run on tensor cores, and P and dS are rounded to bf16 for theirs.

#[allow(unsafe_code)]
mod cuda;
mod padded;
pub mod paged;
mod plan;

use super::gemm::{Into, View, gemm};
use super::{Cost, dot, max, sum, tasks};
use crate::autograd::Op;
use crate::dispatch;
use crate::error::{Error, Result};
use crate::tensor::{DType, Real, Tensor};
use std::ops::{Deref, Range};
use std::sync::Arc;

/// A run of rows that attend to each other, after the rows of an earlier segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The segment's rows.
    pub rows: Range<usize>,
    /// Rows every row of the segment attends to first.
    pub prefix: Option<Range<usize>>,
}

impl Segment {
    fn prefix_rows(&self) -> Range<usize> {
        self.prefix.clone().unwrap_or(0..0)
    }
}

/// The segments of packed rows, and the kernels' work lists for them, which the first layer makes. Clones share both.
#[derive(Clone, Debug)]
pub struct Segments {
    list: Arc<[Segment]>,
    work: Arc<plan::WorkLists>,
}

impl Deref for Segments {
    type Target = [Segment];

    fn deref(&self) -> &[Segment] {
        &self.list
    }
}

impl<L: std::convert::Into<Arc<[Segment]>>> From<L> for Segments {
    fn from(list: L) -> Segments {
        Segments { list: list.into(), work: Arc::default() }
    }
}

/// Head counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads H.
    pub query: usize,
    /// Key/value heads K; divides H.
    pub key: usize,
    /// Head dimension D.
    pub dim: usize,
}

impl Heads {
    fn per_key(self) -> usize {
        self.query / self.key
    }

    fn scale<R: Real>(self) -> R {
        R::of(1.0 / (self.dim as f64).sqrt())
    }
}

/// The op.
pub struct Attention {
    /// Head counts.
    pub heads: Heads,
    /// The rows' segments: disjoint, covering all rows, each after its prefix.
    pub segments: Segments,
    /// Whether a row sees only itself and what stands before it in its own segment.
    pub causal: bool,
}

/// Softmax of one row of raw scores over its first `keys` entries, the rest set to 0; gives the log of the
/// normaliser of the scaled scores.
#[inline]
fn softmax_row<R: Real>(row: &mut [R], keys: usize, scale: R) -> R {
    let (seen, hidden) = row.split_at_mut(keys);
    seen.iter_mut().for_each(|s| *s = *s * scale);
    let top = max(seen);
    seen.iter_mut().for_each(|s| *s = (*s - top).exp());
    let total = sum(keys, |j| seen[j]);
    seen.iter_mut().for_each(|s| *s = *s / total);
    hidden.fill(R::ZERO);
    top + total.ln()
}

/// One segment under one query head.
struct Task<'a, R> {
    q: &'a [R],
    k: &'a [R],
    v: &'a [R],
    heads: Heads,
    segment: &'a Segment,
    head: usize,
    causal: bool,
}

impl<R: Real> Task<'_, R> {
    fn keys(&self, data: &'_ [R], row: usize) -> usize {
        let at = row * self.heads.key * self.heads.dim + self.head / self.heads.per_key() * self.heads.dim;
        at.min(data.len())
    }

    fn queries(&self, row: usize) -> usize {
        row * self.heads.query * self.heads.dim + self.head * self.heads.dim
    }

    /// Prefix keys, own keys, and the ranges `(first row, rows, first column)` of the two key ranges.
    fn ranges(&self) -> [(usize, usize, usize); 2] {
        let prefix = self.segment.prefix_rows();
        [(prefix.start, prefix.len(), 0), (self.segment.rows.start, self.segment.rows.len(), prefix.len())]
    }

    fn visible(&self, i: usize) -> usize {
        let prefix = self.segment.prefix_rows().len();
        prefix + if self.causal { i + 1 } else { self.segment.rows.len() }
    }

    /// `S = Q [K_prefix; K_own]^T`, unscaled, `[rows, keys]`.
    fn scores(&self) -> (Vec<R>, usize) {
        let (m, d) = (self.segment.rows.len(), self.heads.dim);
        let (qs, ks) = (self.heads.query * d, self.heads.key * d);
        let total = self.visible(m.saturating_sub(1));
        let mut s = vec![R::ZERO; m * total];
        let q = View::rows(&self.q[self.queries(self.segment.rows.start)..], qs);
        for (first, n, column) in self.ranges().into_iter().filter(|r| r.1 > 0) {
            let k = View::transposed(&self.k[self.keys(self.k, first)..], ks);
            gemm((m, n, d), q, k, &mut s[column..], total, Into::Overwrite);
        }
        (s, total)
    }

    /// `O = P [V_prefix; V_own]` into `out [rows, D]`.
    fn weighted(&self, p: &[R], total: usize, out: &mut [R]) {
        let (m, d, ks) = (self.segment.rows.len(), self.heads.dim, self.heads.key * self.heads.dim);
        for (first, n, column) in self.ranges().into_iter().filter(|r| r.1 > 0) {
            let into = if column == 0 { Into::Overwrite } else { Into::Accumulate };
            let v = View::rows(&self.v[self.keys(self.v, first)..], ks);
            gemm((m, d, n), View::rows(&p[column..], total), v, out, d, into);
        }
    }

    /// Output `[rows, D]` and log-normalisers `[rows]`.
    fn forward(&self) -> (Vec<R>, Vec<R>) {
        let m = self.segment.rows.len();
        let (mut s, total) = self.scores();
        let lse = s
            .chunks_exact_mut(total)
            .enumerate()
            .map(|(i, row)| softmax_row(row, self.visible(i), self.heads.scale()))
            .collect();
        let mut out = vec![R::ZERO; m * self.heads.dim];
        self.weighted(&s, total, &mut out);
        (out, lse)
    }

    /// Adds this head's part to `dq [rows, D]`, and to `dk`, `dv` of one key head, `[span, D]`, whose first
    /// row is row `base` of the batch.
    fn backward(&self, lse: &[R], o: &[R], d_out: &[R], base: usize, [dq, dk, dv]: [&mut [R]; 3]) {
        let (m, d) = (self.segment.rows.len(), self.heads.dim);
        let (qs, ks) = (self.heads.query * d, self.heads.key * d);
        let scale = self.heads.scale::<R>();
        let start = self.segment.rows.start;
        let (mut p, total) = self.scores();
        for (i, row) in p.chunks_exact_mut(total).enumerate() {
            let (seen, hidden) = row.split_at_mut(self.visible(i));
            let lse = lse[(start + i) * self.heads.query + self.head];
            seen.iter_mut().for_each(|s| *s = (*s * scale - lse).exp());
            hidden.fill(R::ZERO);
        }
        let d_rows = View::rows(&d_out[self.queries(start)..], qs);
        let mut ds = vec![R::ZERO; m * total];
        for (first, n, column) in self.ranges().into_iter().filter(|r| r.1 > 0) {
            let v = View::transposed(&self.v[self.keys(self.v, first)..], ks);
            gemm((m, n, d), d_rows, v, &mut ds[column..], total, Into::Overwrite);
            let p_t = View::transposed(&p[column..], total);
            gemm((n, d, m), p_t, d_rows, &mut dv[(first - base) * d..], d, Into::Accumulate);
        }
        for (i, (ds, p)) in ds.chunks_exact_mut(total).zip(p.chunks_exact(total)).enumerate() {
            let at = self.queries(start + i);
            let delta = dot(&o[at..at + d], &d_out[at..at + d]);
            ds.iter_mut().zip(p).for_each(|(ds, &p)| *ds = p * (*ds - delta) * scale);
        }
        let q = View::rows(&self.q[self.queries(start)..], qs);
        for (first, n, column) in self.ranges().into_iter().filter(|r| r.1 > 0) {
            let into = if column == 0 { Into::Overwrite } else { Into::Accumulate };
            let k = View::rows(&self.k[self.keys(self.k, first)..], ks);
            gemm((m, d, n), View::rows(&ds[column..], total), k, dq, d, into);
            let ds_t = View::transposed(&ds[column..], total);
            gemm((n, d, m), ds_t, q, &mut dk[(first - base) * d..], d, Into::Accumulate);
        }
    }
}

impl Attention {
    fn check(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<usize> {
        let Heads { query, key, dim } = self.heads;
        let rows = q.rows_of(Self::NAME, query * dim)?;
        let ok =
            key > 0 && query.is_multiple_of(key) && k.shape() == [rows, key * dim] && v.shape() == k.shape();
        let mut next = 0;
        let covered = self.segments.iter().all(|s| {
            let in_order = s.rows.start == next && s.prefix_rows().end <= s.rows.start && !s.rows.is_empty();
            next = s.rows.end;
            in_order
        });
        if !ok || !covered || next != rows {
            return Err(Error::Internal(format!(
                "attention: q {:?}, k {:?}, v {:?}, {:?}, segments {:?}",
                q.shape(),
                k.shape(),
                v.shape(),
                self.heads,
                self.segments.list
            )));
        }
        Ok(rows)
    }

    /// The keys of its own segment that row `i` of a segment sees.
    fn visible_own(&self, segment: &Segment, i: usize) -> usize {
        if self.causal { i + 1 } else { segment.rows.len() }
    }

    /// Pairs of a row and a key it sees.
    fn pairs(&self) -> usize {
        let of = |s: &Segment| {
            let n = s.rows.len();
            n * s.prefix_rows().len() + if self.causal { n * (n + 1) / 2 } else { n * n }
        };
        self.segments.iter().map(of).sum()
    }

    /// Cost of the pass with `products` products of size D for each visible pair, that reads or writes `q_like` tensors
    /// of q's shape and `k_like` of k's.
    fn cost(&self, products: usize, [q_like, k_like]: [usize; 2], dtype: DType) -> Cost {
        let Heads { query, key, dim } = self.heads;
        let rows: usize = self.segments.iter().map(|s| s.rows.len()).sum();
        let elements = rows * dim * (q_like * query + k_like * key);
        Cost {
            flops: (2 * products * self.pairs() * query * dim) as u64,
            bytes: (elements * dtype.size() + rows * query * size_of::<f32>()) as u64,
        }
    }

    /// Cost of the forward pass: two products of the visible pairs.
    pub fn forward_cost(&self, dtype: DType) -> Cost {
        self.cost(2, [2, 2], dtype)
    }

    /// Cost of the backward pass: five products of the visible pairs, S being computed again.
    pub fn backward_cost(&self, dtype: DType) -> Cost {
        self.cost(5, [4, 4], dtype)
    }

    /// Multiply-adds of the forward pass on the CPU, which computes hidden pairs too.
    fn work(&self) -> usize {
        let pairs: usize =
            self.segments.iter().map(|s| s.rows.len() * (s.prefix_rows().len() + s.rows.len())).sum();
        2 * pairs * self.heads.query * self.heads.dim
    }

    /// Segments that share keys, as ranges of indices: a segment without a prefix starts a new cluster.
    fn clusters(&self) -> Vec<Range<usize>> {
        let mut clusters: Vec<Range<usize>> = Vec::new();
        for (i, segment) in self.segments.iter().enumerate() {
            match clusters.last_mut() {
                Some(last) if segment.prefix.is_some() => last.end = i + 1,
                _ => clusters.push(i..i + 1),
            }
        }
        clusters
    }
}

/// Copies `[rows, D]` of one head to its place in `[T, stride]`.
fn scatter<R: Real>(part: &[R], d: usize, out: &mut [R], stride: usize, row: usize, column: usize) {
    for (i, part) in part.chunks_exact(d).enumerate() {
        let at = (row + i) * stride + column;
        out[at..at + d].copy_from_slice(part);
    }
}

/// What the backward pass needs: q, k, v, o and the log-normalisers, `[T, H]` in f64 or f32 as computed on the CPU; on a GPU
/// `[H, T]` to base 2, and the heads as wide as the kernels'.
pub struct Saved {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
}

impl Op<3> for Attention {
    const NAME: &'static str = "attention";
    type Saved = Saved;

    fn forward(&self, [q, k, v]: [&Tensor; 3]) -> Result<(Tensor, Saved)> {
        let rows = self.check(q, k, v)?;
        if let Some(gpu) = q.gpu() {
            return padded::forward(gpu, self, [q, k, v]);
        }
        let heads = self.heads;
        dispatch!(q.dtype(), R => {
            let (qs, ks, vs) = (q.real::<R>(), k.real::<R>(), v.real::<R>());
            let work: Vec<(usize, usize)> =
                (0..self.segments.len()).flat_map(|s| (0..heads.query).map(move |h| (s, h))).collect();
            let parts: Vec<(Vec<R>, Vec<R>)> = tasks(work.len(), self.work(), |i| {
                let (s, head) = work[i];
                let segment = &self.segments[s];
                Task { q: &qs, k: &ks, v: &vs, heads, segment, head, causal: self.causal }.forward()
            });
            let width = heads.query * heads.dim;
            let mut o = vec![R::ZERO; rows * width];
            let mut lse = vec![R::ZERO; rows * heads.query];
            for (&(s, head), (part, logs)) in work.iter().zip(&parts) {
                let row = self.segments[s].rows.start;
                scatter(part, heads.dim, &mut o, width, row, head * heads.dim);
                scatter(logs, 1, &mut lse, heads.query, row, head);
            }
            let o = Tensor::rounded(q.shape(), o, q.dtype())?;
            let lse = Tensor::new(&[rows, heads.query], lse)?;
            Ok((o.clone(), Saved { q: q.clone(), k: k.clone(), v: v.clone(), o, lse }))
        })
    }

    fn backward(&self, saved: Saved, dy: &Tensor, _: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
        if let Some(gpu) = saved.q.gpu() {
            return padded::backward(gpu, self, &saved, dy);
        }
        let Saved { q, k, v, o, lse } = saved;
        let heads = self.heads;
        let d = heads.dim;
        dispatch!(q.dtype(), R => {
            let (qs, ks, vs) = (q.real::<R>(), k.real::<R>(), v.real::<R>());
            let (os, ls, ds) = (o.real::<R>(), lse.real::<R>(), dy.real::<R>());
            let clusters = self.clusters();
            let work: Vec<(usize, usize)> =
                (0..clusters.len()).flat_map(|c| (0..heads.key).map(move |h| (c, h))).collect();
            type Part<R> = (Vec<(usize, usize, Vec<R>)>, Vec<R>, Vec<R>);
            let parts: Vec<Part<R>> = tasks(work.len(), 2 * self.work(), |i| {
                let (c, key) = work[i];
                    let segments = &self.segments[clusters[c].clone()];
                    let base = segments[0].rows.start;
                    let span = segments[segments.len() - 1].rows.end - base;
                    let (mut dk, mut dv) = (vec![R::ZERO; span * d], vec![R::ZERO; span * d]);
                    let mut dqs = Vec::new();
                    for segment in segments {
                        for head in key * heads.per_key()..(key + 1) * heads.per_key() {
                            let task = Task { q: &qs, k: &ks, v: &vs, heads, segment, head, causal: self.causal };
                            let mut dq = vec![R::ZERO; segment.rows.len() * d];
                            task.backward(&ls, &os, &ds, base, [&mut dq, &mut dk, &mut dv]);
                            dqs.push((segment.rows.start, head, dq));
                        }
                    }
                    (dqs, dk, dv)
                });
            let mut dq = vec![R::ZERO; q.len()];
            let (mut dk, mut dv) = (vec![R::ZERO; k.len()], vec![R::ZERO; v.len()]);
            for (&(c, key), (dqs, k_part, v_part)) in work.iter().zip(&parts) {
                let base = self.segments[clusters[c].start].rows.start;
                for (row, head, part) in dqs {
                    scatter(part, d, &mut dq, heads.query * d, *row, head * d);
                }
                scatter(k_part, d, &mut dk, heads.key * d, base, key * d);
                scatter(v_part, d, &mut dv, heads.key * d, base, key * d);
            }
            Ok([
                Some(Tensor::rounded(q.shape(), dq, q.dtype())?),
                Some(Tensor::rounded(k.shape(), dk, k.dtype())?),
                Some(Tensor::rounded(v.shape(), dv, v.dtype())?),
            ])
        })
    }
}

/// Keys and values of one sequence behind its group's shared prefix, rows `[n, K * D]`.
#[derive(Clone, Copy, Debug)]
pub struct Cached<'a> {
    /// Keys, the newest row included.
    pub keys: &'a [f32],
    /// Values, the newest row included.
    pub values: &'a [f32],
}

/// One decode step of a group: query row b attends to the prefix, then to all rows of `own[b]`.
///
/// `q` is `[B, H * D]`, the prefix `[P, K * D]`; gives `[B, H * D]`. The bits are those of the training pass.
pub fn decode(heads: Heads, q: &[f32], prefix: Cached<'_>, own: &[Cached<'_>]) -> Vec<f32> {
    let (d, per_key) = (heads.dim, heads.per_key());
    let (q_stride, k_stride) = (heads.query * d, heads.key * d);
    let prefix_rows = prefix.keys.len() / k_stride;
    let keys: usize = own.iter().map(|c| prefix_rows + c.keys.len() / k_stride).sum();
    let parts: Vec<Vec<f32>> = tasks(heads.key, 2 * keys * heads.query * d, |key| {
        let m = own.len() * per_key;
        let mut rows = Vec::with_capacity(m * d);
        for q in q.chunks_exact(q_stride) {
            rows.extend_from_slice(&q[key * per_key * d..(key + 1) * per_key * d]);
        }
        let longest = own.iter().map(|c| c.keys.len() / k_stride).max().unwrap_or(0);
        let stride = prefix_rows + longest;
        let mut p = vec![0.0_f32; m * stride];
        let queries = View::rows(&rows, d);
        if prefix_rows > 0 {
            let k = View::transposed(&prefix.keys[key * d..], k_stride);
            gemm((m, prefix_rows, d), queries, k, &mut p, stride, Into::Overwrite);
        }
        for (b, cached) in own.iter().enumerate() {
            let n = cached.keys.len() / k_stride;
            let at = b * per_key;
            let k = View::transposed(&cached.keys[key * d..], k_stride);
            let q = View::rows(&rows[at * d..], d);
            gemm((per_key, n, d), q, k, &mut p[at * stride + prefix_rows..], stride, Into::Overwrite);
            for row in p[at * stride..(at + per_key) * stride].chunks_exact_mut(stride) {
                softmax_row(row, prefix_rows + n, heads.scale());
            }
        }
        let mut out = vec![0.0_f32; m * d];
        if prefix_rows > 0 {
            let v = View::rows(&prefix.values[key * d..], k_stride);
            gemm((m, d, prefix_rows), View::rows(&p, stride), v, &mut out, d, Into::Overwrite);
        }
        for (b, cached) in own.iter().enumerate() {
            let n = cached.keys.len() / k_stride;
            let at = b * per_key;
            let weights = View::rows(&p[at * stride + prefix_rows..], stride);
            let v = View::rows(&cached.values[key * d..], k_stride);
            gemm((per_key, d, n), weights, v, &mut out[at * d..], d, Into::Accumulate);
        }
        out
    });
    let mut o = vec![0.0; q.len()];
    for (key, part) in parts.iter().enumerate() {
        scatter(part, per_key * d, &mut o, q_stride, 0, key * per_key * d);
    }
    o
}

#[cfg(test)]
mod tests;
