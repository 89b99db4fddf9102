//! The commands with `--device cuda`, from the outside: the program under the emulated driver.

use crate::common::bundle;
use crate::harness::{is_rerun, program, program_with_emulator};
use serde_json::{Map, Value};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

type Row = Map<String, Value>;

fn checkpoint() -> String {
    bundle("tied_kv1_odd").to_str().unwrap().to_owned()
}

/// A folder with a small dataset.
struct Place(TempDir);

impl Place {
    /// None where there is no device, and where this program runs again in another mode, which changes nothing here.
    fn new() -> Option<Place> {
        if is_rerun() {
            return None;
        }
        let place = Place(tempfile::tempdir().unwrap());
        let words =
            ["tasks", "make", "counting", "--image_size", "56", "--num_train", "4", "--num_test", "3", "-q"];
        place.success(&words, &[("--output_dir", &place.path("data"))])?;
        Some(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, words: &[&str], paths: &[(&str, &Path)]) -> Option<Output> {
        Some(self.output(program()?, words, paths))
    }

    /// On an emulated device of this configuration.
    fn run_on(&self, device: &str, words: &[&str], paths: &[(&str, &Path)]) -> Option<Output> {
        Some(self.output(program_with_emulator(device)?, words, paths))
    }

    fn output(&self, mut command: Command, words: &[&str], paths: &[(&str, &Path)]) -> Output {
        command.args(words).current_dir(self.0.path());
        for (option, path) in paths {
            command.arg(option).arg(path);
        }
        command.output().unwrap()
    }

    /// Standard output of a command that has to succeed.
    fn success(&self, words: &[&str], paths: &[(&str, &Path)]) -> Option<String> {
        let output = self.run(words, paths)?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {said}");
        Some(String::from_utf8(output.stdout).unwrap())
    }

    fn rows(&self, name: &str) -> Vec<Row> {
        let text = fs::read_to_string(self.path(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Words after the command's name that choose the device.
fn on(command: &str, device: &str, dtype: &str, rest: &[&str]) -> Vec<String> {
    let checkpoint = checkpoint();
    let words = [command, "--model", &checkpoint, "--device", device, "--dtype", dtype, "-q"];
    words.iter().chain(rest).map(|word| (*word).to_owned()).collect()
}

fn words(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[test]
fn generate_score_and_eval() {
    let Some(place) = Place::new() else { return };
    let data = place.path("data");
    let sampling =
        ["--do_sample", "true", "--num_generations", "2", "--max_completion_length", "10", "--seed", "4"];
    for dtype in ["f32", "bf16"] {
        for device in ["cuda", "cpu"] {
            let output = place.path(&format!("{device}.jsonl"));
            let paths: [(&str, &Path); 2] = [("--dataset", &data), ("--output", &output)];
            place.success(&words(&on("generate", device, dtype, &sampling)), &paths);
        }
        let (ours, theirs) = (place.rows("cuda.jsonl"), place.rows("cpu.jsonl"));
        assert_eq!(ours.len(), theirs.len());
        if dtype == "f32" {
            for (a, b) in ours.iter().zip(&theirs) {
                assert_eq!(a["completion_ids"], b["completion_ids"]);
            }
        }
        // What sampling kept is what scoring computes, in any batch.
        let scored = place.path("scored.jsonl");
        let from = place.path("cuda.jsonl");
        let paths: [(&str, &Path); 2] = [("--input", &from), ("--output", &scored)];
        place.success(&words(&on("score", "cuda", dtype, &[])), &paths);
        for (row, scored) in ours.iter().zip(place.rows("scored.jsonl")) {
            assert_eq!(row["logps_hex"], scored["logps_hex"], "{dtype}");
        }
    }
    let greedy = ["--max_completion_length", "6", "--temperature", "0"];
    let line = |device| {
        let paths: [(&str, &Path); 1] = [("--dataset", &data)];
        let text = place.success(&words(&on("eval", device, "f32", &greedy)), &paths).unwrap();
        let mut row: Row = serde_json::from_str(text.trim()).unwrap();
        row.remove("seconds");
        row
    };
    assert_eq!(line("cuda"), line("cpu"));
}

/// A run that changes its device in the middle goes on as the one that stays: checkpoints are the same.
#[test]
fn grpo_and_sft_and_their_checkpoints() {
    let Some(place) = Place::new() else { return };
    let data = place.path("data");
    let train = |command: &str, device: &str, out: &str, more: &[&str]| {
        let own: &[&str] = match command {
            "grpo" => &[
                "--num_generations",
                "2",
                "--per_device_train_batch_size",
                "2",
                "--max_completion_length",
                "6",
            ],
            _ => &["--per_device_train_batch_size", "2"],
        };
        let rest =
            [&["--learning_rate", "1e-3", "--max_steps", "2", "--save_steps", "1", "--seed", "3"], own, more]
                .concat();
        let out = place.path(out);
        let paths: [(&str, &Path); 2] = [("--dataset", &data), ("--output_dir", &out)];
        place.success(&words(&on(command, device, "f32", &rest)), &paths);
    };
    for command in ["grpo", "sft"] {
        let (gpu, cpu, mixed) =
            (format!("{command}-gpu"), format!("{command}-cpu"), format!("{command}-mixed"));
        train(command, "cuda", &gpu, &[]);
        train(command, "cpu", &cpu, &[]);
        let losses = |name: &str| -> Vec<f64> {
            place
                .rows(&format!("{name}/metrics.jsonl"))
                .iter()
                .filter_map(|row| row["loss"].as_f64())
                .collect()
        };
        let (ours, theirs) = (losses(&gpu), losses(&cpu));
        assert_eq!(ours.len(), 2, "{command}");
        for (a, b) in ours.iter().zip(&theirs) {
            assert!((a - b).abs() <= 1e-5 * b.abs().max(0.01), "{command}: {ours:?} and {theirs:?}");
        }
        // k steps, then a resume, are n steps, to the bit.
        copy(&place.path(&gpu), &place.path(&mixed), &["checkpoint-2"]);
        train(command, "cuda", &mixed, &["--resume_from_checkpoint"]);
        for file in ["model.safetensors", "optimizer.safetensors"] {
            let of = |name: &str| fs::read(place.path(name).join("checkpoint-2").join(file)).unwrap();
            assert!(of(&gpu) == of(&mixed), "{command}: {file} after a resume");
        }
        // A checkpoint of the GPU goes on on the CPU.
        copy(&place.path(&gpu), &place.path("moved"), &["checkpoint-2"]);
        train(command, "cpu", "moved", &["--resume_from_checkpoint"]);
        for (a, b) in losses("moved").iter().zip(&theirs) {
            assert!((a - b).abs() <= 1e-5 * b.abs().max(0.01), "{command}, moved: {a} and {b}");
        }
        fs::remove_dir_all(place.path("moved")).unwrap();
    }
}

fn copy(from: &Path, to: &Path, but: &[&str]) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let name = entry.file_name();
        if but.iter().any(|left_out| name == *left_out) {
            continue;
        }
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to.join(name), &[]),
            false => drop(fs::copy(entry.path(), to.join(name)).unwrap()),
        }
    }
}

#[test]
fn parity_passes_from_the_command_line() {
    let Some(place) = Place::new() else { return };
    let text = place.success(&["parity", "--model", &checkpoint(), "--device", "cuda"], &[]).unwrap();
    assert!(text.contains(" 0 FAIL"), "{text}");
}

/// The one line on standard error of a command that fails with a code.
#[track_caller]
fn refusal(output: &Output, code: i32) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.starts_with("error: ") && said.lines().count() == 1 && output.stdout.is_empty(), "{said}");
    said
}

#[test]
fn case_58_the_gpus_memory_runs_out() {
    let Some(place) = Place::new() else { return };
    let (data, out) = (place.path("data"), place.path("out"));
    // Room for the driver's own and for some of the weights.
    let small = "cc=90 memory=200000";
    let generate = on("generate", "cuda", "f32", &["--prompt", "x", "--max_completion_length", "4"]);
    let Some(generated) = place.run_on(small, &words(&generate), &[]) else { return };
    let said = refusal(&generated, 71);
    assert!(said.contains("the GPU is out of memory") && said.contains("weights"), "{said}");
    let grpo = on("grpo", "cuda", "f32", &["--max_steps", "1"]);
    let paths: [(&str, &Path); 2] = [("--dataset", &data), ("--output_dir", &out)];
    let said = refusal(&place.run_on(small, &words(&grpo), &paths).unwrap(), 71);
    assert!(said.contains("training this model takes at least"), "{said}");
    assert!(!out.join("checkpoint-1").exists());
}

#[test]
fn case_60_no_gpu_or_none_that_works() {
    let Some(place) = Place::new() else { return };
    let generate =
        |device: &str| on("generate", device, "auto", &["--prompt", "x", "--max_completion_length", "2"]);
    for (configuration, device, part) in [
        ("cc=90", "cuda:7", "there is no GPU 7"),
        ("devices=0", "cuda", "sees no GPU"),
        ("driver=11080", "cuda", "update it to R525 or newer"),
        ("cc=75", "cuda", "is too old"),
    ] {
        let Some(output) = place.run_on(configuration, &words(&generate(device)), &[]) else { return };
        let said = refusal(&output, 69);
        assert!(said.contains(part), "{configuration}: {said}");
    }
    // Not asked for by name, a GPU that cannot be used is passed over: with the reason, where there is one.
    for (configuration, reason) in [("devices=0", None), ("cc=75", Some("is too old"))] {
        let output = place.run_on(configuration, &words(&generate("auto")), &[]).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert_eq!(said.contains("computing on the CPU: "), reason.is_some(), "{said}");
        assert!(reason.is_none_or(|reason| said.contains(reason)), "{said}");
    }
}
