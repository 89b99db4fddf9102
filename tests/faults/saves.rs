//! Every operation of a save, and of a resume with the save after it, in all ways that a disk has to fail.

use crate::common::{bundle, policy};
use crate::disk::{EIO, ENOSPC, Fault, FaultyDisk, folder};
use othink::checkpoint::{
    Best, Identity, ResumeState, SavePlan, SavedRollout, SavedRun, Saver, Snapshot, TrainerState,
    checkpoint_dir, list_checkpoints, newest_whole, replace_file,
};
use othink::disk::Disk;
use othink::error::Result;
use othink::kl::BetaState;
use othink::model::folder::ModelFolder;
use othink::nn::Params;
use othink::optim::{AdamW, AdamWConfig, TensorState, param_groups};
use othink::report::{JsonLines, Row};
use othink::rollout::sequence::FinishReason;
use othink::rollout::{Completion, LogProbs};
use othink::tensor::DType;
use othink::train::lock::RunLock;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, LazyLock};

const MODEL: &str = "bf16_sharded";

/// Most are frozen: the optimiser's state is what makes a checkpoint large, and a test that makes thousands slow.
static PARAMS: LazyLock<Arc<Params>> = LazyLock::new(|| {
    let mut params = policy(MODEL, DType::F32).params;
    for prefix in ["visual", "model.embed", "model.layers.1", "model.layers.2"] {
        Arc::make_mut(&mut params).freeze(prefix);
    }
    params
});

fn plan() -> SavePlan {
    SavePlan::like(&ModelFolder::open(bundle(MODEL).to_str().unwrap()).unwrap()).unwrap()
}

/// A run after `step` steps. Every number depends on the step and on `variant`, so that nothing can be taken for
/// anything else.
fn snapshot(step: u64, variant: u64) -> Snapshot {
    let shift = (step * 10 + variant) as f32 * 1e-3;
    let mut params = PARAMS.clone();
    for (_, p) in Arc::make_mut(&mut params).iter_mut().filter(|(_, p)| p.trainable) {
        p.value.make_mut::<f32>().unwrap().iter_mut().for_each(|w| *w += shift);
    }
    let mut optimiser = AdamW::new(AdamWConfig::default(), param_groups(&params, false)).unwrap();
    for (_, p) in params.iter().filter(|(_, p)| p.trainable) {
        let (exp_avg, exp_avg_sq) = (vec![shift; p.value.len()], vec![shift * shift; p.value.len()]);
        let state = TensorState { name: &p.name, step, exp_avg: &exp_avg, exp_avg_sq: &exp_avg_sq };
        optimiser.restore(state).unwrap();
    }
    let completion = Completion {
        tokens: vec![step as u32, 7, 8],
        logps: LogProbs::of_host(&[vec![-shift; 3]]).unwrap().remove(0),
        finish: FinishReason::Length,
        text: format!("completion {step} \u{1b}[31m"),
    };
    let rollout = SavedRollout {
        beta: f64::from(shift),
        places: vec![3, 5],
        refills: Default::default(),
        prompts: vec!["a".into(), "b".into()],
        completions: vec![vec![completion; 2]],
        scores: vec![vec![Some(1.0), None]; 2],
        difference: Some((0.0, 0.0)),
    };
    let state = TrainerState {
        global_step: step,
        num_input_tokens_seen: 100 * step + variant,
        identity: Identity {
            command: "grpo".into(),
            options: Row::new(),
            model_hash: "m".into(),
            dataset_hash: "d".into(),
            max_steps: 10,
        },
        beta: Some(BetaState { adaptive_beta: f64::from(shift) }),
        guard: Default::default(),
        evaluated_step: 0,
        best: Some(Best { step: 1, value: 0.5, metric: "eval_reward".into() }),
        stream: None,
        reference_synced: None,
    };
    Snapshot {
        step,
        params,
        resume: Some(ResumeState { state, optimiser, rollout: Some(rollout), reference: None }),
    }
}

type Tensors = BTreeMap<String, Vec<u32>>;

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Whether a folder holds a snapshot, to the bit.
fn holds(dir: &Path, snapshot: &Snapshot) -> bool {
    let saved = SavedRun::read(dir).unwrap_or_else(|e| panic!("{e}"));
    let resume = snapshot.resume.as_ref().unwrap();
    let weights: Tensors = saved.weights.iter().map(|(name, values)| (name.clone(), bits(values))).collect();
    let expected: Tensors =
        snapshot.params.iter().map(|(_, p)| (p.name.clone(), bits(&p.value.to_f32()))).collect();
    let moments: BTreeMap<_, _> = saved.moments.iter().map(|m| (m.as_state().name, m.as_state())).collect();
    saved.state == resume.state
        && saved.rollout == resume.rollout
        && weights == expected
        && moments == resume.optimiser.state().map(|slot| (slot.name, slot)).collect()
}

fn row(step: u64) -> Row {
    [("step".to_owned(), step.into()), ("loss".to_owned(), (0.1 * step as f64).into())].into_iter().collect()
}

/// What is done to a run folder, and what has to be in it afterwards.
struct Scenario {
    /// Checkpoints before, as steps; their variant is 0.
    before: &'static [u64],
    /// Leftovers of a run that was killed, and rows that it wrote after its last checkpoint.
    leftovers: bool,
    /// Whether the folder is taken and its logs continued, as a resumed run does.
    resumes: bool,
    /// The step of the save, variant 1.
    saves: u64,
    limit: Option<usize>,
    best: Option<u64>,
}

const PLAIN: Scenario =
    Scenario { before: &[1], leftovers: false, resumes: false, saves: 2, limit: None, best: None };

impl Scenario {
    /// The step from which the run goes on.
    fn starts(&self) -> u64 {
        self.before.iter().copied().max().unwrap_or(0)
    }

    fn prepare(&self, root: &Path) {
        let run = root.join("run");
        fs::create_dir(&run).unwrap();
        fs::write(run.join("notes.txt"), "a user's own").unwrap();
        fs::write(run.join("config.toml"), "old").unwrap();
        let disk: Arc<dyn Disk> = Arc::new(FaultyDisk::new(root));
        if !self.before.is_empty() {
            let mut log = JsonLines::create(&*disk, run.join("metrics.jsonl")).unwrap();
            (0..self.starts()).for_each(|step| log.append(&row(step)).unwrap());
        }
        let mut saver = Saver::new(disk, &run, plan(), None, Vec::new(), Vec::new(), None);
        for &step in self.before {
            saver.save(snapshot(step, 0), None).unwrap();
        }
        saver.finish().unwrap();
        if self.leftovers {
            fs::create_dir(run.join("checkpoint-3.tmp-9-0")).unwrap();
            fs::write(run.join("checkpoint-3.tmp-9-0/model.safetensors"), "half").unwrap();
            let newest = self.before.iter().max().unwrap();
            let at = checkpoint_dir(&run, *newest);
            fs::rename(&at, run.join(format!("checkpoint-{newest}.old-9-1"))).unwrap();
            let path = run.join("metrics.jsonl");
            let text = fs::read_to_string(&path).unwrap();
            let later = serde_json::to_string(&row(self.starts())).unwrap();
            fs::write(path, format!("{text}{later}\n{{\"step\":3,\"lo")).unwrap();
        }
    }

    /// What a run does to its folder up to its next save. Gives the operations after which a fault is no reason to
    /// stop.
    fn act(&self, disk: &FaultyDisk, root: &Path) -> Result<usize> {
        let (run, shared): (_, Arc<dyn Disk>) = (root.join("run"), Arc::new(disk.clone()));
        let path = run.join("metrics.jsonl");
        let lock = self.resumes.then(|| RunLock::take(disk, &run)).transpose()?;
        let mut log = match self.starts() {
            0 => JsonLines::create(disk, &path)?,
            step => JsonLines::resume(disk, &path, step)?,
        };
        if self.resumes {
            replace_file(disk, &run.join("config.toml"), b"new")?;
        }
        let opened = disk.operations();
        for step in self.starts()..self.saves {
            // A refused line waits; the save comes only when none does.
            let _ = log.append(&row(step));
        }
        log.file().flush()?;
        let kept = list_checkpoints(&run)?.into_iter().filter(|&step| step <= self.starts()).collect();
        let mut saver =
            Saver::new(shared, &run, plan(), self.limit, vec![log.file().clone()], kept, self.best);
        saver.save(snapshot(self.saves, 1), self.best)?;
        saver.finish()?;
        drop(lock);
        Ok(opened)
    }

    /// Looks at the folder as the next run does.
    fn check(&self, root: &Path, is_done: bool, what: &str) {
        let run = root.join("run");
        let disk = FaultyDisk::new(root);
        drop(RunLock::take(&disk, &run).unwrap_or_else(|e| panic!("{what}: {e}")));
        let newest = newest_whole(&run).unwrap_or_else(|e| panic!("{what}: {e}"));
        let previous = self.before.iter().copied().max();
        assert!(
            newest.step == Some(self.saves) || (newest.step == previous && !is_done),
            "{what}: {newest:?}"
        );
        if let Some(step) = newest.step {
            let dir = checkpoint_dir(&run, step);
            let is_new = step == self.saves && holds(&dir, &snapshot(step, 1));
            let is_old = !is_done && self.before.contains(&step) && holds(&dir, &snapshot(step, 0));
            assert!(is_new || is_old, "{what}: {} holds something else", dir.display());
            let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
            let expected: String =
                (0..step).map(|step| format!("{}\n", serde_json::to_string(&row(step)).unwrap())).collect();
            assert!(text.starts_with(&expected), "{what}: after step {step} the rows are {text:?}");
        }
        if let Some(best) = self.best {
            assert!(holds(&checkpoint_dir(&run, best), &snapshot(best, 0)), "{what}: the best one");
        }
        // What no limit removes is there as it was.
        let removable =
            |step: &&u64| self.limit.is_some() && Some(**step) != previous || **step == self.saves;
        for &step in self.before.iter().filter(|step| !removable(step) && self.limit.is_none()) {
            assert!(holds(&checkpoint_dir(&run, step), &snapshot(step, 0)), "{what}: checkpoint {step}");
        }
        assert_eq!(fs::read(run.join("notes.txt")).unwrap(), b"a user's own", "{what}");
        let config = fs::read_to_string(run.join("config.toml")).unwrap();
        assert!(config == "old" || config == "new", "{what}: {config:?}");
        let names: Vec<String> =
            fs::read_dir(&run).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        let leftover = names.iter().find(|name| name.contains(".tmp") || name.contains(".old"));
        assert_eq!(leftover, None, "{what}");
        // And it goes on from there.
        let kept = list_checkpoints(&run).unwrap();
        let mut saver = Saver::new(Arc::new(disk), &run, plan(), self.limit, Vec::new(), kept, self.best);
        saver.save(snapshot(9, 0), self.best).unwrap();
        assert_eq!(saver.finish().unwrap().0, Some(checkpoint_dir(&run, 9)), "{what}");
        if let Some(limit) = self.limit {
            let kept = list_checkpoints(&run).unwrap();
            assert_eq!(
                kept.len(),
                limit + usize::from(self.best.is_some() && limit == 1),
                "{what}: {kept:?}"
            );
        }
    }

    /// Every operation: fails once in each way, fails together with the next ones, is the first of a disk that is gone,
    /// is the first that a power cut prevents.
    fn every_operation(&self) {
        let (operations, opened) = {
            let root = self.root();
            let disk = FaultyDisk::new(root.path());
            let opened = self.act(&disk, root.path()).unwrap();
            disk.cut_power(None);
            self.check(root.path(), true, "undisturbed");
            (disk.operations(), opened)
        };
        assert!(operations > 20, "{operations}");
        for at in 0..=operations {
            for (fault, lasts) in [
                (Fault::once(at, EIO), false),
                (Fault::once(at, ENOSPC), false),
                (Fault { count: 3, ..Fault::once(at, EIO) }, false),
                (Fault::for_good(at, ENOSPC), true),
            ] {
                let root = self.root();
                let disk = FaultyDisk::with(root.path(), fault);
                let done = self.act(&disk, root.path());
                let what = format!("{fault:?} {:?}", disk.failed());
                match &done {
                    Ok(_) => {}
                    Err(error) => {
                        assert!(lasts || fault.count > 1 || at < opened, "{what}: {error}");
                        assert_eq!(error.exit_code(), 74, "{what}: {error}");
                        assert!(!error.to_string().contains("internal"), "{what}: {error}");
                    }
                }
                // What is said to be done outlasts a power cut.
                if done.is_ok() {
                    disk.cut_power(None);
                }
                self.check(root.path(), done.is_ok(), &what);
            }
            let root = self.root();
            let disk = FaultyDisk::with(root.path(), Fault::for_good(at, EIO));
            let done = self.act(&disk, root.path());
            let first = disk.failed().first().cloned().unwrap_or_default();
            // Where names are what is at stake, every order in which they may reach the disk.
            let names = ["rename", "remove", "sync run"].iter().any(|kind| first.contains(kind));
            for seed in [None].into_iter().chain((0..if names { 16 } else { 2 }).map(Some)) {
                disk.cut_power(seed);
                self.check(root.path(), done.is_ok(), &format!("power cut at {first:?}, {seed:?}"));
            }
        }
    }

    fn root(&self) -> tempfile::TempDir {
        let root = folder();
        self.prepare(root.path());
        root
    }
}

#[test]
fn case_63_a_save_beside_an_older_one() {
    PLAIN.every_operation();
}

#[test]
fn case_63_the_first_save_of_a_run() {
    Scenario { before: &[], saves: 1, ..PLAIN }.every_operation();
}

#[test]
fn case_63_a_save_that_takes_the_place_of_the_only_one() {
    Scenario { limit: Some(1), ..PLAIN }.every_operation();
}

#[test]
fn case_63_a_save_beside_the_best_one() {
    Scenario { before: &[1, 2], saves: 3, limit: Some(1), best: Some(1), ..PLAIN }.every_operation();
}

#[test]
fn case_63_a_save_over_a_folder_of_the_same_name() {
    Scenario { before: &[2], saves: 2, limit: Some(1), ..PLAIN }.every_operation();
}

#[test]
fn case_63_a_resume_and_the_save_after_it() {
    Scenario { before: &[1, 2], leftovers: true, resumes: true, saves: 3, limit: Some(1), ..PLAIN }
        .every_operation();
}
