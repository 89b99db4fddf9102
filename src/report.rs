//! What a run tells: metrics and completions as JSON lines, console lines, progress, `report.html`.

pub mod console;
