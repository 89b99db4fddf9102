//! Generation on a GPU, with keys and values in pages.
//!
//! A group's prompt lies in pages that its completions share. As soon as sequences end, waiting prompts take their place; by the
//! row law that changes no bit of any completion. Tokens are copied to the host, where it is decided which sequences end;
//! log-probabilities stay on the GPU.

use super::pages::{PagePool, pages_of};
use super::sampler::DrawKey;
use super::sampler::cuda::DeviceSampler;
use super::sequence::Sequence;
use super::{Completion, Engine, LogProbs, Request, Watch, newest};
use crate::autograd::{Op, Tape};
use crate::cuda::{Buffer, Gpu, Purpose};
use crate::error::{Error, Result};
use crate::model::attention_segments;
use crate::nn::Scope;
use crate::ops::attention::Attention;
use crate::ops::attention::paged::{self, DecodeBatch, PagedKv, Pages, Slots};
use crate::ops::embedding::gather_rows;
use crate::ops::log_softmax_kl::cuda::{logits, sampled_log_probs};
use crate::packed::Packed;
use crate::processor::Prompt;
use crate::tensor::Tensor;
use std::collections::VecDeque;

/// The share of the free memory that the cache may take; the rest is for the activations beside it.
const CACHE_SHARE: f64 = 0.7;

/// Why log-probabilities cannot be numbered.
const TOO_MANY: &str = "the completions of one rollout may have 2^31 tokens at most: lower --num_generations, \
                        --max_completion_length or the number of prompts";

/// A completion that is being made.
struct Member {
    /// Which it is, counted over all requests.
    number: usize,
    sequence: Sequence,
    own: Pages,
}

/// A prompt in the cache, with those of its completions that still grow.
struct Running<'p> {
    prompt: &'p Prompt,
    prefix: Pages,
    growing: Vec<Member>,
}

/// What a generation holds on the GPU.
struct Rollout<'e, 'p> {
    engine: &'e Engine<'e>,
    gpu: &'e Gpu,
    group: usize,
    seed: u64,
    layers: Vec<PagedKv>,
    pool: PagePool,
    sampler: DeviceSampler,
    /// Log-probabilities, `max_new_tokens` for each completion.
    kept: Buffer<f32>,
    running: Vec<Running<'p>>,
    /// Finished sequences by number.
    done: Vec<Option<Sequence>>,
}

/// [`Engine::generate`] on a GPU.
pub(super) fn generate(
    engine: &Engine<'_>,
    gpu: &Gpu,
    requests: &[Request<'_>],
    group: usize,
    seed: u64,
    watch: Watch<'_>,
) -> Result<Vec<Vec<Completion>>> {
    watch(0)?;
    let mut rollout = Rollout::new(engine, gpu, requests, group, seed)?;
    let mut waiting: VecDeque<(usize, &Request<'_>)> = requests.iter().enumerate().collect();
    while !(waiting.is_empty() && rollout.running.is_empty()) {
        let admitted = rollout.admit(&mut waiting)?;
        let finished = if admitted.is_empty() { rollout.step()? } else { rollout.prefill(&admitted)? };
        watch(finished)?;
    }
    rollout.completions()
}

impl<'e, 'p> Rollout<'e, 'p> {
    fn new(
        engine: &'e Engine<'e>,
        gpu: &'e Gpu,
        requests: &[Request<'_>],
        group: usize,
        seed: u64,
    ) -> Result<Self> {
        let (text, depth) = (&engine.model.config().text, engine.model.text().depth());
        let dtype = engine.params.of(engine.model.head()).value.dtype();
        let longest = engine.decoding.stop.max_new_tokens;
        let count = requests.len() * group;
        let prompts: Vec<(&[u32], usize)> =
            requests.iter().map(|request| (request.prompt.tokens.as_slice(), group)).collect();
        let sampler = DeviceSampler::new(
            gpu,
            &engine.decoding.sampling,
            &engine.decoding.stop.eos,
            &engine.decoding.banned,
            text.vocab_size,
            &prompts,
        )?;
        let kept = gpu.alloc(count * longest, Purpose::Inputs)?;
        let mut needs: Vec<usize> =
            requests.iter().map(|request| pages_of_group(request.prompt, group, longest)).collect();
        needs.sort_unstable_by(|a, b| b.cmp(a));
        let most: usize = needs.iter().take(engine.limits.prompts(group)).sum();
        let page_bytes = depth * PagedKv::page_bytes(text.heads(), dtype);
        let fitting = match engine.limits.pages {
            Some(pages) => pages,
            None => (gpu.free_bytes()? as f64 * CACHE_SHARE) as usize / page_bytes.max(1),
        };
        // A group that does not fit alone fails where its pages are allocated, with a message that says what to lower.
        let pages = most.min(fitting).max(needs.first().copied().unwrap_or(0));
        let layers =
            (0..depth).map(|_| PagedKv::new(gpu, pages, text.heads(), dtype)).collect::<Result<_>>()?;
        Ok(Rollout {
            engine,
            gpu,
            group,
            seed,
            layers,
            pool: PagePool::new(pages),
            sampler,
            kept,
            running: Vec::new(),
            done: (0..count).map(|_| None).collect(),
        })
    }

    /// Takes the next prompts for whose completions there are pages, and places among the sequences.
    fn admit<'r>(
        &mut self,
        waiting: &mut VecDeque<(usize, &'r Request<'p>)>,
    ) -> Result<Vec<&'r Request<'p>>> {
        let longest = self.engine.decoding.stop.max_new_tokens;
        let mut admitted = Vec::new();
        let limits = self.engine.limits;
        let mut sequences: usize = self.running.iter().map(|running| running.growing.len()).sum();
        let mut rows = 0;
        while let Some(&(index, request)) = waiting.front() {
            let length = request.prompt.tokens.len();
            let is_crowded = sequences > 0 && sequences + self.group > limits.sequences;
            let is_long = rows > 0 && rows + length > limits.prefill_rows;
            if is_crowded || is_long || pages_of_group(request.prompt, self.group, longest) > self.pool.free()
            {
                break;
            }
            let mut take = |tokens| {
                let pages = self.pool.take(tokens);
                pages.ok_or_else(|| Error::Internal("the key/value cache has too few pages".into()))
            };
            let prefix = Pages { len: length, ..take(length)? };
            let member = |g: usize| {
                Ok(Member {
                    number: index * self.group + g,
                    sequence: Sequence::new(request.place, g as u32),
                    own: take(longest - 1)?,
                })
            };
            let growing = (0..self.group).map(member).collect::<Result<_>>()?;
            self.running.push(Running { prompt: request.prompt, prefix, growing });
            sequences += self.group;
            rows += length;
            admitted.push(request);
            waiting.pop_front();
        }
        if admitted.is_empty() && self.running.is_empty() {
            return Err(Error::Internal("a prompt that does not fit the key/value cache".into()));
        }
        Ok(admitted)
    }

    /// Runs the prompts just admitted, which stand last, and samples the first token of their completions. Gives the number of
    /// completions that end with it.
    fn prefill(&mut self, admitted: &[&Request<'p>]) -> Result<u64> {
        let Engine { model, params, .. } = *self.engine;
        let requests: Vec<Request<'_>> = admitted.iter().map(|request| **request).collect();
        let input = self.engine.prompts(&requests)?;
        let first = self.running.len() - admitted.len();
        let mut rows = Vec::with_capacity(input.tokens.len());
        for running in &self.running[first..] {
            for token in 0..running.prefix.len {
                rows.push(running.prefix.slot(token)?);
            }
        }
        let slots = Slots::new(self.gpu, &rows)?;
        let tape = Tape::off();
        let (_, x) = model.embed(&Scope { tape: &tape, params }, &input, false)?;
        let text = &model.config().text;
        let attention = Attention { heads: text.heads(), segments: attention_segments(&input), causal: true };
        let (table, layers) = (text.rope(&input.positions_3t), &mut self.layers);
        let hidden = model.text().infer(params, x.value().clone(), &table, |layer, q, k, v| {
            layers[layer].store(k, v, &slots)?;
            Ok(attention.forward([q, k, v])?.0)
        })?;
        let last: Vec<usize> = input.segments.iter().map(|segment| segment.rows.end - 1).collect();
        let scores = logits(&gather_rows(&hidden, &last)?, self.head())?;
        // All completions of a prompt begin with its row.
        let rows: Vec<usize> = (0..last.len()).flat_map(|row| std::iter::repeat_n(row, self.group)).collect();
        self.extend(&gather_rows(&scores, &rows)?, first)
    }

    /// The matrix that gives the logits.
    fn head(&self) -> &'e Tensor {
        &self.engine.params.of(self.engine.model.head()).value
    }

    /// Computes one row of every growing sequence and samples its next token. Gives the number of completions that end with it.
    fn step(&mut self) -> Result<u64> {
        let Engine { model, params, .. } = *self.engine;
        let (mut tokens, mut positions, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
        for running in &mut self.running {
            for member in &mut running.growing {
                let (token, position) = newest(running.prompt, &member.sequence)?;
                tokens.push(token);
                positions.push(position);
                member.own.len += 1;
                sequences.push(paged::Sequence { prefix: running.prefix.clone(), own: member.own.clone() });
            }
        }
        let batch = DecodeBatch::new(self.gpu, &sequences)?;
        let tape = Tape::off();
        let input = Packed { tokens, ..Packed::default() };
        let (_, x) = model.embed(&Scope { tape: &tape, params }, &input, false)?;
        let table = model.config().text.rope(&std::array::from_fn(|_| positions.clone()));
        let layers = &mut self.layers;
        let hidden = model.text().infer(params, x.value().clone(), &table, |layer, q, k, v| {
            layers[layer].store(k, v, batch.newest())?;
            layers[layer].decode(q, &batch)
        })?;
        self.extend(&logits(&hidden, self.head())?, 0)
    }

    /// Samples the next token of each sequence of the prompts from `first` on, from its row of logits `[B, V]`; puts those that end
    /// with it aside, and their pages back.
    fn extend(&mut self, scores: &Tensor, first: usize) -> Result<u64> {
        let engine = self.engine;
        let longest = engine.decoding.stop.max_new_tokens;
        let members = || self.running[first..].iter().flat_map(|running| &running.growing);
        let numbers: Vec<usize> = members().map(|member| member.number).collect();
        let keys = members().map(|m| m.sequence.draw_key(self.seed)).collect::<Result<Vec<DrawKey>>>()?;
        let place = |m: &Member| i32::try_from(m.number * longest + m.sequence.tokens().len());
        let places = members().map(place).collect::<std::result::Result<Vec<i32>, _>>();
        let places = places.map_err(|_| Error::Usage(TOO_MANY.into()))?;
        let places = self.gpu.upload(&places, Purpose::Inputs)?;
        let drawn = self.sampler.draw(scores, &numbers, &keys)?;
        let temperature = f64::from(engine.decoding.sampling.score_temperature());
        sampled_log_probs(scores, &drawn, &places, temperature, &mut self.kept)?;
        let mut tokens = self.sampler.tokens(&drawn)?.into_iter();
        let mut finished = 0;
        for running in &mut self.running[first..] {
            let mut still = Vec::with_capacity(running.growing.len());
            for mut member in std::mem::take(&mut running.growing) {
                let token = tokens.next();
                let token = token.ok_or_else(|| Error::Internal("a sequence without a token".into()))?;
                let ended = engine.push(&mut member.sequence, token)?;
                finished += ended;
                if ended == 0 {
                    still.push(member);
                } else {
                    self.pool.give(member.own);
                    self.done[member.number] = Some(member.sequence);
                }
            }
            running.growing = still;
        }
        let (ended, running) =
            std::mem::take(&mut self.running).into_iter().partition(|r| r.growing.is_empty());
        self.running = running;
        let ended: Vec<Running<'p>> = ended;
        ended.into_iter().for_each(|running| self.pool.give(running.prefix));
        Ok(finished)
    }

    /// The finished completions, `[P][G]`.
    fn completions(self) -> Result<Vec<Vec<Completion>>> {
        let longest = self.engine.decoding.stop.max_new_tokens;
        let values = Tensor::from_buffer(&[self.kept.len()], self.kept)?;
        let mut completions = Vec::with_capacity(self.done.len());
        for (number, sequence) in self.done.into_iter().enumerate() {
            let sequence = sequence.ok_or_else(|| Error::Internal("a completion was not made".into()))?;
            let logps = LogProbs::new(values.clone(), number * longest, sequence.tokens().len())?;
            completions.push(self.engine.completion(&sequence, logps));
        }
        let mut completions = completions.into_iter();
        let groups = completions.len().checked_div(self.group).unwrap_or(0);
        Ok((0..groups).map(|_| completions.by_ref().take(self.group).collect()).collect())
    }
}

/// Pages of a prompt and its completions; the last token of a completion is never in the cache.
fn pages_of_group(prompt: &Prompt, group: usize, longest: usize) -> usize {
    pages_of(prompt.tokens.len()) + group * pages_of(longest - 1)
}
