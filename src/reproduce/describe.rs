//! What an experiment will do, in words; and how long it will still take.

use std::fmt::Write as _;
use std::time::Duration;

use super::data::{data_dir, local_train, locate};
use super::plan::{Plan, WARM_UP};
use super::recipe::{Recipe, Start, TaskRecipe, TaskRows};
use super::rows::{Arm, Rows};
use super::{LOOKS, RESULT};
use crate::config::ReproduceConfig;
use crate::error::Result;

/// The plan of an experiment: what is run, with which weights and budgets, what data it needs and how that is fetched.
///
/// # Errors
/// [`Error::Usage`](crate::error::Error::Usage) for a path that is not UTF-8.
pub fn describe(recipe: &Recipe, options: &ReproduceConfig) -> Result<String> {
    let plan = Plan { recipe, options, data: locate(recipe, options)? };
    let mut text = String::new();
    let legs = plan.legs();
    let seeds = join(&options.seeds);
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(
        text,
        "recipe {}, seeds {seeds}: {} arms in {}\n",
        recipe.name,
        legs.len(),
        options.output_dir.display()
    );
    match &recipe.start {
        Start::Checkpoint(model) => {
            let _ = writeln!(text, "start: {model}, the same for every seed");
        }
        Start::WarmUp(warm_up) => {
            let names = recipe.tasks.each_ref().map(|task| task.name.as_str());
            let _ = writeln!(
                text,
                "start: for each seed, random weights warmed up by SFT on {} rows of {} and {} of {}, until {:.0} % and \
                 {:.0} % of the validation rows are right; each must lie between {:.0} and {:.0} %",
                warm_up.mixture_rows[0],
                names[0],
                warm_up.mixture_rows[1],
                names[1],
                100.0 * warm_up.target[0],
                100.0 * warm_up.target[1],
                100.0 * warm_up.band[0],
                100.0 * warm_up.band[1]
            );
        }
    }
    for task in &recipe.tasks {
        let dynamic = task.dynamic_beta;
        let _ = writeln!(
            text,
            "{}: {} steps of {} prompts in every arm, in the same order; GRPO and GRPO-D sample {} completions of each; \
             beta {} in GRPO, {} to {} in GRPO-D with w / t = {}",
            task.name,
            task.steps,
            recipe.prompts_per_step,
            recipe.group,
            task.constant_beta,
            dynamic.beta_min,
            dynamic.beta_max,
            dynamic.exploration_ratio
        );
    }
    text.push_str("each arm is then measured on the held-out rows of both tasks\n\nruns, in this order:\n");
    for leg in legs {
        let done = if plan.dir(leg).join(RESULT).exists() { " (done)" } else { "" };
        let _ = writeln!(text, "  {}: {}{done}", plan.title(leg), plan.dir(leg).display());
    }
    published(&mut text, recipe, options);
    Ok(text)
}

/// What has to be fetched, whether it is there, and the commands.
fn published(text: &mut String, recipe: &Recipe, options: &ReproduceConfig) {
    let Start::Checkpoint(model) = &recipe.start else { return };
    let dir = data_dir(options);
    let shown = dir.display();
    text.push_str("\nneeds a GPU with about 60 GB, and (nothing is downloaded by this program):\n");
    let _ =
        writeln!(text, "  the checkpoint: a folder, or in the Hugging Face cache\n    hf download {model}");
    let state = |is_there: bool| if is_there { "found" } else { "not there" };
    for task in &recipe.tasks {
        let TaskRows::Published { train, test, test_rows } = &task.rows else { continue };
        let local = local_train(dir, train);
        let _ = writeln!(
            text,
            "  {} to train on: {} ({}), or {train} in the Hugging Face cache\n    hf download --repo-type dataset {train} \
             --local-dir {}",
            task.name,
            local.display(),
            state(local.is_dir()),
            local.display()
        );
        let prompts = dir.join(test);
        let _ = writeln!(
            text,
            "  {} to measure on: {} ({}), {test_rows} rows of image_path, question, ground_truth; the images under {shown} \
             as image_path names them\n    curl -L --create-dirs -o {} \
             https://raw.githubusercontent.com/Deep-Agent/R1-V/main/src/eval/prompts/{test}",
            task.name,
            prompts.display(),
            state(prompts.is_file()),
            prompts.display()
        );
        text.push_str(&images(task, &shown.to_string()));
    }
}

/// How the images of a test set come under `dir`.
fn images(task: &TaskRecipe, dir: &str) -> String {
    match task.name.as_str() {
        "counting" => format!(
            "    curl -L -o {dir}/superclevr.zip https://www.cs.jhu.edu/~zhuowan/zhuowan/SuperCLEVR/to_be_released/images.zip \
             && unzip -q {dir}/superclevr.zip -d {dir}\n"
        ),
        _ => format!(
            "    hf download --repo-type dataset Luckyjhg/Geo170K images.zip --local-dir {dir}/Geo170K && unzip -q \
             {dir}/Geo170K/images.zip -d {dir}/Geo170K\n"
        ),
    }
}

/// What identifies an experiment, and how far it is.
pub(super) fn facts(plan: &Plan<'_>, rows: &Rows) -> Vec<(String, String)> {
    let recipe = plan.recipe;
    let legs = plan.legs();
    let done = legs.iter().filter(|leg| plan.dir(**leg).join(RESULT).exists()).count();
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let beta = |task: &TaskRecipe| {
        let dynamic = task.dynamic_beta;
        format!(
            "{}: {} constant, {} to {} dynamic (w / t = {})",
            task.name, task.constant_beta, dynamic.beta_min, dynamic.beta_max, dynamic.exploration_ratio
        )
    };
    let budget = |task: &TaskRecipe| format!("{} steps on {}", task.steps, task.name);
    let quick = if plan.options.quick { " --quick" } else { "" };
    let rows_held: Vec<String> = recipe
        .tasks
        .iter()
        .filter_map(|task| {
            let row = rows.0.iter().find(|row| row.eval_task == task.name)?;
            Some(format!("{} of {}", row.n, task.name))
        })
        .collect();
    vec![
        fact("command", format!("othink-train reproduce --recipe {}{quick}", recipe.name)),
        fact("seeds", join(&plan.options.seeds)),
        fact("arms done", format!("{done} of {}", legs.len())),
        fact(
            "budget of every arm",
            format!(
                "{}, {} prompts each",
                recipe.tasks.each_ref().map(budget).join(", "),
                recipe.prompts_per_step
            ),
        ),
        fact("completions per prompt in GRPO and GRPO-D", recipe.group.to_string()),
        fact("KL weight", recipe.tasks.each_ref().map(beta).join("; ")),
        fact("held-out rows", rows_held.join(", ")),
    ]
}

fn join(seeds: &[u64]) -> String {
    seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}

/// What takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Warming random weights up.
    WarmUp,
    /// A supervised arm.
    Sft,
    /// An arm of GRPO.
    Grpo,
    /// A measurement alone.
    Measure,
}

/// How many runs there are, how many are behind, and how long each kind took.
pub(super) struct Clock {
    total: usize,
    begun: usize,
    left: [usize; 3],
    took: [(Duration, u32); 3],
}

impl Clock {
    /// With what is done already left out of the time to come.
    pub(super) fn new(plan: &Plan<'_>) -> Clock {
        let mut clock = Clock { total: 0, begun: 0, left: [0; 3], took: [(Duration::ZERO, 0); 3] };
        let mut count = |kind: Kind, is_done: bool| {
            clock.total += 1;
            if is_done {
                clock.begun += 1;
            } else {
                clock.left[kind as usize] += 1;
            }
        };
        if matches!(plan.recipe.start, Start::WarmUp(_)) {
            for &seed in &plan.options.seeds {
                let dir = plan.seed_dir(seed);
                count(Kind::WarmUp, dir.join(RESULT).exists() && dir.join(WARM_UP).join(LOOKS).exists());
            }
        }
        for leg in plan.legs() {
            let kind = if leg.arm == Arm::Sft { Kind::Sft } else { Kind::Grpo };
            count(kind, plan.dir(leg).join(RESULT).exists());
        }
        clock
    }

    /// A line for what begins now.
    pub(super) fn line(&mut self, kind: Kind, title: &str) -> String {
        if kind == Kind::Measure {
            return title.to_owned();
        }
        let left = self.time_left();
        self.begun = (self.begun + 1).min(self.total);
        let left = left
            .map_or("unknown yet".to_owned(), |left| format!("about {} min", left.as_secs().div_ceil(60)));
        format!("run {} of {}: {title} (time left: {left})", self.begun, self.total)
    }

    /// A run has ended.
    pub(super) fn took(&mut self, kind: Kind, time: Duration) {
        let (sum, count) = &mut self.took[kind as usize];
        *sum += time;
        *count += 1;
        let left = &mut self.left[kind as usize];
        *left = left.saturating_sub(1);
    }

    /// By the mean of each kind so far; none before one of each kind that is left has ended.
    fn time_left(&self) -> Option<Duration> {
        let mut sum = Duration::ZERO;
        for (&left, &(took, count)) in self.left.iter().zip(&self.took) {
            if left > 0 {
                sum += took.checked_div(count)? * left as u32;
            }
        }
        Some(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_is_known_once_each_kind_was_seen() {
        let mut clock = Clock { total: 4, begun: 0, left: [1, 1, 2], took: [(Duration::ZERO, 0); 3] };
        assert_eq!(clock.line(Kind::WarmUp, "a"), "run 1 of 4: a (time left: unknown yet)");
        clock.took(Kind::WarmUp, Duration::from_secs(10));
        clock.took(Kind::Sft, Duration::from_secs(10));
        assert_eq!(clock.line(Kind::Measure, "b"), "b");
        clock.took(Kind::Grpo, Duration::from_secs(90));
        assert_eq!(clock.line(Kind::Grpo, "c"), "run 2 of 4: c (time left: about 2 min)");
    }
}
