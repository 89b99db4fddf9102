//! What a run tells: metrics and completions as JSON lines, TensorBoard's event files, console lines,
//! progress bars, `report.html`.
//!
//! The files are the record: a console line and the curves of `report.html` are made from the same rows that stand in
//! `metrics.jsonl`, so that a resumed run reports as one.

pub mod appended;
pub mod console;
pub mod html;
pub mod jsonl;
pub mod memory;
pub mod progress;
pub mod record;
pub mod tensorboard;
mod thumbnail;

pub use appended::{Appended, Backlog};
pub use html::RunSummary;
pub use jsonl::{JsonLines, Row, read_rows};
pub use memory::MemoryPlan;
pub use progress::Progress;
pub use record::{
    ClipRatio, CompletionLengths, CompletionRecord, Phases, RewardStatistics, SftReport, StepReport,
};
pub use tensorboard::EventLog;
