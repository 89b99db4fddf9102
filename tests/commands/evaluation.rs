//! The command `eval`, and evaluation during training.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{DATA, LEARNABLE, ROOT, RUN, Row, bundle, dataset, fails, grpo, read, success, text};

#[test]
fn eval_of_a_checkpoint_is_the_evaluation_during_training() {
    let rows = read(&RUN.join("eval_metrics.jsonl"));
    assert_eq!(rows.len(), 2);
    let model = RUN.join("checkpoint-2");
    let words = [
        "eval",
        "--model",
        text(&model),
        "--dataset",
        text(&LEARNABLE),
        "--max_completion_length",
        "3",
        "-q",
    ];
    let result: Row = serde_json::from_str(success(&words).trim()).unwrap();
    assert_eq!(result["accuracy"], rows[1]["eval_rewards/accuracy/mean"]);
    assert_eq!(result["format"], rows[1]["eval_rewards/format/mean"]);
    assert_eq!(result["mean_length"], rows[1]["eval_completions/mean_length"]);
    assert_eq!((&result["rows"], &result["accuracy_majority"]), (&6.into(), &1.0.into()));
}

/// The loss of conversations is measured, that of rows with a solution and what is written for them too.
#[test]
fn sft_evaluates_what_it_can() {
    let row =
        r#"{"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]}"#;
    let talk = dataset("sft_talk", "").with_file_name("talk.jsonl");
    fs::write(&talk, format!("{row}\n")).unwrap();
    for (name, rows, judged) in [("sft_talk_run", &talk, false), ("sft_judged_run", &LEARNABLE, true)] {
        let dir = ROOT.join(name);
        let words = ["sft", "--model", bundle(), "--dataset", text(&talk), "--output_dir", text(&dir), "-q"];
        let options = [
            "--eval_dataset",
            text(rows),
            "--eval_steps",
            "1",
            "--max_steps",
            "2",
            "--max_completion_length",
            "3",
        ];
        success(&[&words[..], &options].concat());
        let evaluations = read(&dir.join("eval_metrics.jsonl"));
        assert_eq!(evaluations.len(), 2);
        for evaluation in evaluations {
            assert!(evaluation["eval_loss"].as_f64().unwrap() > 0.0);
            assert_eq!(evaluation.contains_key("eval_rewards/accuracy/mean"), judged, "{evaluation:?}");
        }
    }
}

#[test]
fn eval_scores_rows_and_blanked_images() {
    let output = ROOT.join("answers.jsonl");
    let words = ["eval", "--model", bundle(), "--dataset", text(&DATA), "--max_completion_length", "3"];
    let line = success(&[&words[..], &["--output", text(&output)]].concat());
    assert_eq!(line.lines().count(), 1);
    let result: Row = serde_json::from_str(line.trim()).unwrap();
    assert_eq!(
        (&result["rows"], &result["split"], &result["accuracy"]),
        (&4.into(), &"test".into(), &0.0.into())
    );
    let rows = read(&output);
    assert_eq!(rows.len(), 4);
    assert!(rows[0]["solution"].as_str().unwrap().contains("<answer>"));
    // The number of rows decoded together changes nothing.
    let again = ROOT.join("answers_one_by_one.jsonl");
    success(&[&words[..], &["--output", text(&again), "--per_device_eval_batch_size", "1"]].concat());
    assert_eq!(read(&again), rows);
    // Enough sampled tokens for random weights to show that they see something else.
    let long = ["--max_completion_length", "64", "--temperature", "1", "--output"];
    let looked = |name: &str, extra: &[&str]| {
        let file = ROOT.join(name);
        let model = ["eval", "--model", bundle(), "--dataset", text(&DATA)];
        success(&[&model[..], &long[..], &[text(&file)][..], extra].concat());
        read(&file)
    };
    assert_eq!(looked("seen.jsonl", &[]), looked("seen_again.jsonl", &[]));
    let (seen, blank) = (looked("seen.jsonl", &[]), looked("blank.jsonl", &["--blank_images"]));
    assert_ne!(seen, blank, "the model did not look at the image");
}

/// The names of TRL's logs, recorded from its trainers by `tools/reference/make_metrics_golden.py`.
#[test]
fn metrics_have_trls_names() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/trl_metrics.json");
    let golden: Value = serde_json::from_str(&fs::read_to_string(golden).unwrap()).unwrap();
    let recorded = |trainer: &str, log: &str| -> Vec<String> {
        serde_json::from_value(golden[trainer][log].clone()).unwrap()
    };
    let ours = |dir: &Path, file: &str| read(&dir.join(file)).swap_remove(0);
    let sft = ROOT.join("metric_names");
    let words = ["sft", "--model", bundle(), "--dataset", text(&LEARNABLE), "--output_dir", text(&sft), "-q"];
    let options = ["--max_steps", "1", "--eval_dataset", text(&LEARNABLE), "--eval_steps", "1"];
    success(&[&words[..], &options].concat());
    for (trainer, dir) in [("grpo", &*RUN), ("sft", &sft)] {
        let row = ours(dir, "metrics.jsonl");
        for name in recorded(trainer, "step") {
            // Whether the likeliest token is the answer's is not computed.
            assert!(
                row.contains_key(&name) || name == "mean_token_accuracy",
                "{trainer} has no {name}: {row:?}"
            );
        }
    }
    // One greedy completion for each row has no spread, and is not trained on: what is measured has TRL's names.
    for (trainer, dir) in [("grpo", &*RUN), ("sft", &sft)] {
        let theirs = [recorded(trainer, "evaluation"), recorded("grpo", "evaluation")].concat();
        for name in ours(dir, "eval_metrics.jsonl").keys() {
            let name = name.replace("rewards/format", "rewards/accuracy");
            assert!(theirs.contains(&name), "{trainer}: {name}");
        }
    }
}

#[test]
fn eval_measures_the_rewards_that_are_named() {
    let output = ROOT.join("further.jsonl");
    let command =
        r#"mine=while read -r line; do id=${line#*:}; echo "{\"id\":${id%%,*},\"reward\":2}"; done"#;
    let words = ["eval", "--model", bundle(), "--dataset", text(&DATA), "--max_completion_length", "3", "-q"];
    let more =
        ["--reward_funcs", "format", "length", "iou", "--reward_command", command, "--output", text(&output)];
    let result: Row = serde_json::from_str(success(&[&words[..], &more].concat()).trim()).unwrap();
    let length = result["rewards"]["length"].as_f64().unwrap();
    assert!(length > 0.99 && length < 1.0, "{result:?}");
    assert_eq!((&result["rewards"]["mine"], &result["rewards"]["iou"]), (&json!(2.0), &Value::Null));
    assert_eq!(result["rewards"].as_object().unwrap().len(), 3);
    for row in read(&output) {
        assert_eq!(row["rewards"]["mine"], 2.0);
        assert!(row["format"].is_number());
    }
    let parts = ["unknown reward `lenght`", "did you mean `length`"];
    fails(&[&words[..], &["--reward_funcs", "lenght"]].concat(), 2, &parts);
}

#[test]
fn held_out_rows_are_those_of_test_or_else_of_validation() {
    let folder = ROOT.join("held_out");
    fs::create_dir_all(&folder).unwrap();
    let rows = |split: &str, count: usize| {
        fs::write(
            folder.join(format!("{split}.jsonl")),
            "{\"problem\": \"?\", \"solution\": 3}\n".repeat(count),
        )
    };
    let dir = ROOT.join("held_out_run");
    let words = ["--eval_dataset", text(&folder), "--eval_steps", "1", "--dry_run"];
    let words = [&grpo(&dir)[..], &words].concat();
    rows("train", 1).unwrap();
    fails(&words, 66, &["has no split test", "splits found: train (train.jsonl)", "PATH@SPLIT"]);
    for (split, count) in [("dev", 2), ("test", 3)] {
        rows(split, count).unwrap();
        let shown = success(&words);
        assert!(shown.contains(&format!("# {count} rows to evaluate on")), "{split}: {shown}");
    }
    let sft = ["sft", "--model", bundle(), "--dataset", text(&DATA), "--output_dir", text(&dir)];
    let named = format!("{}@dev", text(&folder));
    let shown = success(&[&sft[..], &["--eval_dataset", &named, "--eval_steps", "1", "--dry_run"]].concat());
    assert!(shown.contains("# 2 rows to evaluate on"), "{shown}");
}
