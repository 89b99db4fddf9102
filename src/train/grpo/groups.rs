//! The groups of a step: which rows, their completions, and which of them are worth learning from.
//!
//! A group whose rewards are all equal teaches nothing. With dynamic sampling (DAPO, arXiv 2503.14476, section 3.2) such
//! groups are dropped and their places in the step filled from the next rows of the stream, a bounded number of times;
//! what is still equal then stays, so that a step always has its number of groups. The others keep their order.

use std::time::Instant;

use super::scored::{Scored, prompt_hash};
use super::{GrpoTrainer, StepFailure};
use crate::checkpoint::{Refills, SavedRollout, StreamPosition};
use crate::data::{Dataset, Sample};
use crate::error::{Error, Result};
use crate::processor::Prompt;
use crate::reward::{Completed, Progress};
use crate::rollout::{Completion, Request, Watch};
use crate::train::policy::check_length;

/// A group as it was sampled.
struct Group {
    place: u64,
    sample: Sample,
    prompt: Prompt,
    completions: Vec<Completion>,
    /// Each reward of each completion, unweighted, `[G]`.
    scores: Vec<Vec<Option<f64>>>,
}

impl Group {
    fn tokens(&self) -> u64 {
        self.completions.iter().map(|c| (self.prompt.tokens.len() + c.tokens.len()) as u64).sum()
    }
}

impl GrpoTrainer {
    /// Which rollout of the run a step learns from, from 0.
    fn rollout_of(&self, step: u64) -> u64 {
        step / self.options.num_iterations as u64
    }

    /// The place in the stream at which the rollout of `step` begins. Rollouts that are not known of took as many rows as
    /// they have groups.
    pub(super) fn first_place(&self, step: u64) -> u64 {
        let StreamPosition { rollout, first, used } = self.position;
        let groups = self.prompts_per_rollout() as u64;
        match self.rollout_of(step).checked_sub(rollout + 1) {
            Some(between) => first + used + between * groups,
            None => first,
        }
    }

    /// The place behind the rollout of `step`.
    pub(super) fn next_place(&self, step: u64) -> u64 {
        let is_known = self.position.rollout == self.rollout_of(step);
        let used = if is_known { self.position.used } else { self.prompts_per_rollout() as u64 };
        self.first_place(step) + used
    }

    /// The rows at some places of the stream, each with its place.
    ///
    /// # Errors
    /// Those of reading them.
    pub(super) fn rows_at(&mut self, places: &[u64], samples: &Dataset) -> Result<Vec<(u64, Sample)>> {
        places.iter().map(|&place| Ok((place, samples.sample(self.stream.row(place))?))).collect()
    }

    /// The rows at some places of the stream with their prompts, as they were made ready ahead, or made now.
    ///
    /// # Errors
    /// Those of reading and encoding them.
    fn ready_at(&mut self, places: &[u64], samples: &Dataset) -> Result<Vec<(Sample, Prompt)>> {
        let rows: Vec<usize> = places.iter().map(|&place| self.stream.row(place)).collect();
        self.ahead.take(&rows, self.making_ready(samples))
    }

    /// Begins with the rows of the rollout behind `position`.
    fn ready_next(&mut self, step: u64, position: StreamPosition, samples: &Dataset) {
        let next_step = (self.rollout_of(step) + 1) * self.options.num_iterations as u64;
        if next_step >= self.options.schedule.total_steps {
            return;
        }
        let first = position.first + position.used;
        let places = first..first + self.prompts_per_rollout() as u64;
        let rows = places.map(|place| self.stream.row(place)).collect();
        let work = self.making_ready(samples);
        self.ahead.start(rows, work);
    }

    /// What makes a row ready.
    fn making_ready(
        &self,
        samples: &Dataset,
    ) -> impl Fn(usize) -> Result<(Sample, Prompt)> + Send + Sync + use<> {
        let (processor, limit, samples) =
            (self.policy.processor.clone(), self.options.prompt_limit, samples.clone());
        move |row| {
            let sample = samples.sample(row)?;
            let prompt = processor.encode(&sample, true)?;
            check_length(&sample, prompt.tokens.len(), limit)?;
            Ok((sample, prompt))
        }
    }

    /// The first places of the rollout of `step`.
    pub(super) fn first_places(&self, step: u64) -> Vec<u64> {
        let first = self.first_place(step);
        (first..first + self.prompts_per_rollout() as u64).collect()
    }

    /// Samples and scores the groups of a step. Gives the places behind it and the seconds of sampling and of scoring.
    ///
    /// # Errors
    /// [`StepFailure`] with what of the stream was used up, where the numbers are in doubt.
    pub(super) fn roll_out(
        &mut self,
        step: u64,
        samples: &Dataset,
        beta: f64,
        watch: Watch<'_>,
    ) -> std::result::Result<(Scored, StreamPosition, [f64; 2]), StepFailure> {
        let start = Instant::now();
        let mut position = StreamPosition {
            rollout: self.rollout_of(step),
            first: self.first_place(step),
            used: self.prompts_per_rollout() as u64,
        };
        let epoch = self.first_place(step) as f64 / self.stream.rows() as f64;
        self.rewards.progress(Progress { step, max_steps: self.options.schedule.total_steps, epoch });
        let mut sampled_seconds = 0.0;
        let sampled = self.groups(&mut position, samples, &mut sampled_seconds, watch);
        if sampled.is_ok() {
            self.ready_next(step, position, samples);
        }
        let scored = sampled.and_then(|(groups, refills)| {
            let rollout = SavedRollout {
                beta,
                places: groups.iter().map(|group| group.place).collect(),
                prompts: groups.iter().map(|group| prompt_hash(&group.prompt)).collect(),
                scores: groups.iter().flat_map(|group| group.scores.iter().cloned()).collect(),
                difference: None,
                refills,
                completions: Vec::new(),
            };
            let (mut chosen, mut prompts, mut completions) = (Vec::new(), Vec::new(), Vec::new());
            for Group { place, sample, prompt, completions: of_group, .. } in groups {
                chosen.push((place, sample));
                prompts.push(prompt);
                completions.push(of_group);
            }
            let scored = self.scored(chosen, prompts, SavedRollout { completions, ..rollout }, watch)?;
            self.finish_work()?;
            Ok(scored)
        });
        match scored {
            Ok(scored) => {
                Ok((scored, position, [sampled_seconds, start.elapsed().as_secs_f64() - sampled_seconds]))
            }
            Err(error) => Err(StepFailure { position, error }),
        }
    }

    /// The groups of a rollout that begins at `position`, which is moved behind what is used.
    fn groups(
        &mut self,
        position: &mut StreamPosition,
        samples: &Dataset,
        sampled_seconds: &mut f64,
        watch: Watch<'_>,
    ) -> Result<(Vec<Group>, Refills)> {
        let mut groups: Vec<Group> = Vec::new();
        // The slots that wait for a group.
        let mut vacant: Vec<usize> = (0..self.prompts_per_rollout()).collect();
        let mut refills = Refills::default();
        let mut next = position.first;
        loop {
            let places: Vec<u64> = (next..next + vacant.len() as u64).collect();
            next += vacant.len() as u64;
            position.used = next - position.first;
            let start = Instant::now();
            let ready = self.ready_at(&places, samples)?;
            *sampled_seconds += start.elapsed().as_secs_f64();
            for (&slot, group) in vacant.iter().zip(self.sample(&places, ready, sampled_seconds, watch)?) {
                match groups.get_mut(slot) {
                    Some(before) => {
                        refills.dropped += 1;
                        refills.dropped_tokens += before.tokens();
                        *before = group;
                    }
                    // The first time all slots are filled in their order.
                    None => groups.push(group),
                }
            }
            let Some(most) = self.options.max_resample_times else { return Ok((groups, refills)) };
            vacant.retain(|&slot| !self.teaches(&groups[slot]));
            if vacant.is_empty() || refills.times == most {
                refills.still_equal = vacant.len();
                return Ok((groups, refills));
            }
            refills.times += 1;
        }
    }

    /// Whether some completions of a group were better than others.
    fn teaches(&self, group: &Group) -> bool {
        let mut rewards = group.scores.iter().filter_map(|scores| self.rewards.total(scores));
        let Some(first) = rewards.next() else { return false };
        rewards.any(|reward| reward != first)
    }

    /// Samples G completions for each row and asks the rewards for their worth.
    fn sample(
        &self,
        places: &[u64],
        ready: Vec<(Sample, Prompt)>,
        sampled_seconds: &mut f64,
        watch: Watch<'_>,
    ) -> Result<Vec<Group>> {
        let start = Instant::now();
        let requests: Vec<_> = places
            .iter()
            .zip(&ready)
            .map(|(&place, (_, prompt))| Request { place: place as u32, prompt })
            .collect();
        let detokenize = |ids: &[u32]| self.policy.detokenize(ids);
        let completions = self.policy.engine(&self.policy.params, &self.decoding, &detokenize).generate(
            &requests,
            self.options.num_generations,
            self.options.seed,
            watch,
        )?;
        *sampled_seconds += start.elapsed().as_secs_f64();
        let completed: Vec<Completed<'_>> = ready
            .iter()
            .zip(&completions)
            .flat_map(|((sample, _), group)| {
                group.iter().map(move |c| Completed { sample, text: &c.text, tokens: &c.tokens })
            })
            .collect();
        let mut scores = self.rewards.score(&completed, watch)?.into_iter();
        let groups = places.iter().zip(ready).zip(completions);
        let groups = groups.map(|((&place, (sample, prompt)), completions)| {
            let scores = scores.by_ref().take(completions.len()).collect();
            Group { place, sample, prompt, completions, scores }
        });
        Ok(groups.collect())
    }

    /// Puts a saved rollout back, as the one that `step` goes on with.
    ///
    /// # Errors
    /// [`Error::Input`] for one of other prompts.
    pub(super) fn resume_rollout(
        &mut self,
        step: u64,
        rollout: SavedRollout,
        samples: &Dataset,
    ) -> Result<Scored> {
        let groups = self.prompts_per_rollout();
        // An older checkpoint does not tell them.
        let places = if rollout.places.is_empty() { self.first_places(step) } else { rollout.places.clone() };
        let ready = if places.len() == groups { self.ready_at(&places, samples)? } else { Vec::new() };
        let ready = places.into_iter().zip(ready).map(|(place, (sample, prompt))| ((place, sample), prompt));
        let (chosen, prompts): (Vec<_>, Vec<_>) = ready.unzip();
        let group = self.options.num_generations;
        let same_prompts = prompts.iter().map(prompt_hash).eq(rollout.prompts.iter().cloned());
        if !same_prompts
            || rollout.completions.len() != prompts.len()
            || rollout.completions.iter().any(|completions| completions.len() != group)
        {
            return Err(Error::Input(
                "the checkpoint stands in the middle of a rollout of other prompts, or of other numbers of them, than \
                 this run would go on with: resume from one at the end of a rollout (a multiple of the num_iterations \
                 it was made with), or without --allow_change"
                    .into(),
            ));
        }
        self.scored(chosen, prompts, rollout, &|_| Ok(()))
    }
}
