//! The folder of a run: who has it, what of a run before is in it, where the run goes on.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::lock::{RunLock, clear, is_occupied, refuse_in_use};
use super::resume::compare;
use super::trainer::Trainer;
use crate::checkpoint::{
    Identity, Manifest, SavePlan, SavedRun, TrainerState, check_space, checkpoint_bytes, checkpoint_dir,
    list_checkpoints, newest_whole, replace_file,
};
use crate::config::{CheckpointOptions, ResumeFrom};
use crate::data::Dataset;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::report::console::escape_control;

/// Refuses a folder that another run has, or that holds files which are neither to be overwritten nor gone on with.
/// Asked before anything is loaded.
///
/// # Errors
/// [`Error::Busy`] for a folder in use, [`Error::Usage`] for an occupied one, [`Error::Io`].
pub fn refuse_occupied(options: &CheckpointOptions) -> Result<()> {
    let dir = &options.output_dir;
    refuse_in_use(dir)?;
    let is_new = options.resume_from() == ResumeFrom::Nothing;
    if is_new && !options.overwrite_output_dir && is_occupied(dir)? {
        return Err(Error::Usage(format!(
            "--output_dir {} already holds files; go on with the run in it by --resume_from_checkpoint, name another \
             folder, or add --overwrite_output_dir",
            dir.display()
        )));
    }
    Ok(())
}

/// Whether two paths name one folder.
fn same_place(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// A run folder that is this run's, as long as it lives.
#[derive(Debug)]
pub struct RunFolder {
    /// How it is written.
    pub disk: Arc<dyn Disk>,
    dir: PathBuf,
    resume: ResumeFrom,
    allowed: Vec<String>,
    save_only_model: bool,
    quiet: bool,
    _lock: RunLock,
}

impl RunFolder {
    /// Takes the folder. With `overwrite_output_dir` the run that is in it goes.
    ///
    /// # Errors
    /// As [`refuse_occupied`].
    pub fn take(disk: Arc<dyn Disk>, options: &CheckpointOptions, quiet: bool) -> Result<RunFolder> {
        refuse_occupied(options)?;
        let dir = &options.output_dir;
        let lock = RunLock::take(&*disk, dir)?;
        let folder = RunFolder {
            disk,
            dir: dir.clone(),
            resume: options.resume_from(),
            allowed: options.allow_change.clone(),
            save_only_model: options.save_only_model,
            quiet,
            _lock: lock,
        };
        if let Some(note) = &folder._lock.note {
            folder.tell(note);
        }
        if options.overwrite_output_dir {
            clear(&*folder.disk, dir)?;
        }
        Ok(folder)
    }

    /// Restores the trainer where the options ask to go on, and writes `config.toml`. Gives the state to go on from;
    /// `None` is a run from the start.
    ///
    /// # Errors
    /// [`Error::Content`] for a checkpoint that is damaged or of another version, or when none is whole;
    /// [`Error::Usage`] for a run of another kind, or one that has gone further than the checkpoint named.
    pub fn begin(
        &self,
        identity: &Identity,
        trainer: &mut dyn Trainer,
        samples: &Dataset,
        config: &str,
    ) -> Result<Option<TrainerState>> {
        let state = match self.checkpoint()? {
            Some(path) => Some(self.restore(&path, identity, trainer, samples)?),
            None => None,
        };
        // Before anything is written.
        let policy = trainer.policy();
        let bytes = checkpoint_bytes(&SavePlan::like(&policy.folder)?, &policy.params, self.save_only_model);
        check_space(&*self.disk, &self.dir, bytes)?;
        replace_file(&*self.disk, &self.dir.join("config.toml"), config.as_bytes())?;
        Ok(state)
    }

    /// The checkpoint to go on from.
    fn checkpoint(&self) -> Result<Option<PathBuf>> {
        match &self.resume {
            ResumeFrom::Nothing => Ok(None),
            ResumeFrom::Newest => {
                let newest = newest_whole(&self.dir)?;
                for line in &newest.passed_over {
                    self.tell(&format!("{line}: it is passed over"));
                }
                if newest.step.is_none() && !self.quiet {
                    self.tell(&format!(
                        "{} has no checkpoint yet: the run begins at the start",
                        self.dir.display()
                    ));
                }
                Ok(newest.step.map(|step| checkpoint_dir(&self.dir, step)))
            }
            ResumeFrom::Checkpoint(path) => {
                if !path.is_dir() {
                    return Err(Error::missing(
                        path,
                        "--resume_from_checkpoint names no folder; without a path the newest checkpoint of --output_dir \
                         is taken",
                    ));
                }
                let parent = path
                    .parent()
                    .map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
                let is_own = parent.is_some_and(|parent| same_place(parent, &self.dir));
                if !is_own && is_occupied(&self.dir)? {
                    return Err(Error::Usage(format!(
                        "--output_dir {} holds files of another run than {}, and logs and checkpoints of both would be mixed; \
                         name a new folder, or the run's own",
                        self.dir.display(),
                        path.display()
                    )));
                }
                Manifest::verify(path).map_err(|flaw| Error::content(path, flaw.to_string()))?;
                Ok(Some(path.clone()))
            }
        }
    }

    fn restore(
        &self,
        path: &Path,
        identity: &Identity,
        trainer: &mut dyn Trainer,
        samples: &Dataset,
    ) -> Result<TrainerState> {
        let saved = SavedRun::read(path)?;
        let state = saved.state.clone();
        if let Some(newer) = list_checkpoints(&self.dir)?.into_iter().find(|&step| step > state.global_step)
            && matches!(self.resume, ResumeFrom::Checkpoint(_))
        {
            return Err(Error::Usage(format!(
                "{} is newer than {}: going on from the older one would drop its lines from the logs, and a later resume \
                 would take it for this run's; remove it, move it out of the folder, or name another --output_dir",
                checkpoint_dir(&self.dir, newer).display(),
                path.display()
            )));
        }
        let changes = compare(&state.identity, identity, &self.allowed)?;
        if state.global_step > identity.max_steps {
            return Err(Error::Usage(format!(
                "{} is one after {} steps, and the run is to have {}: raise --max_steps (or the epochs), or resume from an \
                 earlier checkpoint",
                path.display(),
                state.global_step,
                identity.max_steps
            )));
        }
        trainer.restore(saved, samples)?;
        if !self.quiet {
            self.tell(&format!(
                "going on from {} (step {} of {})",
                path.display(),
                state.global_step,
                identity.max_steps
            ));
        }
        // What was meant to change is no news to who wants quiet.
        let names: Vec<String> = self.allowed.iter().map(|option| option.replace('-', "_")).collect();
        let meant = |line: &str| names.iter().any(|option| line.starts_with(&format!("{option} was ")));
        let news = changes.iter().filter(|line| !self.quiet || !meant(line));
        news.for_each(|line| self.tell(&format!("changed option: {line}")));
        Ok(state)
    }

    fn tell(&self, line: &str) {
        // A closed standard error is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{}", escape_control(line));
    }
}
