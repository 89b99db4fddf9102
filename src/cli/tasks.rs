//! `othink-train tasks make`.

use super::arguments::MakeCommand;
use crate::config::{self, MakeTaskConfig};
use crate::error::Result;
use crate::report::Progress;
use crate::tasks::{self, Difficulty, Task, TaskOptions};

/// Runs the command.
pub fn run(task: &MakeCommand) -> Result<()> {
    match task {
        MakeCommand::Counting(options) => make(Task::Counting, options),
        MakeCommand::Geometry(options) => make(Task::Geometry, options),
    }
}

fn make(task: Task, options: &MakeTaskConfig) -> Result<()> {
    let (train, test) = (options.num_train, options.num_test);
    let drawn = TaskOptions {
        difficulty: match options.difficulty {
            config::Difficulty::Easy => Difficulty::Easy,
            config::Difficulty::Medium => Difficulty::Medium,
            config::Difficulty::Hard => Difficulty::Hard,
        },
        seed: options.seed.seed,
        train,
        test,
        image_size: options.image_size,
        question_type: None,
    };
    let progress = Progress::start("draw images", (train + test) as u64, options.quiet.quiet);
    tasks::write(task, &drawn, &options.output_dir, &|| progress.advance(1))?;
    progress.finish();
    super::print(&format!("{}: {train} training rows, {test} test rows\n", options.output_dir.display()))
}
