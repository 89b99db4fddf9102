//! A run that stops after any step and goes on is the run that never stopped, bit for bit; a step that cannot be made
//! changes nothing.

mod common;

use common::*;
use othink::checkpoint::{Identity, SavedRun, TrainerState, checkpoint_dir};
use othink::config::KlEstimator;
use othink::data::Dataset;
use othink::disk::SystemDisk;
use othink::error::{Error, Result};
use othink::nn::Params;
use othink::rollout::Watch;
use othink::tensor::DType;
use othink::train::grpo::{GrpoTrainer, ReferenceSync};
use othink::train::interrupt::Interrupt;
use othink::train::policy::Policy;
use othink::train::resume::{dataset_hash, model_hash};
use othink::train::run::{RunOptions, run};
use othink::train::trainer::{Skipped, Step, Trainer, TrainerParts};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn options(dir: &Path) -> RunOptions {
    RunOptions {
        dir: dir.to_path_buf(),
        disk: Arc::new(SystemDisk),
        save_steps: 1,
        save_total_limit: None,
        save_only_model: false,
        metric_for_best_model: String::new(),
        logging_steps: 0,
        logging_first_step: false,
        events: None,
        log_completions: true,
        print_completions: 0,
        quiet: true,
        interrupt: Interrupt::default(),
    }
}

/// Runs to the end; from the checkpoint of `from`, if there is one.
fn go(
    trainer: &mut dyn Trainer,
    samples: &Dataset,
    steps: u64,
    options: &RunOptions,
    from: Option<&Path>,
) -> Result<()> {
    let identity = Identity {
        command: "test".into(),
        options: Map::new(),
        model_hash: model_hash(trainer.policy(), None).unwrap(),
        dataset_hash: dataset_hash(samples).unwrap(),
        max_steps: steps,
    };
    let state: Option<TrainerState> = from.map(|checkpoint| {
        let saved = SavedRun::read(checkpoint).unwrap();
        assert_eq!(saved.state.identity, identity);
        let state = saved.state.clone();
        trainer.restore(saved, samples).unwrap();
        state
    });
    run(trainer, samples, options, identity, state, None).map(drop)
}

/// Everything in a run folder that has to be equal: logs without what the clock says, every file of every checkpoint.
fn content(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".jsonl") {
                let text = std::fs::read_to_string(&path).unwrap();
                let rows = text.lines().map(|line| {
                    let mut row: Map<String, Value> = serde_json::from_str(line).unwrap();
                    row.retain(|key, _| !key.starts_with("step_time"));
                    format!("{}\n", Value::Object(row))
                });
                files.insert(name, rows.collect::<String>().into_bytes());
            } else {
                files.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// Runs `steps` steps at once, then again from each of its checkpoints, with a new trainer: the folders are the same.
fn check(steps: u64, samples: &Dataset, new: impl Fn() -> Box<dyn Trainer>) {
    let whole = tempfile::tempdir().unwrap();
    go(&mut *new(), samples, steps, &options(whole.path()), None).unwrap();
    let expected = content(whole.path());
    let weights = |step| &expected[&format!("checkpoint-{step}/model.safetensors")];
    assert_ne!(weights(1), weights(steps), "nothing was learned");
    for from in 1..=steps {
        let dir = tempfile::tempdir().unwrap();
        // What the run had left when it was killed during the next step: later rows, half a line, no later checkpoint.
        for entry in std::fs::read_dir(whole.path()).unwrap() {
            let path = entry.unwrap().path();
            let to = dir.path().join(path.file_name().unwrap());
            if path.is_file() {
                std::fs::write(to, [&std::fs::read(&path).unwrap()[..], b"{\"step\": 3, \"lo"].concat())
                    .unwrap();
            }
        }
        for step in 1..=from {
            let (a, b) = (checkpoint_dir(whole.path(), step), checkpoint_dir(dir.path(), step));
            std::fs::create_dir(&b).unwrap();
            for entry in std::fs::read_dir(a).unwrap() {
                let path = entry.unwrap().path();
                std::fs::copy(&path, b.join(path.file_name().unwrap())).unwrap();
            }
        }
        let checkpoint = checkpoint_dir(dir.path(), from);
        go(&mut *new(), samples, steps, &options(dir.path()), Some(&checkpoint)).unwrap();
        let found = content(dir.path());
        let differ: Vec<_> =
            expected.iter().filter(|(name, bytes)| found.get(*name) != Some(bytes)).collect();
        let names: Vec<_> = differ.iter().map(|(name, _)| name).collect();
        assert!(names.is_empty() && found.len() == expected.len(), "from step {from}: {names:?} differ");
    }
}

fn grpo(bundle: &'static str, recipe: Recipe, steps: u64) {
    let samples = Dataset::from_samples(conversations(bundle)).prompts();
    let rows = samples.rows();
    check(steps, &samples, || {
        Box::new(grpo_trainer(policy(bundle, DType::F32), &recipe, Box::new(EvenInTheFirstRow), rows))
    });
}

/// A run whose stream and reference are state: both begin to differ from what the step tells within its steps.
fn with_more_state() -> Recipe {
    let sync = ReferenceSync { every: 2, mixup_alpha: 0.6, resets_optimizer: true };
    Recipe {
        num_iterations: 2,
        micro_batch: 2,
        max_resample_times: Some(2),
        reference_sync: Some(sync),
        ..Recipe::default()
    }
}

#[test]
fn stream_and_reference_go_on_where_they_were() {
    grpo("tied_kv1_odd", with_more_state(), 7);
}

#[test]
fn grpo_goes_on_from_every_step() {
    // Two and three steps over one rollout: most checkpoints stand in the middle of one.
    grpo("tied_kv1_odd", Recipe { num_iterations: 2, micro_batch: 2, ..Recipe::default() }, 5);
    grpo("qwen2_vl_a", Recipe { num_iterations: 3, estimator: KlEstimator::K1, ..Recipe::default() }, 4);
    grpo("qwen2_vl_a", Recipe { estimator: KlEstimator::Full, ..Recipe::default() }, 2);
    grpo("qwen2_5_bf16_sharded", Recipe { num_iterations: 2, ..Recipe::default() }, 3);
}

#[test]
fn weights_that_are_stored_in_bf16_go_on_in_f32() {
    grpo("bf16_sharded", Recipe { num_iterations: 2, learning_rate: 1e-4, ..Recipe::default() }, 3);
}

#[test]
fn sft_goes_on_from_every_step() {
    let samples = Dataset::from_samples(conversations("bf16_sharded"));
    check(3, &samples, || {
        Box::new(sft_trainer(policy("bf16_sharded", DType::F32), samples.rows(), 2, 1e-3, false))
    });
}

/// Fails at the n-th time that work looks whether to go on.
struct Stopped<'a> {
    trainer: &'a mut dyn Trainer,
    looks: AtomicUsize,
    at: usize,
}

impl Trainer for Stopped<'_> {
    fn policy(&self) -> &Policy {
        self.trainer.policy()
    }

    fn step(&mut self, step: u64, samples: &Dataset, watch: Watch<'_>) -> Result<Step> {
        let (looks, at) = (&self.looks, self.at);
        self.trainer.step(step, samples, &|n| {
            if looks.fetch_add(1, Ordering::Relaxed) == at {
                return Err(Error::Interrupted("stopped by the test".into()));
            }
            watch(n)
        })
    }

    fn skipped(&mut self, step: u64, samples: &Dataset) -> Skipped {
        self.trainer.skipped(step, samples)
    }

    fn weights(&self) -> Result<Arc<Params>> {
        self.trainer.weights()
    }

    fn state(&self) -> Result<TrainerParts> {
        self.trainer.state()
    }

    fn restore(&mut self, saved: SavedRun, samples: &Dataset) -> Result<()> {
        self.trainer.restore(saved, samples)
    }
}

/// Wherever in rollout, reference, forward or backward a signal arrives, the step is left whole or not begun.
#[test]
fn case_62_a_stop_at_any_moment_loses_and_changes_nothing() {
    stops_at_any_moment(&Recipe { num_iterations: 2, micro_batch: 2, ..Recipe::default() }, 1);
}

#[test]
fn case_62_also_where_stream_and_reference_are_state() {
    stops_at_any_moment(&with_more_state(), 5);
}

/// Stops a run at every `nth` look whether to go on.
fn stops_at_any_moment(recipe: &Recipe, nth: usize) {
    let bundle = "tied_kv1_odd";
    let samples = Dataset::from_samples(conversations(bundle)).prompts();
    let new =
        || grpo_trainer(policy(bundle, DType::F32), recipe, Box::new(EvenInTheFirstRow), samples.rows());
    let steps = 4;
    let whole = tempfile::tempdir().unwrap();
    let quiet = |dir: &Path| RunOptions { save_steps: 0, ..options(dir) };
    go(&mut new(), &samples, steps, &quiet(whole.path()), None).unwrap();
    let expected = content(whole.path());
    let mut stops = 0;
    for at in (0..).step_by(nth) {
        let dir = tempfile::tempdir().unwrap();
        let mut trainer = new();
        let mut stopped = Stopped { trainer: &mut trainer, looks: AtomicUsize::new(0), at };
        let first = go(&mut stopped, &samples, steps, &quiet(dir.path()), None);
        let Err(error) = first else { break };
        stops += 1;
        assert_eq!(error.exit_code(), 75, "{error}");
        let saved = (1..steps).map(|step| checkpoint_dir(dir.path(), step)).find(|dir| dir.exists());
        assert_eq!(saved.is_some(), error.to_string().contains("everything is in"), "{error}");
        go(&mut new(), &samples, steps, &quiet(dir.path()), saved.as_deref()).unwrap();
        saved.map_or(Ok(()), std::fs::remove_dir_all).unwrap();
        let found = content(dir.path());
        let differ: Vec<_> =
            expected.iter().filter(|(name, bytes)| found.get(*name) != Some(bytes)).collect();
        let names: Vec<_> = differ.iter().map(|(name, _)| name).collect();
        assert!(
            names.is_empty() && found.len() == expected.len(),
            "stopped at look {at}: {names:?} differ: {error}"
        );
    }
    // Two rollouts of up to 8 tokens, their references, 4 steps of 4 micro-batches.
    assert!(stops > 30 / nth, "{stops} stops");
}

/// Set in the process that [`case_62_a_second_signal_ends_at_once`] starts.
const CHILD: &str = "OTHINK_TEST_IGNORES_REQUESTS";

/// A process that takes no notice of a request. As a test of its own it has nothing to do.
#[test]
fn a_process_that_goes_on() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let interrupt = Interrupt::by_signals().unwrap();
    println!("listening");
    while interrupt.check().is_ok() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    println!("requested");
    std::thread::sleep(std::time::Duration::from_secs(60));
}

#[cfg(unix)]
#[test]
fn case_62_a_second_signal_ends_at_once() {
    use std::io::BufRead;
    use std::os::unix::process::ExitStatusExt;
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_process_that_goes_on", "--nocapture"])
        .env(CHILD, "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let mut wait_for = |word: &str| while !lines.next().unwrap().unwrap().contains(word) {};
    wait_for("listening");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    wait_for("requested");
    // The same request again does nothing; a second later it does.
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none());
    let start = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(start.elapsed().as_secs() < 30, "it goes on");
        std::thread::sleep(std::time::Duration::from_millis(500));
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    assert_eq!(child.wait().unwrap().signal(), Some(15));
}

/// Takes the finite weights away for some steps, as a fault in memory would.
struct Broken {
    trainer: GrpoTrainer,
    steps: std::ops::Range<u64>,
}

impl Trainer for Broken {
    fn policy(&self) -> &Policy {
        &self.trainer.policy
    }

    fn step(&mut self, step: u64, samples: &Dataset, watch: Watch<'_>) -> Result<Step> {
        let good = self.trainer.policy.params.clone();
        if self.steps.contains(&step) {
            edit(&mut self.trainer.policy.params, "model.norm.weight", |weights| weights.fill(f32::NAN));
        }
        let done = Trainer::step(&mut self.trainer, step, samples, watch);
        if self.steps.contains(&step) {
            self.trainer.policy.params = good;
        }
        done
    }

    fn skipped(&mut self, step: u64, samples: &Dataset) -> Skipped {
        self.trainer.skipped(step, samples)
    }

    fn weights(&self) -> Result<Arc<Params>> {
        self.trainer.weights()
    }

    fn state(&self) -> Result<TrainerParts> {
        Trainer::state(&self.trainer)
    }

    fn restore(&mut self, saved: SavedRun, samples: &Dataset) -> Result<()> {
        self.trainer.restore(saved, samples)
    }
}

fn rows(path: &Path) -> Vec<Map<String, Value>> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A run of 6 steps, two of which share a rollout, in which some steps have NaN for weights. Gives its folder and end.
fn with_broken_steps(steps: std::ops::Range<u64>) -> (tempfile::TempDir, Result<()>) {
    let bundle = "qwen2_vl_a";
    let samples = Dataset::from_samples(conversations(bundle)).prompts();
    let recipe = Recipe { num_iterations: 2, ..Recipe::default() };
    let trainer = grpo_trainer(policy(bundle, DType::F32), &recipe, Box::new(Vowels), samples.rows());
    let dir = tempfile::tempdir().unwrap();
    let options = RunOptions { save_total_limit: Some(1), ..options(dir.path()) };
    let ended = go(&mut Broken { trainer, steps }, &samples, 6, &options, None);
    (dir, ended)
}

#[test]
fn case_53_one_step_without_numbers_is_left_out() {
    let (dir, ended) = with_broken_steps(3..4);
    ended.unwrap();
    let metrics = rows(&dir.path().join("metrics.jsonl"));
    let skipped: Vec<_> = metrics.iter().map(|row| row["skipped_steps"].as_u64().unwrap()).collect();
    assert_eq!(skipped, [0, 0, 0, 1, 1, 1]);
    let known: Vec<_> =
        metrics[3].iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| key.as_str()).collect();
    assert_eq!(known, ["step", "epoch", "learning_rate", "beta", "num_tokens", "skipped_steps"]);
    assert!(metrics[4]["loss"].is_f64() && metrics[4]["grad_norm"].as_f64().unwrap() > 0.0);
    // The batch is kept with its samples: here the second pass over a rollout has failed.
    let batch = rows(&dir.path().join("skipped/step-3.jsonl"));
    assert_eq!(batch.len(), 8);
    assert!(batch.iter().all(|row| row["completion"].is_string() && row["advantage"].is_f64()));
    // The optimiser has not seen the step.
    let saved = SavedRun::read(&checkpoint_dir(dir.path(), 6)).unwrap();
    assert!(!saved.moments.is_empty() && saved.moments.iter().all(|moments| moments.as_state().step <= 5));
    assert!(saved.moments.iter().any(|moments| moments.as_state().step == 5));
    assert_eq!((saved.state.guard.skipped_steps, saved.state.guard.skipped_in_a_row), (1, 0));
}

#[test]
fn case_54_the_last_steps_decide_how_a_run_ends() {
    let (dir, ended) = with_broken_steps(4..6);
    let error = ended.unwrap_err();
    assert_eq!(error.exit_code(), 70);
    let part = "the last 2 of 6 steps could not be made, because of NaN or infinity as the warnings say: the weights saved are those of step 4";
    assert!(error.to_string().contains(part), "{error}");
    assert!(checkpoint_dir(dir.path(), 6).exists());
    // Where no step was made there is nothing to save.
    let samples = Dataset::from_samples(conversations("qwen2_vl_a")).prompts();
    let trainer =
        grpo_trainer(policy("qwen2_vl_a", DType::F32), &Recipe::default(), Box::new(Vowels), samples.rows());
    let dir = tempfile::tempdir().unwrap();
    let ended = go(&mut Broken { trainer, steps: 0..2 }, &samples, 2, &options(dir.path()), None);
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("the last 2 of 2 steps") && error.contains("nothing is saved"), "{error}");
    assert!(!checkpoint_dir(dir.path(), 2).exists() && dir.path().join("metrics.jsonl").exists());
}

#[test]
fn case_54_three_in_a_row_leave_the_last_good_checkpoint() {
    let (dir, ended) = with_broken_steps(2..5);
    let error = ended.unwrap_err();
    assert_eq!(error.exit_code(), 70);
    for part in ["3 steps in a row", "checkpoint-2", "--learning_rate", "skipped"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    // No save during the bad steps, though each was due and the limit is 1.
    let saved = SavedRun::read(&checkpoint_dir(dir.path(), 2)).unwrap();
    assert_eq!(saved.state.guard.skipped_steps, 0);
    for step in [1, 3, 4, 5, 6] {
        assert!(!checkpoint_dir(dir.path(), step).exists(), "{step}");
    }
}
