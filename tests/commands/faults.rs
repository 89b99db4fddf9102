//! Bad input: one clear error, the right exit code, nothing half-written, no panic.

use super::{
    DATA, LEARNABLE, ROOT, Row, bundle, dataset, fails, grpo, read, success, text, unreadable, write,
};
use std::fs;

#[test]
fn rows_that_are_broken() {
    unreadable(&dataset("not_json", "{\"problem\": oops}"), 65, &["rows.jsonl: line 2, column 13"]);
    unreadable(&dataset("no_solution", "{\"problem\": \"x\"}"), 65, &["rows.jsonl: line 2", "`solution`"]);
    let outside = r#"{"problem": "x", "solution": "1", "image": "../outside.png"}"#;
    unreadable(&dataset("image_outside", outside), 65, &["rows.jsonl: line 2", "`..` is not allowed"]);
    let gone = r#"{"problem": "x", "solution": "1", "image": "gone.png"}"#;
    unreadable(&dataset("image_gone", gone), 65, &["rows.jsonl: line 2", "gone.png", "not found"]);
    unreadable(&ROOT.join("nowhere.jsonl"), 66, &["nowhere.jsonl", "tasks make"]);
}

#[test]
fn images_that_are_broken_or_enormous() {
    let row = r#"{"problem": "x", "solution": "1", "image": "bad.png"}"#;
    let path = dataset("bad_image", row);
    let bad = path.with_file_name("bad.png");
    let good = fs::read(path.with_file_name("good.png")).unwrap();
    fs::write(&bad, &good[..good.len() / 2]).unwrap();
    unreadable(&path, 65, &["bad.png"]);
    fs::write(&bad, "<html>not found</html>").unwrap();
    unreadable(&path, 65, &["bad.png", "convert it to png"]);
    // Only the header is there: 60,000 x 60,000 pixels of 8-bit RGB.
    let mut header = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    for side in [60_000_u32; 2] {
        header.extend(side.to_be_bytes());
    }
    header.extend([8, 2, 0, 0, 0]);
    let sum = crc32(&header[12..]);
    header.extend(sum.to_be_bytes());
    header.extend(b"\0\0\0\0IDAT");
    let sum = crc32(b"IDAT");
    header.extend(sum.to_be_bytes());
    fs::write(&bad, header).unwrap();
    unreadable(&path, 65, &["bad.png", "60000 x 60000"]);
    let words = ["generate", "--model", bundle(), "--prompt", "x", "--image", text(&bad), "-q"];
    fails(&words, 65, &["bad.png", "60000 x 60000"]);
}

/// The checksum of a PNG chunk.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 },
        )
    })
}

#[test]
fn prompts_longer_than_the_context() {
    let long = format!(r#"{{"problem": "{}", "solution": "1"}}"#, "7 ".repeat(4096));
    let path = dataset("long", &long);
    unreadable(&path, 65, &["row 1", "tokens", "--overlong skip"]);
    assert!(!ROOT.join("unreadable/long").exists(), "found only after the run had started");
    // Without it the run goes on; in SFT the answer counts too.
    let dir = ROOT.join("skipped");
    let mut words = grpo(&dir);
    words[4] = text(&path);
    success(&[&words[..], &["--overlong", "skip"]].concat());
    let rows = read(&dir.join("completions.jsonl"));
    assert!(!rows.is_empty() && rows.iter().all(|row| row["row"] == 0));
    let sft =
        ["sft", "--model", bundle(), "--dataset", text(&path), "--max_steps", "1", "-q", "--output_dir"];
    let sft_dir = ROOT.join("skipped_sft");
    fails(&[&sft[..], &[text(&sft_dir)]].concat(), 65, &["row 1", "--max_length"]);
    let skip = ["--overlong", "skip", "--overwrite_output_dir"];
    success(&[&sft[..], &[text(&sft_dir)], &skip].concat());
    let none = [text(&sft_dir), "--overlong", "skip", "--max_length", "5", "--overwrite_output_dir"];
    fails(&[&sft[..], &none].concat(), 65, &["leaves none"]);
}

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

#[test]
fn options_that_cannot_be() {
    let dir = ROOT.join("occupied");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("mine.txt"), "x").unwrap();
    fails(&grpo(&dir), 2, &["--output_dir", "occupied", "--overwrite_output_dir"]);
    let free = ROOT.join("never");
    let with = |options: &[&'static str]| [&grpo(&free)[..], options].concat();
    fails(&with(&["--dtype", "bf16"]), 2, &["--dtype is bf16", "f32"]);
    fails(&with(&["--device", "cuda"]), 69, &["--device cuda:0", "--device cpu"]);
    fails(&with(&["--prompt_template", "r1w"]), 2, &["did you mean `r1v`"]);
    fails(&with(&["--reward_funcs", "acuracy"]), 2, &["did you mean `accuracy`"]);
    fails(&with(&["--overlog", "skip"]), 2, &["did you mean --overlong"]);
    let config = ROOT.join("typo.toml");
    fs::write(&config, "seed = 1\nbeta_mim = 0.1\n").unwrap();
    fails(&with(&["--config", "typo.toml"]), 2, &["typo.toml:2", "did you mean `beta_min`"]);
    let mut words = grpo(&free);
    let limit = words.iter().position(|word| *word == "--max_completion_length").unwrap() + 1;
    words[limit] = "5000";
    fails(&words, 2, &["--max_completion_length 5000", "context of 4096"]);
    assert!(!free.exists());
    let words =
        ["generate", "--model", bundle(), "--prompt", "x", "--do_sample", "false", "--num_generations", "2"];
    fails(&words, 2, &["--num_generations is 2", "--do_sample"]);
    fails(&["inspect", text(&ROOT)], 65, &["config.json"]);
    fails(&["tasks", "make", "counting", "--output_dir", text(&DATA)], 2, &["exists already"]);
}

#[test]
fn rows_that_cannot_be_scored() {
    let input = ROOT.join("unscorable.jsonl");
    let output = ROOT.join("unscorable_out.jsonl");
    for (row, part) in [
        (serde_json::json!({"prompt": "x"}), "`completion`"),
        (serde_json::json!({"completion": "x"}), "`prompt`"),
        (serde_json::json!({"prompt": "x", "completion_ids": [1, 600]}), "600"),
        (serde_json::json!({"prompt": "x", "completion_ids": "12"}), "list of token ids"),
        (serde_json::json!({"prompt": "x", "completion": "y", "prompt_ids": [500, 3]}), "from index 1 on"),
        (serde_json::json!({"prompt": "x", "completion": "y", "temperature": 0}), "`temperature`"),
        (serde_json::json!({"prompt": "x", "completion_ids": vec![1; 4096]}), "context of 4096"),
    ] {
        let good: Row = serde_json::json!({"prompt": "x", "completion": "y"}).as_object().unwrap().clone();
        write(&input, &[good, row.as_object().unwrap().clone()]);
        let words = ["score", "--model", bundle(), "--input", text(&input), "--output", text(&output), "-q"];
        fails(&words, 65, &["unscorable.jsonl: line 2", part]);
        assert!(!output.exists());
    }
    fails(&["score", "--model", bundle(), "--input", text(&LEARNABLE)], 65, &["line 1", "nothing to score"]);
}
