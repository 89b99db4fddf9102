//! The runs of an experiment, and each as the options of an ordinary command.

use std::path::{Path, PathBuf};

use super::recipe::{Recipe, TaskRecipe, WarmUp};
use super::rows::Arm;
use crate::config::{EvalConfig, GrpoConfig, Options, ReproduceConfig, SftConfig};
use crate::error::{Error, Result};

/// Where everything of an experiment lies and what it is run with.
pub struct Plan<'a> {
    /// What is done.
    pub recipe: &'a Recipe,
    /// With which seeds, where.
    pub options: &'a ReproduceConfig,
    /// The rows of each task.
    pub data: [TaskData; 2],
}

/// The files of a task's rows, as the commands take them.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskData {
    /// To train on: options that name the rows.
    pub train: Vec<String>,
    /// Held out: options that name the rows.
    pub test: Vec<String>,
    /// For curves during training.
    pub validation: Option<PathBuf>,
}

/// One trained arm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Its seed.
    pub seed: u64,
    /// Index of the task trained on.
    pub task: usize,
    /// How.
    pub arm: Arm,
}

impl Plan<'_> {
    /// Every arm in the order in which they run.
    pub fn legs(&self) -> Vec<Leg> {
        let of_task = |seed, task| Arm::TRAINED.map(|arm| Leg { seed, task, arm });
        self.options
            .seeds
            .iter()
            .flat_map(|&seed| [0, 1].into_iter().flat_map(move |task| of_task(seed, task)))
            .collect()
    }

    /// The folder of a seed.
    pub fn seed_dir(&self, seed: u64) -> PathBuf {
        self.options.output_dir.join(format!("seed-{seed}"))
    }

    /// The run folder of an arm.
    pub fn dir(&self, leg: Leg) -> PathBuf {
        let task = &self.recipe.tasks[leg.task].name;
        self.seed_dir(leg.seed).join(format!("{task}-{}", leg.arm.name()))
    }

    /// The task of an arm.
    pub fn task(&self, leg: Leg) -> &TaskRecipe {
        &self.recipe.tasks[leg.task]
    }

    /// What happens in an arm, for people.
    pub fn title(&self, leg: Leg) -> String {
        format!("seed {}, {} on {}", leg.seed, leg.arm.title(), self.task(leg).name)
    }

    /// The supervised arm from the checkpoint `start`.
    ///
    /// # Errors
    /// [`Error::Internal`] for a recipe that the command refuses.
    pub fn sft(&self, leg: Leg, start: &Path) -> Result<SftConfig> {
        let mut words = self.common(leg, start)?;
        words.extend(self.recipe.sft.iter().cloned());
        let options = settled::<SftConfig>(words, |options| {
            options.hardware = self.options.hardware.clone();
            options.logging.quiet = self.options.quiet.clone();
        })?;
        self.equal_budget(options.optimiser.sequences_per_step())?;
        Ok(options)
    }

    /// An arm of GRPO from the checkpoint `start`.
    ///
    /// # Errors
    /// As [`Plan::sft`].
    pub fn grpo(&self, leg: Leg, start: &Path) -> Result<GrpoConfig> {
        let task = self.task(leg);
        let mut words = self.common(leg, start)?;
        words.extend(["--num_generations".into(), self.recipe.group.to_string()]);
        words.extend(match leg.arm {
            Arm::GrpoD => vec![
                "--beta_schedule=othink".into(),
                format!("--beta_min={}", task.dynamic_beta.beta_min),
                format!("--beta_max={}", task.dynamic_beta.beta_max),
                format!("--beta_exploration_ratio={}", task.dynamic_beta.exploration_ratio),
            ],
            _ => vec!["--beta_schedule=constant".into(), format!("--beta={}", task.constant_beta)],
        });
        if let Some(every) = self.look_steps(leg) {
            let validation = self.data[leg.task].validation.as_deref();
            words.extend([
                format!("--eval_dataset={}", text(validation.unwrap_or(Path::new("")))?),
                format!("--eval_steps={every}"),
            ]);
        }
        words.extend(self.recipe.grpo.iter().cloned());
        let options = settled::<GrpoConfig>(words, |options| {
            options.hardware = self.options.hardware.clone();
            options.logging.quiet = self.options.quiet.clone();
        })?;
        self.equal_budget(options.prompts_per_step())?;
        Ok(options)
    }

    /// The measurement of a checkpoint on the held-out rows of task number `task`.
    ///
    /// # Errors
    /// As [`Plan::sft`].
    pub fn eval(&self, model: &Path, task: usize) -> Result<EvalConfig> {
        let mut words = vec!["--model".into(), text(model)?];
        words.extend(self.data[task].test.iter().cloned());
        words.extend(self.recipe.eval.iter().chain(&self.recipe.tasks[task].eval).cloned());
        self.settled_eval(words)
    }

    /// The measurement of a checkpoint on the validation rows of task number `task`; none where there are none.
    ///
    /// # Errors
    /// As [`Plan::sft`].
    pub fn look(&self, model: &Path, task: usize) -> Result<Option<EvalConfig>> {
        let Some(rows) = &self.data[task].validation else { return Ok(None) };
        let mut words = vec!["--model".into(), text(model)?, "--dataset".into(), text(rows)?];
        words.extend(self.recipe.eval.iter().cloned());
        self.settled_eval(words).map(Some)
    }

    /// The warm-up of a seed's random weights up to `steps`, the last of them on `mixture`.
    ///
    /// # Errors
    /// As [`Plan::sft`].
    pub fn warm_up(&self, warm_up: &WarmUp, seed: u64, steps: u64, mixture: Mixture) -> Result<SftConfig> {
        let mut words = vec![
            "--model".into(),
            text(&self.seed_dir(seed).join(INIT))?,
            "--dataset".into(),
            text(&self.mixture(mixture))?,
            "--output_dir".into(),
            text(&self.seed_dir(seed).join(WARM_UP))?,
            format!("--seed={seed}"),
            format!("--max_steps={steps}"),
            "--resume_from_checkpoint".into(),
            // The learning rate does not depend on the end, so that a run can be prolonged.
            "--allow_change=max_steps,dataset".into(),
            "--save_total_limit=1".into(),
        ];
        words.extend(self.recipe.training.iter().chain(&warm_up.sft).cloned());
        settled::<SftConfig>(words, |options| {
            options.hardware = self.options.hardware.clone();
            options.logging.quiet = self.options.quiet.clone();
        })
    }

    /// The rows of the warm-up.
    pub fn mixture(&self, mixture: Mixture) -> PathBuf {
        self.options.output_dir.join(DATA).join(mixture.file(self.recipe))
    }

    /// Steps between two measurements on validation rows during an arm.
    pub fn look_steps(&self, leg: Leg) -> Option<u64> {
        let has_rows = self.data[leg.task].validation.is_some() && self.recipe.looks > 0;
        has_rows.then(|| (self.task(leg).steps / self.recipe.looks).max(1))
    }

    /// What every arm of a seed has in common: the start, the rows and their order, the number of steps.
    fn common(&self, leg: Leg, start: &Path) -> Result<Vec<String>> {
        let mut words = vec!["--model".into(), text(start)?];
        words.extend(self.data[leg.task].train.iter().cloned());
        words.extend([
            format!("--seed={}", leg.seed),
            format!("--max_steps={}", self.task(leg).steps),
            "--output_dir".into(),
            text(&self.dir(leg))?,
            "--save_total_limit=1".into(),
            "--resume_from_checkpoint".into(),
        ]);
        words.extend(self.recipe.training.iter().cloned());
        Ok(words)
    }

    fn settled_eval(&self, words: Vec<String>) -> Result<EvalConfig> {
        settled::<EvalConfig>(words, |options| {
            options.hardware = self.options.hardware.clone();
            options.quiet = self.options.quiet.clone();
        })
    }

    /// Refuses a recipe whose arms would not see the same prompts in the same steps.
    fn equal_budget(&self, prompts_per_step: usize) -> Result<()> {
        let wanted = self.recipe.prompts_per_step;
        match prompts_per_step == wanted {
            true => Ok(()),
            false => Err(Error::Internal(format!(
                "an arm of the recipe {} takes {prompts_per_step} prompts a step and not {wanted}",
                self.recipe.name
            ))),
        }
    }
}

/// Folder of what all seeds share.
pub const DATA: &str = "data";
/// Folder of a seed's random weights.
pub const INIT: &str = "init";
/// Run folder of a seed's warm-up.
pub const WARM_UP: &str = "warm-up";

/// The rows of a stretch of the warm-up: all that were set aside of one task, and some of the other. Of both at once a
/// small model learns neither for long, and of one alone it forgets the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mixture {
    /// Index of the task of which it has all rows.
    pub all_of: usize,
    /// Of the other task, one row in so many.
    pub one_in: usize,
}

impl Mixture {
    /// Every mixture that a warm-up may ask for.
    pub const EACH: [Mixture; 4] = [
        Mixture { all_of: 0, one_in: HOLD },
        Mixture { all_of: 0, one_in: FADE },
        Mixture { all_of: 1, one_in: HOLD },
        Mixture { all_of: 1, one_in: FADE },
    ];

    /// What comes after these accuracies: the first task that lags behind its target, with as much of the other as holds
    /// it between its target and the upper end of the band.
    pub fn after(accuracy: [f64; 2], warm_up: &WarmUp) -> Mixture {
        let all_of = usize::from(accuracy[0] >= warm_up.target[0]);
        let (held, target) = (accuracy[1 - all_of], warm_up.target[1 - all_of]);
        let middle = (target + warm_up.band[1]) / 2.0;
        Mixture { all_of, one_in: if (target..middle).contains(&held) { HOLD } else { FADE } }
    }

    /// Its file among the data.
    pub fn file(self, recipe: &Recipe) -> String {
        format!("mixture-{}-{}.jsonl", recipe.tasks[self.all_of].name, self.one_in)
    }
}

/// One row in so many keeps what was learned.
const HOLD: usize = 2;
/// One row in so many lets it fade slowly.
const FADE: usize = 8;

/// A path as an option's value.
///
/// # Errors
/// [`Error::Usage`] where it is not UTF-8.
pub fn text(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| Error::Usage(format!("{} is not valid UTF-8", path.display())))?;
    Ok(text.to_owned())
}

/// The options that `words` say on a command line, after `set` and resolved; later words replace earlier ones.
fn settled<T: clap::Args + Options>(words: Vec<String>, set: impl FnOnce(&mut T)) -> Result<T> {
    let broken = |reason: String| Error::Internal(format!("a recipe's options of {}: {reason}", T::COMMAND));
    let command =
        T::augment_args(clap::Command::new(T::COMMAND)).no_binary_name(true).args_override_self(true);
    let matches = command.try_get_matches_from(words).map_err(|e| broken(e.to_string()))?;
    let mut options = T::from_arg_matches(&matches).map_err(|e| broken(e.to_string()))?;
    set(&mut options);
    options.resolve();
    options.check().map_err(|violation| broken(Error::from(violation).to_string()))?;
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::super::recipe::Start;
    use super::*;

    #[test]
    fn a_warm_up_brings_up_what_lags_and_holds_the_rest() {
        let Start::WarmUp(mut warm_up) = Recipe::tiny().start else { panic!("the tiny recipe warms up") };
        (warm_up.target, warm_up.band) = ([0.35, 0.25], [0.1, 0.6]);
        for (accuracy, all_of, one_in) in [
            ([0.0, 0.0], 0, FADE),
            ([0.36, 0.14], 1, HOLD),
            ([0.55, 0.14], 1, FADE),
            ([0.30, 0.26], 0, HOLD),
            ([0.30, 0.50], 0, FADE),
        ] {
            assert_eq!(Mixture::after(accuracy, &warm_up), Mixture { all_of, one_in }, "{accuracy:?}");
        }
    }
}
