//! Whole GRPO runs on a disk with faults, resumed as the command line resumes them: they end as if nothing had happened.

use crate::common::{Recipe, Vowels, conversations, grpo_trainer, policy};
use crate::disk::{EIO, ENOSPC, EROFS, Fault, FaultyDisk, folder};
use othink::checkpoint::{Identity, SavedRun, checkpoint_dir, list_checkpoints, newest_whole};
use othink::config::{CheckpointOptions, Strategy};
use othink::data::Dataset;
use othink::error::Result;
use othink::nn::Params;
use othink::report::{Row, read_rows};
use othink::reward::{Completed, Reward, RewardSet};
use othink::rng::{Purpose, Stream};
use othink::rollout::Watch;
use othink::rollout::sampler::SamplingParams;
use othink::tensor::DType;
use othink::train::evaluate::EvaluationOptions;
use othink::train::folder::RunFolder;
use othink::train::grpo::GrpoTrainer;
use othink::train::interrupt::Interrupt;
use othink::train::policy::Policy;
use othink::train::resume::{dataset_hash, model_hash};
use othink::train::run::{Evaluation, Events, RunOptions, run};
use othink::train::trainer::{Skipped, Step, Trainer, TrainerParts};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

const MODEL: &str = "bf16_sharded";
const STEPS: u64 = 4;

/// A trainer that is asked to stop at one of the moments at which it looks.
struct Stopped {
    inner: GrpoTrainer,
    looks: AtomicUsize,
    at: Option<usize>,
    interrupt: Interrupt,
}

impl Trainer for Stopped {
    fn policy(&self) -> &Policy {
        &self.inner.policy
    }

    fn step(&mut self, step: u64, samples: &Dataset, watch: Watch<'_>) -> Result<Step> {
        let Stopped { inner, looks, at, interrupt } = self;
        let counted = |n| {
            if Some(looks.fetch_add(1, Ordering::Relaxed)) == *at {
                interrupt.request(15);
            }
            watch(n)
        };
        Trainer::step(inner, step, samples, &counted)
    }

    fn skipped(&mut self, step: u64, samples: &Dataset) -> Skipped {
        self.inner.skipped(step, samples)
    }

    fn weights(&self) -> Result<Arc<Params>> {
        self.inner.weights()
    }

    fn state(&self) -> Result<TrainerParts> {
        self.inner.state()
    }

    fn restore(&mut self, saved: SavedRun, samples: &Dataset) -> Result<()> {
        self.inner.restore(saved, samples)
    }
}

/// A reward of evaluations during one of which the run is asked to stop.
struct StopsAtScore {
    scores: AtomicUsize,
    at: Option<usize>,
    interrupt: Interrupt,
}

impl Reward for StopsAtScore {
    fn name(&self) -> &str {
        Vowels.name()
    }

    fn score(&self, completions: &[Completed<'_>], watch: Watch<'_>) -> Result<Vec<Option<f64>>> {
        for _ in completions {
            if Some(self.scores.fetch_add(1, Ordering::Relaxed)) == self.at {
                self.interrupt.request(10);
            }
        }
        Vowels.score(completions, watch)
    }
}

/// How a run is started.
#[derive(Clone, Copy)]
struct Start {
    resumes: bool,
    /// Resumes from the checkpoint of this step and not from the newest one.
    from: Option<u64>,
    save_steps: usize,
    /// The look of the trainer, and the score of an evaluation, at which it is asked to stop.
    stop_at: Option<usize>,
    stop_at_score: Option<usize>,
}

const NEW: Start = Start { resumes: false, from: None, save_steps: 1, stop_at: None, stop_at_score: None };
const RESUMED: Start = Start { resumes: true, ..NEW };

/// Runs in `root/run` until the end or an error. Gives how often the trainer looked whether to stop.
fn attempt(disk: &FaultyDisk, root: &Path, start: Start) -> Result<usize> {
    let dir = root.join("run");
    let checkpoint = CheckpointOptions {
        output_dir: dir.clone(),
        overwrite_output_dir: false,
        save_strategy: Strategy::Steps,
        save_steps: start.save_steps,
        save_total_limit: Some(2),
        save_only_model: false,
        resume_from_checkpoint: match start.from {
            Some(step) => Some(checkpoint_dir(&dir, step).display().to_string()),
            None => start.resumes.then(|| "true".into()),
        },
        allow_change: Vec::new(),
    };
    let disk: Arc<FaultyDisk> = Arc::new(disk.clone());
    let folder = RunFolder::take(disk.clone(), &checkpoint, true)?;
    let samples = Dataset::from_samples(conversations(MODEL)).prompts();
    let recipe = Recipe {
        steps: STEPS,
        prompts: 2,
        group: 2,
        micro_batch: 2,
        num_iterations: 2,
        sampling: SamplingParams { max_new_tokens: 4, ..SamplingParams::default() },
        ..Recipe::default()
    };
    let inner = grpo_trainer(policy(MODEL, DType::F32), &recipe, Box::new(Vowels), samples.rows());
    let identity = Identity {
        command: "grpo".into(),
        options: Row::new(),
        model_hash: model_hash(&inner.policy, None).unwrap(),
        dataset_hash: dataset_hash(&samples).unwrap(),
        max_steps: STEPS,
    };
    let interrupt = Interrupt::default();
    let mut trainer =
        Stopped { inner, looks: AtomicUsize::new(0), at: start.stop_at, interrupt: interrupt.clone() };
    let resumed = folder.begin(&identity, &mut trainer, &samples, "seed = 7\n")?;
    let events = Events { dir: dir.join("runs").join("run"), config: "seed = 7\n".into() };
    let options = RunOptions {
        dir,
        disk,
        save_steps: start.save_steps,
        save_total_limit: checkpoint.save_total_limit,
        save_only_model: false,
        metric_for_best_model: "eval_reward".into(),
        logging_steps: 0,
        logging_first_step: false,
        events: Some(events),
        log_completions: true,
        print_completions: 0,
        quiet: true,
        interrupt,
    };
    let judge = StopsAtScore {
        scores: AtomicUsize::new(0),
        at: start.stop_at_score,
        interrupt: options.interrupt.clone(),
    };
    let evaluation = Evaluation {
        samples: samples.clone(),
        supervised: None,
        rewards: RewardSet::from_rewards(vec![Box::new(judge)], &[]).unwrap(),
        options: EvaluationOptions {
            sampling: SamplingParams { greedy: true, max_new_tokens: 4, ..SamplingParams::default() },
            stop_strings: Vec::new(),
            max_prompt_length: None,
            batch_size: 1,
            seed: 7,
        },
        every: 2,
    };
    run(&mut trainer, &samples, &options, identity, resumed, Some(&evaluation))?;
    Ok(trainer.looks.into_inner())
}

/// What a finished run leaves: every byte of its last checkpoint, every row of its logs but what the clock says.
#[derive(Debug, PartialEq)]
struct End {
    checkpoint: BTreeMap<PathBuf, Vec<u8>>,
    logs: BTreeMap<&'static str, Vec<Row>>,
}

fn end(root: &Path) -> End {
    let dir = root.join("run");
    let files = fs::read_dir(checkpoint_dir(&dir, STEPS)).unwrap().map(|entry| entry.unwrap());
    let checkpoint = files.map(|file| (file.file_name().into(), fs::read(file.path()).unwrap())).collect();
    let logs = ["metrics.jsonl", "completions.jsonl", "eval_metrics.jsonl"].map(|name| {
        let mut rows: Vec<Row> = read_rows(dir.join(name)).unwrap();
        rows.iter_mut()
            .for_each(|row| row.retain(|key, _| !key.starts_with("step_time") && key != "eval_runtime"));
        (name, rows)
    });
    End { checkpoint, logs: logs.into() }
}

struct Undisturbed {
    end: End,
    operations: usize,
    syncs: usize,
    looks: usize,
}

fn undisturbed(start: Start) -> Undisturbed {
    let root = folder();
    let disk = FaultyDisk::new(root.path());
    let looks = attempt(&disk, root.path(), start).unwrap();
    let end = end(root.path());
    assert_eq!(end.logs["metrics.jsonl"].len(), STEPS as usize);
    assert_eq!(end.logs["completions.jsonl"].len(), 8);
    assert_eq!(end.logs["eval_metrics.jsonl"].len(), 2);
    Undisturbed { end, operations: disk.operations(), syncs: disk.operations_of("sync"), looks }
}

static UNDISTURBED: LazyLock<Undisturbed> = LazyLock::new(|| undisturbed(NEW));

fn is_as(expected: &End, root: &Path, what: &str) {
    let found = end(root);
    assert_eq!(found.logs, expected.logs, "{what}");
    let differing: Vec<_> = expected
        .checkpoint
        .iter()
        .filter(|(name, bytes)| found.checkpoint.get(*name) != Some(bytes))
        .map(|(name, _)| name)
        .collect();
    assert!(
        differing.is_empty() && found.checkpoint.len() == expected.checkpoint.len(),
        "{what}: {differing:?}"
    );
}

/// Operations to disturb: a sample that is the same every time.
fn sample(count: usize, id: u64) -> Vec<usize> {
    let mut stream = Stream::new(11, Purpose::Task, id);
    (0..count).map(|_| stream.below(UNDISTURBED.operations as u32) as usize).collect()
}

fn is_as_undisturbed(root: &Path, what: &str) {
    is_as(&UNDISTURBED.end, root, what);
}

/// Goes on with a run that has ended, on a disk without faults.
fn finish(root: &Path, what: &str) {
    attempt(&FaultyDisk::new(root), root, RESUMED).unwrap_or_else(|e| panic!("{what}: {e}"));
    is_as_undisturbed(root, what);
}

/// Whether a step was made.
fn has_begun(root: &Path) -> bool {
    fs::read(root.join("run/metrics.jsonl")).is_ok_and(|rows| !rows.is_empty())
}

#[test]
fn case_64_a_fault_that_passes_changes_nothing() {
    for (at, errno) in sample(24, 0).into_iter().zip([EIO, ENOSPC].into_iter().cycle()) {
        let root = folder();
        let root = root.path();
        let disk = FaultyDisk::with(root, Fault::once(at, errno));
        let done = attempt(&disk, root, NEW);
        let what = format!("{:?}", disk.failed());
        match done {
            Ok(_) => {
                disk.cut_power(None);
                is_as_undisturbed(root, &what);
            }
            // Before the first step there is nothing to be lost by stopping.
            Err(error) => {
                assert!(error.exit_code() == 74 && !has_begun(root), "{what}: {error}");
                finish(root, &what);
            }
        }
    }
}

#[test]
fn case_63_a_power_cut_at_any_moment_is_resumed_from() {
    for (id, at) in sample(24, 1).into_iter().enumerate() {
        let root = folder();
        let root = root.path();
        let mut what = String::new();
        // A second one hits the resumed run.
        for (round, at) in [at, at / 2].into_iter().enumerate() {
            let disk = FaultyDisk::with(root, Fault::for_good(at, EIO));
            let start = if round == 0 { NEW } else { RESUMED };
            let done = attempt(&disk, root, start);
            disk.cut_power((id % 3 > 0).then_some((10 * id + round) as u64));
            what += &format!("{:?} ", disk.failed().first());
            if let Err(error) = done {
                assert_eq!(error.exit_code(), 74, "{what}: {error}");
            }
        }
        finish(root, &what);
    }
}

#[test]
fn case_64_a_disk_that_stays_full_ends_the_run_and_costs_no_checkpoint() {
    for (at, errno) in sample(8, 2).into_iter().zip([ENOSPC, EROFS, EIO].into_iter().cycle()) {
        let root = folder();
        let root = root.path();
        let disk = FaultyDisk::with(root, Fault::for_good(at, errno));
        let done = attempt(&disk, root, NEW);
        let what = format!("{:?}", disk.failed().first());
        if let Err(error) = done {
            assert_eq!(error.exit_code(), 74, "{what}: {error}");
            // Every save before is there.
            let step = newest_whole(&root.join("run")).unwrap_or_else(|e| panic!("{what}: {e}")).step;
            let saves = UNDISTURBED.operations / STEPS as usize;
            assert!(step.unwrap_or(0) + 2 > (at / saves) as u64, "{what}: {step:?}");
        }
        finish(root, &what);
    }
}

#[test]
fn case_65_what_could_not_be_forced_to_disk_is_written_again() {
    let syncs = UNDISTURBED.syncs;
    assert!(syncs > 60, "{syncs}");
    for at in (0..syncs).step_by(4) {
        let root = folder();
        let root = root.path();
        let disk = FaultyDisk::with(root, Fault { only: "sync", ..Fault::once(at, EIO) });
        let done = attempt(&disk, root, NEW);
        let what = format!("{:?}", disk.failed());
        if done.is_err() {
            assert!(!has_begun(root), "{what}: the run had begun");
            continue;
        }
        disk.cut_power(None);
        is_as_undisturbed(root, &what);
    }
}

#[test]
fn case_64_the_last_lines_and_the_last_checkpoint_wait_for_a_disk_that_comes_back() {
    for only in ["write run/metrics.jsonl", "write run/eval_metrics.jsonl", "write run/checkpoint-4.tmp"] {
        let root = folder();
        let root = root.path();
        let from = if only.contains("eval") { 1 } else { (STEPS - 1) as usize };
        let disk = FaultyDisk::with(root, Fault { only, count: 3, ..Fault::once(from, ENOSPC) });
        attempt(&disk, root, NEW).unwrap();
        assert_eq!(disk.failed().len(), 3, "{only}");
        disk.cut_power(None);
        is_as_undisturbed(root, only);
    }
}

#[test]
fn case_64_a_save_that_was_put_off_comes_at_the_next_step() {
    let root = folder();
    let root = root.path();
    let start = Start { save_steps: 2, ..NEW };
    // The second row is refused, and again when it is to be saved.
    let fault = Fault { only: "write run/metrics.jsonl", count: 2, ..Fault::once(1, EIO) };
    attempt(&FaultyDisk::with(root, fault), root, start).unwrap();
    assert_eq!(list_checkpoints(&root.join("run")).unwrap(), [3, 4]);
}

#[test]
fn case_64_an_error_that_stays_is_told_with_its_reason() {
    let root = folder();
    let root = root.path();
    let fault = Fault { only: "write run/checkpoint-", ..Fault::for_good(0, ENOSPC) };
    let error = attempt(&FaultyDisk::with(root, fault), root, NEW).unwrap_err();
    assert_eq!(error.exit_code(), 74, "{error}");
    for part in ["No space left", "there is no checkpoint before", "--resume_from_checkpoint"] {
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    }
    finish(root, "a disk that was full");
}

#[test]
fn case_62_a_run_that_is_asked_to_stop_at_any_moment_is_resumed_from() {
    // Saves are rare here, so that the stop itself has to save what the iterations over a rollout share.
    let start = Start { save_steps: 3, ..NEW };
    let Undisturbed { end, looks, .. } = undisturbed(start);
    assert!(looks > 20, "{looks}");
    for at in (0..looks).step_by(looks / 20) {
        let root = folder();
        let root = root.path();
        let error =
            attempt(&FaultyDisk::new(root), root, Start { stop_at: Some(at), ..start }).expect_err("stopped");
        assert_eq!(error.exit_code(), 75, "{at}: {error}");
        assert!(error.to_string().contains("stopped by SIGTERM"), "{error}");
        attempt(&FaultyDisk::new(root), root, Start { resumes: true, ..start }).unwrap();
        is_as(&end, root, &format!("stopped at look {at} of {looks}"));
    }
}

#[test]
fn case_62_a_run_that_is_asked_to_stop_in_an_evaluation_makes_it_when_it_goes_on() {
    // Each of the two evaluations scores two rows.
    for at in [0, 2] {
        let root = folder();
        let root = root.path();
        let start = Start { stop_at_score: Some(at), ..NEW };
        let error = attempt(&FaultyDisk::new(root), root, start).expect_err("stopped");
        assert!(error.exit_code() == 75 && error.to_string().contains("SIGUSR1"), "{error}");
        finish(root, &format!("stopped at score {at}"));
    }
}

#[test]
fn an_older_checkpoint_is_gone_on_from_when_no_newer_one_is_there() {
    let root = folder();
    let root = root.path();
    attempt(&FaultyDisk::new(root), root, NEW).unwrap();
    let start = Start { from: Some(3), ..RESUMED };
    let error = attempt(&FaultyDisk::new(root), root, start).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    for part in ["checkpoint-4 is newer than", "checkpoint-3", "--output_dir"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    is_as_undisturbed(root, "refused");
    fs::remove_dir_all(checkpoint_dir(&root.join("run"), 4)).unwrap();
    attempt(&FaultyDisk::new(root), root, start).unwrap();
    is_as_undisturbed(root, "gone on from checkpoint-3");
}
