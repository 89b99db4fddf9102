//! The paper's comparison: SFT, GRPO and GRPO-D from one start checkpoint, over several seeds, on two tasks.
//!
//! ```text
//! seed -> start checkpoint -> for each task: SFT | GRPO | GRPO-D -> accuracy on both tasks' held-out rows -> rows -> table
//! ```
//!
//! An arm is an ordinary run of `sft` or `grpo` in a folder of its own, with its checkpoints and its `config.toml`, by
//! which it can be repeated alone. What is finished is marked by a file that is written last; so an experiment that was
//! stopped, however it was, goes on by the same command and comes to the same numbers.
//!
//! **Equal budgets** are equal optimiser steps over the same prompts in the same order. What that costs an arm in tokens
//! and seconds stands beside its accuracy.

mod curves;
mod data;
mod describe;
mod plan;
pub mod recipe;
mod rows;
pub mod statistics;
mod table;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint::{list_checkpoints, replace_file};
use crate::config::{EvalConfig, GrpoConfig, Options, ReproduceConfig, SftConfig};
use crate::data::{self as dataset, ReadOptions};
use crate::demo::tiny;
use crate::disk::{Disk, SystemDisk};
use crate::error::{Error, Result};
use crate::report::console::escape_control;
use crate::report::html::comparison::{self, Comparison};
use crate::train::lock::{RunLock, is_occupied};

pub use describe::describe;
pub use recipe::Recipe;
pub use rows::{Arm, ResultRow, Rows};
pub use table::{markdown, tables};

use plan::{INIT, Leg, Mixture, Plan, WARM_UP};
use recipe::{Start, WarmUp};

/// What a measurement of a checkpoint gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Rows.
    pub rows: usize,
    /// Share answered correctly.
    pub accuracy: f64,
    /// Share in the right form.
    pub format: f64,
    /// Mean length of the completions, tokens.
    pub mean_length: f64,
}

/// The program's commands, as an experiment uses them.
pub trait Commands {
    /// Trains supervised, or goes on with it; measures on the rows of `look` after every so many steps, into
    /// `eval_metrics.jsonl`. Gives the last checkpoint.
    ///
    /// # Errors
    /// Those of the command.
    fn sft(&self, options: &SftConfig, look: Option<(&EvalConfig, u64)>) -> Result<PathBuf>;

    /// Trains by GRPO, or goes on with it. Gives the last checkpoint.
    ///
    /// # Errors
    /// Those of the command.
    fn grpo(&self, options: &GrpoConfig) -> Result<PathBuf>;

    /// Measures a checkpoint.
    ///
    /// # Errors
    /// Those of the command.
    fn eval(&self, options: &EvalConfig) -> Result<Measured>;

    /// The device and the type in which it computes: numbers of different ones are not to be compared to the bit.
    fn place(&self) -> String;
}

/// What an experiment leaves beside the arms.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Every measurement.
    pub rows: Rows,
    /// `table.md` as text.
    pub table: String,
    /// `report.html`.
    pub report: PathBuf,
}

/// Runs what is not done yet of an experiment, and writes rows, table and report after every arm.
///
/// # Errors
/// [`Error::Usage`] for a folder that holds another experiment; [`Error::Busy`] for one in use; [`Error::Protect`] for a
/// start checkpoint outside the recipe's band; [`Error::Interrupted`] when a signal asked for it, with everything saved;
/// those of the commands.
pub fn run(options: &ReproduceConfig, recipe: &Recipe, commands: &dyn Commands) -> Result<Outcome> {
    let dir = &options.output_dir;
    let _held = RunLock::take(&SystemDisk, dir)?;
    check_same(options, recipe, &commands.place())?;
    data::prepare(recipe, options)?;
    let plan = Plan { recipe, options, data: data::locate(recipe, options)? };
    let mut experiment = Experiment::new(&plan, commands);
    let ended = experiment.run();
    ended.map_err(|error| match error {
        Error::Interrupted(_) => Error::Interrupted(format!(
            "stopped in {}; everything is saved in {}: the same command goes on",
            experiment.at,
            dir.display()
        )),
        other => other,
    })?;
    experiment.outcome()
}

/// File that says which experiment a folder holds.
const RECIPE: &str = "recipe.json";

/// Refuses a folder that holds something else, and writes down what this one holds.
fn check_same(options: &ReproduceConfig, recipe: &Recipe, place: &str) -> Result<()> {
    let dir = &options.output_dir;
    let path = dir.join(RECIPE);
    let broken = |e| Error::Internal(format!("a recipe as JSON: {e}"));
    let mut wanted = serde_json::to_value(recipe).map_err(broken)?;
    if let Value::Object(fields) = &mut wanted {
        fields.insert("place".into(), place.into());
    }
    if path.exists() {
        let found: Value = read_json(&path)?;
        if found == wanted {
            return Ok(());
        }
        let changed: Vec<&str> = wanted.as_object().map_or(Vec::new(), |fields| {
            fields
                .iter()
                .filter(|(key, value)| found.get(key) != Some(value))
                .map(|(key, _)| key.as_str())
                .collect()
        });
        return Err(Error::Usage(format!(
            "--output_dir {} holds an experiment with another {}; name another folder",
            dir.display(),
            changed.join(", ")
        )));
    }
    if is_occupied(dir)? {
        return Err(Error::Usage(format!(
            "--output_dir {} holds files, but no experiment to go on with; name another folder",
            dir.display()
        )));
    }
    write_json(&path, &wanted)
}

/// File of a start or an arm with its measurements, written when it is finished.
const RESULT: &str = "result.json";
/// File of a warm-up with its looks at the validation rows.
const LOOKS: &str = "looks.json";

/// A look at the validation rows during the warm-up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Look {
    steps: u64,
    accuracy: [f64; 2],
}

/// An experiment under way.
struct Experiment<'a> {
    plan: &'a Plan<'a>,
    commands: &'a dyn Commands,
    rows: Rows,
    /// What is being done, for people.
    at: String,
    clock: describe::Clock,
}

impl<'a> Experiment<'a> {
    fn new(plan: &'a Plan<'a>, commands: &'a dyn Commands) -> Self {
        Experiment {
            plan,
            commands,
            rows: Rows::default(),
            at: String::new(),
            clock: describe::Clock::new(plan),
        }
    }

    fn run(&mut self) -> Result<()> {
        for &seed in &self.plan.options.seeds {
            let start = self.start(seed)?;
            for leg in self.plan.legs().into_iter().filter(|leg| leg.seed == seed) {
                self.leg(leg, &start)?;
                self.write()?;
            }
        }
        self.write()
    }

    /// Says what comes next, and about how long it will all take.
    fn tell(&mut self, kind: describe::Kind, title: String) {
        let line = self.clock.line(kind, &title);
        self.at = title;
        if !self.plan.options.quiet.quiet {
            // A closed standard error is no reason to stop.
            let _ = writeln!(std::io::stderr(), "{}", escape_control(&line));
        }
    }

    /// The start checkpoint of a seed, measured.
    fn start(&mut self, seed: u64) -> Result<PathBuf> {
        let (path, dir, seed) = match &self.plan.recipe.start {
            Start::Checkpoint(model) => {
                (PathBuf::from(model), self.plan.options.output_dir.join("base"), None)
            }
            Start::WarmUp(warm_up) => {
                let path = self.warm_up(warm_up, seed)?;
                (path, self.plan.seed_dir(seed), Some(seed))
            }
        };
        let marker = dir.join(RESULT);
        let rows: Vec<ResultRow> = if marker.exists() {
            read_json(&marker)?
        } else {
            self.tell(describe::Kind::Measure, format!("measuring the start checkpoint {}", path.display()));
            let blank = Budget::default();
            let rows = self.measure(&path, seed, Arm::Base, None, blank)?;
            crate::checkpoint::create_dir_all(&SystemDisk, &dir)?;
            write_json(&marker, &rows)?;
            rows
        };
        // One checkpoint for all seeds is measured once.
        if !rows.iter().all(|row| self.rows.0.contains(row)) {
            self.rows.0.extend(rows);
        }
        Ok(path)
    }

    /// Warms random weights up until both tasks reach their target; gives the checkpoint.
    fn warm_up(&mut self, warm_up: &WarmUp, seed: u64) -> Result<PathBuf> {
        let plan = self.plan;
        let (init, dir) = (plan.seed_dir(seed).join(INIT), plan.seed_dir(seed).join(WARM_UP));
        let file = dir.join(LOOKS);
        let mut looks: Vec<Look> = if file.exists() { read_json(&file)? } else { Vec::new() };
        let high = warm_up.band[1];
        let is_good = |accuracy: f64, target: f64| (target..=high).contains(&accuracy);
        let reached = |look: &Look| (0..2).all(|task| is_good(look.accuracy[task], warm_up.target[task]));
        if !looks.last().is_some_and(reached) {
            self.tell(describe::Kind::WarmUp, format!("seed {seed}, warm-up"));
            let started = Instant::now();
            if !init.is_dir() {
                self.write_random(warm_up, &init, seed)?;
            }
            while !looks.last().is_some_and(reached) {
                let steps = (looks.len() as u64 + 1) * warm_up.look_steps;
                if looks.len() as u64 == warm_up.max_looks {
                    return Err(self.cold(&looks, seed));
                }
                let last = looks.last().map_or([0.0; 2], |look| look.accuracy);
                let mixture = Mixture::after(last, warm_up);
                let saved = self.commands.sft(&plan.warm_up(warm_up, seed, steps, mixture)?, None)?;
                let mut accuracy = [0.0; 2];
                for (task, accuracy) in accuracy.iter_mut().enumerate() {
                    let look = plan.look(&saved, task)?;
                    let look =
                        look.ok_or_else(|| Error::Internal("a warm-up without validation rows".into()))?;
                    *accuracy = self.commands.eval(&look)?.accuracy;
                }
                looks.push(Look { steps, accuracy });
                write_json(&file, &looks)?;
            }
            self.clock.took(describe::Kind::WarmUp, started.elapsed());
        }
        self.check_band(warm_up, &looks, seed)?;
        let steps = looks.last().map_or(0, |look| look.steps);
        Ok(crate::checkpoint::checkpoint_dir(&dir, steps))
    }

    fn write_random(&self, warm_up: &WarmUp, dir: &Path, seed: u64) -> Result<()> {
        let mixture = self.plan.mixture(Mixture::EACH[0]);
        let read = ReadOptions { need_target: true, ..ReadOptions::default() };
        let samples = dataset::read(&mixture, &read)?.supervised();
        tiny::write(dir, &samples, warm_up.image_side as usize, seed)
    }

    fn cold(&self, looks: &[Look], seed: u64) -> Error {
        let names = self.plan.recipe.tasks.each_ref().map(|task| task.name.as_str());
        let last = looks.last().map_or([0.0; 2], |look| look.accuracy);
        let best = |task: usize| looks.iter().map(|look| look.accuracy[task]).fold(0.0, f64::max);
        Error::Protect(format!(
            "the warm-up of seed {seed} has not brought both tasks between their targets and the band's end in {} steps: {} stands \
             at {:.2} (best {:.2}), {} at {:.2} (best {:.2}); name other seeds, or raise max_looks of the recipe",
            looks.last().map_or(0, |look| look.steps),
            names[0],
            last[0],
            best(0),
            names[1],
            last[1],
            best(1)
        ))
    }

    /// A start that is too good or too bad on one task says little of what training adds.
    fn check_band(&self, warm_up: &WarmUp, looks: &[Look], seed: u64) -> Result<()> {
        let Some(look) = looks.last() else { return Ok(()) };
        let [low, high] = warm_up.band;
        for (task, accuracy) in self.plan.recipe.tasks.iter().zip(look.accuracy) {
            if !(low..=high).contains(&accuracy) {
                return Err(Error::Protect(format!(
                    "the start checkpoint of seed {seed} is right on {:.1} % of the validation rows of {}, and not on {:.0} \
                     to {:.0} %; name other seeds, or look at the mixture of the recipe",
                    100.0 * accuracy,
                    task.name,
                    100.0 * low,
                    100.0 * high
                )));
            }
        }
        Ok(())
    }

    /// Trains and measures an arm, unless that is done.
    fn leg(&mut self, leg: Leg, start: &Path) -> Result<()> {
        let dir = self.plan.dir(leg);
        let marker = dir.join(RESULT);
        let rows: Vec<ResultRow> = if marker.exists() {
            read_json(&marker)?
        } else {
            let kind = if leg.arm == Arm::Sft { describe::Kind::Sft } else { describe::Kind::Grpo };
            self.tell(kind, self.plan.title(leg));
            let started = Instant::now();
            let saved = self.train(leg, start)?;
            let budget = Budget {
                steps: self.plan.task(leg).steps,
                prompts: self.plan.task(leg).steps * self.plan.recipe.prompts_per_step as u64,
                ..curves::budget(&dir)?
            };
            let task = &self.plan.task(leg).name;
            let rows = self.measure(&saved, Some(leg.seed), leg.arm, Some(task), budget)?;
            write_json(&marker, &rows)?;
            self.clock.took(kind, started.elapsed());
            rows
        };
        if !self.plan.recipe.keep_state {
            drop_state(&dir)?;
        }
        self.rows.0.extend(rows);
        Ok(())
    }

    fn train(&self, leg: Leg, start: &Path) -> Result<PathBuf> {
        if leg.arm != Arm::Sft {
            return self.commands.grpo(&self.plan.grpo(leg, start)?);
        }
        let options = self.plan.sft(leg, start)?;
        let look = self.plan.look(start, leg.task)?;
        self.commands.sft(&options, look.as_ref().zip(self.plan.look_steps(leg)))
    }

    /// Measures a checkpoint on both tasks.
    fn measure(
        &self,
        model: &Path,
        seed: Option<u64>,
        arm: Arm,
        train_task: Option<&str>,
        budget: Budget,
    ) -> Result<Vec<ResultRow>> {
        let row = |(index, task): (usize, &recipe::TaskRecipe)| {
            let measured = self.commands.eval(&self.plan.eval(model, index)?)?;
            Ok(ResultRow {
                seed,
                arm,
                train_task: train_task.map(str::to_owned),
                eval_task: task.name.clone(),
                accuracy: measured.accuracy,
                n: measured.rows,
                format: measured.format,
                mean_length: measured.mean_length,
                steps: budget.steps,
                prompts: budget.prompts,
                tokens: budget.tokens,
                seconds: budget.seconds,
            })
        };
        self.plan.recipe.tasks.iter().enumerate().map(row).collect()
    }

    /// Writes rows, table, curves and report of what is done so far.
    fn write(&self) -> Result<()> {
        let (options, recipe) = (self.plan.options, self.plan.recipe);
        let dir = &options.output_dir;
        self.rows.write(dir)?;
        let tables = tables(&self.rows, recipe.tasks.each_ref().map(|task| task.name.as_str()));
        let (title, facts) = (self.title(), describe::facts(self.plan, &self.rows));
        replace_file(&SystemDisk, &dir.join(TABLE), markdown(&title, &facts, &tables).as_bytes())?;
        replace_file(&SystemDisk, &dir.join("config.toml"), options.to_toml()?.as_bytes())?;
        let charts = curves::charts(self.plan)?;
        replace_file(&SystemDisk, &dir.join(CURVES), comparison::curves(&charts).as_bytes())?;
        let comparison = Comparison { title, facts, tables, charts, config: options.to_toml()? };
        comparison::write(dir.join(REPORT), &comparison)
    }

    fn title(&self) -> String {
        format!("othink-train reproduce: {}", self.plan.recipe.name)
    }

    fn outcome(self) -> Result<Outcome> {
        let dir = &self.plan.options.output_dir;
        let path = dir.join(TABLE);
        let table = fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
        Ok(Outcome { rows: self.rows, table, report: dir.join(REPORT) })
    }
}

const TABLE: &str = "table.md";
const REPORT: &str = "report.html";
const CURVES: &str = "curves.svg";

/// What an arm took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Budget {
    steps: u64,
    prompts: u64,
    tokens: u64,
    seconds: f64,
}

/// Leaves of an arm's checkpoint the model alone, in the folder `model`: the optimiser's state takes several times its
/// room. Only done for a finished arm, and gone on with where it was cut short.
fn drop_state(dir: &Path) -> Result<()> {
    let model = dir.join("model");
    let disk =
        |path: &Path, action, result: std::io::Result<()>| result.map_err(|e| Error::io(path, action, e));
    for step in list_checkpoints(dir)? {
        let checkpoint = crate::checkpoint::checkpoint_dir(dir, step);
        if !model.is_dir() {
            disk(&model, "rename the checkpoint", SystemDisk.rename(&checkpoint, &model))?;
        } else {
            disk(&checkpoint, "remove the checkpoint", SystemDisk.remove_dir_all(&checkpoint))?;
        }
    }
    for name in ["optimizer.safetensors", "trainer_state.json", "rollout.safetensors", "MANIFEST.json"] {
        let path = model.join(name);
        if path.exists() {
            disk(&path, "remove the state", SystemDisk.remove_file(&path))?;
        }
    }
    Ok(())
}

/// Largest file of results that is read back, in bytes.
const MAX_JSON_BYTES: u64 = 1 << 24;

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = crate::files::read_bounded(path, MAX_JSON_BYTES)?;
    let damaged =
        |e| Error::content(path, format!("is not what was written here ({e}); remove it to make it again"));
    serde_json::from_slice(&bytes).map_err(damaged)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|e| Error::Internal(format!("a result as JSON: {e}")))?;
    replace_file(&SystemDisk, path, (text + "\n").as_bytes())
}
