//! From one row of logits to the next token.
//!
//! Semantics and order are those of transformers' `generate` (its `LogitsProcessorList`):
//!
//! 1. repetition penalty, over the distinct tokens of prompt and output, image placeholders
//!    included: `x * penalty` where `x < 0`, else `x / penalty` (Keskar et al. 2019, CTRL);
//! 2. end-of-sequence tokens banned while fewer than `min_new_tokens` are generated;
//! 3. the caller's bans (transformers' `suppress_tokens`);
//! 4. when sampling: division by the temperature, then
//! 5. top-k: everything below the k-th largest score goes (ties with it stay),
//! 6. top-p: from the least likely token upward, tokens go while the cumulative probability is at
//!    most `1 - top_p`; the last one stays (Holtzman et al. 2020),
//! 7. min-p: tokens less likely than `min_p` times the likeliest go (Nguyen et al. 2024).
//!
//! Where equally likely tokens straddle the top-p limit, transformers leaves the choice to an
//! unstable sort; here the lower ids stay.
//!
//! Greedy decoding is the argmax after step 3 (the first of equals, as torch). Sampling inverts the
//! cumulative distribution over the kept tokens in id order with one uniform number of [`DrawKey`].
//! The log-probability kept with a token is not computed here: it is that of the raw logits over
//! the full vocabulary at [`SamplingParams::score_temperature`], before any of these steps.
//!
//! Scores are f32, cumulative sums f64 in a fixed order, so that a token depends on its own row,
//! history, options and key alone. [`cuda`] does the same in device memory.

#[allow(unsafe_code)]
pub mod cuda;

use crate::error::{Error, Result};
use crate::rng::{Purpose, philox};

/// How the next token is chosen. `Default` is TRL's: plain sampling at temperature 1.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divisor of the logits, positive. With `greedy` it only scales the kept log-probabilities,
    /// and may be 0 (see [`SamplingParams::score_temperature`]).
    pub temperature: f64,
    /// Smallest probability mass to keep, in (0, 1]; 1 keeps everything.
    pub top_p: f64,
    /// How many of the likeliest tokens to keep; 0 keeps everything.
    pub top_k: usize,
    /// Least probability relative to the likeliest token, in [0, 1]; 0 keeps everything.
    pub min_p: f64,
    /// Divisor (multiplier, where negative) of the scores of tokens already seen, positive; 1 is off.
    pub repetition_penalty: f64,
    /// No end-of-sequence token among this many first tokens of a completion.
    pub min_new_tokens: usize,
    /// Longest completion in tokens, at least 1 (TRL's `max_completion_length`).
    pub max_new_tokens: usize,
    /// Take the likeliest token instead of sampling (transformers' `do_sample = false`).
    pub greedy: bool,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            min_new_tokens: 0,
            max_new_tokens: 512,
            greedy: false,
        }
    }
}

impl SamplingParams {
    /// Checks every range.
    ///
    /// # Errors
    /// `Usage`, naming the option and the range it has to be in.
    pub fn validate(&self) -> Result<()> {
        let usage = |message: String| Err(Error::Usage(message));
        let t = self.temperature;
        if self.greedy {
            if !(t.is_finite() && t >= 0.0) {
                return usage(format!("temperature is {t}; it has to be a finite number, 0 or more"));
            }
        } else if !is_positive_f32(t) {
            return usage(format!(
                "temperature is {t}; to sample, it has to be a positive finite number \
                 (for greedy decoding set do_sample to false)"
            ));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return usage(format!("top_p is {}; it has to be above 0 and at most 1 (1 is off)", self.top_p));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return usage(format!("min_p is {}; it has to be between 0 (off) and 1", self.min_p));
        }
        if !is_positive_f32(self.repetition_penalty) {
            return usage(format!(
                "repetition_penalty is {}; it has to be a positive finite number (1 is off)",
                self.repetition_penalty
            ));
        }
        if self.max_new_tokens == 0 {
            return usage("max_completion_length (max_new_tokens) is 0; it has to be at least 1".to_string());
        }
        if self.min_new_tokens > self.max_new_tokens {
            return usage(format!(
                "min_new_tokens ({}) is above max_completion_length (max_new_tokens, {}); lower the first or raise the second",
                self.min_new_tokens, self.max_new_tokens
            ));
        }
        Ok(())
    }

    /// The temperature at which kept log-probabilities are taken: `temperature`, or 1 where greedy
    /// decoding was asked for as temperature 0.
    pub fn score_temperature(&self) -> f32 {
        let t = self.temperature as f32;
        if self.greedy && !is_positive_f32(self.temperature) { 1.0 } else { t }
    }
}

/// Whether `x`, and its f32 rounding that the arithmetic uses, is a positive finite normal number.
fn is_positive_f32(x: f64) -> bool {
    x > 0.0 && (x as f32).is_normal()
}

/// The coordinates of one draw. Equal coordinates give equal draws; nothing else enters.
///
/// Philox counter layout, words 0 to 3: `position`, [`Purpose::Sample`], `prompt`, `completion`;
/// the key is `seed`. Words 0 and 1 of the output make the uniform number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawKey {
    /// The run's seed.
    pub seed: u64,
    /// The prompt's place in the shuffled stream of prompts, counted over the whole run.
    pub prompt: u32,
    /// The completion's index within its group.
    pub completion: u32,
    /// Index of the token in its completion, from 0.
    pub position: u32,
}

impl DrawKey {
    /// The uniform number in [0, 1) of this draw, with 53 random bits: a f32's 24 would never reach
    /// the rarest tokens of a large vocabulary.
    pub fn unit(self) -> f64 {
        let words = philox(self.seed, [self.position, Purpose::Sample as u32, self.prompt, self.completion]);
        let bits = (u64::from(words[0] >> 5) << 26) | u64::from(words[1] >> 6);
        bits as f64 * (1.0 / 9_007_199_254_740_992.0)
    }
}

/// What came before the token, and what may not come now. Ids beyond the vocabulary are ignored.
#[derive(Clone, Copy, Debug, Default)]
pub struct SamplingContext<'a> {
    /// The prompt's tokens, image placeholders included.
    pub prompt: &'a [u32],
    /// The tokens generated so far.
    pub output: &'a [u32],
    /// End-of-sequence ids, for `min_new_tokens`.
    pub eos: &'a [u32],
    /// Ids that are never chosen (in training: image and vision placeholders).
    pub banned: &'a [u32],
}

/// Chooses tokens. Holds nothing but scratch memory, reused from row to row.
#[derive(Debug, Default)]
pub struct Sampler {
    /// `[V]` processed scores; -inf is "not a candidate".
    scores: Vec<f32>,
    /// `[V]`, all false between calls: tokens that have had their penalty.
    penalised: Vec<bool>,
    /// Candidates in id order, with their weights `exp(score - max)`.
    kept: Vec<Candidate>,
    /// Order scratch for top-k and top-p.
    ranked: Vec<Candidate>,
}

/// A token that can still be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    id: u32,
    /// A score, later the unnormalised probability `exp(score - max)`.
    value: f32,
}

impl Sampler {
    /// A sampler without scratch memory yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next token for `logits` (`[V]`, raw). `params` are taken as validated.
    ///
    /// Cost: O(V + history), plus a sort of the few tokens near the limit under top-p.
    ///
    /// # Errors
    /// `Protect` if a logit is NaN or +inf, or if bans leave no token.
    pub fn token(
        &mut self,
        logits: &[f32],
        context: &SamplingContext,
        params: &SamplingParams,
        key: DrawKey,
    ) -> Result<u32> {
        self.score(logits, context, params)?;
        if params.greedy {
            return self.argmax();
        }
        self.truncate(params)?;
        let total: f64 = self.kept.iter().map(|c| f64::from(c.value)).sum();
        let limit = key.unit() * total;
        let mut cumulative = 0.0f64;
        let mut last = None;
        for c in self.kept.iter().filter(|c| c.value > 0.0) {
            cumulative += f64::from(c.value);
            if cumulative > limit {
                return Ok(c.id);
            }
            last = Some(c.id);
        }
        // Reached only if `unit * total` rounds up to the total.
        last.ok_or_else(nothing_left)
    }

    /// The processed distribution, `[V]`: what [`Sampler::token`] samples from, or with `greedy` the
    /// softmax of what it takes the argmax of.
    ///
    /// # Errors
    /// As [`Sampler::token`].
    pub fn probabilities(
        &mut self,
        logits: &[f32],
        context: &SamplingContext,
        params: &SamplingParams,
    ) -> Result<Vec<f32>> {
        self.score(logits, context, params)?;
        if params.greedy {
            self.collect()?;
            self.weigh();
        } else {
            self.truncate(params)?;
        }
        let total: f64 = self.kept.iter().map(|c| f64::from(c.value)).sum();
        let mut probs = vec![0.0; logits.len()];
        for c in &self.kept {
            probs[c.id as usize] = (f64::from(c.value) / total) as f32;
        }
        Ok(probs)
    }

    /// Steps 1 to 3: fills `scores`.
    fn score(&mut self, logits: &[f32], context: &SamplingContext, params: &SamplingParams) -> Result<()> {
        // One pass without a branch per element; which token it is matters only for the message.
        if !logits.iter().fold(true, |fine, x| fine & (*x < f32::INFINITY)) {
            let bad = logits.iter().position(|x| x.is_nan() || *x == f32::INFINITY).unwrap_or_default();
            return Err(no_logit(bad, logits.get(bad).copied().unwrap_or(f32::NAN)));
        }
        self.scores.clear();
        self.scores.extend_from_slice(logits);
        if params.repetition_penalty != 1.0 {
            self.penalise(context, params.repetition_penalty as f32);
        }
        let early = context.output.len() < params.min_new_tokens;
        let eos = if early { context.eos } else { &[] };
        for id in eos.iter().chain(context.banned) {
            if let Some(x) = self.scores.get_mut(*id as usize) {
                *x = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// Step 1, once per distinct token.
    fn penalise(&mut self, context: &SamplingContext, penalty: f32) {
        self.penalised.resize(self.scores.len(), false);
        let history = || context.prompt.iter().chain(context.output);
        for id in history() {
            let id = *id as usize;
            if let (Some(x), Some(done)) = (self.scores.get_mut(id), self.penalised.get_mut(id))
                && !*done
            {
                *x = if *x < 0.0 { *x * penalty } else { *x / penalty };
                *done = true;
            }
        }
        for id in history() {
            if let Some(done) = self.penalised.get_mut(*id as usize) {
                *done = false;
            }
        }
    }

    /// The first of the largest scores.
    fn argmax(&self) -> Result<u32> {
        let mut best = None;
        let mut most = f32::NEG_INFINITY;
        for (id, x) in self.scores.iter().enumerate() {
            if *x > most {
                most = *x;
                best = Some(id as u32);
            }
        }
        best.ok_or_else(nothing_left)
    }

    /// Steps 4 to 7: fills `kept` with the weights of what may be drawn.
    fn truncate(&mut self, params: &SamplingParams) -> Result<()> {
        if params.temperature != 1.0 {
            let temperature = params.temperature as f32;
            self.scores.iter_mut().for_each(|x| *x /= temperature);
        }
        self.collect()?;
        if params.top_k > 0 && params.top_k < self.kept.len() {
            self.keep_top_k(params.top_k);
        }
        self.weigh();
        if params.top_p < 1.0 {
            self.keep_top_p(params.top_p);
        }
        if params.min_p > 0.0 {
            // The likeliest token weighs exactly 1, so weights are already relative to it.
            let least = params.min_p as f32;
            self.kept.retain(|c| c.value >= least);
        }
        Ok(())
    }

    /// `kept` = every token with a score above -inf, in id order.
    fn collect(&mut self) -> Result<()> {
        self.kept.clear();
        let above = |(id, x): (usize, &f32)| {
            (*x > f32::NEG_INFINITY).then_some(Candidate { id: id as u32, value: *x })
        };
        self.kept.extend(self.scores.iter().enumerate().filter_map(above));
        if self.kept.is_empty() { Err(nothing_left()) } else { Ok(()) }
    }

    /// Scores become weights `exp(score - max)`.
    fn weigh(&mut self) {
        let most = self.kept.iter().fold(f32::NEG_INFINITY, |m, c| m.max(c.value));
        for c in &mut self.kept {
            // A tiny temperature may overflow a score to infinity; infinity minus itself is no weight.
            c.value = if c.value == most { 1.0 } else { exp_of_negative(c.value - most) };
        }
    }

    /// Step 5.
    fn keep_top_k(&mut self, k: usize) {
        self.ranked.clear();
        self.ranked.extend_from_slice(&self.kept);
        let (_, kth, _) = self.ranked.select_nth_unstable_by(k - 1, |a, b| b.value.total_cmp(&a.value));
        let least = kth.value;
        self.kept.retain(|c| c.value >= least);
    }

    /// Step 6. Tokens far too rare to reach the limit together are summed without sorting: with n
    /// candidates, those below half of `limit / n` each are below half of `limit` in sum.
    fn keep_top_p(&mut self, top_p: f64) {
        let total: f64 = self.kept.iter().map(|c| f64::from(c.value)).sum();
        let limit = ((1.0 - top_p) as f32, (1.0 - top_p) * total);
        let rare = (0.5 * limit.1 / self.kept.len() as f64) as f32;
        self.ranked.clear();
        let mut cumulative = 0.0f64;
        for c in &self.kept {
            if c.value < rare {
                cumulative += f64::from(c.value) / total;
            } else {
                self.ranked.push(*c);
            }
        }
        // Ascending weight; of equals the highest id goes first.
        self.ranked.sort_unstable_by(|a, b| a.value.total_cmp(&b.value).then(b.id.cmp(&a.id)));
        let mut dropped = 0;
        for c in self.ranked.iter().take(self.ranked.len().saturating_sub(1)) {
            cumulative += f64::from(c.value) / total;
            if cumulative as f32 > limit.0 {
                break;
            }
            dropped += 1;
        }
        if let Some(first) = self.ranked.get(dropped).copied() {
            self.kept.retain(|c| c.value > first.value || (c.value == first.value && c.id <= first.id));
        }
    }
}

/// `e^x` for x below 0, to about 1 unit in the last place; 0 below -87, where the result would be no normal number.
///
/// By the multiply-adds of `kernels/sample.cu`, and so of the same bits: libraries of machines differ in the last one, by which two
/// tokens may tie. Argument and polynomial are Cephes' (`expf`, Moshier 1989).
fn exp_of_negative(x: f32) -> f32 {
    if x < -87.0 {
        return 0.0;
    }
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    // ln 2 in two pieces, of which n times the first is exact.
    let r = n.mul_add(-1.428_606_8e-6, n.mul_add(-0.693_145_75, x));
    let p = [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5]
        .into_iter()
        .fold(1.987_569_1e-4_f32, |p, c| p.mul_add(r, c));
    let of_r = p.mul_add(r * r, r) + 1.0;
    of_r * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

fn no_logit(token: usize, logit: f32) -> Error {
    Error::Protect(format!(
        "the logit of token {token} is {logit}; the model's weights or activations have overflowed \
         (lower the learning rate, or resume from an earlier checkpoint)"
    ))
}

fn nothing_left() -> Error {
    Error::Protect(
        "no token is left to choose: every logit is -inf or banned (check the end-of-sequence ids, \
         min_new_tokens and the banned ids against the vocabulary)"
            .to_string(),
    )
}

#[cfg(test)]
mod tests;
