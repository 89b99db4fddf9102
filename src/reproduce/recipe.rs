//! What a reproduction consists of: the start, the two tasks, and the options of the commands that train and measure.

use serde::Serialize;

use crate::kl::Othink;
use crate::tasks::{Difficulty, Task};

/// An experiment, but for its seeds. Serialised, it says whether a folder holds the same one.
#[derive(Clone, Debug, Serialize)]
pub struct Recipe {
    /// Its name.
    pub name: String,
    /// Where every arm starts.
    pub start: Start,
    /// The tasks, in the order of the table.
    pub tasks: [TaskRecipe; 2],
    /// Prompts of an optimiser step, in every arm.
    pub prompts_per_step: usize,
    /// Completions per prompt.
    pub group: usize,
    /// Options of `sft` and `grpo` alike.
    pub training: Vec<String>,
    /// Further options of `sft`; later ones replace earlier ones.
    pub sft: Vec<String>,
    /// Further options of `grpo`.
    pub grpo: Vec<String>,
    /// Options of `eval`.
    pub eval: Vec<String>,
    /// Measurements on validation rows during an arm; 0 for none.
    pub looks: u64,
    /// Whether a finished arm keeps what a run resumes from. Without it the model remains.
    pub keep_state: bool,
}

/// Where the arms start.
#[derive(Clone, Debug, Serialize)]
pub enum Start {
    /// For each seed, random weights warmed up by SFT on a mixture of both tasks.
    WarmUp(Box<WarmUp>),
    /// A checkpoint, the same for every seed: a folder, or a name in the local Hugging Face cache.
    Checkpoint(String),
}

/// The warm-up of random weights, and the data that is drawn for it and for the arms.
#[derive(Clone, Debug, Serialize)]
pub struct WarmUp {
    /// Seed of the images; the same for all seeds of the experiment, as a published dataset would be.
    pub data_seed: u64,
    /// Width and height of the images, pixels.
    pub image_side: u32,
    /// Rows of each task that the arms train on.
    pub train_rows: usize,
    /// Rows of each task that are held out and measured on.
    pub test_rows: usize,
    /// Rows of each task for curves and for the end of the warm-up.
    pub validation_rows: usize,
    /// Rows of each task in the mixture; no arm sees them.
    pub mixture_rows: [usize; 2],
    /// Further options of `sft`.
    pub sft: Vec<String>,
    /// Steps from one look at the validation rows to the next.
    pub look_steps: u64,
    /// Looks at most.
    pub max_looks: u64,
    /// The warm-up ends at the first look with at least this accuracy on each task, and at most the band's upper end.
    pub target: [f64; 2],
    /// Accuracies on validation rows between which every start must lie.
    pub band: [f64; 2],
}

/// One task.
#[derive(Clone, Debug, Serialize)]
pub struct TaskRecipe {
    /// `counting` or `geometry`.
    pub name: String,
    /// Where its rows come from.
    pub rows: TaskRows,
    /// Optimiser steps of each arm trained on it.
    pub steps: u64,
    /// KL weight of the GRPO arm.
    pub constant_beta: f64,
    /// KL weight of the GRPO-D arm.
    pub dynamic_beta: Othink,
    /// Further options of `eval` for its held-out rows.
    pub eval: Vec<String>,
}

/// Where a task's rows come from.
#[derive(Clone, Debug, Serialize)]
pub enum TaskRows {
    /// Drawn here.
    Drawn {
        /// What is drawn.
        task: String,
        /// How hard.
        difficulty: String,
        /// The one kind of question; none for all of the difficulty.
        question_type: Option<String>,
    },
    /// Published.
    Published {
        /// Rows to train on: a dataset's name on the Hugging Face hub.
        train: String,
        /// R1-V's JSONL of test prompts, by its name.
        test: String,
        /// Its rows.
        test_rows: usize,
    },
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Share of the steps over which GRPO-D's KL weight falls (the paper's w / t).
const EXPLORATION: f64 = 0.3;

impl Recipe {
    /// Small enough for a CPU.
    ///
    /// Learning rates, steps and the warm-up's targets were chosen on validation rows with seeds from 100 on. The KL weights are the paper's.
    pub fn tiny() -> Recipe {
        let drawn = |task: Task, question_type: Option<&str>| TaskRows::Drawn {
            task: task.name().into(),
            difficulty: Difficulty::Easy.name().into(),
            question_type: question_type.map(str::to_owned),
        };
        Recipe {
            name: "tiny".into(),
            start: Start::WarmUp(Box::new(WarmUp {
                data_seed: 2025,
                image_side: 84,
                train_rows: 6000,
                test_rows: 500,
                validation_rows: 200,
                mixture_rows: [3000, 3000],
                sft: words(
                    "--per_device_train_batch_size 8 --gradient_accumulation_steps 4 --learning_rate 1.5e-3 \
                     --lr_scheduler_type constant_with_warmup --warmup_ratio 0 --warmup_steps 10 --adam_beta2 0.95",
                ),
                look_steps: 20,
                max_looks: 100,
                target: [0.35, 0.22],
                band: [0.10, 0.60],
            })),
            tasks: [
                TaskRecipe {
                    name: "counting".into(),
                    rows: drawn(Task::Counting, None),
                    steps: 200,
                    constant_beta: 0.04,
                    dynamic_beta: Othink { beta_min: 0.04, beta_max: 0.10, exploration_ratio: EXPLORATION },
                    eval: Vec::new(),
                },
                TaskRecipe {
                    name: "geometry".into(),
                    rows: drawn(Task::Geometry, Some("marked_angle")),
                    steps: 200,
                    constant_beta: 0.01,
                    dynamic_beta: Othink { beta_min: 0.0, beta_max: 0.02, exploration_ratio: EXPLORATION },
                    eval: Vec::new(),
                },
            ],
            prompts_per_step: 32,
            group: 8,
            training: words("--gradient_checkpointing false --save_steps 25 --logging_steps 25"),
            sft: words(
                "--per_device_train_batch_size 8 --gradient_accumulation_steps 4 --learning_rate 5e-4 \
                 --lr_scheduler_type linear --warmup_ratio 0 --adam_beta2 0.95",
            ),
            grpo: words(
                "--per_device_train_batch_size 64 --gradient_accumulation_steps 4 --learning_rate 2.5e-4 \
                 --adam_beta2 0.99 --max_completion_length 48 --log_completions false",
            ),
            eval: words("--max_completion_length 48 --per_device_eval_batch_size 64"),
            looks: 10,
            keep_state: true,
        }
    }

    /// The paper's experiment with Qwen2-VL-2B-Instruct, as far as the paper and R1-V, which it says it follows, tell it.
    ///
    /// The paper gives the KL weights, w / t and alpha. R1-V gives prompts, rewards, 16 prompts of 8 completions a step,
    /// learning rate 1e-6 falling linearly, 512 tokens, 401,408 pixels; 2 epochs of the geometry set; the 100 steps of its
    /// published counting checkpoint, where the paper trains on 100 samples and does not say for how long. SFT has R1-V's
    /// learning rate and schedule.
    pub fn paper(model: &str) -> Recipe {
        let published = |train: &str, test: &str, test_rows: usize| TaskRows::Published {
            train: train.into(),
            test: test.into(),
            test_rows,
        };
        Recipe {
            name: "paper".into(),
            start: Start::Checkpoint(model.into()),
            tasks: [
                TaskRecipe {
                    name: "counting".into(),
                    rows: published(
                        "leonardPKU/clevr_cogen_a_train",
                        "superclevr_test200_counting_problems.jsonl",
                        200,
                    ),
                    steps: 100,
                    constant_beta: 0.04,
                    dynamic_beta: Othink { beta_min: 0.04, beta_max: 0.10, exploration_ratio: EXPLORATION },
                    eval: words("--prompt_template r1v_superclevr --max_completion_length 256"),
                },
                TaskRecipe {
                    name: "geometry".into(),
                    rows: published("leonardPKU/GEOQA_R1V_Train_8K", "geoqa_test_prompts.jsonl", 754),
                    steps: 1000,
                    constant_beta: 0.01,
                    dynamic_beta: Othink { beta_min: 0.0, beta_max: 0.02, exploration_ratio: EXPLORATION },
                    eval: words("--prompt_template r1v_geoqa --max_completion_length 1024"),
                },
            ],
            prompts_per_step: 16,
            group: 8,
            training: words("--save_steps 50 --overlong skip"),
            sft: words("--per_device_train_batch_size 4 --gradient_accumulation_steps 4"),
            grpo: Vec::new(),
            eval: words("--per_device_eval_batch_size 32"),
            looks: 0,
            keep_state: false,
        }
    }
}
