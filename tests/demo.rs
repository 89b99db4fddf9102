//! The demo's run from end to end, with a recipe too short to learn: what it leaves, and that `eval` agrees.

use std::path::Path;
use std::process::Command;

use othink::config::{DemoConfig, Options};
use othink::demo::{self, Recipe};
use othink::tensor::Placement;
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_othink-train");

fn options(dir: &Path) -> DemoConfig {
    use clap::Parser;
    #[derive(clap::Parser)]
    struct Words {
        #[command(flatten)]
        options: DemoConfig,
    }
    let dir = dir.to_str().expect("a UTF-8 path");
    Words::parse_from(["demo", "--output_dir", dir, "--quiet", "--seed", "5"]).options
}

fn evaluated(checkpoint: &Path, data: &Path, extra: &[&str]) -> f64 {
    let output = Command::new(PROGRAM)
        .args(["eval", "--quiet", "--model"])
        .arg(checkpoint)
        .arg("--dataset")
        .arg(data)
        .args(extra)
        .output()
        .expect("eval runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let row: Value = serde_json::from_slice(&output.stdout).expect("one JSON line");
    row["accuracy"].as_f64().expect("an accuracy")
}

#[test]
fn leaves_what_the_readme_says_and_eval_agrees() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let dir = temp.path().join("demo");
    let options = options(&dir);
    options.check().map_err(|_| "the options are refused").expect("valid options");
    // 130 steps teach the form and guessing, which is enough for accuracies above 0.
    let recipe = Recipe {
        train_rows: 300,
        test_rows: 50,
        sft_max_steps: 130,
        sft_look_steps: 65,
        validation_rows: 20,
        grpo_steps: 2,
        prompts_per_step: 4,
        group: 4,
        grpo_micro_batch: 8,
        ..Recipe::counting()
    };
    let result = demo::run(&options, &recipe, &Placement::HOST).expect("the demo runs");
    for name in [
        "report.html",
        "result.json",
        "metrics.jsonl",
        "sft_metrics.jsonl",
        "completions.jsonl",
        "config.toml",
    ] {
        assert!(dir.join(name).is_file(), "{name} is missing");
    }
    assert_eq!(result.accuracy_majority, 0.2);
    assert_eq!(result.steps, 2);
    let rows = std::fs::read_to_string(dir.join("metrics.jsonl")).expect("metrics");
    for row in rows.lines().map(|line| serde_json::from_str::<Value>(line).expect("a JSON row")) {
        assert_eq!(
            row["sampling/sampling_logp_difference/max"], 0.0,
            "the policy in training is the one that sampled"
        );
    }
    let json: Value =
        serde_json::from_str(&std::fs::read_to_string(dir.join("result.json")).expect("result"))
            .expect("JSON");
    let keys: Vec<&str> = json.as_object().expect("an object").keys().map(String::as_str).collect();
    let wanted = [
        "task",
        "accuracy_majority",
        "accuracy_blind",
        "accuracy_start",
        "accuracy_sft",
        "accuracy_grpo",
        "steps",
        "seconds",
    ];
    assert_eq!(keys, wanted);
    let data = dir.join("data");
    assert!(result.accuracy_sft > 0.0, "130 steps of SFT teach the answers' form");
    assert_eq!(evaluated(&dir.join("checkpoint-sft"), &data, &[]), result.accuracy_sft);
    assert_eq!(evaluated(&dir.join("checkpoint-grpo"), &data, &[]), result.accuracy_grpo);
    assert_eq!(evaluated(&dir.join("checkpoint-grpo"), &data, &["--blank_images"]), result.accuracy_blind);
}
