//! Looking at datasets, mixing them, and what they take of memory.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{DATA, ROOT, bundle, dataset, fails, othink, read, success, text};

#[test]
fn inspect_shows_what_the_model_will_see() {
    let shown = success(&["data", "inspect", text(&DATA), "--num_rows", "1"]);
    for part in [
        "splits         train, test; here train",
        "rows           6",
        "layout         problem, put into the prompt template",
        "column         solution: string",
        "width          56",
        // 56 x 56 pixels are 2 x 2 tokens.
        "image tokens   4",
        "--- row 0 (",
        "train.jsonl: line 1)",
        "user: <image>",
        "Output the thinking process",
        "solution: <answer>",
    ] {
        assert!(shown.contains(part), "{part:?} is not in {shown}");
    }
    assert!(!shown.contains("--- row 1"));
    let words = ["data", "inspect", &format!("{}@test", text(&DATA)), "--model", bundle(), "--num_rows", "1"];
    let shown = success(&words);
    for part in ["here test", "rows           4", "<|im_start|>user\n", "tokens, images included)"] {
        assert!(shown.contains(part), "{part:?} is not in {shown}");
    }
    // What is written by a stranger cannot reach the terminal as it is.
    let hostile = dataset("hostile_rows", r#"{"problem": "a\u001b[31mb\u0007", "image": "good.png"}"#);
    let shown = success(&["data", "inspect", text(&hostile)]);
    assert!(shown.contains("b") && !shown.contains('\u{1b}') && !shown.contains('\u{7}'));
    fails(
        &["data", "inspect", "org/no-such-data"],
        66,
        &["hf download --repo-type dataset org/no-such-data"],
    );
}

#[test]
fn check_lists_every_bad_row() {
    assert_eq!(
        success(&["data", "check", text(&DATA), "-q"]),
        "6 rows: 6 good, 0 bad; 6 images; 6 rows with a solution\n"
    );
    let by_name =
        success(&["data", "check", "--dataset", text(&DATA), &format!("{}@test", text(&DATA)), "-q"]);
    assert!(by_name.starts_with("10 rows: 10 good"), "{by_name}");
    fails(&["data", "check", "-q"], 2, &["FILE|DIR|ORG/NAME"]);
    let bad = dataset(
        "checked",
        "oops\n{\"problem\": \"a\", \"image\": \"broken.png\"}\n{\"problem\": \"b\"}\n{\"problem\": \"c\", \"image\": \"no.png\"}",
    );
    fs::write(bad.with_file_name("broken.png"), b"\x89PNG\r\n\x1a\n and no more").unwrap();
    let list = bad.with_file_name("bad.jsonl");
    let output = othink(&["data", "check", text(&bad), "-q", "--output", text(&list)]);
    assert_eq!(output.status.code(), Some(65));
    let (shown, told) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(told.contains("3 of 5 rows are bad") && told.contains("--max_bad_rows"), "{told}");
    let lines: Vec<&str> = shown.lines().collect();
    for (line, parts) in lines.iter().zip([
        ["row 1: ", "rows.jsonl: line 2", "not valid JSON"],
        ["row 2: ", "rows.jsonl: line 3", "broken PNG image"],
        ["row 4: ", "rows.jsonl: line 5", "`no.png` not found"],
        ["5 rows: 2 good, 3 bad", "1 images", "1 rows with a solution"],
    ]) {
        assert!(parts.iter().all(|part| line.contains(part)), "{parts:?} is not in {line:?}");
    }
    assert_eq!(lines.len(), 4);
    let listed = read(&list);
    assert_eq!(listed.iter().map(|row| row["row"].clone()).collect::<Vec<_>>(), [1, 2, 4]);
    assert!(listed[0]["error"].as_str().unwrap().contains("line 2"));
    // The row without an answer is bad for who needs one.
    let output = othink(&["data", "check", text(&bad), "-q", "--need_solution"]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("row 3: "));
}

/// The words of a supervised run on several datasets.
fn sft<'a>(datasets: &[&'a str], dir: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let model = ["sft", "--model", bundle(), "--dataset"];
    let rest = ["-q", "--output_dir", text(dir), "--per_device_train_batch_size", "2"];
    [&model[..], datasets, &rest, &["--gradient_accumulation_steps", "1"], more].concat()
}

#[test]
fn datasets_are_mixed_by_weight() {
    let (train, test) = (text(&DATA), format!("{}@test", text(&DATA)));
    let both = [train, test.as_str()];
    let dir = ROOT.join("mixed");
    let told = |more: &[&str]| success(&sft(&both, &dir, &[&["--dry_run"], more].concat()));
    // 6 and 4 rows, one behind the other; then 4 rows of each, as the second is through first.
    assert!(told(&[]).contains("10 rows, 5 optimiser steps"));
    assert!(told(&["--dataset_weights", "1", "1"]).contains("10 rows, 4 optimiser steps"));
    let all = ["--dataset_weights", "1,1", "--stopping_strategy", "all_exhausted"];
    assert!(told(&all).contains("10 rows, 6 optimiser steps"));
    fails(
        &sft(&both, &dir, &["--dataset_weights", "1"]),
        2,
        &["--dataset_weights has 1 weights, but --dataset names 2"],
    );
    fails(&sft(&both, &dir, &["--dataset_weights", "1", "0"]), 2, &["--dataset_weights is 0"]);
    // The config file of a run names them again.
    success(&sft(&both, &dir, &["--max_steps", "1", "--dataset_weights", "2", "1"]));
    let config = dir.join("config.toml");
    assert!(fs::read_to_string(&config).unwrap().contains("dataset_weights = [2.0, 1.0]"));
    let again = success(&["sft", "--config", text(&config), "--dry_run"]);
    assert!(again.contains("dataset = [") && again.contains("10 rows, 1 optimiser steps"), "{again}");
    // Their rows are numbered as one dataset.
    let evaluated = ROOT.join("mixed.jsonl");
    let train = format!("{train}@train");
    let words =
        ["eval", "--model", bundle(), "--dataset", &train, &test, "--max_completion_length", "2", "-q"];
    success(&[&words[..], &["--output", text(&evaluated)]].concat());
    let rows: Vec<Value> = read(&evaluated).iter().map(|row| row["row"].clone()).collect();
    assert_eq!(rows, (0..10).map(|row| json!(row)).collect::<Vec<_>>());
}

/// Rows that were made ready ahead are the rows that would have been read at the step.
#[test]
fn reading_ahead_changes_no_bit() {
    let weights = ["0", "1", "3"].map(|workers| {
        let dir = ROOT.join(format!("ahead{workers}"));
        success(&sft(
            &[text(&DATA)],
            &dir,
            &["--max_steps", "4", "--save_only_model", "--dataloader_num_workers", workers],
        ));
        fs::read(dir.join("checkpoint-4/model.safetensors")).unwrap()
    });
    assert!(weights[0] == weights[1] && weights[0] == weights[2]);
}

/// The largest resident memory of a command, in KiB, as the system counts it while it runs.
#[cfg(target_os = "linux")]
fn peak_kib(words: &[&str]) -> u64 {
    use std::process::{Command, Stdio};
    let mut child = Command::new(env!("CARGO_BIN_EXE_othink-train"))
        .env("RAYON_NUM_THREADS", "2")
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        peak = peak.max(kib.unwrap_or(0));
        if let Some(status) = child.try_wait().expect("wait") {
            assert!(status.success(), "{words:?}: {status}");
            return peak;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// A dataset of `rows` rows with the image in a file, and one with it in a parquet file's bytes.
#[cfg(target_os = "linux")]
fn many(rows: usize) -> [PathBuf; 2] {
    use parquet::arrow::ArrowWriter;
    use std::fmt::Write;
    use std::sync::Arc;
    let image = fs::read(DATA.join("images/train/000000.png")).unwrap();
    let folder = ROOT.join(format!("many{rows}"));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("a.png"), &image).unwrap();
    let problem = |row: usize| format!("How many shapes are there in picture number {row}?");
    let mut lines = String::new();
    for row in 0..rows {
        let row = json!({"image": "a.png", "problem": problem(row), "solution": "<answer> 3 </answer>"});
        writeln!(lines, "{row}").unwrap();
    }
    let jsonl = folder.join("rows.jsonl");
    fs::write(&jsonl, lines).unwrap();

    use arrow_array::{ArrayRef, BinaryArray, RecordBatch, StringArray, StructArray};
    use arrow_schema::{DataType, Field};
    let batch = |first: usize, count: usize| {
        let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values((0..count).map(|_| &image)));
        let path: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>; count]));
        let pictures = StructArray::from(vec![
            (Arc::new(Field::new("bytes", DataType::Binary, true)), bytes),
            (Arc::new(Field::new("path", DataType::Utf8, true)), path),
        ]);
        let problems: ArrayRef = Arc::new(StringArray::from_iter_values((first..first + count).map(problem)));
        RecordBatch::try_from_iter([("image", Arc::new(pictures) as ArrayRef), ("problem", problems)])
            .unwrap()
    };
    let parquet = folder.join("rows.parquet");
    let mut writer =
        ArrowWriter::try_new(fs::File::create(&parquet).unwrap(), batch(0, 1).schema(), None).unwrap();
    for first in (0..rows).step_by(1000) {
        writer.write(&batch(first, 1000)).unwrap();
        // A row group each, as `datasets` writes them.
        writer.flush().unwrap();
    }
    writer.close().unwrap();
    [jsonl, parquet]
}

/// Memory does not grow with the rows: 50 times as many take at most 5 % more, to read and to train on. The system's own count
/// differs from run to run, so the least of some counts.
#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_dataset() {
    let ([few, few_bytes], [many, many_bytes]) = (many(1000), many(50_000));
    let grows = |words: &dyn Fn(&Path) -> Vec<String>, counts: usize, few: &Path, many: &Path| {
        // Until one is at most `enough`.
        let peak = |dataset: &Path, enough: f64| {
            let words = words(dataset);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let mut least = u64::MAX;
            for _ in 0..counts {
                least = least.min(peak_kib(&words));
                if least as f64 <= enough {
                    break;
                }
            }
            least
        };
        let few_kib = peak(few, 0.0);
        let many_kib = peak(many, 1.05 * few_kib as f64);
        println!("{:?}: {few_kib} KiB, of 50,000 rows {many_kib} KiB", words(few));
        assert!(few_kib > 1000 && many_kib as f64 <= 1.05 * few_kib as f64, "{few_kib} -> {many_kib}");
    };
    let check = |dataset: &Path| ["data", "check", text(dataset), "-q"].map(String::from).to_vec();
    grows(&check, 6, &few, &many);
    grows(&check, 6, &few_bytes, &many_bytes);
    for command in ["grpo", "sft"] {
        let dir = ROOT.join(format!("many_{command}"));
        let train = |dataset: &Path| {
            let options = "--max_steps 2 --per_device_train_batch_size 8 --gradient_accumulation_steps 1 \
                           --max_completion_length 4 --save_strategy no --overwrite_output_dir -q";
            let named =
                [command, "--model", bundle(), "--dataset", text(dataset), "--output_dir", text(&dir)];
            named.into_iter().chain(options.split_whitespace()).map(String::from).collect()
        };
        grows(&train, 3, &few, &many);
    }
}
