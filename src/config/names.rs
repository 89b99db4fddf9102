//! Spelling of option names: `-` and `_` alike, Python's booleans, the nearest known name.

use std::ffi::OsString;

/// `true`, `false`, and the other spellings that HF's argument parser takes, in any case.
///
/// # Errors
/// A message for clap when the text is none of them.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "y" | "t" | "1" => Ok(true),
        "false" | "no" | "off" | "n" | "f" | "0" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// A limit as other tools write it: -1 is none, as 0 is.
///
/// # Errors
/// A message for clap when the text is no number from -1 on.
pub fn limit(text: &str) -> Result<usize, String> {
    match text {
        "-1" => Ok(0),
        _ => text.parse().map_err(|_| "expected a whole number, 0 or -1 for no limit".to_owned()),
    }
}

/// The name of a long option in an argument (`--learning-rate=1` is `learning-rate`), if it is one.
pub fn option_name(argument: &str) -> Option<&str> {
    let name = argument.strip_prefix("--")?;
    let name = name.split_once('=').map_or(name, |(name, _)| name);
    (!name.is_empty()).then_some(name)
}

/// Turns `-` into `_` in every option name, leaving values and everything after `--` as they are. `-q` takes no value: what stands
/// behind it is an argument of its own.
pub fn normalise(arguments: Vec<OsString>) -> Vec<OsString> {
    let mut literal = false;
    arguments
        .into_iter()
        .map(|argument| {
            literal |= argument == "--";
            if literal {
                return argument;
            }
            let Some(text) = argument.to_str() else { return argument };
            if text == "-q" {
                return "--quiet=true".into();
            }
            let Some(name) = option_name(text) else { return argument };
            let rest = &text[2 + name.len()..];
            format!("--{}{rest}", name.replace('-', "_")).into()
        })
        .collect()
}

/// The candidate most like `name`, when one is like enough to be meant.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let best = most_alike(candidates, |candidate| strsim::jaro_winkler(name, candidate));
    best.filter(|(similarity, _)| *similarity > 0.8).map(|(_, candidate)| candidate)
}

/// The candidate most like `name`, however little. A word in common says more than letters: `train_size` is more like `num_train` than
/// like `template`.
pub fn nearest_of_all<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let words: Vec<&str> = name.split('_').collect();
    let best = most_alike(candidates, |candidate| {
        let theirs: Vec<&str> = candidate.split('_').collect();
        let shared = words.iter().filter(|word| word.len() > 2 && theirs.contains(word)).count();
        strsim::jaro_winkler(name, candidate) + shared as f64 / words.len().max(theirs.len()) as f64
    });
    best.map(|(_, candidate)| candidate)
}

/// The first of equals, so that the answer does not depend on anything but the order given.
fn most_alike<'a>(
    candidates: impl IntoIterator<Item = &'a str>,
    likeness: impl Fn(&str) -> f64,
) -> Option<(f64, &'a str)> {
    candidates.into_iter().map(|candidate| (likeness(candidate), candidate)).fold(None, |best, next| {
        match best {
            Some((likeness, _)) if likeness >= next.0 => best,
            _ => Some(next),
        }
    })
}

/// What to do about an option of Hugging Face's trainer, TRL, verl, EasyR1, VLM-R1 or ms-swift that has another name here, or no
/// place. Those of verl and EasyR1 are known by their last parts (`worker.actor.optim.lr`).
pub fn foreign(name: &str) -> Option<&'static str> {
    let tails = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
    std::iter::once(name).chain(tails).find_map(known_elsewhere)
}

fn known_elsewhere(name: &str) -> Option<&'static str> {
    Some(match name {
        "n" | "num_samples" => "--num_generations is the size of a group",
        "lr" => "--learning_rate is its name here",
        "train_batch_size"
        | "rollout_batch_size"
        | "global_batch_size"
        | "mini_batch_size"
        | "ppo_mini_batch_size" => {
            "a step takes --per_device_train_batch_size times --gradient_accumulation_steps completions, of \
             --num_generations each"
        }
        "micro_batch_size_per_device_for_update" | "ppo_micro_batch_size_per_gpu" | "micro_batch_size" => {
            "--per_device_train_batch_size is the number of completions in one pass"
        }
        "max_response_length" => "--max_completion_length is its name here",
        "clip_ratio" | "clip_ratio_low" | "cliprange" => "--epsilon is the clip range",
        "clip_ratio_high" => "--epsilon_high is the clip range from above",
        "clip_ratio_dual" | "clip_ratio_c" => "--delta bounds the ratio where the advantage is negative",
        "adv_estimator" | "algorithm" => {
            "advantages are GRPO's: drop it; --scale_rewards and --loss_type choose among its forms"
        }
        "use_kl_loss" => "--beta 0 is without a reference and KL: drop it",
        "kl_penalty" | "kl_loss_type" => "--kl_estimator names it",
        "total_epochs" | "total_episodes" => "--num_train_epochs is its name here",
        "total_training_steps" => "--max_steps is its name here",
        "save_freq" => "--save_steps is its name here",
        "test_freq" | "val_freq" => "--eval_steps is its name here",
        "train_files" => "--dataset is its name here",
        "val_files" => "--eval_dataset is its name here",
        "format_prompt" => "--prompt_template names the words around a question",
        "system_prompt" => {
            "a system message stands in `prompt` or `messages` of the rows, or in the chat template (--chat_template)"
        }
        "image_key" | "answer_key" | "prompt_key" | "question_key" => {
            "columns are known by their names: see Data in the README, and rename yours"
        }
        "model_path" | "model_name_or_path" => "--model is its name here",
        "data_seed" => "--seed is the seed of the rows' order too",
        "val_split_ratio" => "--eval_dataset names rows of their own: split them before",
        "trust_remote_code" => "no code of a checkpoint is run: drop it",
        "max_anyres_num" => "--max_pixels bounds an image: drop it",
        "task_type" | "is_reward_customized_from_vlm_module" => "--reward_funcs names the rewards: drop it",
        "nnodes"
        | "n_gpus_per_node"
        | "tensor_parallel_size"
        | "tensor_model_parallel_size"
        | "gpu_memory_utilization" => "a run has one process and one device: drop it",
        "project_name" | "experiment_name" => "--run_name names the folder of event files",
        "reward_function" | "custom_reward_function" => "--reward_command serves a reward of your own",
        "bf16" | "fp16" | "tf32" | "torch_dtype" => "--dtype names the type that the model computes in",
        "attn_implementation" | "use_liger_kernel" | "use_liger_loss" => {
            "attention and loss have one implementation: drop it"
        }
        _ if name == "use_vllm" || name.starts_with("vllm_") => {
            "rollout and training share one engine and one copy of the weights: drop it"
        }
        _ if ["deepspeed", "fsdp"].contains(&name)
            || name.starts_with("fsdp_")
            || name.starts_with("ddp_") =>
        {
            "a run has one process and one device: drop it; --gradient_checkpointing saves memory"
        }
        _ if ["use_peft", "load_in_4bit", "load_in_8bit"].contains(&name) || name.starts_with("lora_") => {
            "all weights are trained (--freeze_vision_modules leaves out the vision tower): drop it"
        }
        "n_samples_per_prompt" => "--num_generations is the size of a group",
        "steps_per_generation" | "generation_batch_size" => {
            "a rollout holds the completions of one optimiser step: --per_device_train_batch_size times \
             --gradient_accumulation_steps; --num_iterations steps are made with it"
        }
        "multi_objective_aggregation" => {
            "rewards are summed by --reward_weights before they are scaled: drop it"
        }
        "top_entropy_quantile" => "every token of a completion is learned from: drop it",
        "disable_dropout" => "the models have no dropout: drop it",
        "remove_unused_columns" => "every column reaches the rewards: drop it",
        "do_train" | "do_eval" => "the command says what is done: drop it",
        "save_safetensors" => "checkpoints are safetensors: drop it",
        "data_file_paths" | "data_files" => "--dataset takes files, several too",
        "image_folders" | "image_folder" => "--image_dir names a folder of images",
        "reward_model_path" => "--reward_command serves a reward of your own",
        "optim" => "the optimiser is AdamW: drop it",
        "dataset_train_split" => "--dataset_split names it",
        "dataset_test_split" => "--eval_dataset PATH@SPLIT names it",
        "online_filtering" | "filter_groups" => "--dynamic_sample does that",
        "max_try_make_batch" | "max_num_gen_batches" => "--max_resample_times bounds that",
        "kl_coef" | "kl_loss_coef" => "--beta is the KL weight",
        "logging_dir" => "event files stand in OUTPUT_DIR/runs/NAME: --run_name names the folder",
        "logging_strategy" => "a line is printed every --logging_steps",
        "eval_on_start" => "`othink-train eval` measures the checkpoint that a run starts from",
        "load_best_model_at_end" => {
            "--save_total_limit keeps the checkpoint that is best by --metric_for_best_model: drop it"
        }
        "greater_is_better" => {
            "of a metric that ends with loss the smallest value is best, of others the largest: drop it"
        }
        "push_to_hub" | "hub_model_id" => {
            "nothing is uploaded: a checkpoint is a folder that `hf upload` takes"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalised(arguments: &[&str]) -> Vec<String> {
        normalise(arguments.iter().map(OsString::from).collect())
            .into_iter()
            .map(|argument| argument.into_string().unwrap())
            .collect()
    }

    #[test]
    fn only_names_are_normalised() {
        assert_eq!(
            normalised(&["grpo", "--learning-rate=1e-6", "--stop-strings=a-b", "my-file", "-h"]),
            ["grpo", "--learning_rate=1e-6", "--stop_strings=a-b", "my-file", "-h"]
        );
        assert_eq!(
            normalised(&["-q", "data.jsonl", "--", "--a-b"]),
            ["--quiet=true", "data.jsonl", "--", "--a-b"]
        );
    }

    #[test]
    fn nearest_finds_typos_and_refuses_strangers() {
        let names = ["learning_rate", "lr_scheduler_type", "logging_steps"];
        assert_eq!(nearest("learnin_rate", names), Some("learning_rate"));
        assert_eq!(nearest("logging_step", names), Some("logging_steps"));
        assert_eq!(nearest("use_vllm", names), None);
        assert_eq!(nearest_of_all("use_steps", names), Some("logging_steps"));
        assert_eq!(nearest_of_all("rate", names), Some("learning_rate"));
        assert_eq!(nearest_of_all("use_vllm", []), None);
    }

    #[test]
    fn options_of_others_have_advice() {
        for (name, part) in [
            ("vllm_importance_sampling_correction", "one engine"),
            ("fsdp_config", "one process"),
            ("lora_target_modules", "all weights"),
            ("rollout.n", "--num_generations"),
            ("steps_per_generation", "--num_iterations"),
            ("data_file_paths", "--dataset"),
        ] {
            assert!(foreign(name).is_some_and(|advice| advice.contains(part)), "{name}");
        }
        assert!(foreign("learning_rate").is_none());
    }

    #[test]
    fn booleans_in_any_case() {
        assert_eq!(boolean("True"), Ok(true));
        assert_eq!(boolean("0"), Ok(false));
        assert!(boolean("maybe").is_err());
    }

    #[test]
    fn no_limit_is_0_or_minus_1() {
        assert_eq!(["-1", "0", "7"].map(limit), [Ok(0), Ok(0), Ok(7)]);
        assert!(limit("-2").is_err() && limit("x").is_err());
    }
}
