//! Fused head: log-probabilities of target tokens, entropies, and the exact KL to a reference.
//!
//! Row r of the hidden states gives logits `l = h_r W^T` and, at temperature tau, `z = l / tau`,
//! `logp(v) = z_v - lse`, `lse = log sum exp z`. For each target (row, token) the op returns three numbers:
//! `logp(token)`, the entropy `H = lse - sum p z`, and with a reference `KL(pi || ref) = sum p (logp - logq)`, else 0.
//! Shapes: hidden `[T, C]`, W `[V, C]`, result `[n, 3]` for n targets, always f32 (f64 in gradient checks).
//!
//! Gradient of a row, summed over its targets with incoming `(a, b, c)`, then `dl = dz / tau`:
//! `dz_v = a (1[v = token] - p_v) - b p_v (logp_v + H) + c p_v (logp_v - logq_v - KL)`.
//! `dh = dl W`, `dW = dl^T h`. The reference has no gradient. Rounding points: `dl`, in the type of the hidden states, then each
//! gradient once; sums and logits are f32.
//!
//! Logits exist for some rows at a time and are computed again in the backward pass, so `[T, V]` is never stored.
//! [`row_log_normaliser`] (on a GPU [`cuda::sampled_log_probs`]) is what the sampler uses too: a sampled token's log-probability
//! has the same bits. A row's result depends on nothing but the row.

#[allow(unsafe_code)]
pub mod cuda;

use super::gemm::{Into, View, gemm};
use super::{Cost, max, sum};
use crate::autograd::Op;
use crate::cuda::Buffer;
use crate::dispatch;
use crate::error::{Error, Result};
use crate::tensor::dtype::round_bf16;
use crate::tensor::{DType, Real, Tensor};
use rayon::prelude::*;

/// Rows whose logits exist at a time on the CPU.
const CHUNK: usize = 128;

/// What the logits of the rows at a time may take on a GPU, by default.
pub const LOGITS_BYTES: usize = 256 << 20;

/// Rows of logits that are worth a task of their own.
fn rows_per_task(vocab: usize) -> usize {
    (1 << 16) / vocab.max(1) + 1
}

/// A token whose log-probability is asked for, and the hidden row that predicts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Row of the hidden states.
    pub row: usize,
    /// Token id.
    pub token: u32,
}

/// Divides a row of logits by the temperature in place and gives the log of the softmax normaliser.
pub fn row_log_normaliser<R: Real>(logits: &mut [R], temperature: R) -> R {
    if temperature != R::ONE {
        logits.iter_mut().for_each(|l| *l = *l / temperature);
    }
    let top = max(logits);
    top + sum(logits.len(), |v| (logits[v] - top).exp()).ln()
}

/// Logits `[rows, V]` of some rows of the hidden states, in f32.
pub fn logits(hidden: &[f32], head: &Tensor) -> Vec<f32> {
    let (vocab, width) = head.matrix();
    let rows = hidden.len() / width;
    let mut out = vec![0.0; rows * vocab];
    let w = head.to_f32();
    gemm(
        (rows, vocab, width),
        View::rows(hidden, width),
        View::transposed(&w, width),
        &mut out,
        vocab,
        Into::Overwrite,
    );
    out
}

/// The hidden states and head of the reference policy, for the exact KL.
#[derive(Clone, Debug)]
pub struct Reference {
    /// `[T, C']`, rows aligned with the policy's.
    pub hidden: Tensor,
    /// `[V, C']`.
    pub head: Tensor,
}

/// The op: hidden states and head in, `[n, 3]` out.
pub struct LogSoftmaxKl {
    /// Targets, in any order; several may share a row.
    pub targets: Vec<Target>,
    /// Divides the logits.
    pub temperature: f64,
    /// Present when the exact KL is wanted.
    pub reference: Option<Reference>,
    /// Targets that get no gradient whatever comes in for them, one entry for each, or none at all. Rows that have no other
    /// targets are left out of the backward products: their gradient is 0, and no other bit changes.
    pub frozen: Vec<bool>,
    /// The most bytes that logits may take at a time on a GPU (64 rows at least), the reference's as many again; their gradient
    /// takes up to 8 times as many in f32, half of that in bf16.
    pub logits_bytes: usize,
}

/// What the backward pass needs.
pub struct Saved {
    hidden: Tensor,
    head: Tensor,
    /// On a GPU, numbers of each distinct row.
    kept: Option<Buffer<f32>>,
}

/// The targets of one chunk of distinct rows.
struct Chunk {
    /// Distinct rows in order.
    rows: Vec<usize>,
    /// Index of each target, and its row's index in `rows`.
    targets: Vec<(usize, usize)>,
}

impl LogSoftmaxKl {
    /// Without a reference, and with gradients for all targets.
    pub fn new(targets: Vec<Target>, temperature: f64) -> LogSoftmaxKl {
        LogSoftmaxKl { targets, temperature, reference: None, frozen: Vec::new(), logits_bytes: LOGITS_BYTES }
    }

    /// Cost of the scores of `rows` distinct rows by a head `[vocab, width]`, twice the product with a reference of that shape.
    pub fn forward_cost(rows: usize, (vocab, width): (usize, usize), reference: bool, dtype: DType) -> Cost {
        let (models, logits) = (1 + reference as u64, (rows * vocab) as u64);
        let factors = ((rows + vocab) * width * dtype.size()) as u64;
        // A logit is exponentiated, and added to two sums (with a reference to three, and two of its own).
        Cost {
            flops: models * logits * (2 * width as u64 + 4) + 3 * (models - 1) * logits,
            bytes: models * factors + 12 * rows as u64,
        }
    }

    /// Cost of the gradients: the logits again, and the two products behind them.
    pub fn backward_cost(rows: usize, (vocab, width): (usize, usize), reference: bool, dtype: DType) -> Cost {
        let logits = LogSoftmaxKl::forward_cost(rows, (vocab, width), reference, dtype);
        Cost {
            flops: logits.flops + 4 * (rows * vocab * width) as u64,
            bytes: logits.bytes + ((rows + vocab) * width * dtype.size()) as u64,
        }
    }

    fn is_frozen(&self, target: usize) -> bool {
        self.frozen.get(target).copied().unwrap_or(false)
    }

    /// Chunks of the targets, for the backward pass of those that get a gradient.
    fn chunks(&self, for_backward: bool) -> Vec<Chunk> {
        let takes_part = |&i: &usize| !(for_backward && self.is_frozen(i));
        let mut order: Vec<usize> = (0..self.targets.len()).filter(takes_part).collect();
        order.sort_by_key(|&i| self.targets[i].row);
        let mut chunks: Vec<Chunk> = Vec::new();
        for i in order {
            let row = self.targets[i].row;
            let fresh = match chunks.last() {
                Some(chunk) => chunk.rows.len() == CHUNK && chunk.rows.last() != Some(&row),
                None => true,
            };
            if fresh {
                chunks.push(Chunk { rows: Vec::new(), targets: Vec::new() });
            }
            if let Some(chunk) = chunks.last_mut() {
                if chunk.rows.last() != Some(&row) {
                    chunk.rows.push(row);
                }
                chunk.targets.push((i, chunk.rows.len() - 1));
            }
        }
        chunks
    }

    fn check(&self, hidden: &Tensor, head: &Tensor) -> Result<()> {
        let (rows, width) = hidden.matrix();
        let (vocab, head_width) = head.matrix();
        let inside = self.targets.iter().all(|t| t.row < rows && (t.token as usize) < vocab);
        let reference = self
            .reference
            .as_ref()
            .is_none_or(|r| r.hidden.matrix().0 == rows && r.head.matrix() == (vocab, r.hidden.matrix().1));
        let references = self.reference.iter().flat_map(|r| [&r.hidden, &r.head]);
        let one_device = references.chain([head]).all(|x| x.gpu() == hidden.gpu());
        let frozen = self.frozen.is_empty() || self.frozen.len() == self.targets.len();
        let fits = inside && reference && one_device && frozen;
        if width != head_width || hidden.dtype() != head.dtype() || !fits {
            return Err(Error::Internal(format!(
                "log_softmax_kl: hidden {:?} on {:?}, head {:?} on {:?}, {} targets, {} of them named frozen or not",
                hidden.shape(),
                hidden.device(),
                head.shape(),
                head.device(),
                self.targets.len(),
                self.frozen.len()
            )));
        }
        Ok(())
    }

    /// Logits of the chunk's rows divided by the temperature, and the log-normaliser of each row.
    fn log_softmax<R: Real>(
        &self,
        rows: &[usize],
        hidden: &[R],
        head: &[R],
        width: usize,
    ) -> (Vec<R>, Vec<R>) {
        let vocab = head.len() / width;
        let h = gather(rows, hidden, width);
        let mut z = vec![R::ZERO; rows.len() * vocab];
        gemm(
            (rows.len(), vocab, width),
            View::rows(&h, width),
            View::transposed(head, width),
            &mut z,
            vocab,
            Into::Overwrite,
        );
        let temperature = R::of(self.temperature);
        let lse = z
            .par_chunks_exact_mut(vocab)
            .with_min_len(rows_per_task(vocab))
            .map(|row| row_log_normaliser(row, temperature))
            .collect();
        (z, lse)
    }
}

fn gather<R: Real>(rows: &[usize], x: &[R], width: usize) -> Vec<R> {
    rows.iter().flat_map(|&r| x[r * width..(r + 1) * width].iter().copied()).collect()
}

/// Entropy and KL of a row from scaled logits.
fn row_statistics<R: Real>(z: &[R], lse: R, reference: Option<(&[R], R)>) -> (R, R) {
    let entropy = lse - sum(z.len(), |v| (z[v] - lse).exp() * z[v]);
    let kl = reference.map_or(R::ZERO, |(q, q_lse)| {
        sum(z.len(), |v| {
            let logp = z[v] - lse;
            logp.exp() * (logp - (q[v] - q_lse))
        })
    });
    (entropy, kl)
}

impl Op<2> for LogSoftmaxKl {
    const NAME: &'static str = "log_softmax_kl";
    type Saved = Saved;

    fn forward(&self, [hidden, head]: [&Tensor; 2]) -> Result<(Tensor, Saved)> {
        self.check(hidden, head)?;
        if let Some(gpu) = hidden.gpu() {
            let (scores, kept) = cuda::forward(gpu, self, hidden, head)?;
            return Ok((scores, Saved { hidden: hidden.clone(), head: head.clone(), kept: Some(kept) }));
        }
        let (vocab, width) = head.matrix();
        dispatch!(hidden.dtype(), R => {
            let (hs, ws) = (hidden.real::<R>(), head.real::<R>());
            let refs = self.reference.as_ref().map(|r| (r.hidden.real::<R>(), r.head.real::<R>(), r.head.matrix().1));
            let mut out = vec![R::ZERO; 3 * self.targets.len()];
            for chunk in self.chunks(false) {
                let (z, lse) = self.log_softmax(&chunk.rows, &hs, &ws, width);
                let q = refs.as_ref().map(|(h, w, width)| self.log_softmax(&chunk.rows, h, w, *width));
                let stats: Vec<(R, R)> = (0..chunk.rows.len())
                    .into_par_iter()
                    .with_min_len(rows_per_task(vocab))
                    .map(|r| {
                        let range = r * vocab..(r + 1) * vocab;
                        row_statistics(&z[range.clone()], lse[r], q.as_ref().map(|(q, l)| (&q[range], l[r])))
                    })
                    .collect();
                for (i, slot) in chunk.targets {
                    let logp = z[slot * vocab + self.targets[i].token as usize] - lse[slot];
                    out[3 * i..3 * i + 3].copy_from_slice(&[logp, stats[slot].0, stats[slot].1]);
                }
            }
            let saved = Saved { hidden: hidden.clone(), head: head.clone(), kept: None };
            Ok((Tensor::new(&[self.targets.len(), 3], out)?, saved))
        })
    }

    fn backward(
        &self,
        Saved { hidden, head, kept }: Saved,
        dy: &Tensor,
        needs: [bool; 2],
    ) -> Result<[Option<Tensor>; 2]> {
        if let (Some(gpu), Some(kept)) = (hidden.gpu(), &kept) {
            return cuda::backward(gpu, self, (&hidden, &head, kept), dy, needs);
        }
        let (vocab, width) = head.matrix();
        dispatch!(hidden.dtype(), R => {
            let (hs, ws, dys) = (hidden.real::<R>(), head.real::<R>(), dy.real::<R>());
            let refs = self.reference.as_ref().map(|r| (r.hidden.real::<R>(), r.head.real::<R>(), r.head.matrix().1));
            let mut dh = vec![R::ZERO; hs.len()];
            let mut dw = vec![R::ZERO; if needs[1] { ws.len() } else { 0 }];
            for chunk in self.chunks(true) {
                let (mut z, lse) = self.log_softmax(&chunk.rows, &hs, &ws, width);
                let q = refs.as_ref().map(|(h, w, width)| self.log_softmax(&chunk.rows, h, w, *width));
                // Per row: the sums of the three incoming gradients over its targets.
                let mut incoming = vec![[R::ZERO; 3]; chunk.rows.len()];
                for &(i, slot) in &chunk.targets {
                    incoming[slot].iter_mut().zip(&dys[3 * i..3 * i + 3]).for_each(|(s, &d)| *s += d);
                }
                z.par_chunks_exact_mut(vocab).enumerate().with_min_len(rows_per_task(vocab)).for_each(|(r, z)| {
                    let [a, b, c] = incoming[r];
                    let q = q.as_ref().map(|(q, l)| (&q[r * vocab..(r + 1) * vocab], l[r]));
                    let plain = b == R::ZERO && c == R::ZERO;
                    let (entropy, kl) = if plain { (R::ZERO, R::ZERO) } else { row_statistics(z, lse[r], q) };
                    let row_lse = lse[r];
                    if plain {
                        z.iter_mut().for_each(|z| *z = -(a * (*z - row_lse).exp()));
                    } else {
                        for (v, z) in z.iter_mut().enumerate() {
                            let logp = *z - row_lse;
                            let ratio = q.map_or(R::ZERO, |(q, q_lse)| logp - (q[v] - q_lse) - kl);
                            *z = logp.exp() * (c * ratio - a - b * (logp + entropy));
                        }
                    }
                });
                for &(i, slot) in &chunk.targets {
                    z[slot * vocab + self.targets[i].token as usize] += dys[3 * i];
                }
                let temperature = R::of(self.temperature);
                if temperature != R::ONE {
                    z.iter_mut().for_each(|z| *z /= temperature);
                }
                if hidden.dtype() == DType::Bf16 {
                    z.iter_mut().for_each(|z| *z = R::of(f64::from(round_bf16(z.f64() as f32))));
                }
                let n = chunk.rows.len();
                let mut part = vec![R::ZERO; n * width];
                gemm((n, width, vocab), View::rows(&z, vocab), View::rows(&ws, width), &mut part, width, Into::Overwrite);
                for (&row, part) in chunk.rows.iter().zip(part.chunks_exact(width)) {
                    dh[row * width..(row + 1) * width].copy_from_slice(part);
                }
                if needs[1] {
                    let h = gather(&chunk.rows, &hs, width);
                    gemm((vocab, width, n), View::transposed(&z, vocab), View::rows(&h, width), &mut dw, width, Into::Accumulate);
                }
            }
            Ok([
                Some(Tensor::rounded(hidden.shape(), dh, hidden.dtype())?),
                if needs[1] { Some(Tensor::rounded(head.shape(), dw, head.dtype())?) } else { None },
            ])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::gradcheck::{gradcheck, random};

    fn targets(pairs: &[(usize, u32)]) -> Vec<Target> {
        pairs.iter().map(|&(row, token)| Target { row, token }).collect()
    }

    #[test]
    fn hand_computed() -> Result<()> {
        // Logits (0, ln 3) at temperature 1: p = (1/4, 3/4).
        let hidden = Tensor::new(&[1, 1], vec![1.0_f64])?;
        let head = Tensor::new(&[2, 1], vec![0.0_f64, 3.0_f64.ln()])?;
        // A reference with p = (1/2, 1/2).
        let reference = Reference { hidden: hidden.clone(), head: Tensor::new(&[2, 1], vec![0.0_f64, 0.0])? };
        let op =
            LogSoftmaxKl { reference: Some(reference), ..LogSoftmaxKl::new(targets(&[(0, 0), (0, 1)]), 1.0) };
        let (y, _) = op.forward([&hidden, &head])?;
        let entropy = -(0.25_f64 * 0.25_f64.ln() + 0.75 * 0.75_f64.ln());
        let kl = 0.25 * 0.5_f64.ln() + 0.75 * 1.5_f64.ln();
        let want = [0.25_f64.ln(), entropy, kl, 0.75_f64.ln(), entropy, kl];
        assert!(y.real::<f64>().iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-14));
        Ok(())
    }

    #[test]
    fn gradients() -> Result<()> {
        let (h, w) = (random(&[5, 3], 1)?, random(&[7, 3], 2)?);
        let reference = Some(Reference { hidden: random(&[5, 4], 3)?, head: random(&[7, 4], 4)? });
        for (temperature, reference) in [(1.0, None), (0.7, reference)] {
            let make = || LogSoftmaxKl {
                reference: reference.clone(),
                ..LogSoftmaxKl::new(targets(&[(2, 0), (0, 1), (4, 3), (2, 6), (2, 0)]), temperature)
            };
            assert!(gradcheck(make, [&h, &w])? < 1e-7);
        }
        Ok(())
    }

    #[test]
    fn chunks_cover_every_target() -> Result<()> {
        let rows = 2 * CHUNK + 3;
        let (h, w) = (random(&[rows, 3], 1)?, random(&[5, 3], 2)?);
        let all: Vec<Target> = (0..rows).flat_map(|row| targets(&[(row, 1), (row, 4)])).collect();
        let op = LogSoftmaxKl::new(all.clone(), 0.9);
        let (y, _) = op.forward([&h, &w])?;
        for (i, t) in all.iter().enumerate() {
            let op = LogSoftmaxKl::new(vec![*t], 0.9);
            assert_eq!(op.forward([&h, &w])?.0.real::<f64>()[..], y.real::<f64>()[3 * i..3 * i + 3]);
        }
        assert!(LogSoftmaxKl::new(targets(&[(0, 5)]), 1.0).forward([&h, &w]).is_err());
        Ok(())
    }

    /// What comes in for a frozen target counts as nothing, and a row that has no other has no gradient.
    #[test]
    fn frozen_targets_get_no_gradient() -> Result<()> {
        let (h, w) = (random(&[4, 3], 1)?.to_dtype(DType::F32), random(&[7, 3], 2)?.to_dtype(DType::F32));
        let all = targets(&[(2, 0), (0, 1), (3, 3), (2, 6), (1, 5)]);
        let frozen = vec![true, false, true, false, true];
        let dy = random(&[5, 3], 3)?.to_dtype(DType::F32);
        let mut masked = dy.clone();
        for (d, _) in masked.make_mut::<f32>()?.chunks_mut(3).zip(&frozen).filter(|(_, off)| **off) {
            d.fill(0.0);
        }
        let gradients = |op: LogSoftmaxKl, dy: &Tensor| -> Result<Vec<Vec<f32>>> {
            let (_, saved) = op.forward([&h, &w])?;
            Ok(op.backward(saved, dy, [true; 2])?.iter().flatten().map(|d| d.to_f32().to_vec()).collect())
        };
        let ours = gradients(LogSoftmaxKl { frozen, ..LogSoftmaxKl::new(all.clone(), 0.7) }, &dy)?;
        assert_eq!(ours, gradients(LogSoftmaxKl::new(all.clone(), 0.7), &masked)?);
        assert!(ours[0][3..6].iter().chain(&ours[0][9..]).all(|&d| d == 0.0) && ours[0][6] != 0.0);
        let short = LogSoftmaxKl { frozen: vec![true], ..LogSoftmaxKl::new(all, 0.7) };
        assert!(short.forward([&h, &w]).is_err());
        Ok(())
    }
}
