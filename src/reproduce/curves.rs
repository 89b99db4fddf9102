//! The course of the arms, read from their logs: what they took, and curves over seeds.

use std::path::Path;

use serde_json::Value;

use super::Budget;
use super::plan::{Leg, Plan};
use super::rows::Arm;
use super::statistics::Estimate;
use crate::error::Result;
use crate::report::html::comparison::{Chart, Series, SeriesPoint};
use crate::report::{Row, read_rows};
use crate::train::run::{EVAL_METRICS, METRICS};

/// Points of a curve at most: each is the mean of as many neighbouring steps.
const MAX_POINTS: usize = 40;

/// Tokens and seconds of a finished arm.
///
/// # Errors
/// Those of reading its log.
pub fn budget(dir: &Path) -> Result<Budget> {
    let rows = read_rows(dir.join(METRICS))?;
    let number = |row: &Row, key: &str| row.get(key).and_then(Value::as_f64).unwrap_or(0.0);
    Ok(Budget {
        tokens: rows.last().map_or(0.0, |row| number(row, "num_tokens")) as u64,
        seconds: rows.iter().map(|row| number(row, "step_time")).sum(),
        ..Budget::default()
    })
}

/// A measure of the charts.
struct Measure {
    title: &'static str,
    note: &'static str,
    file: &'static str,
    key: &'static str,
    /// Points of neighbouring steps are averaged.
    is_dense: bool,
}

const MEASURES: [Measure; 5] = [
    Measure {
        title: "Accuracy on validation rows",
        note: "Greedy answers to rows of the task trained on that no arm trains on.",
        file: EVAL_METRICS,
        key: "eval_rewards/accuracy/mean",
        is_dense: false,
    },
    Measure {
        title: "Reward",
        note: "Mean weighted reward of the sampled completions (GRPO arms).",
        file: METRICS,
        key: "reward",
        is_dense: true,
    },
    Measure {
        title: "KL",
        note: "KL to the start checkpoint, k3 estimator, nats per token (GRPO arms).",
        file: METRICS,
        key: "kl",
        is_dense: true,
    },
    Measure { title: "beta", note: "Its weight beta(s).", file: METRICS, key: "beta", is_dense: true },
    Measure {
        title: "Completion length",
        note: "Mean in tokens (GRPO arms).",
        file: METRICS,
        key: "completions/mean_length",
        is_dense: true,
    },
];

/// A heading for each task with the charts of the arms trained on it: means over the seeds that have run so far, the band
/// one standard error to each side.
///
/// # Errors
/// Those of reading the logs.
pub fn charts(plan: &Plan<'_>) -> Result<Vec<(String, Vec<Chart>)>> {
    let mut headings = Vec::new();
    for (task, recipe) in plan.recipe.tasks.iter().enumerate() {
        let mut charts = Vec::new();
        for measure in &MEASURES {
            let mut series = Vec::new();
            for (colour, arm) in Arm::TRAINED.into_iter().enumerate() {
                let mut seeds = Vec::new();
                for &seed in &plan.options.seeds {
                    let path = plan.dir(Leg { seed, task, arm }).join(measure.file);
                    if path.is_file() {
                        seeds.push(points(&read_rows(path)?, measure));
                    }
                }
                series.push(Series { name: arm.title().into(), colour, points: over_seeds(&seeds) });
            }
            charts.push(Chart { title: measure.title.into(), note: measure.note.into(), series });
        }
        headings.push((format!("Trained on {}", recipe.name), charts));
    }
    Ok(headings)
}

/// The finite values of a measure with their steps, at most [`MAX_POINTS`] where it has one at every step.
fn points(rows: &[Row], measure: &Measure) -> Vec<(f64, f64)> {
    let number =
        |row: &Row, key: &str| row.get(key).and_then(Value::as_f64).filter(|value| value.is_finite());
    let all: Vec<(f64, f64)> =
        rows.iter().filter_map(|row| Some((number(row, "step")? + 1.0, number(row, measure.key)?))).collect();
    let size = if measure.is_dense { all.len().div_ceil(MAX_POINTS).max(1) } else { 1 };
    let mean = |chunk: &[(f64, f64)], pick: fn(&(f64, f64)) -> f64| {
        chunk.iter().map(pick).sum::<f64>() / chunk.len() as f64
    };
    all.chunks(size).map(|chunk| (mean(chunk, |p| p.0), mean(chunk, |p| p.1))).collect()
}

/// Point by point over the seeds: those that have the same step there.
fn over_seeds(seeds: &[Vec<(f64, f64)>]) -> Vec<SeriesPoint> {
    let longest = seeds.iter().max_by_key(|points| points.len());
    let point = |index: usize, step: f64| {
        let values: Vec<f64> = seeds
            .iter()
            .filter_map(|points| points.get(index))
            .filter(|(at, _)| *at == step)
            .map(|(_, value)| *value)
            .collect();
        let Estimate { mean, standard_error, .. } = Estimate::of(&values)?;
        Some(SeriesPoint { step, mean, half_band: standard_error.unwrap_or(0.0) })
    };
    let steps = longest.into_iter().flatten().enumerate();
    steps.filter_map(|(index, (step, _))| point(index, *step)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(step: u64, reward: Value) -> Row {
        json!({"step": step, "reward": reward}).as_object().cloned().unwrap()
    }

    #[test]
    fn steps_are_averaged_within_a_seed_and_then_over_seeds() {
        let reward = &MEASURES[1];
        let rows: Vec<Row> = (0..80).map(|step| row(step, json!(step))).collect();
        let one = points(&rows, reward);
        assert_eq!(one.len(), 40);
        assert_eq!((one[0], one[39]), ((1.5, 0.5), (79.5, 78.5)));
        let two: Vec<_> = one.iter().map(|(step, value)| (*step, value + 2.0)).collect();
        let mean = over_seeds(&[one, two]);
        assert_eq!(mean[0], SeriesPoint { step: 1.5, mean: 1.5, half_band: 1.0 });
    }

    #[test]
    fn a_shorter_seed_counts_as_far_as_it_goes() {
        let mean = over_seeds(&[vec![(1.0, 1.0)], vec![(1.0, 3.0), (2.0, 5.0)]]);
        assert_eq!(mean[0], SeriesPoint { step: 1.0, mean: 2.0, half_band: 1.0 });
        assert_eq!(mean[1], SeriesPoint { step: 2.0, mean: 5.0, half_band: 0.0 });
        assert!(points(&[row(0, Value::Null)], &MEASURES[1]).is_empty());
    }
}
