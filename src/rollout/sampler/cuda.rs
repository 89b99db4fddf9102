//! Sampling in device memory (`kernels/sample.cu`): a block chooses the token of a row of logits, which it reads twice. Under top-k or
//! top-p it works on a copy, of which it makes a few passes more; nothing is sorted.
//!
//! The token is that of [`Sampler`](super::Sampler) for the same bits of logits, history, options and key, and as little as there
//! does it depend on the other rows. What may differ: the cumulative sums run in another order, in f64 too, so that a limit closer
//! to a token's boundary than about 1e-15 of the whole may fall on its other side; and a GPU's `expf` may differ from the host's in the
//! last bit of a weight. Scores, top-k and greedy decoding are the same to the bit.

use super::{DrawKey, SamplingParams, no_logit, nothing_left};
use crate::cuda::kernels::sample as kernels;
use crate::cuda::{Buffer, Gpu, Grid, Mut, Purpose};
use crate::error::{Error, Result};
use crate::ops::Cost;
use crate::tensor::Tensor;

/// Threads of a block (the kernels' launch bounds).
const THREADS: u32 = 512;

/// The largest vocabulary: beyond it the kernel's counters could overflow.
const MAX_VOCAB: usize = 1 << 20;

/// The kernel's code for a row without a token to choose.
const NOTHING_LEFT: i32 = -1;

/// Operations and bytes of `rows` draws without truncation, each logit read once.
pub fn cost(rows: usize, vocab: usize) -> Cost {
    let logits = (rows * vocab) as u64;
    Cost { flops: 4 * logits, bytes: 4 * logits + 4 * rows as u64 }
}

/// Chooses tokens for rows of logits in device memory, during one generation.
#[derive(Debug)]
pub struct DeviceSampler {
    gpu: Gpu,
    params: SamplingParams,
    vocab: usize,
    sequences: usize,
    /// Sets of tokens, a bit each: `[2, words]`, what is banned, then this and what ends a sequence.
    blocked: Buffer<u32>,
    /// `[sequences, words]`, the tokens in prompt and output; none without a penalty.
    seen: Option<Buffer<u32>>,
}

impl DeviceSampler {
    /// A sampler for sequences that begin with `prompts`, each a prompt's tokens and the number of sequences that begin with it;
    /// sequences are numbered in the order of their prompts. `params` are taken as validated; `eos` and `banned` as in
    /// [`SamplingContext`](super::SamplingContext). Ids beyond the vocabulary are ignored.
    ///
    /// # Errors
    /// `Input` for a vocabulary of more than 2^20 tokens; those of allocating and copying device memory.
    pub fn new(
        gpu: &Gpu,
        params: &SamplingParams,
        eos: &[u32],
        banned: &[u32],
        vocab: usize,
        prompts: &[(&[u32], usize)],
    ) -> Result<DeviceSampler> {
        if vocab > MAX_VOCAB {
            return Err(Error::Input(format!(
                "the model has a vocabulary of {vocab} tokens; on a GPU at most {MAX_VOCAB} can be sampled from (use --device cpu)"
            )));
        }
        let mut blocked = token_set(vocab, banned);
        blocked.extend(token_set(vocab, &[eos, banned].concat()));
        let sequences = prompts.iter().map(|(_, sequences)| sequences).sum();
        let seen = match params.repetition_penalty {
            1.0 => None,
            _ => Some(seen_in_prompts(gpu, vocab, prompts, sequences)?),
        };
        let blocked = gpu.upload(&blocked, Purpose::Inputs)?;
        Ok(DeviceSampler { gpu: gpu.clone(), params: params.clone(), vocab, sequences, blocked, seen })
    }

    /// The next tokens for `logits` (`[B, V]` f32, raw, left as they are): `[B]`, a negative number where there is none (see
    /// [`DeviceSampler::tokens`]). Row b continues sequence `sequences[b]`, no sequence twice; the position in `keys[b]` is the
    /// number of tokens that it has so far. The tokens count as seen from now on. Does not wait for the device.
    ///
    /// # Errors
    /// `Internal` if the numbers of rows differ, the logits are not `[B, V]` f32 in this GPU's memory, or a sequence isn't one or
    /// comes twice; those of allocating, copying and launching.
    pub fn draw(&mut self, logits: &Tensor, sequences: &[usize], keys: &[DrawKey]) -> Result<Buffer<i32>> {
        let rows = keys.len();
        if logits.shape() != [rows, self.vocab] || sequences.len() != rows {
            return Err(Error::Internal(format!(
                "logits of shape {:?} for {} sequences, {rows} keys and {} tokens",
                logits.shape(),
                sequences.len(),
                self.vocab
            )));
        }
        let logits = logits.buffer::<f32>()?;
        if *logits.gpu() != self.gpu {
            return Err(Error::Internal("logits in the memory of another GPU than the sampler's".into()));
        }
        self.are_different(sequences)?;
        let mut tokens = self.gpu.alloc::<i32>(rows, Purpose::Inputs)?;
        if rows == 0 {
            return Ok(tokens);
        }
        let draws: Vec<u32> =
            keys.iter().zip(sequences).flat_map(|(key, &sequence)| words_of_draw(*key, sequence)).collect();
        let draws = self.gpu.upload(&draws, Purpose::Inputs)?;
        let grid = Grid::new(rows, THREADS)?;
        let p = &self.params;
        let (vocab, penalty, temperature) =
            (self.vocab as i32, p.repetition_penalty as f32, p.temperature as f32);
        let min_p = p.min_p as f32;
        // At least k tokens stay; all of them where there are no more.
        let top_k = if p.top_k < self.vocab { p.top_k as i32 } else { 0 };
        let tail = 1.0 - p.top_p;
        let early = u32::try_from(p.min_new_tokens).unwrap_or(u32::MAX);
        let (gpu, blocked) = (&self.gpu, self.blocked.ptr());
        let seen = self.seen.as_mut().map_or(Mut::null(), Buffer::ptr_mut);
        let (logits, draws, to) = (logits.ptr(), draws.ptr(), tokens.ptr_mut());
        // SAFETY: `logits`, and `scratch` where there is one, hold a row of `vocab` elements for each block, `draws` its six words,
        // `to` its token; `blocked` two sets of that many tokens, `seen`, unless it is null, one for each sequence, of which
        // `draws` names only such, and none twice.
        unsafe {
            if p.greedy {
                kernels::sample_greedy_forward_f32(
                    gpu, grid, logits, draws, blocked, seen, to, vocab, early, penalty,
                )?;
            } else if top_k == 0 && tail == 0.0 {
                kernels::sample_forward_f32(
                    gpu,
                    grid,
                    logits,
                    draws,
                    blocked,
                    seen,
                    to,
                    vocab,
                    early,
                    penalty,
                    temperature,
                    min_p,
                )?;
            } else {
                let mut scratch = gpu.alloc::<f32>(rows * self.vocab, Purpose::Workspace)?;
                // Half of what may go, shared by all tokens: with the likeliest weighing 1, lesser weights never reach `tail` together.
                let rare = (0.5 * tail / self.vocab as f64) as f32;
                kernels::sample_truncated_forward_f32(
                    gpu,
                    grid,
                    logits,
                    draws,
                    blocked,
                    seen,
                    scratch.ptr_mut(),
                    to,
                    vocab,
                    early,
                    penalty,
                    temperature,
                    top_k,
                    tail as f32,
                    rare,
                    min_p,
                )?;
            }
        }
        Ok(tokens)
    }

    /// The tokens on the host; waits for them.
    ///
    /// # Errors
    /// `Protect`, as [`Sampler::token`](super::Sampler::token), for the first row with a logit that is NaN or +inf or with no token
    /// left to choose; those of copying device memory.
    pub fn tokens(&self, drawn: &Buffer<i32>) -> Result<Vec<u32>> {
        drawn.download()?.into_iter().map(|code| u32::try_from(code).map_err(|_| why(code))).collect()
    }

    fn are_different(&self, sequences: &[usize]) -> Result<()> {
        let mut found = vec![false; self.sequences];
        for &sequence in sequences {
            match found.get_mut(sequence) {
                Some(found) if !*found => *found = true,
                _ => {
                    return Err(Error::Internal(format!(
                        "a draw for sequence {sequence}, which comes twice or is beyond the {} there are",
                        self.sequences
                    )));
                }
            }
        }
        Ok(())
    }
}

/// A bit for each token of the vocabulary, in words from the lowest bit up.
fn token_set(vocab: usize, tokens: &[u32]) -> Vec<u32> {
    let mut set = vec![0u32; vocab.div_ceil(32)];
    for &token in tokens.iter().filter(|&&token| (token as usize) < vocab) {
        set[token as usize / 32] |= 1 << (token % 32);
    }
    set
}

/// The tokens of its prompt for every sequence.
fn seen_in_prompts(
    gpu: &Gpu,
    vocab: usize,
    prompts: &[(&[u32], usize)],
    sequences: usize,
) -> Result<Buffer<u32>> {
    let mut seen = gpu.alloc(sequences * vocab.div_ceil(32), Purpose::Inputs)?;
    let mut at = 0;
    for (prompt, sequences) in prompts {
        let sets = token_set(vocab, prompt).repeat(*sequences);
        seen.write_at(at, &sets)?;
        at += sets.len();
    }
    Ok(seen)
}

/// A row of the kernel's table of draws.
fn words_of_draw(key: DrawKey, sequence: usize) -> [u32; 6] {
    [key.seed as u32, (key.seed >> 32) as u32, key.prompt, key.completion, key.position, sequence as u32]
}

/// What the kernel means by a negative token: -1, or -2 - 2 * id for an infinite logit and one less for NaN.
fn why(code: i32) -> Error {
    if code == NOTHING_LEFT {
        return nothing_left();
    }
    let code = -2 - i64::from(code);
    no_logit((code / 2) as usize, if code % 2 == 0 { f32::INFINITY } else { f32::NAN })
}
