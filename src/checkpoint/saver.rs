//! Saving while training goes on.

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::atomic::{OnExisting, write_folder};
use super::plan::SavePlan;
use super::series::checkpoint_dir;
use super::state::{Snapshot, checkpoint_bytes};
use crate::disk::Disk;
use crate::error::{Error, Result};

/// Saves that were due in a row and could not be written after which the run ends.
const MAX_FAILED_SAVES: usize = 3;

/// Tries at the end of a run, when there is no next step to try again at.
const LAST_TRIES: usize = 3;

/// A file beside the checkpoints that has to be on disk before one appears, because a checkpoint vouches for it.
pub trait Log: Debug + Send + Sync {
    /// Forces what is in it to disk; after an error the next call begins by writing again what may be lost.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn force(&self, disk: &dyn Disk) -> Result<()>;
}

/// Writes the checkpoints of a run on a thread of its own, at most one at a time.
///
/// A save that fails costs nothing that is there: it is reported and tried again at the next step, with the state of
/// its step. Only when a checkpoint is whole and on disk do older ones go.
#[derive(Debug)]
pub struct Saver {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    plan: Arc<SavePlan>,
    limit: Option<usize>,
    logs: Vec<Arc<dyn Log>>,
    /// Steps of the checkpoints that are there, oldest first.
    kept: Vec<u64>,
    /// Step of the last checkpoint that was asked for.
    newest: Option<u64>,
    /// The checkpoint that no limit removes; always one that is there.
    best: Option<u64>,
    /// What is to be the best one, once it is there.
    next_best: Option<u64>,
    writing: Option<JoinHandle<Written>>,
    failed: Option<Snapshot>,
    /// Why the last write failed.
    reason: String,
    failed_saves: usize,
}

struct Written {
    snapshot: Snapshot,
    result: Result<()>,
    /// The checkpoints that were removed after it, and what to tell of that.
    removed: Vec<u64>,
    told: Vec<String>,
}

impl Saver {
    /// Saves into `dir`, which holds the checkpoints of the steps `kept`, oldest first; with a `limit`, the newest ones
    /// and the `best` one stay.
    pub fn new(
        disk: Arc<dyn Disk>,
        dir: &Path,
        plan: SavePlan,
        limit: Option<usize>,
        logs: Vec<Arc<dyn Log>>,
        kept: Vec<u64>,
        best: Option<u64>,
    ) -> Saver {
        Saver {
            disk,
            dir: dir.to_path_buf(),
            plan: Arc::new(plan),
            limit,
            logs,
            newest: kept.last().copied(),
            best: best.filter(|step| kept.contains(step)),
            next_best: None,
            kept,
            writing: None,
            failed: None,
            reason: String::new(),
            failed_saves: 0,
        }
    }

    /// Whether the newest checkpoint, there or under way, is that of `step`.
    pub fn has(&self, step: u64) -> bool {
        self.newest == Some(step)
    }

    /// Starts to write a checkpoint, after the one before is done. The checkpoint `best` stays whatever the limit says;
    /// while it is not there, the one that was the best before. Gives what a user should be told.
    ///
    /// # Errors
    /// [`Error::Io`] when this is the third save in a row that could not be written; what is wrong with the model.
    pub fn save(&mut self, snapshot: Snapshot, best: Option<u64>) -> Result<Vec<String>> {
        let told = self.join()?;
        self.next_best = best;
        self.newest = Some(snapshot.step);
        // The older state is not worth its place any more.
        if self.failed.take().is_some() {
            self.failed_saves += 1;
        }
        if self.failed_saves >= MAX_FAILED_SAVES {
            self.failed = Some(snapshot);
            return Err(self.give_up());
        }
        self.start(snapshot)?;
        Ok(told)
    }

    /// Looks at the write under way, without waiting for it; starts a failed one again. Gives what a user should be
    /// told. Called at every step.
    ///
    /// # Errors
    /// What is wrong with the model.
    pub fn poll(&mut self) -> Result<Vec<String>> {
        if let Some(snapshot) = self.failed.take() {
            self.start(snapshot)?;
        }
        match &self.writing {
            Some(thread) if thread.is_finished() => self.join(),
            _ => Ok(Vec::new()),
        }
    }

    /// Waits until everything is written, trying again a few times. Gives the newest checkpoint, and what a user should
    /// be told.
    ///
    /// # Errors
    /// [`Error::Io`] when the last save could not be written; what is wrong with the model.
    pub fn finish(&mut self) -> Result<(Option<PathBuf>, Vec<String>)> {
        let mut told = self.join()?;
        for pause_s in 0..LAST_TRIES as u64 {
            let Some(snapshot) = self.failed.take() else { break };
            self.disk.pause(Duration::from_secs(pause_s));
            self.start(snapshot)?;
            told.extend(self.join()?);
        }
        if self.failed.is_some() {
            return Err(self.give_up());
        }
        // Also those that a killed run had no time to remove.
        let (removed, also_told) = remove_all(&*self.disk, &self.dir, &self.beyond_limit(None));
        self.kept.retain(|step| !removed.contains(step));
        told.extend(also_told);
        Ok((self.kept.last().map(|&step| checkpoint_dir(&self.dir, step)), told))
    }

    fn give_up(&self) -> Error {
        let last = match self.kept.last() {
            Some(&step) => format!("{} is whole", checkpoint_dir(&self.dir, step).display()),
            None => "there is no checkpoint before".to_owned(),
        };
        Error::Io {
            path: self.dir.clone(),
            action: "save checkpoints",
            source: io::Error::other(format!(
                "it failed again and again ({}); {last}: make room or mend the disk, then go on with \
                 --resume_from_checkpoint",
                self.reason
            )),
        }
    }

    fn start(&mut self, snapshot: Snapshot) -> Result<()> {
        let old = self.beyond_limit(Some(snapshot.step));
        let (disk, plan, logs) = (self.disk.clone(), self.plan.clone(), self.logs.clone());
        let (dir, target) = (self.dir.clone(), checkpoint_dir(&self.dir, snapshot.step));
        let work = move || {
            let result = write(&*disk, &dir, &target, &plan, &logs, &snapshot);
            // Here and not in training's thread: a large folder takes its time.
            let (removed, told) = match result {
                Ok(()) => remove_all(&*disk, &dir, &old),
                Err(_) => Default::default(),
            };
            Written { snapshot, result, removed, told }
        };
        let thread = thread::Builder::new().name("checkpoint".into()).spawn(work);
        self.writing = Some(thread.map_err(|e| Error::io(&self.dir, "start the thread that saves", e))?);
        Ok(())
    }

    fn join(&mut self) -> Result<Vec<String>> {
        let Some(thread) = self.writing.take() else { return Ok(Vec::new()) };
        let Ok(Written { snapshot, result, removed, told }) = thread.join() else {
            return Err(Error::Internal("the thread that saves checkpoints has panicked".into()));
        };
        match result {
            Ok(()) => {
                self.failed_saves = 0;
                self.best = self.best_with(snapshot.step);
                self.kept.retain(|step| *step != snapshot.step && !removed.contains(step));
                self.kept.push(snapshot.step);
                Ok(told)
            }
            Err(error @ (Error::Io { .. } | Error::Missing { .. })) => {
                let told = format!("the checkpoint of step {} is not saved: {error}", snapshot.step);
                self.failed = Some(snapshot);
                self.reason = error.to_string();
                Ok(vec![told])
            }
            Err(error) => Err(error),
        }
    }

    /// The best checkpoint once that of `step` is there.
    fn best_with(&self, step: u64) -> Option<u64> {
        let is_there = |best: &u64| *best == step || self.kept.contains(best);
        self.next_best.filter(is_there).or(self.best)
    }

    /// The oldest checkpoints beyond the limit, the best one excepted; with those of `written`, as if it were there.
    fn beyond_limit(&self, written: Option<u64>) -> Vec<u64> {
        let best = written.map_or(self.best, |step| self.best_with(step));
        let mut kept: Vec<u64> = self.kept.iter().copied().filter(|&step| Some(step) != written).collect();
        kept.extend(written);
        let newest = kept.last().copied();
        let mut old = Vec::new();
        while self.limit.is_some_and(|limit| kept.len() > limit) {
            let goes = |&step: &u64| Some(step) != newest && Some(step) != best;
            let Some(at) = kept.iter().position(goes) else { break };
            old.push(kept.remove(at));
        }
        old
    }
}

/// Removes checkpoints. Gives their steps, and what to tell of those that could not be removed whole.
fn remove_all(disk: &dyn Disk, dir: &Path, steps: &[u64]) -> (Vec<u64>, Vec<String>) {
    let remove = |&step: &u64| {
        let dir = checkpoint_dir(dir, step);
        let failed = disk.remove_dir_all(&dir).err()?;
        Some(format!("{}: cannot remove the old checkpoint: {failed}", dir.display()))
    };
    (steps.to_vec(), steps.iter().filter_map(remove).collect())
}

/// Everything of one save, in the order in which it has to reach the disk.
fn write(
    disk: &dyn Disk,
    dir: &Path,
    target: &Path,
    plan: &SavePlan,
    logs: &[Arc<dyn Log>],
    snapshot: &Snapshot,
) -> Result<()> {
    check_space(disk, dir, checkpoint_bytes(plan, &snapshot.params, snapshot.resume.is_none()))?;
    logs.iter().try_for_each(|log| log.force(disk))?;
    // The logs' names too, before the checkpoint's.
    disk.sync(dir).map_err(|e| Error::io(dir, "force to disk", e))?;
    write_folder(disk, target, OnExisting::Replace, |folder| snapshot.write(folder, plan))
}

/// Fails where the disk has no room for a checkpoint of so many bytes ([`checkpoint_bytes`]).
///
/// # Errors
/// [`Error::Io`] with both numbers.
pub fn check_space(disk: &dyn Disk, dir: &Path, needed: u64) -> Result<()> {
    match disk.free_bytes(dir).map_err(|e| Error::io(dir, "ask for the free space of", e))? {
        Some(free) if free < needed => Err(Error::Io {
            path: dir.to_path_buf(),
            action: "save a checkpoint",
            source: io::Error::new(
                io::ErrorKind::StorageFull,
                format!(
                    "it takes {needed} bytes, and {free} are free; make room, or name another --output_dir"
                ),
            ),
        }),
        _ => Ok(()),
    }
}
