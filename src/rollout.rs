//! Generation: from prompts to completions with their log-probabilities.
//!
//! A group's prompt and images are computed once; its completions share the prompt's keys and values. The
//! log-probability kept for a token is `log_softmax(logits / temperature)` over the whole vocabulary, before
//! penalties, truncation and bans: the number, to the bit, that training computes for it.

mod device;
pub mod kv_cache;
mod logprobs;
mod pages;
pub mod sampler;
pub mod sequence;
pub mod stop;

pub use logprobs::LogProbs;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::nn::Params;
use crate::ops::log_softmax_kl::{logits, row_log_normaliser};
use crate::packed::{ImageLayout, Packed};
use crate::processor::Prompt;
use crate::tensor::Device;

use kv_cache::{GroupStep, KvCache};
use rayon::prelude::*;
use sampler::{Sampler, SamplingContext, SamplingParams};
use sequence::{FinishReason, Sequence, StopRules};
use std::sync::Arc;

/// How much is computed at once. None of it changes a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that grow in step: on the CPU those of one part (parts run on different threads), on a GPU all.
    pub sequences: usize,
    /// Rows, image tokens included, of the prompts that a GPU runs together; a longer prompt runs alone.
    pub prefill_rows: usize,
    /// Pages of the key/value cache on a GPU, at least those of one group; else as many as are needed or fit.
    pub pages: Option<usize>,
}

impl Limits {
    /// What suits a device.
    pub fn of(device: &Device) -> Limits {
        let sequences = if device.gpu().is_some() { 256 } else { 128 };
        Limits { sequences, prefill_rows: 16_384, pages: None }
    }

    /// Prompts whose completions grow together, when there is memory for all of them.
    pub fn prompts(&self, group: usize) -> usize {
        (self.sequences / group.max(1)).max(1)
    }
}

/// A prompt to complete.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The prompt's place in the shuffled stream of the run: part of the key of its random numbers.
    pub place: u32,
    /// Tokens, positions, images.
    pub prompt: &'a Prompt,
}

/// One completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Token ids, the end-of-sequence token included.
    pub tokens: Vec<u32>,
    /// Log-probability of each token.
    pub logps: LogProbs,
    /// Why it ended.
    pub finish: FinishReason,
    /// The text, cut before a stop string, special tokens left out.
    pub text: String,
}

/// How completions are sampled and when they end.
#[derive(Clone, Debug)]
pub struct Decoding {
    /// Temperature, truncations, penalty, limits.
    pub sampling: SamplingParams,
    /// End-of-sequence ids, stop strings, longest completion.
    pub stop: StopRules,
    /// Tokens that cannot be sampled (in training: image and vision placeholders).
    pub banned: Vec<u32>,
}

/// Told while work goes on of every n newly finished pieces (n may be 0); an error from it stops the work.
pub type Watch<'a> = &'a (dyn Fn(u64) -> Result<()> + Sync);

/// Turns token ids into text, special tokens left out.
pub type Detokenize<'a> = &'a (dyn Fn(&[u32]) -> String + Sync);

/// Generates with one set of weights.
pub struct Engine<'a> {
    /// The architecture.
    pub model: &'a Model,
    /// The weights, shared with training.
    pub params: &'a Arc<Params>,
    /// Sampling and stopping.
    pub decoding: &'a Decoding,
    /// For stop strings and the completions' text.
    pub detokenize: Detokenize<'a>,
    /// How much is computed at once.
    pub limits: Limits,
}

struct Group<'a> {
    prompt: &'a Prompt,
    cache: KvCache,
    members: Vec<(Growing, KvCache)>,
}

/// A completion, and the log-probabilities of its tokens.
struct Growing {
    sequence: Sequence,
    logps: Vec<f32>,
}

impl Engine<'_> {
    /// `group` completions for each prompt, in the order of the prompts. `watch` is told after every token.
    ///
    /// A completion depends on the weights, the prompt, the decoding, `seed` and its own place alone: not on the
    /// other prompts or on their number.
    pub fn generate(
        &self,
        requests: &[Request<'_>],
        group: usize,
        seed: u64,
        watch: Watch<'_>,
    ) -> Result<Vec<Vec<Completion>>> {
        if let Some(gpu) = self.params.device().gpu() {
            return device::generate(self, gpu, requests, group, seed, watch);
        }
        // As many prompts as fit, but no fewer parts than threads: parts run side by side.
        let threads = rayon::current_num_threads();
        let at_once = self.limits.prompts(group).min(requests.len().div_ceil(threads)).max(1);
        let parts: Vec<Result<Vec<Vec<Growing>>>> = requests
            .par_chunks(at_once)
            .map(|part| self.generate_together(part, group, seed, watch))
            .collect();
        let mut grown = Vec::with_capacity(requests.len());
        for part in parts {
            grown.extend(part?);
        }
        let logps: Vec<Vec<f32>> =
            grown.iter_mut().flatten().map(|growing| std::mem::take(&mut growing.logps)).collect();
        let mut logps = LogProbs::of_host(&logps)?.into_iter();
        let mut finish = |growing: &Growing| {
            let logps =
                logps.next().ok_or_else(|| Error::Internal("a completion without log-probs".into()))?;
            Ok(self.completion(&growing.sequence, logps))
        };
        grown.iter().map(|members| members.iter().map(&mut finish).collect()).collect()
    }

    fn generate_together(
        &self,
        requests: &[Request<'_>],
        group: usize,
        seed: u64,
        watch: Watch<'_>,
    ) -> Result<Vec<Vec<Growing>>> {
        watch(0)?;
        let mut groups = self.prefill(requests, group, seed)?;
        loop {
            let mut tokens = Vec::new();
            let mut positions = Vec::new();
            let mut steps = Vec::new();
            let mut growing: Vec<(&Prompt, &mut Growing)> = Vec::new();
            for g in &mut groups {
                let mut own = Vec::new();
                for (member, cache) in g.members.iter_mut().filter(|(m, _)| m.sequence.finish().is_none()) {
                    let (last, position) = newest(g.prompt, &member.sequence)?;
                    tokens.push(last);
                    positions.push(position);
                    growing.push((g.prompt, member));
                    own.push(cache);
                }
                if !own.is_empty() {
                    steps.push(GroupStep { prefix: &g.cache, own });
                }
            }
            if tokens.is_empty() {
                break;
            }
            let hidden = kv_cache::step(self.model, self.params, &tokens, &positions, &mut steps)?;
            let rows = hidden.to_f32();
            self.extend(&rows, &mut growing, seed, watch)?;
        }
        Ok(groups.into_iter().map(|g| g.members.into_iter().map(|(member, _)| member).collect()).collect())
    }

    /// Runs the prompts and samples the first token of every completion.
    fn prefill<'p>(&self, requests: &[Request<'p>], group: usize, seed: u64) -> Result<Vec<Group<'p>>> {
        let input = self.prompts(requests)?;
        let (hidden, caches) = kv_cache::prefill(self.model, self.params, &input)?;
        let depth = self.model.text().depth();
        let (width, states) = (hidden.matrix().1, hidden.to_f32());
        let mut groups: Vec<Group<'p>> = Vec::with_capacity(requests.len());
        let mut rows = Vec::new();
        for ((request, cache), segment) in requests.iter().zip(caches).zip(&input.segments) {
            let last = segment.rows.end - 1;
            let member = |g: u32| Growing { sequence: Sequence::new(request.place, g), logps: Vec::new() };
            let members = (0..group as u32).map(|g| (member(g), KvCache::new(depth))).collect();
            groups.push(Group { prompt: request.prompt, cache, members });
            (0..group).for_each(|_| rows.extend_from_slice(&states[last * width..(last + 1) * width]));
        }
        let mut growing: Vec<(&Prompt, &mut Growing)> =
            groups.iter_mut().flat_map(|g| g.members.iter_mut().map(|(m, _)| (g.prompt, m))).collect();
        self.extend(&rows, &mut growing, seed, &|_| Ok(()))?;
        Ok(groups)
    }

    /// The prompts alone, packed.
    fn prompts(&self, requests: &[Request<'_>]) -> Result<Packed> {
        let layout = ImageLayout {
            image_token_id: self.model.config().image_token_id,
            spatial_merge_size: self.model.config().vision.spatial_merge_size,
        };
        let mut input = Packed::default();
        for request in requests {
            input.push_group(request.prompt, &[], layout)?;
        }
        Ok(input)
    }

    /// Samples the next token of each sequence from its row of hidden states.
    fn extend(
        &self,
        rows: &[f32],
        growing: &mut [(&Prompt, &mut Growing)],
        seed: u64,
        watch: Watch<'_>,
    ) -> Result<()> {
        let head = &self.params.of(self.model.head()).value;
        let vocab = head.matrix().0;
        let mut scores = logits(rows, head);
        let temperature = self.decoding.sampling.score_temperature();
        let drawn: Vec<(u32, f32)> = scores
            .par_chunks_exact_mut(vocab)
            .zip(growing.par_iter())
            .with_min_len((1 << 15) / vocab.max(1) + 1)
            .map_init(Sampler::new, |sampler, (row, (prompt, Growing { sequence, .. }))| {
                let context = SamplingContext {
                    prompt: &prompt.tokens,
                    output: sequence.tokens(),
                    eos: &self.decoding.stop.eos,
                    banned: &self.decoding.banned,
                };
                let token =
                    sampler.token(row, &context, &self.decoding.sampling, sequence.draw_key(seed)?)?;
                let normaliser = row_log_normaliser(row, temperature);
                Ok((token, row[token as usize] - normaliser))
            })
            .collect::<Result<_>>()?;
        let mut finished = 0;
        for ((_, Growing { sequence, logps }), (token, logp)) in growing.iter_mut().zip(drawn) {
            if logp.is_nan() {
                return Err(Error::Protect(format!(
                    "the log-probability of token {token} at position {} of prompt {}, completion {} is NaN; \
                     the model's weights or activations have overflowed",
                    logps.len(),
                    sequence.prompt(),
                    sequence.completion()
                )));
            }
            logps.push(logp);
            finished += self.push(sequence, token)?;
        }
        watch(finished)
    }

    /// Appends a token; gives 1 when it is the sequence's last.
    fn push(&self, sequence: &mut Sequence, token: u32) -> Result<u64> {
        let end = sequence.push(token, &self.decoding.stop, &|ids| (self.detokenize)(ids))?;
        Ok(u64::from(end.is_some()))
    }

    fn completion(&self, sequence: &Sequence, logps: LogProbs) -> Completion {
        Completion {
            text: sequence.text(&|ids| (self.detokenize)(ids)),
            finish: sequence.finish().unwrap_or(FinishReason::Length),
            tokens: sequence.tokens().to_vec(),
            logps,
        }
    }
}

/// A growing sequence's last token and its position: what the next step computes.
fn newest(prompt: &Prompt, sequence: &Sequence) -> Result<(u32, i32)> {
    let &[.., last] = sequence.tokens() else {
        return Err(Error::Internal("an empty sequence cannot be extended".into()));
    };
    Ok((last, next_position(prompt, sequence.tokens().len() - 1)?))
}

/// Position of completion token `index` behind its prompt.
fn next_position(prompt: &Prompt, index: usize) -> Result<i32> {
    i32::try_from(index)
        .ok()
        .and_then(|i| prompt.next_position.checked_add(i))
        .ok_or_else(|| Error::Input(format!("token {index} of a completion has no position")))
}
