//! Bad input: one clear error, the right exit code, nothing half-written, no panic.

use super::{DATA, ROOT, bundle, fails, grpo, read, success, text};

#[test]
fn a_loss_that_is_no_number_keeps_the_last_checkpoint() {
    let dir = ROOT.join("overflow");
    let mut words = grpo(&dir);
    let rate = words.iter().position(|word| *word == "1e-3").unwrap();
    words[rate] = "1e30";
    fails(&[&words[..], &["--save_steps", "1"]].concat(), 70, &["NaN", "learning rate"]);
    assert!(success(&["inspect", text(&dir.join("checkpoint-1"))]).contains("412,800"));
    assert!(!dir.join("checkpoint-2").exists());
    assert_eq!(read(&dir.join("metrics.jsonl")).len(), 1);
    let sft =
        ["sft", "--model", bundle(), "--dataset", text(&DATA), "--max_steps", "3", "--learning_rate", "1e30"];
    let sft_dir = ROOT.join("overflow_sft");
    let options = ["--warmup_ratio", "0", "--save_steps", "1", "-q", "--output_dir", text(&sft_dir)];
    fails(&[&sft[..], &options].concat(), 70, &["NaN"]);
}
