//! The demo on the device, from the images it draws to the report, with a recipe of a few steps.

use crate::harness::{gpu, is_rerun};
use clap::Parser;
use othink::config::DemoConfig;
use othink::demo::{self, Recipe};
use othink::tensor::{DType, Device, Placement};
use serde_json::Value;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: DemoConfig,
}

#[test]
fn every_part_runs_in_bf16() {
    let Some(gpu) = gpu() else { return };
    if is_rerun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("demo");
    let words = ["demo", "--quiet", "--output_dir", dir.to_str().unwrap()];
    let options = Arguments::try_parse_from(words).unwrap().options;
    let recipe = Recipe {
        image_side: 56,
        train_rows: 60,
        test_rows: 4,
        sft_batch: 4,
        sft_micro_batch: 2,
        sft_max_steps: 2,
        sft_look_steps: 1,
        validation_rows: 2,
        grpo_steps: 2,
        prompts_per_step: 2,
        group: 2,
        grpo_micro_batch: 4,
        max_completion_tok: 8,
        ..Recipe::counting()
    };
    let placement = Placement { device: Device::Cuda(gpu.clone()), dtype: DType::Bf16 };
    let result = demo::run(&options, &recipe, &placement).unwrap();
    assert_eq!(result.steps, 2);
    let rows = |name: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(dir.join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (sft, grpo) = (rows("sft_metrics.jsonl"), rows("metrics.jsonl"));
    assert_eq!((sft.len(), grpo.len()), (2, 2));
    assert!(sft.iter().all(|row| row["loss"].as_f64().is_some_and(|loss| loss > 0.0)), "{sft:?}");
    for row in grpo {
        assert_eq!(
            row["sampling/sampling_logp_difference/max"], 0.0,
            "the policy in training is the one that sampled"
        );
        assert!(row["memory/weights"].as_u64().is_some_and(|bytes| bytes > 0), "{row}");
        assert!(row["step_time/rollout"].as_f64().is_some_and(|seconds| seconds > 0.0), "{row}");
    }
    for name in ["report.html", "checkpoint-sft/model.safetensors", "checkpoint-grpo/model.safetensors"] {
        assert!(dir.join(name).is_file(), "{name}");
    }
}
