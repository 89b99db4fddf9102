//! What the loop of a run needs of a trainer.

use std::sync::Arc;

use serde_json::json;

use super::guard::Watched;
use super::policy::Policy;
use crate::checkpoint::{SavedReference, SavedRollout, SavedRun, StreamPosition};
use crate::data::{Dataset, Part, Sample};
use crate::error::{Error, Result};
use crate::kl::BetaState;
use crate::nn::Params;
use crate::optim::{AdamW, Optimiser};
use crate::report::{CompletionRecord, Row};
use crate::rollout::Watch;

/// Makes optimiser steps. A step happens whole or not at all: after an error the trainer is as it was.
pub trait Trainer {
    /// The model and its weights as they are now.
    fn policy(&self) -> &Policy;

    /// Makes optimiser step number `step`.
    ///
    /// # Errors
    /// [`Error::Protect`] for a step with NaN or infinity, which is to be skipped; whatever `watch` returns.
    fn step(&mut self, step: u64, samples: &Dataset, watch: Watch<'_>) -> Result<Step>;

    /// What is left of the step that has just failed with [`Error::Protect`].
    fn skipped(&mut self, step: u64, samples: &Dataset) -> Skipped;

    /// The weights to be saved: f32, in host memory.
    ///
    /// # Errors
    /// Those of copying device memory.
    fn weights(&self) -> Result<Arc<Params>>;

    /// What has to be saved beside the weights.
    ///
    /// # Errors
    /// Those of copying device memory.
    fn state(&self) -> Result<TrainerParts>;

    /// Continues from what was saved.
    ///
    /// # Errors
    /// [`Error::Input`] for a state of another model or other options.
    fn restore(&mut self, saved: SavedRun, samples: &Dataset) -> Result<()>;
}

/// What a step tells.
#[derive(Debug)]
pub struct Step {
    /// For `metrics.jsonl`.
    pub row: Row,
    /// For the console.
    pub line: String,
    /// Behind the progress bar.
    pub note: String,
    /// For `completions.jsonl`; empty where there are no new ones.
    pub completions: Vec<CompletionRecord>,
    /// Numbers to be watched for spikes.
    pub watched: Vec<Watched>,
    /// What else a user should know.
    pub told: Vec<String>,
}

/// What a skipped step leaves.
#[derive(Debug)]
pub struct Skipped {
    /// For `metrics.jsonl`: the numbers that could not be computed are null.
    pub row: Row,
    /// The batch, to look for the cause in.
    pub batch: Vec<Row>,
}

/// A trainer's own state.
#[derive(Debug)]
pub struct TrainerParts {
    /// Moments, in host memory.
    pub optimiser: AdamW,
    /// Tokens processed.
    pub tokens: u64,
    /// The KL weight.
    pub beta: Option<BetaState>,
    /// The rollout that later steps go on with.
    pub rollout: Option<SavedRollout>,
    /// Where the stream of rows stands, where that does not follow from the number of steps.
    pub stream: Option<StreamPosition>,
    /// The reference, once it is not the model that the run began with.
    pub reference: Option<SavedReference>,
}

impl TrainerParts {
    /// Of a trainer with no more state than this.
    pub fn new(optimiser: AdamW, tokens: u64) -> TrainerParts {
        TrainerParts { optimiser, tokens, beta: None, rollout: None, stream: None, reference: None }
    }
}

/// Puts saved weights and moments in place.
///
/// # Errors
/// [`Error::Input`] if they are not of this model, or not of what this run trains.
pub(super) fn restore_weights(
    policy: &mut Policy,
    optimiser: &mut Optimiser,
    saved: &SavedRun,
) -> Result<()> {
    for (name, values) in &saved.weights {
        let parameter = policy.params.iter().find(|(_, p)| p.name == *name);
        let Some((id, _)) = parameter.filter(|(_, p)| p.value.len() == values.len()) else {
            return Err(Error::Input(format!(
                "the checkpoint holds {} values of {name:?}, which do not fit the model of this run",
                values.len()
            )));
        };
        optimiser.set_weights(&mut policy.params, id, values)?;
    }
    let trained = optimiser.len();
    if saved.moments.len() != trained {
        return Err(Error::Input(format!(
            "the checkpoint holds the optimiser's state of {} parameters, and this run trains {trained}",
            saved.moments.len()
        )));
    }
    saved.moments.iter().try_for_each(|moments| optimiser.restore(moments.as_state()))
}

/// A sample for the record of a skipped batch.
pub(super) fn sample_row(sample: &Sample) -> Row {
    let text = |part: &Part| match part {
        Part::Text(text) => text.clone(),
        Part::Image(n) => format!("<image {n}>"),
    };
    let messages: Vec<_> = sample
        .messages
        .iter()
        .map(|m| json!({"role": m.role, "content": m.content.iter().map(text).collect::<String>()}))
        .collect();
    let images: Vec<_> = sample.image_files().map(|file| file.display().to_string()).collect();
    let fields = [
        ("row", json!(sample.row)),
        ("messages", json!(messages)),
        ("images", json!(images)),
        ("solution", json!(sample.solution)),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
