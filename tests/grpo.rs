//! What GRPO's options do to a run: dynamic sampling, KL estimates side by side, a reference that follows the policy.

mod common;

use common::*;
use othink::checkpoint::SavedReference;
use othink::config::KlEstimator;
use othink::data::Dataset;
use othink::error::Result;
use othink::reward::{Completed, Reward};
use othink::rollout::Watch;
use othink::tensor::DType;
use othink::train::grpo::{GrpoTrainer, ReferenceSync, StepOutcome};
use othink::train::stream::Stream;
use othink::train::trainer::Trainer;

const BUNDLE: &str = "tied_kv1_odd";

fn samples() -> Dataset {
    Dataset::from_samples(conversations(BUNDLE)).prompts()
}

fn trainer(recipe: &Recipe, reward: Box<dyn Reward>) -> GrpoTrainer {
    grpo_trainer(policy(BUNDLE, DType::F32), recipe, reward, samples().rows())
}

fn step(trainer: &mut GrpoTrainer, step: u64) -> StepOutcome {
    trainer.step(step, &samples(), &|_| Ok(())).unwrap()
}

/// The trained weights, bit by bit.
fn weights(trainer: &GrpoTrainer) -> Vec<Vec<f32>> {
    trainer.policy.params.iter().map(|(_, p)| p.value.to_f32().into_owned()).collect()
}

/// Equal everywhere.
struct Even;

impl Reward for Even {
    fn name(&self) -> &str {
        "even"
    }

    fn score(&self, completions: &[Completed<'_>], _: Watch<'_>) -> Result<Vec<Option<f64>>> {
        Ok(vec![Some(0.5); completions.len()])
    }
}

/// The places that each step's groups come from, by the rule alone: a slot whose row teaches nothing takes the next row.
fn expected_places(recipe: &Recipe, steps: u64, most: usize) -> (Vec<Vec<u64>>, Vec<usize>, Vec<u64>) {
    let mut stream = Stream::new(samples().rows(), recipe.seed, true).unwrap();
    let (mut next, mut all, mut dropped, mut ends) = (0, Vec::new(), Vec::new(), Vec::new());
    for _ in 0..steps {
        let mut slots: Vec<u64> = (next..next + recipe.prompts as u64).collect();
        next += recipe.prompts as u64;
        let mut count = 0;
        for _ in 0..most {
            for slot in &mut slots {
                if stream.row(*slot) == 0 {
                    (*slot, next, count) = (next, next + 1, count + 1);
                }
            }
        }
        all.push(slots);
        dropped.push(count);
        ends.push(next);
    }
    (all, dropped, ends)
}

#[test]
fn dynamic_sampling_fills_places_of_equal_groups_from_the_next_rows() {
    let rows = samples().rows() as f64;
    let recipe = Recipe { prompts: 3, max_resample_times: Some(2), ..Recipe::default() };
    let mut trainer = trainer(&recipe, Box::new(EvenInTheFirstRow));
    let (places, dropped, ends) = expected_places(&recipe, 5, 2);
    assert!(dropped.iter().sum::<usize>() > 1, "{dropped:?}");
    let mut tokens = 0;
    for s in 0..5 {
        let StepOutcome { report, completions, still_equal } = step(&mut trainer, s as u64);
        let of_groups: Vec<u64> = completions.chunks(4).map(|group| group[0].prompt_index as u64).collect();
        assert_eq!(of_groups, places[s], "step {s}");
        assert!(
            completions.chunks(4).all(|group| group.iter().all(|c| c.prompt_index == group[0].prompt_index))
        );
        assert_eq!(report.refills.unwrap().dropped, dropped[s]);
        assert_eq!(report.epoch, ends[s] as f64 / rows);
        assert_eq!((still_equal, report.frac_reward_zero_std), (0, 0.0));
        assert!(report.num_tokens > tokens);
        tokens = report.num_tokens;
    }
}

#[test]
fn dynamic_sampling_ends_when_nothing_is_better() {
    let recipe = Recipe { max_resample_times: Some(3), ..Recipe::default() };
    let mut trainer = trainer(&recipe, Box::new(Even));
    for s in 0..2 {
        let StepOutcome { report, completions, still_equal } = step(&mut trainer, s);
        // Two groups, filled three times: the last ones stay.
        let first = 8 * s as usize + 6;
        assert_eq!([completions[0].prompt_index, completions[4].prompt_index], [first, first + 1]);
        let refills = report.refills.unwrap();
        assert_eq!((refills.dropped, refills.times, still_equal), (6, 3, 2));
        assert_eq!(report.frac_reward_zero_std, 1.0);
    }
    let told = Trainer::step(&mut trainer, 2, &samples(), &|_| Ok(())).unwrap().told;
    assert!(told[0].contains("2 of 2 groups have equal rewards after 3 refills"), "{told:?}");
}

/// With a weight too small to move anything, every estimator makes the same run; each is then what the others log of it.
#[test]
fn every_estimate_is_what_its_estimator_measures_and_changes_no_bit() {
    let run = |estimator: KlEstimator, log_exact_kl: bool| {
        let recipe = Recipe {
            estimator,
            log_exact_kl,
            beta: [1e-30; 2],
            micro_batch: 2,
            steps: 3,
            ..Recipe::default()
        };
        let mut trainer = trainer(&recipe, Box::new(Vowels));
        let reports: Vec<_> = (0..3).map(|s| step(&mut trainer, s).report).collect();
        (reports, weights(&trainer))
    };
    let runs = [KlEstimator::K1, KlEstimator::K3, KlEstimator::Full].map(|estimator| run(estimator, true));
    for (which, (reports, weights)) in runs.iter().enumerate() {
        assert!(*weights == runs[0].1, "{which}");
        for (report, first) in reports.iter().zip(&runs[0].0) {
            let estimates = report.kl_estimates.map(Option::unwrap);
            assert_eq!(report.kl.unwrap(), estimates[which]);
            assert_eq!(report.kl_estimates, first.kl_estimates);
        }
        let last = reports[2].kl_estimates.map(Option::unwrap);
        assert!(last[0] != last[1] && last[1] != last[2] && last[2] > 1e-4, "{last:?}");
    }
    for (which, estimator) in [KlEstimator::K1, KlEstimator::K3, KlEstimator::Full].into_iter().enumerate() {
        let (reports, without) = run(estimator, false);
        assert!(without == runs[which].1);
        let had = reports[2].kl_estimates.map(|estimate| estimate.is_some());
        assert_eq!(had, if which == 2 { [false, false, true] } else { [true, true, false] });
        assert_eq!(reports[2].kl, runs[which].0[2].kl);
    }
}

/// The exact KL belongs to the policy that sampled: later passes over a rollout have none.
#[test]
fn the_exact_kl_is_measured_once_for_each_rollout() {
    let recipe = Recipe { log_exact_kl: true, num_iterations: 2, ..Recipe::default() };
    let mut trainer = trainer(&recipe, Box::new(Vowels));
    let has: Vec<_> =
        (0..4).map(|s| step(&mut trainer, s).report.kl_estimates.map(|e| e.is_some())).collect();
    assert_eq!(has, [[true; 3], [true, true, false], [true; 3], [true, true, false]]);
}

fn reference(trainer: &GrpoTrainer) -> Option<(u64, Vec<Vec<f32>>)> {
    let SavedReference { synced, weights } = Trainer::state(trainer).unwrap().reference?;
    Some((synced, weights.iter().map(|(_, p)| p.value.to_f32().into_owned()).collect()))
}

/// TRL's `SyncRefModelCallback`: `ref = ref * (1 - alpha) + policy * alpha` after every so many steps.
#[test]
fn the_reference_follows_the_policy_by_trls_rule() {
    let sync = ReferenceSync { every: 2, mixup_alpha: 0.6, resets_optimizer: false };
    let recipe = Recipe { reference_sync: Some(sync), steps: 6, ..Recipe::default() };
    let mut trainer = trainer(&recipe, Box::new(Vowels));
    let mut expected: Vec<Vec<f64>> =
        weights(&trainer).iter().map(|tensor| tensor.iter().map(|&w| f64::from(w)).collect()).collect();
    for s in 0..6 {
        let policy = weights(&trainer);
        step(&mut trainer, s);
        if s == 0 || s % 2 != 0 {
            assert_eq!(reference(&trainer).map(|(synced, _)| synced), (s >= 2).then_some(s / 2 * 2));
            continue;
        }
        for (expected, policy) in expected.iter_mut().zip(&policy) {
            expected.iter_mut().zip(policy).for_each(|(r, &p)| *r = *r * 0.4 + f64::from(p) * 0.6);
        }
        let (synced, found) = reference(&trainer).unwrap();
        assert_eq!(synced, s);
        for (found, expected) in found.iter().zip(&expected) {
            assert!(
                found.iter().zip(expected).all(|(&f, e)| (f64::from(f) - e).abs() <= 1e-6 * e.abs().max(0.1))
            );
        }
        assert!(found != policy, "nothing moves");
    }
}

#[test]
fn with_alpha_1_the_policy_becomes_the_reference_and_moments_may_begin_anew() {
    for resets_optimizer in [false, true] {
        let sync = ReferenceSync { every: 2, mixup_alpha: 1.0, resets_optimizer };
        let recipe = Recipe { reference_sync: Some(sync), steps: 4, ..Recipe::default() };
        let mut trainer = trainer(&recipe, Box::new(Vowels));
        let kl: Vec<f64> = (0..4).map(|s| step(&mut trainer, s).report.kl.unwrap()).collect();
        assert!(kl[0] == 0.0 && kl[1] > 0.0 && kl[2] == 0.0 && kl[3] > 0.0, "{kl:?}");
        let optimiser = Trainer::state(&trainer).unwrap().optimiser;
        let made = optimiser.state().map(|slot| slot.step).max();
        assert_eq!(made, Some(if resets_optimizer { 2 } else { 4 }));
    }
}
