//! What a checkpoint holds beside the model, so that a run continues as if it had never stopped.
//!
//! | file | holds |
//! |---|---|
//! | `trainer_state.json` | [`TrainerState`]: the step, what the run is, counters, the KL weight, the guard |
//! | `optimizer.safetensors` | `exp_avg.NAME` and `exp_avg_sq.NAME` in f32; `master.NAME`, the f32 weights of parameters that the model's own file rounds |
//! | `rollout.safetensors` | within `num_iterations`: tokens and log-probabilities of the completions in use |
//! | `reference.safetensors` | once the reference has followed the policy: its trained weights in f32 |
//! | `MANIFEST.json` | sizes and checksums of all files |
//!
//! Random numbers need no state: they are a function of (seed, place, completion, position).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::atomic::NewFolder;
use super::plan::SavePlan;
use super::safetensors::{FloatDtype, NamedTensor, Values, write_safetensors};
use super::save::{WeightRef, save_model};
use crate::error::{Error, Result};
use crate::files::read_bounded;
use crate::kl::BetaState;
use crate::model::folder::ModelFolder;
use crate::model::safetensors::SafetensorsFile;
use crate::nn::{Parameter, Params};
use crate::optim::{AdamW, TensorState};
use crate::rollout::sequence::FinishReason;
use crate::rollout::{Completion, LogProbs};
use crate::tensor::Tensor;

const STATE_FILE: &str = "trainer_state.json";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const ROLLOUT_FILE: &str = "rollout.safetensors";
const REFERENCE_FILE: &str = "reference.safetensors";

/// Largest `trainer_state.json` read; the texts of a rollout are in it.
const MAX_STATE_BYTES: u64 = 1 << 30;

/// What a run is: a checkpoint belongs to one run, and continues no other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// `grpo` or `sft`.
    pub command: String,
    /// The resolved options.
    pub options: Map<String, Value>,
    /// Hash of the weights that the run started from.
    pub model_hash: String,
    /// Hash of the rows that it trains on, in their order.
    pub dataset_hash: String,
    /// Optimiser steps of the whole run, to which the schedules stretch.
    pub max_steps: u64,
}

/// The protection of a run against itself: skipped steps, and what its numbers usually are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuardState {
    /// Steps skipped so far because of NaN or infinity.
    pub skipped_steps: u64,
    /// Of these, the last ones in a row.
    pub skipped_in_a_row: u64,
    /// The latest values of each watched number.
    pub recent: BTreeMap<String, Vec<f64>>,
}

/// The checkpoint that did best so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its step.
    pub step: u64,
    /// The value.
    pub value: f64,
    /// What was compared: `metric_for_best_model`.
    pub metric: String,
}

/// A run between two optimiser steps. Names are those of Hugging Face's `trainer_state.json` where it has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Optimiser steps done.
    pub global_step: u64,
    /// Tokens processed.
    pub num_input_tokens_seen: u64,
    /// What the run is.
    #[serde(flatten)]
    pub identity: Identity,
    /// The KL weight, in GRPO.
    pub beta: Option<BetaState>,
    /// Skipped steps and recent values.
    pub guard: GuardState,
    /// Steps after which the last evaluation was made; 0 before the first.
    pub evaluated_step: u64,
    /// The best checkpoint so far, where evaluations tell.
    pub best: Option<Best>,
    /// Where the stream of rows stands, with dynamic sampling; else it follows from the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamPosition>,
    /// The step before which the reference last followed the policy, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_synced: Option<u64>,
}

/// A rollout's place in the stream of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamPosition {
    /// Which rollout of the run, from 0.
    pub rollout: u64,
    /// The place at which it begins.
    pub first: u64,
    /// Rows that it has used, those of dropped groups included.
    pub used: u64,
}

/// What dynamic sampling did for a rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refills {
    /// Groups with equal rewards that were dropped.
    pub dropped: usize,
    /// Times at which vacant places were filled again.
    pub times: usize,
    /// Groups with equal rewards that stayed.
    pub still_equal: usize,
    /// Tokens of the dropped completions, each with its whole prompt.
    pub dropped_tokens: u64,
}

/// A reference that is not the model that its run began with.
#[derive(Clone, Debug)]
pub struct SavedReference {
    /// The step before which it last followed the policy.
    pub synced: u64,
    /// The weights, in host memory in f32.
    pub weights: Arc<Params>,
}

/// The rollout that a step has left to the next ones of its `num_iterations`. Rewards are kept, since a reward need not
/// give the same twice; advantages, batches and the reference's log-probabilities follow from these.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedRollout {
    /// The KL weight at the step that made it.
    pub beta: f64,
    /// The prompts' places in the stream.
    pub places: Vec<u64>,
    /// What dynamic sampling did.
    pub refills: Refills,
    /// A hash of each prompt's tokens and images: the completions belong to these prompts and no others.
    pub prompts: Vec<String>,
    /// `[P][G]`.
    pub completions: Vec<Vec<Completion>>,
    /// Each reward of each completion, unweighted, `[P * G]`.
    pub scores: Vec<Vec<Option<f64>>>,
    /// Mean and largest difference between the log-probabilities of sampling and of the first training pass.
    pub difference: Option<(f64, f64)>,
}

/// Everything that a resumed run needs, beside the weights.
#[derive(Clone, Debug)]
pub struct ResumeState {
    /// Counters and identity.
    pub state: TrainerState,
    /// Moments.
    pub optimiser: AdamW,
    /// The rollout in use.
    pub rollout: Option<SavedRollout>,
    /// The reference's weights, once they are not those that the run began with.
    pub reference: Option<Arc<Params>>,
}

/// A run at one moment, to be written while it goes on: the weights are shared until the next update copies them.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Optimiser steps done.
    pub step: u64,
    /// The weights.
    pub params: Arc<Params>,
    /// What resuming needs; without it the checkpoint is a model and nothing else.
    pub resume: Option<ResumeState>,
}

impl Snapshot {
    /// Fills a folder, manifest included.
    ///
    /// # Errors
    /// Those of [`save_model`].
    pub fn write(&self, folder: &mut NewFolder, plan: &SavePlan) -> Result<()> {
        let values: Vec<_> = self.params.iter().map(|(_, p)| (p, p.value.to_f32())).collect();
        let weights =
            values.iter().map(|(p, data)| WeightRef { name: &p.name, shape: p.value.shape(), data });
        save_model(folder, plan, weights)?;
        if let Some(resume) = &self.resume {
            self.write_optimizer(folder, plan, &resume.optimiser)?;
            if let Some(reference) = &resume.reference {
                write_reference(folder, reference)?;
            }
            write_state(folder, resume)?;
        }
        folder.manifest()
    }

    fn write_optimizer(&self, folder: &mut NewFolder, plan: &SavePlan, optimiser: &AdamW) -> Result<()> {
        let mut named = Vec::new();
        for slot in optimiser.state() {
            named.push((format!("exp_avg.{}", slot.name), slot.exp_avg));
            named.push((format!("exp_avg_sq.{}", slot.name), slot.exp_avg_sq));
        }
        let masters: Vec<_> =
            masters(&self.params, plan).map(|p| (format!("master.{}", p.name), p.value.to_f32())).collect();
        let masters = masters.iter().map(|(name, values)| (name.clone(), values.as_ref()));
        let named: Vec<(String, [usize; 1], &[f32])> =
            named.into_iter().chain(masters).map(|(name, values)| (name, [values.len()], values)).collect();
        let tensors: Vec<_> = named
            .iter()
            .map(|(name, shape, values)| NamedTensor { name, shape, values: Values::F32(values) })
            .collect();
        write_tensors(folder, OPTIMIZER_FILE, &tensors)
    }
}

fn write_reference(folder: &mut NewFolder, reference: &Params) -> Result<()> {
    let trained: Vec<_> =
        reference.iter().filter(|(_, p)| p.trainable).map(|(_, p)| (p, p.value.to_f32())).collect();
    let tensors: Vec<_> = trained
        .iter()
        .map(|(p, values)| NamedTensor { name: &p.name, shape: p.value.shape(), values: Values::F32(values) })
        .collect();
    write_tensors(folder, REFERENCE_FILE, &tensors)
}

/// Bytes of a checkpoint, but for small files.
pub fn checkpoint_bytes(plan: &SavePlan, params: &Params, only_model: bool) -> u64 {
    let trained = params.iter().filter(|(_, p)| p.trainable && !only_model);
    let moments: usize = trained.map(|(_, p)| 8 * p.value.len()).sum();
    let masters: usize = match only_model {
        true => 0,
        false => masters(params, plan).map(|p| 4 * p.value.len()).sum(),
    };
    plan.bytes() + (moments + masters) as u64
}

/// The trained parameters that the model's own file rounds.
fn masters<'a>(params: &'a Params, plan: &'a SavePlan) -> impl Iterator<Item = &'a Parameter> {
    let rounded = |p: &&Parameter| plan.dtype_of(&p.name).is_some_and(|dtype| dtype != FloatDtype::F32);
    params.iter().map(|(_, p)| p).filter(|p| p.trainable).filter(rounded)
}

fn write_tensors(folder: &mut NewFolder, name: &str, tensors: &[NamedTensor]) -> Result<()> {
    folder.file(name, |file| {
        let path = file.path().to_path_buf();
        write_safetensors(file, &path, tensors)
    })
}

/// `trainer_state.json` as it stands in the file.
#[derive(Serialize, Deserialize)]
struct StateFile {
    othink_version: String,
    #[serde(flatten)]
    state: TrainerState,
    /// Updates made of each parameter, as AdamW counts them.
    optimizer_steps: BTreeMap<String, u64>,
    rollout: Option<RolloutFile>,
}

/// The part of a rollout that is text and f64.
#[derive(Serialize, Deserialize)]
struct RolloutFile {
    beta: f64,
    #[serde(default)]
    places: Vec<u64>,
    #[serde(default)]
    refills: Refills,
    prompts: Vec<String>,
    group: usize,
    finish: Vec<FinishReason>,
    texts: Vec<String>,
    scores: Vec<Vec<Option<f64>>>,
    difference: Option<(f64, f64)>,
}

fn write_state(folder: &mut NewFolder, resume: &ResumeState) -> Result<()> {
    let file = StateFile {
        othink_version: env!("CARGO_PKG_VERSION").into(),
        state: resume.state.clone(),
        optimizer_steps: resume.optimiser.state().map(|slot| (slot.name.to_owned(), slot.step)).collect(),
        rollout: resume.rollout.as_ref().map(|rollout| {
            let all = || rollout.completions.iter().flatten();
            RolloutFile {
                beta: rollout.beta,
                places: rollout.places.clone(),
                refills: rollout.refills,
                prompts: rollout.prompts.clone(),
                group: rollout.completions.first().map_or(0, Vec::len),
                finish: all().map(|c| c.finish).collect(),
                texts: all().map(|c| c.text.clone()).collect(),
                scores: rollout.scores.clone(),
                difference: rollout.difference,
            }
        }),
    };
    if let Some(rollout) = &resume.rollout {
        let all = || rollout.completions.iter().flatten();
        let lengths: Vec<i32> = all().map(|c| c.tokens.len() as i32).collect();
        let tokens: Vec<i32> = all().flat_map(|c| c.tokens.iter().map(|&token| token as i32)).collect();
        let logps = all().map(|c| c.logps.to_vec()).collect::<Result<Vec<_>>>()?.concat();
        let tensors = [
            NamedTensor { name: "lengths", shape: &[lengths.len()], values: Values::I32(&lengths) },
            NamedTensor { name: "tokens", shape: &[tokens.len()], values: Values::I32(&tokens) },
            NamedTensor { name: "logps", shape: &[logps.len()], values: Values::F32(&logps) },
        ];
        write_tensors(folder, ROLLOUT_FILE, &tensors)?;
    }
    let text = serde_json::to_string_pretty(&file)
        .map_err(|e| Error::Internal(format!("the trainer's state as JSON: {e}")))?;
    folder.bytes(STATE_FILE, (text + "\n").as_bytes())
}

/// A checkpoint, read back to be resumed from.
#[derive(Debug)]
pub struct SavedRun {
    /// Counters and identity.
    pub state: TrainerState,
    /// Every parameter in f32, by canonical name.
    pub weights: Vec<(String, Vec<f32>)>,
    /// AdamW's state, of the trained parameters.
    pub moments: Vec<SavedMoments>,
    /// The rollout in use.
    pub rollout: Option<SavedRollout>,
    /// The reference's trained weights in f32, by name, where they are not those that the run began with.
    pub reference: Option<Vec<(String, Vec<f32>)>>,
}

/// AdamW's state of one parameter.
#[derive(Debug)]
pub struct SavedMoments {
    name: String,
    step: u64,
    exp_avg: Vec<f32>,
    exp_avg_sq: Vec<f32>,
}

impl SavedMoments {
    /// As the optimiser takes it.
    pub fn as_state(&self) -> TensorState<'_> {
        TensorState {
            name: &self.name,
            step: self.step,
            exp_avg: &self.exp_avg,
            exp_avg_sq: &self.exp_avg_sq,
        }
    }
}

impl SavedRun {
    /// Reads the folder of a checkpoint whose manifest holds.
    ///
    /// # Errors
    /// [`Error::Content`] if it holds no trainer state, or one that does not fit together.
    pub fn read(dir: &Path) -> Result<SavedRun> {
        let file = read_state_file(dir)?;
        let folder = dir.to_str().ok_or_else(|| Error::content(dir, "is not a UTF-8 path"))?;
        let weights = ModelFolder::open(folder)?.load_weights()?;
        let mut weights: Vec<_> = weights.into_iter().map(|w| (w.name, w.data)).collect();
        let optimizer = SafetensorsFile::open(&dir.join(OPTIMIZER_FILE))?;
        let reader = optimizer.read()?;
        let read = |name: String| match optimizer.tensor(&name) {
            Some(entry) => reader.read_f32(entry),
            None => Err(Error::content(optimizer.path(), format!("lacks the tensor {name:?}"))),
        };
        let mut moments = Vec::with_capacity(file.optimizer_steps.len());
        for (name, step) in file.optimizer_steps {
            let (exp_avg, exp_avg_sq) =
                (read(format!("exp_avg.{name}"))?, read(format!("exp_avg_sq.{name}"))?);
            moments.push(SavedMoments { name, step, exp_avg, exp_avg_sq });
        }
        for (name, values) in &mut weights {
            if let Some(entry) = optimizer.tensor(&format!("master.{name}")) {
                let master = reader.read_f32(entry)?;
                if master.len() != values.len() {
                    return Err(Error::content(
                        optimizer.path(),
                        format!("has {} values of {name:?}, not {}", master.len(), values.len()),
                    ));
                }
                *values = master;
            }
        }
        let rollout = file.rollout.map(|rollout| read_rollout(dir, rollout)).transpose()?;
        let reference = file.state.reference_synced.map(|_| read_reference(dir)).transpose()?;
        Ok(SavedRun { state: file.state, weights, moments, rollout, reference })
    }
}

/// Whether a folder is of a run, and not a model alone.
pub fn has_trainer_state(dir: &Path) -> bool {
    dir.join(STATE_FILE).is_file()
}

/// The step and identity of a checkpoint, without its weights.
///
/// # Errors
/// As [`SavedRun::read`].
pub fn read_trainer_state(dir: &Path) -> Result<TrainerState> {
    Ok(read_state_file(dir)?.state)
}

fn read_state_file(dir: &Path) -> Result<StateFile> {
    let path = dir.join(STATE_FILE);
    if !path.exists() {
        return Err(Error::content(
            dir,
            format!(
                "holds a model but no {STATE_FILE} (it was saved with --save_only_model, or by another program): a run \
                 can start from it with --model, not resume"
            ),
        ));
    }
    let bytes = read_bounded(&path, MAX_STATE_BYTES)?;
    serde_json::from_slice(&bytes).map_err(|e| Error::content(&path, format!("is no trainer state: {e}")))
}

fn read_reference(dir: &Path) -> Result<Vec<(String, Vec<f32>)>> {
    let file = SafetensorsFile::open(&dir.join(REFERENCE_FILE))?;
    let reader = file.read()?;
    file.tensors().iter().map(|entry| Ok((entry.name.clone(), reader.read_f32(entry)?))).collect()
}

fn read_rollout(dir: &Path, rollout: RolloutFile) -> Result<SavedRollout> {
    let file = SafetensorsFile::open(&dir.join(ROLLOUT_FILE))?;
    let reader = file.read()?;
    let broken = |what: &str| Error::content(file.path(), format!("does not fit {STATE_FILE}: {what}"));
    let entry = |name: &str| file.tensor(name).ok_or_else(|| broken(&format!("no {name}")));
    let lengths = reader.read_i64(entry("lengths")?)?;
    let tokens = reader.read_i64(entry("tokens")?)?;
    let logps = reader.read_f32(entry("logps")?)?;
    let logps = Tensor::new(&[logps.len()], logps)?;
    let count = lengths.len();
    if rollout.group == 0
        || !count.is_multiple_of(rollout.group)
        || [rollout.finish.len(), rollout.texts.len(), rollout.scores.len()] != [count; 3]
    {
        return Err(broken("another number of completions"));
    }
    let mut flat = Vec::with_capacity(count);
    let mut start = 0;
    for ((length, finish), text) in lengths.into_iter().zip(rollout.finish).zip(rollout.texts) {
        let end = start + usize::try_from(length).map_err(|_| broken("a negative length"))?;
        let logps = LogProbs::new(logps.clone(), start, end.saturating_sub(start));
        let (Some(tokens), Ok(logps)) = (tokens.get(start..end), logps) else {
            return Err(broken("fewer tokens than the lengths say"));
        };
        let tokens = tokens.iter().map(|&token| token as u32).collect();
        flat.push(Completion { tokens, logps, finish, text });
        start = end;
    }
    Ok(SavedRollout {
        beta: rollout.beta,
        places: rollout.places,
        refills: rollout.refills,
        prompts: rollout.prompts,
        completions: flat.chunks(rollout.group).map(<[Completion]>::to_vec).collect(),
        scores: rollout.scores,
        difference: rollout.difference,
    })
}
