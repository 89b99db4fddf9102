//! Every command end to end, on a tiny checkpoint and a small dataset that `tasks make` draws.

mod cases;
mod cases_data;
mod cases_model;
mod cases_options;
mod cases_processor;
#[cfg(unix)]
mod cases_rewards;
mod cases_run;
mod cases_weights;
mod data;
mod evaluation;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use serde_json::{Map, Value};

type Row = Map<String, Value>;

/// A folder below `target/` that is empty at first.
static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("commands");
    if root.exists() {
        fs::remove_dir_all(&root).expect("remove what the last run left");
    }
    fs::create_dir_all(&root).expect("create a folder");
    root
});

/// A counting dataset of 56-pixel images: 6 training rows, 4 test rows.
static DATA: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = ROOT.join("data");
    let words =
        ["tasks", "make", "counting", "--image_size", "56", "--num_train", "6", "--num_test", "4", "-q"];
    success(&[&words[..], &["--output_dir", text(&dir)]].concat());
    dir
});

/// The checkpoint's favourite answer. Rows with this solution give a random model something to learn.
const FAVOURITE: &str = ")An$";

/// The training rows with [`FAVOURITE`] as their solution.
static LEARNABLE: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = DATA.join("learnable.jsonl");
    let mut rows = read(&DATA.join("train.jsonl"));
    rows.iter_mut().for_each(|row| drop(row.insert("solution".into(), FAVOURITE.into())));
    write(&path, &rows);
    path
});

/// A GRPO run of two steps that saves and evaluates after each.
static RUN: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = ROOT.join("grpo");
    let eval = ["--save_steps", "1", "--eval_steps", "1", "--eval_dataset", text(&LEARNABLE)];
    success(&[&grpo(&dir)[..], &eval].concat());
    dir
});

fn bundle() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bundles/qwen2_vl_a")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn othink(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_othink-train"))
        .env("CUDA_VISIBLE_DEVICES", "")
        .args(words)
        .current_dir(&*ROOT)
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs")
}

/// Standard output of a command that has to succeed.
fn success(words: &[&str]) -> String {
    let output = othink(words);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{words:?}: {errors}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Asserts that the command fails with `code`, nothing on standard output and one `error: ` line that holds `parts`.
fn fails(words: &[&str], code: i32, parts: &[&str]) {
    let message = fails_loudly(words, code, parts);
    assert!(message.starts_with("error: "), "{words:?}: {message}");
}

/// As [`fails`], with warnings before the error; gives all of standard error.
fn fails_loudly(words: &[&str], code: i32, parts: &[&str]) -> String {
    let output = othink(words);
    let message = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(code), "{words:?}: {message}");
    assert!(output.stdout.is_empty(), "{words:?} printed something");
    let error = message.trim_end().lines().last().unwrap_or_default();
    assert!(error.starts_with("error: ") && !error.contains("internal error"), "{words:?}: {message}");
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {message:?}");
    }
    message
}

/// A copy of the checkpoint that a test may break.
fn checkpoint(name: &str) -> PathBuf {
    let dir = ROOT.join(name);
    fs::create_dir_all(&dir).unwrap();
    for file in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ] {
        fs::copy(Path::new(bundle()).join(file), dir.join(file)).unwrap();
    }
    dir
}

/// A dataset in a folder of its own: the given line after one good row.
fn dataset(name: &str, line: &str) -> PathBuf {
    let dir = ROOT.join(name);
    fs::create_dir_all(&dir).unwrap();
    fs::copy(DATA.join("images/train/000000.png"), dir.join("good.png")).unwrap();
    let good = r#"{"image": "good.png", "problem": "How many?", "solution": "3"}"#;
    let path = dir.join("rows.jsonl");
    fs::write(&path, format!("{good}\n{line}\n")).unwrap();
    path
}

/// The commands that read a dataset, on `path`; each has to fail.
fn unreadable(path: &Path, code: i32, parts: &[&str]) {
    let (run, answers) = (
        ROOT.join("unreadable").join(path.parent().unwrap().file_name().unwrap()),
        ROOT.join("unreadable.jsonl"),
    );
    fails(
        &["eval", "--model", bundle(), "--dataset", text(path), "--output", text(&answers), "-q"],
        code,
        parts,
    );
    assert!(!answers.exists());
    let mut words = grpo(&run);
    words[4] = text(path);
    words.push("--overwrite_output_dir");
    fails(&words, code, parts);
    assert!(!run.join("checkpoint-2").exists());
}

/// Options of a two-step GRPO run in which rewards differ within groups.
fn grpo(dir: &Path) -> Vec<&str> {
    let options = "--max_steps 2 --num_generations 4 --per_device_train_batch_size 4 --gradient_accumulation_steps 2 \
                   --max_completion_length 3 --temperature 0.3 --learning_rate 1e-3 -q";
    let named = ["grpo", "--model", bundle(), "--dataset", text(&LEARNABLE), "--output_dir", text(dir)];
    named.into_iter().chain(options.split(' ').filter(|word| !word.is_empty())).collect()
}

fn read(path: &Path) -> Vec<Row> {
    let lines = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    lines.lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect()
}

fn write(path: &Path, rows: &[Row]) {
    let lines: String = rows.iter().map(|row| format!("{}\n", Value::Object(row.clone()))).collect();
    fs::write(path, lines).expect("write");
}

/// The rows of a metrics file without what the clock says.
fn timeless(path: &Path) -> Vec<Row> {
    let mut rows = read(path);
    rows.iter_mut()
        .for_each(|row| row.retain(|key, _| !key.starts_with("step_time") && key != "eval_runtime"));
    rows
}

#[test]
fn grpo_leaves_a_complete_run_folder() {
    let rows = read(&RUN.join("metrics.jsonl"));
    assert_eq!(rows.len(), 2);
    for (step, row) in rows.iter().enumerate() {
        for key in [
            "beta",
            "kl",
            "reward",
            "reward_std",
            "loss",
            "grad_norm",
            "entropy",
            "learning_rate",
            "completions/mean_length",
            "frac_reward_zero_std",
            "rewards/accuracy/mean",
            "rewards/format/mean",
        ] {
            assert!(row[key].is_number(), "{key} of step {step} is {}", row[key]);
        }
        assert_eq!(row["step"], step);
        assert_eq!(row["sampling/sampling_logp_difference/max"], 0.0);
    }
    // Two steps of Eq. 3 with w = 0.6: the middle of 0.04 and 0.1, then 0.4 / 1.4 of the way from least to most.
    let beta = |row: &Row| row["beta"].as_f64().unwrap();
    assert!((beta(&rows[0]) - 0.07).abs() < 1e-12);
    assert!((beta(&rows[1]) - (0.04 + 0.06 * 0.4 / 1.4)).abs() < 1e-12);
    assert!(rows[0]["grad_norm"].as_f64().unwrap() > 0.0, "no group had different rewards");
    assert!(rows[1]["kl"].as_f64().unwrap() > 0.0, "the first update changed nothing");

    let completions = read(&RUN.join("completions.jsonl"));
    assert_eq!(completions.len(), 2 * 8);
    assert!(completions.iter().all(|c| c["images"][0].as_str().unwrap().ends_with(".png")));
    let report = fs::read_to_string(RUN.join("report.html")).unwrap();
    assert!(report.contains("Reward: accuracy") && report.contains("beta_schedule"));
    assert!(report.contains("data:image/png;base64,"), "completions stand beside their images");
    let held = success(&["inspect", text(&RUN)]);
    assert!(held.contains("checkpoint-1  412,800 parameters") && held.contains("checkpoint-2"), "{held}");
    let names: Vec<_> = fs::read_dir(&*RUN).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_str().unwrap().contains("tmp")), "{names:?}");
}

#[test]
fn the_same_config_gives_the_same_run() {
    let (config, dir) = (RUN.join("config.toml"), ROOT.join("again"));
    // Neither the number of threads nor recomputation changes a bit.
    let words = ["grpo", "--config", text(&config), "--output_dir", text(&dir), "--threads", "1"];
    success(&[&words[..], &["--gradient_checkpointing", "false"]].concat());
    for file in ["metrics.jsonl", "eval_metrics.jsonl", "completions.jsonl"] {
        assert_eq!(timeless(&dir.join(file)), timeless(&RUN.join(file)), "{file}");
    }
    let weights = |run: &Path| fs::read(run.join("checkpoint-2/model.safetensors")).unwrap();
    assert!(weights(&dir) == weights(&RUN), "the weights differ");

    let other = ROOT.join("other_seed");
    success(&[&grpo(&other)[..], &["--seed", "7"]].concat());
    assert_ne!(timeless(&other.join("metrics.jsonl")), timeless(&RUN.join("metrics.jsonl")));
}

#[test]
fn grpo_takes_every_kind_of_loss_schedule_and_estimator() {
    let dir = ROOT.join("kinds");
    for options in [
        "--kl_estimator k1 --beta_schedule linear --loss_type dapo",
        "--kl_estimator full --beta_schedule cosine --loss_type bnpo --freeze_vision_modules",
        "--use_bias_correction_kl --beta_schedule adaptive --loss_type dr_grpo --scale_rewards none",
        "--kl_estimator k2 --beta 0.1 --num_iterations 2 --importance_sampling_level sequence --delta 2",
    ] {
        let words: Vec<&str> = options.split(' ').chain(["--overwrite_output_dir"]).collect();
        success(&[&grpo(&dir)[..], &words].concat());
        let rows = read(&dir.join("metrics.jsonl"));
        assert_eq!(rows.len(), 2);
        assert!(
            rows.iter().all(|row| row["loss"].is_number() && row["kl"].is_number()),
            "{options}: {rows:?}"
        );
        assert_eq!(rows[0]["sampling/sampling_logp_difference/max"], 0.0, "{options}");
    }
}

#[test]
fn a_frozen_vision_tower_keeps_its_weights() {
    let dir = ROOT.join("frozen");
    success(&[&grpo(&dir)[..], &["--freeze_vision_modules"]].concat());
    let (before, after) = (weights(Path::new(bundle())), weights(&dir.join("checkpoint-2")));
    for (name, bytes) in &before {
        let trained = name.starts_with("visual.") || name.starts_with("model.visual.");
        assert_eq!(&after[name] == bytes, trained, "{name}");
    }
}

/// Each tensor's bytes.
fn weights(model: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let file = fs::read(model.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Row = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let tensors = header.iter().filter(|(name, _)| *name != "__metadata__");
    tensors
        .map(|(name, entry)| {
            let at = |i: usize| 8 + length + entry["data_offsets"][i].as_u64().unwrap() as usize;
            (name.clone(), file[at(0)..at(1)].to_vec())
        })
        .collect()
}

#[test]
fn sft_learns_the_answers() {
    let dir = ROOT.join("sft");
    let words = ["sft", "--model", bundle(), "--dataset", text(&DATA), "--output_dir", text(&dir), "-q"];
    let options = "--max_steps 4 --per_device_train_batch_size 2 --gradient_accumulation_steps 1 --learning_rate 1e-3 \
                   --warmup_ratio 0 --save_steps 1 --save_total_limit 2";
    success(&[&words[..], &options.split_whitespace().collect::<Vec<_>>()].concat());
    let rows = read(&dir.join("metrics.jsonl"));
    let losses: Vec<f64> = rows.iter().map(|row| row["loss"].as_f64().unwrap()).collect();
    assert_eq!(losses.len(), 4);
    assert!(losses[3] < 0.9 * losses[0], "{losses:?}");
    assert!(fs::read_to_string(dir.join("report.html")).unwrap().contains("Supervised fine-tuning"));
    let held = success(&["inspect", text(&dir)]);
    let kept = ["checkpoint-3", "checkpoint-4"].map(|name| held.contains(name));
    assert!(kept == [true; 2] && !held.contains("checkpoint-2"), "{held}");
}

#[test]
fn score_gives_the_bits_that_generate_recorded() {
    let (made, scored) = (ROOT.join("made.jsonl"), ROOT.join("elsewhere/scored.jsonl"));
    fs::create_dir_all(scored.parent().unwrap()).unwrap();
    for dtype in ["f32", "bf16"] {
        let words =
            ["generate", "--model", bundle(), "--dataset", text(&DATA), "--output", text(&made), "-q"];
        let options = "--do_sample --temperature 0.8 --top_p 0.9 --top_k 40 --repetition_penalty 1.2 \
                       --num_generations 3 --max_completion_length 6 --prompt_template r1v --dtype";
        success(&[&words[..], &options.split_whitespace().collect::<Vec<_>>(), &[dtype]].concat());
        let mut rows = read(&made);
        assert_eq!(rows.len(), 4 * 3);
        let bits = |row: &Row| row["logps_hex"].as_array().unwrap().clone();
        for row in &rows {
            assert_eq!(bits(row).len(), row["completion_ids"].as_array().unwrap().len());
            for (bits, number) in bits(row).iter().zip(row["logps"].as_array().unwrap()) {
                let value = f32::from_bits(u32::from_str_radix(bits.as_str().unwrap(), 16).unwrap());
                assert_eq!(number.as_f64(), Some(f64::from(value)));
            }
        }
        let words = ["score", "--model", bundle(), "--input", text(&made), "--output", text(&scored), "-q"];
        success(&[&words[..], &["--dtype", dtype]].concat());
        assert_eq!(read(&scored), rows, "{dtype}");
        // In another order, and so in other company.
        let expected: Vec<_> = rows.iter().map(bits).collect();
        rows.reverse();
        rows.iter_mut().for_each(|row| drop(row.remove("logps_hex")));
        write(&made, &rows);
        success(&[&words[..], &["--dtype", dtype]].concat());
        let again: Vec<_> = read(&scored).iter().rev().map(bits).collect();
        assert_eq!(again, expected, "{dtype}");
    }
}

#[test]
fn score_takes_texts_messages_and_ids() {
    let image = format!("{}/images/0.png", bundle());
    let input = ROOT.join("score.jsonl");
    let prompt = "How many red squares are in the picture?";
    let rows = [
        serde_json::json!({"prompt": prompt, "images": [&image], "completion": "<answer>3</answer><|im_end|>"}),
        serde_json::json!({"problem": prompt, "image": &image, "completion": "<answer>3</answer><|im_end|>"}),
        serde_json::json!({"id": 5, "completion": "<answer>3</answer><|im_end|>", "messages": [
            {"role": "user", "content": [{"type": "image", "image": &image}, {"type": "text", "text": prompt}]}]}),
        serde_json::json!({"prompt": "Hello", "completion": ""}),
    ];
    write(&input, &rows.map(|row| row.as_object().unwrap().clone()));
    let lines = success(&["score", "--model", bundle(), "--input", text(&input)]);
    let scored: Vec<Row> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // The example of the reference bundle: 36 tokens of prompt, 7 of completion.
    assert_eq!(scored[0]["prompt_ids"].as_array().unwrap().len(), 36);
    assert_eq!(scored[0]["completion_ids"].as_array().unwrap().len(), 7);
    assert_eq!(scored[0]["completion_ids"][6], 501);
    for row in &scored[1..3] {
        for key in ["prompt_ids", "completion_ids", "logps", "logps_hex"] {
            assert_eq!(row[key], scored[0][key], "{key}");
        }
    }
    assert_eq!((&scored[2]["id"], scored[3]["logps"].as_array().unwrap().len()), (&5.into(), 0));
    // A temperature of 0.5 is another distribution.
    let lines = success(&["score", "--model", bundle(), "--input", text(&input), "--temperature", "0.5"]);
    let cold: Row = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_ne!(cold["logps"], scored[0]["logps"]);
}

#[test]
fn generate_follows_the_checkpoints_settings() {
    let image = format!("{}/images/0.png", bundle());
    let words = ["generate", "--model", bundle(), "--prompt", "How many?", "--image", &image];
    let words = [&words[..], &["--max_completion_length", "4"]].concat();
    // The checkpoint samples with top_k = 1: the likeliest token each time, whatever the seed.
    let own = success(&words);
    assert!(!own.trim().is_empty());
    assert_eq!(success(&[&words[..], &["--seed", "9"]].concat()), own);
    assert_eq!(success(&[&words[..], &["--do_sample", "false"]].concat()), own);
    let free = ["--temperature", "3", "--top_k", "0", "--top_p", "1", "--num_generations", "3"];
    let several = success(&[&words[..], &free].concat());
    assert_eq!(several.matches("--- row 0, completion ").count(), 3);
    assert!(!several.chars().any(|c| c.is_control() && c != '\n' && c != '\t'));
}

#[test]
fn dry_run_is_a_config_file_with_a_memory_plan() {
    let dir = ROOT.join("dry");
    let printed = success(&[&grpo(&dir)[..], &["--dry_run"]].concat());
    assert!(!dir.exists());
    for part in ["beta_min = 0.04", "# 6 rows, 2 optimiser steps", "# total "] {
        assert!(printed.contains(part), "{part:?} is not in:\n{printed}");
    }
    // Other trainers' word for no limit.
    let mut words = grpo(&dir);
    let steps = words.iter().position(|word| *word == "--max_steps").unwrap() + 1;
    words[steps] = "-1";
    let endless = success(&[&words[..], &["--top_k", "-1", "--dry_run"]].concat());
    assert!(endless.contains("top_k = 0") && endless.contains("# 6 rows, 6 optimiser steps"), "{endless}");
    // 412,800 parameters of 4 bytes; two moments.
    let bytes = |name: &str| -> u64 {
        let line = printed.lines().find(|line| line.starts_with(&format!("# {name}"))).expect(name);
        line.trim_start_matches(&format!("# {name}")).split_whitespace().next().unwrap().parse().unwrap()
    };
    let exact = [bytes("weights"), bytes("gradients"), bytes("AdamW moments"), bytes("reference weights")];
    assert_eq!(exact, [1_651_200, 1_651_200, 3_302_400, 1_651_200]);
    let config = ROOT.join("dry.toml");
    fs::write(&config, &printed).unwrap();
    assert_eq!(success(&["grpo", "--config", text(&config), "--dry_run"]), printed);
    let sft = success(&["sft", "--model", bundle(), "--dataset", text(&DATA), "--dry_run"]);
    assert!(sft.contains("# longest row at most ") && !sft.contains("reference weights"), "{sft}");
}

#[test]
fn tasks_make_says_what_it_wrote() {
    let dir = ROOT.join("geometry");
    let words =
        ["tasks", "make", "geometry", "--output_dir", text(&dir), "--num_train", "3", "--num_test", "2"];
    let printed = success(&[&words[..], &["--image_size", "84"]].concat());
    assert_eq!(printed, format!("{}: 3 training rows, 2 test rows\n", dir.display()));
    assert_eq!((read(&dir.join("train.jsonl")).len(), read(&dir.join("test.jsonl")).len()), (3, 2));
}

#[test]
fn inspect_lists_tensors() {
    let listed = success(&["inspect", bundle(), "--tensors"]);
    assert!(listed.contains("tensors        70\n"), "{listed}");
    assert!(listed.lines().any(|line| line.starts_with("  lm_head.weight") && line.ends_with("[600, 64]")));
}
